"""How a request travels from a front to the core and its answer back.

The relay is one SOCK_SEQPACKET socketpair per generation: every front writes to and reads from one end, pyfuse3 has
the other.  A front does not forward the kernel's `unique` but a number of its own:

    bits 0..15   slot: index into the in-flight table in shared memory (observe.shared), where the kernel's unique,
                 opcode, inode and range stand; the slot tells the front that allocated it and any front can answer
    bits 16..47  sequence number of the slot, so that an answer to an earlier use of it is recognised and dropped
    bit 62       the answer to INIT, swallowed

A LOOKUP, and every change of names, attributes and extended attributes, is relayed as it is and its answer is passed
to the kernel unchanged.  In changes the header's `pid` is a token (`make_token`) by which the core recognises one that
the kernel delivered again.  What the core only prepares and a
front then answers from the cache is relayed as a READ whose `fh` is an *intent*: an inode number and a verb in the
bits above it.  pyfuse3 hands `fh` to the core's read(), the core does the work and answers with `Done`.
"""

import struct
from enum import IntEnum
from typing import Final

from fanoutfs.records import NO_WAITS, Waits
from fanoutfs.wire.kernel import UNIQUE_RESEND

UNIQUE_INIT: Final = 1 << 62
SLOT_BITS: Final = 16
SEQUENCE_MASK: Final = 0xFFFF_FFFF

VERB_SHIFT: Final = 56
INO_MASK: Final = (1 << VERB_SHIFT) - 1
"""Inode numbers stay below 2**56: at a million new ones a second that takes two thousand years."""


class Verb(IntEnum):
    """What a front asks the core to do before it answers a request itself."""

    FILL = 1  # make this range of the file present in the cache
    REFILL = 2  # the same, but cached bytes of it failed their checksum: look at them first
    DIRECT = 3  # hand the bytes over in a scratch slot: the cache lost them again before they were read
    LIST = 4  # make the directory's listing present and fresh

    STAGE = 5  # make the inode staged and not sealed, this range of its object local, and see that there is room
    LOCALISE = 6  # make this range readable from the staging file, or the inode clean
    ROOM = 7  # the disk had no room for a write of this range: answer when another try makes sense, or ENOSPC


class Outcome(IntEnum):
    """First byte of the core's answer to an intent."""

    READY = 1  # answer from the index and the cache
    SCRATCH = 2  # the bytes are in a scratch slot
    NOT_YET = 3  # there is no room to write, only uploads make some: ask again, if anybody still waits for it


# outcome u8, padding, scratch slot u32, length u32, padding, mark the slot had when it was filled u64
DONE: Final = struct.Struct("<B3xII4xQ")

# Behind DONE, what the request waited for in the core: backend ns u64, queue ns u64, disk ns u64, and whether for
# bytes that had been in the cache before u64.  May be absent.
DONE_WAITS: Final = struct.Struct("<QQQQ")


def pack_done(outcome: Outcome, waits: Waits, slot: int = 0, length: int = 0, mark: int = 0) -> bytes:
    """Return the core's answer to an intent."""
    head = DONE.pack(outcome, slot, length, mark)
    return head + DONE_WAITS.pack(waits.backend_ns, waits.queue_ns, waits.disk_ns, waits.is_again)


def unpack_waits(packet: bytes, at: int) -> Waits:
    """Return what stands behind a DONE at this place, if the packet is one."""
    if len(packet) != at + DONE.size + DONE_WAITS.size:
        return NO_WAITS
    backend_ns, queue_ns, disk_ns, is_again = DONE_WAITS.unpack_from(packet, at + DONE.size)
    return Waits(backend_ns, queue_ns, disk_ns, is_again=bool(is_again))


def is_not_yet(packet: bytes, at: int) -> bool:
    """Tell whether what stands at this place is a DONE with NOT_YET."""
    return len(packet) == at + DONE.size + DONE_WAITS.size and packet[at] == Outcome.NOT_YET


NOTIFY_OUTCOME_BYTES: Final = 4
"""What the notifier process answers for each notification: an errno, little-endian, 0 for success."""


TOKEN_MASK: Final = 0x3FFF_FFFF
TOKEN_RESENT: Final = 1 << 30


def make_token(unique: int) -> int:
    """Return what names a change to the core: from the kernel's `unique`, which counts in steps of two.

    TOKEN_RESENT is set when the kernel delivers the request again; the number is the same as at the first time.
    Numbers begin anew with each mount and after 2**30 requests.
    """
    token = (unique & ~UNIQUE_RESEND) >> 1 & TOKEN_MASK
    return token | TOKEN_RESENT if unique & UNIQUE_RESEND else token


def make_intent(verb: Verb, ino: int) -> int:
    """Return the fh that asks for this."""
    return verb << VERB_SHIFT | ino


def split_intent(fh: int) -> tuple[Verb, int]:
    """Return (verb, inode) of an intent; ValueError when the verb does not exist."""
    return Verb(fh >> VERB_SHIFT), fh & INO_MASK


def make_unique(slot: int, sequence: int) -> int:
    """Return the relay's unique for one use of a slot."""
    return (sequence & SEQUENCE_MASK) << SLOT_BITS | slot


def split_unique(unique: int) -> tuple[int, int]:
    """Return (slot, sequence)."""
    return unique & 0xFFFF, (unique >> SLOT_BITS) & SEQUENCE_MASK
