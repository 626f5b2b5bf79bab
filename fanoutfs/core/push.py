"""What the core tells the pusher (front.pusher).  Trio thread only; never waits.

The pusher may be held by the kernel or by the disk, or dead, at any time.  What its channel does not take waits here
for the next occasion, up to a bound; then it is dropped.  Only speed depends on it.
"""

import socket
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Final

from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.wire.hints import HINTS_PER_PACKET, HintKind, encode_hints

_MAX_WAITING: Final = 1 << 16


class Push:
    """The core's end of the channel.  channel: None when nothing is to be pushed."""

    def __init__(self, channel: socket.socket | None, row: memoryview) -> None:
        self._channel = channel
        self._row = row
        self._waiting: dict[HintKind, deque[tuple[int, int]]] = {
            kind: deque() for kind in (HintKind.LISTED, HintKind.SMALL_READ, HintKind.LEAVE_OUT, HintKind.PUSH_AHEAD)
        }

    @property
    def is_active(self) -> bool:
        """Tell whether there is a pusher."""
        return self._channel is not None

    def note_reads(self, inos: Sequence[int]) -> None:
        """READs of these small files were sent, in this order."""
        self._send(HintKind.SMALL_READ, [(ino, 0) for ino in inos])

    def note_listed(self, runs: Sequence[tuple[int, int]]) -> None:
        """The kernel was given the entries of these files: (first inode, how many)."""
        self._send(HintKind.LISTED, runs)

    def push_ahead(self, inos: Sequence[int]) -> None:
        """These files are in the store and will be read, in this order: push those whose entries the kernel has."""
        self._send(HintKind.PUSH_AHEAD, [(ino, 0) for ino in inos])

    def leave_out(self, inos: Sequence[int]) -> None:
        """The next READ of these files is to tell where their reader is: push them on nobody's account before it."""
        self._send(HintKind.LEAVE_OUT, [(ino, 0) for ino in inos])

    def _send(self, kind: HintKind, items: Sequence[tuple[int, int]]) -> None:
        if self._channel is None or not items:
            return
        waiting = self._waiting[kind]
        room = _MAX_WAITING - len(waiting)
        waiting.extend(items[:room])
        bump(self._row, Count.HINTS_DROPPED, max(0, len(items) - room))
        for each, waiting in self._waiting.items():
            while waiting:
                some = list(islice(waiting, HINTS_PER_PACKET))
                try:
                    self._channel.send(encode_hints(each, some), socket.MSG_DONTWAIT)
                except OSError:  # full, or the pusher is being replaced
                    return
                for _hint in some:
                    waiting.popleft()
