"""Pack READDIR and READDIRPLUS answers."""

from typing import Final

from fanoutfs.wire.kernel import DIRENT_HEAD, ENTRY_OUT_SIZE

_PADDING: Final = tuple(b"\0" * n for n in range(8))


def pack_dirent(ino: int, next_offset: int, dtype: int, name: bytes) -> bytes:
    """Return one fuse_dirent; next_offset is where a later call continues behind this entry."""
    return DIRENT_HEAD.pack(ino, next_offset, len(name), dtype) + name + _PADDING[-(24 + len(name)) % 8]


def dirent_size(name_length: int) -> int:
    """Return the packed size of a fuse_dirent with a name of this many bytes."""
    return (24 + name_length + 7) & ~7


def direntplus_size(name_length: int) -> int:
    """Return the packed size of a fuse_direntplus: an entry_out, then a dirent."""
    return ENTRY_OUT_SIZE + dirent_size(name_length)
