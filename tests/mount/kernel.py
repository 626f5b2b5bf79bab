"""System calls that Python's os module lacks, and what several tests of mounts share.  Linux x86-64 and arm64."""

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.mounts import Mount, mounted
from tests.support.servers import Bucket

# <sys/mount.h>
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_REMOUNT: Final = 32
# <asm/unistd.h>
_IS_X86: Final = platform.machine() == "x86_64"
_SYS_GETDENTS64: Final = 217 if _IS_X86 else 61
_SYS_OPENAT2: Final = 437
_SYS_PIDFD_GETFD: Final = 438

RESOLVE_NO_XDEV: Final = 1
RESOLVE_NO_SYMLINKS: Final = 4
RESOLVE_BENEATH: Final = 8

AT_STATX_FORCE_SYNC: Final = 0x2000
STATX_BASIC_STATS: Final = 0x7FF
STATX_BTIME: Final = 0x800

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

AT_FDCWD: Final = -100
_DIRENT: Final = struct.Struct("<QqHB")  # struct linux_dirent64 without the name
_OPEN_HOW: Final = struct.Struct("<QQQ")

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def remount_writable(path: Path) -> None:
    """Do what `mount -o remount,rw` does (root only), by mount(2): util-linux goes through fsconfig or a helper."""
    flags = ctypes.c_ulong(_MS_REMOUNT | _MS_NOSUID | _MS_NODEV)
    _checked(_libc.mount(b"none", os.fsencode(path), None, flags, None))


def getdents(fd: int, size: int) -> list[tuple[int, int, int, bytes]]:
    """Return (inode, offset behind it, DT_ type, name) of the next entries that fit into `size` bytes."""
    buffer = ctypes.create_string_buffer(size)
    length = _checked(_libc.syscall(_SYS_GETDENTS64, fd, buffer, ctypes.c_uint(size)))
    found = []
    at = 0
    while at < length:
        ino, offset, record_length, dtype = _DIRENT.unpack_from(buffer, at)
        name = buffer.raw[at + _DIRENT.size : at + record_length].split(b"\0", 1)[0]
        found.append((ino, offset, dtype, name))
        at += record_length
    return found


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Return a descriptor as openat2(2) does."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    return _checked(_libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), how, ctypes.c_size_t(len(how))))


def readahead(fd: int, offset: int, count: int) -> None:
    """Read a range into the page cache: readahead(2)."""
    _checked(_libc.readahead(fd, ctypes.c_int64(offset), ctypes.c_size_t(count)))


def duplicate_from(pidfd: int, fd: int) -> int:
    """Return a duplicate of another process's descriptor: pidfd_getfd(2)."""
    return _checked(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0))


def statx(path: Path, flags: int, mask: int) -> tuple[int, int, int]:
    """Return (mask of what was filled in, inode, size) as statx(2) does."""
    buffer = ctypes.create_string_buffer(256)
    _checked(_libc.statx(AT_FDCWD, os.fsencode(path), flags, ctypes.c_uint(mask), buffer))
    filled = struct.unpack_from("<I", buffer, 0)[0]
    ino, size = struct.unpack_from("<QQ", buffer, 32)
    return filled, ino, size


def renameat2(old: Path, new: Path, flags: int) -> None:
    """Rename as renameat2(2) does."""
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)))


class FileHandle(ctypes.Structure):
    """struct file_handle of name_to_handle_at(2)."""

    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128))


def name_to_handle(path: Path) -> FileHandle:
    """Return the file's handle."""
    handle = FileHandle(bytes=128)
    mount_id = ctypes.c_int()
    _checked(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0))
    return handle


def open_by_handle(mount_fd: int, handle: FileHandle) -> int:
    """Return a descriptor of the file a handle stands for."""
    return _checked(_libc.open_by_handle_at(mount_fd, ctypes.byref(handle), os.O_RDONLY | os.O_CLOEXEC))


def directory_positions(path: Path) -> list[tuple[int, bytes]]:
    """Return (telldir position in front of it, name) of every entry, by opendir(3)."""
    with _opened(path) as stream:
        found: list[tuple[int, bytes]] = []
        while True:
            position = _libc.telldir(stream)
            name = _next_name(stream)
            if name is None:
                return found
            found.append((position, name))


def name_at_position(path: Path, position: int) -> bytes | None:
    """Return the name that seekdir(3) to this position and readdir(3) give, in a stream of its own."""
    with _opened(path) as stream:
        _libc.seekdir(stream, position)
        return _next_name(stream)


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.closedir.argtypes = (ctypes.c_void_p,)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    stream = _libc.opendir(os.fsencode(path))
    if not stream:
        _checked(-1)
    try:
        yield stream
    finally:
        _libc.closedir(stream)


def _next_name(stream: int) -> bytes | None:
    entry = _libc.readdir(stream)
    return ctypes.string_at(entry + _DIRENT.size) if entry else None


# --- what several files share ----------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open without the IOCTL that Python's open() costs (it asks whether the file is a terminal)."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def read_all(path: Path, chunk: int = 1 << 20) -> bytes:
    """Return a file's content by plain read(2)."""
    with opened(path) as fd:
        parts = []
        while data := os.read(fd, chunk):
            parts.append(data)
        return b"".join(parts)


@contextlib.contextmanager
def mounted_bucket(bucket: Bucket, *options: str, endpoint: str = "", patch: str = "") -> Iterator[Mount]:
    """Mount a bucket of the tests whose names never age: only `invalidate` lists again.  patch: see PatchedMount."""
    options = ("--endpoint-url", endpoint or bucket.endpoint, "--metadata-ttl", "indefinite", *options)
    with mounted(bucket.url, *options, env=bucket.env, patch=patch) as mount:
        yield mount
