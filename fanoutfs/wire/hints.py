"""What fronts tell the core without waiting for an answer: one SOCK_SEQPACKET packet each.

A hint may be lost (a full socket drops it); nothing may depend on its arrival but speed and the freshness period.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

# kind u8, padding, part u32, inode u64
_HINT: Final = struct.Struct("<B3xIQ")
HINT_SIZE: Final = _HINT.size


class HintKind(IntEnum):
    """Why the front writes."""

    DIRECTORY_USED = 1  # a name in this directory was looked up or listed
    PART_READ = 2  # a reader arrived at this part of a large file


@dataclass(frozen=True, slots=True)
class Hint:
    """One hint.  part: index of the 8 MiB part, 0 for directories."""

    kind: HintKind
    ino: int
    part: int = 0

    def encode(self) -> bytes:
        """Return the packet."""
        return _HINT.pack(self.kind, self.part, self.ino)


def decode_hint(packet: bytes) -> Hint:
    """Return the hint in a packet; struct.error or ValueError on anything else."""
    kind, part, ino = _HINT.unpack(packet)
    return Hint(HintKind(kind), ino, part)
