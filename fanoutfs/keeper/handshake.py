"""The INIT exchange: the keeper answers the kernel itself, once, and shows every new core the saved request."""

import os
import select
from typing import Final

from fanoutfs.errors import FuseUnavailableError
from fanoutfs.wire.kernel import (
    FUSE_KERNEL_VERSION,
    FUSE_MINIMUM_MINOR,
    IN_HEADER,
    IN_HEADER_SIZE,
    INIT_IN,
    MIN_READ_BUFFER,
    Opcode,
)
from fanoutfs.wire.messages import KernelOffer, decode_init, encode_init_answer, encode_request
from fanoutfs.wire.relay import UNIQUE_INIT

_TIMEOUT_S: Final = 10.0
_MAX_READAHEAD_BYTES: Final = 4 << 20
_SPLICE_FLAGS: Final = 0b111 << 7
"""SPLICE_WRITE, SPLICE_MOVE, SPLICE_READ: libfuse must not try to splice from a socket of packets."""


def answer_init(fuse_fd: int) -> tuple[bytes, KernelOffer]:
    """Read the kernel's INIT, answer it, and return the request and what it offered.  Raises FuseUnavailableError."""
    poller = select.poll()
    poller.register(fuse_fd, select.POLLIN)
    if not poller.poll(_TIMEOUT_S * 1000):
        raise FuseUnavailableError(f"the kernel sent no INIT within {_TIMEOUT_S:g} s of mounting")
    packet = os.read(fuse_fd, MIN_READ_BUFFER)
    _length, opcode, unique, *_rest = IN_HEADER.unpack_from(packet)
    offer = decode_init(packet)
    if opcode != Opcode.INIT or offer.major != FUSE_KERNEL_VERSION or offer.minor < FUSE_MINIMUM_MINOR:
        raise FuseUnavailableError(
            f"the kernel speaks FUSE {offer.major}.{offer.minor}; {FUSE_KERNEL_VERSION}.{FUSE_MINIMUM_MINOR} "
            "(Linux 5.4) or later is needed"
        )
    os.write(fuse_fd, encode_init_answer(unique, offer, _MAX_READAHEAD_BYTES))
    return packet, offer


def replayed_init(packet: bytes) -> bytes:
    """Return the saved INIT as a new core gets it: marked, so that fronts swallow the answer."""
    body = bytearray(packet[IN_HEADER_SIZE:].ljust(INIT_IN.size, b"\0"))
    major, minor, max_readahead, flags, flags2 = INIT_IN.unpack_from(body)
    INIT_IN.pack_into(body, 0, major, minor, max_readahead, flags & ~_SPLICE_FLAGS, flags2)
    return encode_request(Opcode.INIT, UNIQUE_INIT, 0, bytes(body))
