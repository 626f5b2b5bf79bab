"""Encode answers and notifications, decode INIT.  Pure functions over bytes."""

from dataclasses import dataclass
from typing import Final

from fanoutfs.wire.kernel import (
    ATTR_OUT_HEAD,
    ATTR_SIZE,
    FOREVER_S,
    FUSE_EXPIRE_ONLY,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    IN_HEADER,
    IN_HEADER_SIZE,
    INIT_IN,
    INIT_OUT,
    MAX_PAGES,
    MAX_READ_BYTES,
    NOTIFY_INVAL_ENTRY_OUT,
    NOTIFY_INVAL_INODE_OUT,
    NOTIFY_STORE_HEAD,
    OUT_HEADER,
    OUT_HEADER_SIZE,
    InitFlag,
    Notify,
    Opcode,
)

WANTED_FLAGS: Final = (
    InitFlag.ASYNC_READ
    | InitFlag.BIG_WRITES
    | InitFlag.DO_READDIRPLUS  # always plus (no AUTO): a listing primes every entry
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS  # libfuse 3.14 never asks for it: lookups in one directory would queue
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.EXPLICIT_INVAL_DATA  # instead of AUTO_INVAL_DATA: pages live until we say otherwise
    | InitFlag.HANDLE_KILLPRIV_V2  # else one GETXATTR before each write
    | InitFlag.INIT_EXT
    | InitFlag.HAS_EXPIRE_ONLY
    | InitFlag.HAS_RESEND
)
"""Never ATOMIC_O_TRUNC: with opens answered by the kernel, O_TRUNC would be lost silently.
Never WRITEBACK_CACHE, POSIX_LOCKS, FLOCK_LOCKS: locks then work inside the kernel, at no cost."""

MAX_BACKGROUND: Final = 512
"""Asynchronous requests in flight; the kernel's default of 12 would cap concurrent cold reads at 12."""

ATTR_OUT_FOREVER: Final = ATTR_OUT_HEAD.pack(FOREVER_S, 0, 0)


@dataclass(frozen=True, slots=True)
class KernelOffer:
    """What the kernel said in INIT."""

    major: int
    minor: int
    max_readahead: int
    flags: int

    def offers(self, flag: InitFlag) -> bool:
        """Tell whether the kernel knows this feature."""
        return bool(self.flags & flag)

    @property
    def has_epoch(self) -> bool:
        """Tell whether NOTIFY_INC_EPOCH exists (7.44, Linux 6.16)."""
        return (self.major, self.minor) >= (7, 44)


def decode_init(packet: bytes) -> KernelOffer:
    """Decode a whole INIT request, header included; older kernels send a shorter body."""
    body = packet[IN_HEADER_SIZE:].ljust(INIT_IN.size, b"\0")
    major, minor, max_readahead, flags, flags2 = INIT_IN.unpack_from(body)
    if flags & InitFlag.INIT_EXT:
        flags |= flags2 << 32
    return KernelOffer(major, minor, max_readahead, flags)


def encode_init_answer(unique: int, offer: KernelOffer, max_readahead: int) -> bytes:
    """Return the whole answer to INIT: the wanted flags as far as the kernel offers them."""
    flags = WANTED_FLAGS & offer.flags
    body = INIT_OUT.pack(
        FUSE_KERNEL_VERSION,
        min(FUSE_KERNEL_MINOR_VERSION, offer.minor),
        min(max_readahead, offer.max_readahead),
        flags & 0xFFFF_FFFF,
        MAX_BACKGROUND,
        MAX_BACKGROUND * 3 // 4,
        MAX_READ_BYTES,
        1,
        MAX_PAGES,
        0,
        flags >> 32,
        0,
        0,
    )
    return OUT_HEADER.pack(OUT_HEADER_SIZE + len(body), 0, unique) + body


def encode_request(opcode: int, unique: int, nodeid: int, body: bytes, pid: int = 0) -> bytes:
    """Return a request as the kernel would send it for uid 0, gid 0 (what fronts ask for themselves, INIT, tests)."""
    return IN_HEADER.pack(IN_HEADER_SIZE + len(body), opcode, unique, nodeid, 0, 0, pid, 0, 0) + body


def encode_error(unique: int, errno_code: int) -> bytes:
    """Return an answer that carries only an error; errno_code is positive."""
    return OUT_HEADER.pack(OUT_HEADER_SIZE, -errno_code, unique)


def encode_resend() -> bytes:
    """Return NOTIFY_RESEND: the kernel delivers every unanswered request again."""
    return OUT_HEADER.pack(OUT_HEADER_SIZE, Notify.RESEND, 0)


def encode_inc_epoch() -> bytes:
    """Return NOTIFY_INC_EPOCH: every cached name is asked for again at its next use; pages stay."""
    return OUT_HEADER.pack(OUT_HEADER_SIZE, Notify.INC_EPOCH, 0)


def encode_inval_inode(nodeid: int, offset: int = 0, length: int = 0) -> bytes:
    """Return NOTIFY_INVAL_INODE: attributes, and pages from offset (length 0: to the end; offset < 0: none)."""
    body = NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length)
    return OUT_HEADER.pack(OUT_HEADER_SIZE + len(body), Notify.INVAL_INODE, 0) + body


def encode_store_head(nodeid: int, size_bytes: int) -> bytes:
    """Return what stands before a file's whole content in NOTIFY_STORE."""
    return NOTIFY_STORE_HEAD.pack(NOTIFY_STORE_HEAD.size + size_bytes, Notify.STORE, 0, nodeid, 0, size_bytes, 0)


def encode_inval_entry(parent: int, name: bytes, *, expire_only: bool = False) -> bytes:
    """Return NOTIFY_INVAL_ENTRY: the name (positive or negative) is forgotten, or looked up again (expire_only)."""
    flags = FUSE_EXPIRE_ONLY if expire_only else 0
    body = NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER_SIZE + len(body), Notify.INVAL_ENTRY, 0) + body


def describe_request(packet: bytes | memoryview) -> str:
    """Return one line for logs: opcode, unique, node, pid, length."""
    if len(packet) < IN_HEADER_SIZE:
        return f"short packet of {len(packet)} bytes"
    length, opcode, unique, nodeid, _uid, _gid, pid, _ext, _pad = IN_HEADER.unpack_from(packet)
    name = Opcode(opcode).name if opcode in Opcode._value2member_map_ else str(opcode)
    return f"{name} unique={unique:#x} node={nodeid} pid={pid} len={length}"


assert ATTR_SIZE == 88  # noqa: S101 - the stored records rely on it
