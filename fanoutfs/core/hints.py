"""Passes on what fronts and the pusher tell (wire.hints) to those who act on it.  Core, trio thread only.

The first packet is taken at once, what comes after it in rounds: fronts with little to do send a packet per READ, and
to wake trio for each would cost as much as the answer.  Windows ahead of readers are wide enough for the pause.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from fanoutfs.wire.hints import PACKET_BYTES, HintKind, decode_hints

_PACKETS: Final = 64
_PAUSE_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class HintListeners:
    """Who wants to know what."""

    directory_used: Callable[[int], None]
    part_reads: Sequence[Callable[[int, int], None]]
    """(inode, part)."""
    small_reads: Sequence[Callable[[Sequence[int]], None]]
    """Inodes in the order they were read."""
    listed: Callable[[Sequence[tuple[int, int]]], None]
    """Runs of entries that the kernel was given: (first inode, how many)."""
    pushed: Sequence[Callable[[Sequence[tuple[int, int]]], None]]
    """Runs of small files whose contents the kernel was given: (first inode, how many)."""
    written: Callable[[int], None]
    access: Callable[[int, int], None]
    """(inode, part)."""
    made: Callable[[], None]
    """Fronts have made files."""


async def take_hints(channel: socket.socket, listeners: HintListeners) -> None:
    """Pass on hints until the other ends are closed."""
    while True:
        await trio.lowlevel.wait_readable(channel)
        small_reads: list[int] = []
        listed: list[tuple[int, int]] = []
        pushed: list[tuple[int, int]] = []
        for _packet in range(_PACKETS):
            try:
                packet = channel.recv(PACKET_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not packet:
                return
            for hint in decode_hints(packet):
                if hint.kind is HintKind.SMALL_READ:
                    small_reads.append(hint.ino)
                elif hint.kind is HintKind.LISTED:
                    listed.append((hint.ino, hint.part))
                elif hint.kind is HintKind.PUSHED:
                    pushed.append((hint.ino, hint.part))
                elif hint.kind is HintKind.PART_READ:
                    for note_part_read in listeners.part_reads:
                        note_part_read(hint.ino, hint.part)
                elif hint.kind is HintKind.ACCESS:
                    listeners.access(hint.ino, hint.part)
                elif hint.kind is HintKind.MADE:
                    listeners.made()
                elif hint.kind is HintKind.WRITTEN:
                    listeners.written(hint.ino)
                elif hint.kind is HintKind.DIRECTORY_USED:
                    listeners.directory_used(hint.ino)
        if listed:
            listeners.listed(listed)
        if pushed:
            for note_pushed in listeners.pushed:
                note_pushed(pushed)
        if small_reads:
            for note_reads in listeners.small_reads:
                note_reads(small_reads)
        await trio.sleep(_PAUSE_S)
