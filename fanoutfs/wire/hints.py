"""What fronts tell the core without waiting for an answer: SOCK_SEQPACKET packets of one or more hints.

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


@dataclass(frozen=True, slots=True)
class Hint:
    """One hint.  part: index of the 8 MiB part, 0 for directories and small files."""

    kind: HintKind
    ino: int
    part: int = 0

    def encode(self) -> bytes:
        """Return the hint's bytes; a packet is up to HINTS_PER_PACKET of them."""
        return _HINT.pack(self.kind, self.part, self.ino)


def encode_small_reads(inos: Iterable[int]) -> bytes:
    """Return the packet that tells of these small files in the order they were read."""
    return b"".join([_HINT.pack(HintKind.SMALL_READ, 0, ino) for ino in inos])


def decode_hints(packet: bytes) -> list[Hint]:
    """Return the hints in a packet; struct.error or ValueError on anything else."""
    return [Hint(HintKind(kind), ino, part) for kind, part, ino in _HINT.iter_unpack(packet)]
