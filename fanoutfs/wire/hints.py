"""Hints: what fronts tell the core, and the core and the pusher each other, without waiting for an answer.

They travel in packets (SOCK_SEQPACKET).  A hint may be lost (a full socket drops it); nothing may depend on its arrival
but speed and the freshness period.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final

# kind u8, padding, part u32, inode u64
_HINT: Final = struct.Struct("<B3xIQ")
HINT_SIZE: Final = _HINT.size
HINTS_PER_PACKET: Final = 64
PACKET_BYTES: Final = HINT_SIZE * HINTS_PER_PACKET


@unique
class HintKind(IntEnum):
    """Why the front writes."""

    DIRECTORY_USED = 1  # a name in this directory was looked up or listed
    PART_READ = 2  # a reader arrived at this part of a large file
    SMALL_READ = 3  # a small file was read from its beginning, and the store had it
    LISTED = 4  # the kernel was given the entries of `part` files, numbered from this inode on
    PUSH_AHEAD = 5  # core to pusher: this file will be read, the ones before it sooner
    PUSHED = 6  # pusher to core: `part` files, numbered from this inode on, are in the page cache
    WRITTEN = 7  # this inode's staging file was written
    ACCESS = 8  # a part of a large file was read, told while a trace is recorded
    LEAVE_OUT = 9  # core to pusher: the READ of this file is waited for, as a sign of its reader
    MADE = 10  # a front has made files by itself: which ones its ring tells (observe.spares)


@dataclass(frozen=True, slots=True)
class Hint:
    """One hint.  part: index of the 8 MiB part, or how many files were listed or pushed, else 0."""

    kind: HintKind
    ino: int
    part: int = 0

    def encode(self) -> bytes:
        """Return the hint's bytes; a packet is up to HINTS_PER_PACKET of them."""
        return _HINT.pack(self.kind, self.part, self.ino)


def encode_hints(kind: HintKind, items: Iterable[tuple[int, int]]) -> bytes:
    """Return the packet that carries these (inode, part), at most HINTS_PER_PACKET of them, in this order."""
    return b"".join([_HINT.pack(kind, part, ino) for ino, part in items])


def runs_of(inos: Iterable[int]) -> list[tuple[int, int]]:
    """Return numbers as (first, how many) of those in a row, in this order."""
    runs: list[tuple[int, int]] = []
    first = end = 0
    for ino in inos:
        if ino != end:
            if first:
                runs.append((first, end - first))
            first = ino
        end = ino + 1
    if first:
        runs.append((first, end - first))
    return runs


def encode_small_reads(inos: Iterable[int]) -> bytes:
    """Return the packet that tells of these small files in the order they were read."""
    return encode_hints(HintKind.SMALL_READ, ((ino, 0) for ino in inos))


def decode_hints(packet: bytes) -> list[Hint]:
    """Return the hints in a packet; struct.error or ValueError on anything else."""
    return [Hint(HintKind(kind), ino, part) for kind, part, ino in _HINT.iter_unpack(packet)]
