"""LMDB on file systems that copy on write: where its lock file lies, and how its pages are written.

Every transaction, a reader's too, writes to LMDB's lock file, which is mapped.  Where each write takes a new block
(btrfs, bcachefs), that needs room, and without it, or beyond a quota, the kernel ends the process: SIGBUS.  No core
would start any more, no front answer.  There the lock file of root's daemons lies in /run/fanoutfs, in memory on most
machines, and a link beside the database leads to it.  (What ordinary users have there goes when they log out; theirs
stays on the disk.)  And on btrfs the database itself is written in place, as far as it was written before or room was
taken ahead (`store`): else evicting would need room to free some.

Processes of one daemon only: whoever holds the lock of the cache directory.  Blocks.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import struct
from pathlib import Path
from typing import Final

from fanoutfs.config.directories import runtime_dir

# <linux/magic.h>; bcachefs: fs/bcachefs/bcachefs_format.h
_BTRFS: Final = 0x9123683E
_BCACHEFS: Final = 0xCA451A4E
_COPY_ON_WRITE: Final = (_BTRFS, _BCACHEFS)

# <linux/fs.h>
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_NOCOW_FL: Final = 0x00800000
_FLAGS: Final = struct.Struct("l")

_SUFFIX: Final = "-lock"
_STATFS_BYTES: Final = 120
_libc: Final = ctypes.CDLL(None, use_errno=True)


def lock_of(database: Path) -> Path:
    """Return where LMDB has the lock of a database."""
    return database.with_name(database.name + _SUFFIX)


def prepare(database: Path, *, is_owner: bool) -> None:
    """Call before a database is opened.  is_owner: nobody else opens it at the same moment, or has it open.

    Raises FileNotFoundError when its lock is gone from where the owner has put it.  OSError.
    """
    lock = lock_of(database)
    if lock.is_symlink() and not is_owner:
        lock.stat()  # LMDB would make another one, beside that which others have: two would change the index at once
    kind = _kind(database.parent) if is_owner else 0
    if kind not in _COPY_ON_WRITE:
        return
    if kind == _BTRFS and not database.exists():
        _make_written_in_place(database)
    if os.geteuid() == 0 and not lock.exists():
        runtime_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
        if not copies_on_write(runtime_dir()):
            forget(database)
            _target(database).unlink(missing_ok=True)
            lock.symlink_to(_target(database))


def forget(database: Path) -> None:
    """Remove a database's lock, which nobody uses now: the next to open the database makes it.  Raises OSError."""
    lock = lock_of(database)
    if lock.is_symlink():
        lock.readlink().unlink(missing_ok=True)
    lock.unlink(missing_ok=True)


def begin_anew(volume: Path) -> None:
    """Have the next to open a volume's databases decide where their locks lie; those elsewhere go.

    Only while nobody has one open.  Raises OSError.
    """
    if copies_on_write(volume):  # a lock of an earlier version may lie on the disk
        for lock in list(volume.glob(f"*{_SUFFIX}")):
            forget(lock.with_name(lock.name.removesuffix(_SUFFIX)))


def copies_on_write(directory: Path) -> bool:
    """Tell whether a directory's file system needs a new block for each that is changed."""
    return _kind(directory) in _COPY_ON_WRITE


def _target(database: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(database.absolute())).hexdigest()[:16]
    return runtime_dir() / f"{digest}.lmdb-lock"


def _make_written_in_place(database: Path) -> None:
    """Make an empty file whose blocks are not copied; files that are not empty keep what they have."""
    fd = os.open(database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a mount option may forbid it
            (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_FLAGS.size)))
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags | _FS_NOCOW_FL))
    finally:
        os.close(fd)


def _kind(path: Path) -> int:
    """Return the magic number of the file system that a directory lies in; 0: not known."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(path), found):
        return 0
    return int.from_bytes(found.raw[: ctypes.sizeof(ctypes.c_long)], "little") & 0xFFFF_FFFF
