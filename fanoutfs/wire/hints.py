"""What fronts tell the core, and the core the pusher, without waiting for an answer: SOCK_SEQPACKET packets of hints.

A hint may be lost (a full socket drops it); nothing may depend on its arrival but speed and the freshness period.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

# kind u8, padding, part u32, inode u64
_HINT: Final = struct.Struct("<B3xIQ")
HINT_SIZE: Final = _HINT.size
HINTS_PER_PACKET: Final = 64
PACKET_BYTES: Final = HINT_SIZE * HINTS_PER_PACKET


class HintKind(IntEnum):
    """Why the front writes."""

    DIRECTORY_USED = 1  # a name in this directory was looked up or listed
    PART_READ = 2  # a reader arrived at this part of a large file
    SMALL_READ = 3  # a small file was read from its beginning, and the store had it
    LISTED = 4  # the kernel was given the entries of `part` files, numbered from this inode on
    WRITTEN = 6  # this inode's staging file was written
    PUSH_AHEAD = 5  # core to pusher: this file will be read, the ones before it sooner


@dataclass(frozen=True, slots=True)
class Hint:
    """One hint.  part: index of the 8 MiB part, or how many files were listed, else 0."""

    kind: HintKind
    ino: int
    part: int = 0

    def encode(self) -> bytes:
        """Return the hint's bytes; a packet is up to HINTS_PER_PACKET of them."""
        return _HINT.pack(self.kind, self.part, self.ino)


def encode_hints(kind: HintKind, items: Iterable[tuple[int, int]]) -> bytes:
    """Return the packet that carries these (inode, part), at most HINTS_PER_PACKET of them, in this order."""
    return b"".join([_HINT.pack(kind, part, ino) for ino, part in items])


def encode_small_reads(inos: Iterable[int]) -> bytes:
    """Return the packet that tells of these small files in the order they were read."""
    return encode_hints(HintKind.SMALL_READ, ((ino, 0) for ino in inos))


def decode_hints(packet: bytes) -> list[Hint]:
    """Return the hints in a packet; struct.error or ValueError on anything else."""
    return [Hint(HintKind(kind), ino, part) for kind, part, ino in _HINT.iter_unpack(packet)]
