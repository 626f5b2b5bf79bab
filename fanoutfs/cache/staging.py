"""The files that hold content which is not, or not all, in the object store yet: staging/<inode, hex>-<life, hex>.

While an inode is staged its file's size, times and blocks are those that users see.  Which parts of an overlay's file
are valid says the index (`staged`, `local`).  The core makes and removes these files; fronts write and read them, each
with a bounded table of descriptors of its own.  An inode that becomes clean and is staged again gets a new life, which
stands in its record: so a descriptor that a front kept is never taken for the new file's.  The core removes or renames
a file only after a grace period.

Two extended attributes save the content when the index is lost: `user.fanoutfs.key` is the object key that it shall
have, and `user.fanoutfs.base` of an overlay the object that fills what the file lacks, as JSON [size up to where, etag,
version id, size, mtime ns]; `null` where it lacks nothing.  A file without a key was never acknowledged to anybody.
"""

import contextlib
import errno
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, StagedFile, Version

KEY_XATTR: Final = "user.fanoutfs.key"
BASE_XATTR: Final = "user.fanoutfs.base"
_MAX_DESCRIPTORS: Final = 512


class StagingFiles:
    """Descriptors of staging files.  Not thread-safe: one owner thread."""

    def __init__(self, volume: Path) -> None:
        """Make the directory if it is missing and open it.  Raises OSError."""
        path = volume / "staging"
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._open: OrderedDict[tuple[int, int], int] = OrderedDict()

    @staticmethod
    def name(ino: int, life: int) -> str:
        """Return a file's name in the directory."""
        return f"{ino:x}-{life:x}"

    def create(self, ino: int, life: int, size_bytes: int = 0) -> int:
        """Make an empty (sparse) file and return its descriptor, valid until the next call.

        Raises FileExistsError, OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.name(ino, life), flags, 0o600, dir_fd=self._root)
        try:
            if size_bytes:
                os.ftruncate(fd, size_bytes)
        except OSError:
            os.close(fd)
            os.unlink(self.name(ino, life), dir_fd=self._root)
            raise
        self._keep(ino, life, fd)
        return fd

    def descriptor(self, ino: int, life: int) -> int:
        """Return an open descriptor of an inode's file, valid until the next call.  Raises OSError."""
        fd = self._open.get((ino, life))
        if fd is not None:
            self._open.move_to_end((ino, life))
            return fd
        fd = os.open(self.name(ino, life), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._root)
        self._keep(ino, life, fd)
        return fd

    def duplicate(self, ino: int, life: int) -> int:
        """Return a descriptor that the caller closes: for a worker thread that outlives the table's entry."""
        return os.dup(self.descriptor(ino, life))

    def _keep(self, ino: int, life: int, fd: int) -> None:
        self._open[ino, life] = fd
        if len(self._open) > _MAX_DESCRIPTORS:
            os.close(self._open.popitem(last=False)[1])

    def forget(self, ino: int, life: int) -> None:
        """Close the inode's descriptor."""
        fd = self._open.pop((ino, life), None)
        if fd is not None:
            os.close(fd)

    def stat(self, ino: int, life: int) -> os.stat_result:
        """Return size, times and blocks of an inode's content.  Raises OSError."""
        return os.fstat(self.descriptor(ino, life))

    def remove(self, ino: int, life: int) -> None:
        """Remove a file, if it is there."""
        self.forget(ino, life)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name(ino, life), dir_fd=self._root)

    def path(self, ino: int, life: int) -> Path:
        """Return a file's path, for renaming it into the cache."""
        return Path(os.readlink(f"/proc/self/fd/{self._root}")) / self.name(ino, life)

    def label(self, ino: int, life: int, key: str) -> None:
        """Write down which object key a file's content shall have.  Raises OSError.

        Nothing on a file system without extended attributes: only a lost index would need it.
        """
        _set_xattr(self.descriptor(ino, life), KEY_XATTR, key.encode("utf-8", "surrogateescape"))

    def label_base(self, ino: int, life: int, base: Version | None, base_size: int = 0) -> None:
        """Write down which object fills what a file lacks below base_size; None: it lacks nothing.  Raises OSError.

        Before the index says so.
        """
        record = base and [base_size, base.etag, base.version_id, base.size_bytes, base.mtime_ns]
        _set_xattr(self.descriptor(ino, life), BASE_XATTR, json.dumps(record).encode())

    def describe(self, ino: int, life: int) -> StagedFile | None:
        """Return what a file says of itself; None: it has no key.  Raises OSError."""
        fd = self.descriptor(ino, life)
        found = os.fstat(fd)
        key = _get_xattr(fd, KEY_XATTR)
        if key is None:
            return None
        staged = StagedFile(ino, life, key.decode("utf-8", "surrogateescape"), found.st_size, found.st_mtime_ns)
        value = _get_xattr(fd, BASE_XATTR)
        record = None if value is None else json.loads(value)
        if record is None:
            is_sparse = found.st_blocks * 512 < found.st_size
            return replace(staged, is_incomplete=is_sparse and value is None)
        base_size, etag, version_id, size_bytes, mtime_ns = record
        base = Version(etag, version_id, size_bytes, mtime_ns)
        return replace(staged, base=base, base_size=base_size, local=tuple(_local_blocks(fd, base_size).items()))

    def sync_directory(self) -> None:
        """Make the names of new files durable.  Blocks."""
        os.fsync(self._root)

    def all(self) -> Iterator[tuple[int, int]]:
        """Yield (inode, life) of each file there is."""
        for entry in os.scandir(self._root):
            with contextlib.suppress(ValueError):
                ino, life = entry.name.split("-")
                yield int(ino, 16), int(life, 16)

    def used_bytes(self) -> int:
        """Return what all files occupy on disk."""
        total = 0
        for entry in os.scandir(self._root):
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                total += found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else 0
        return total

    def close(self) -> None:
        """Close everything."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        os.close(self._root)


def _set_xattr(fd: int, name: str, value: bytes) -> None:
    try:
        os.setxattr(fd, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise


def _get_xattr(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
        return None


def _local_blocks(fd: int, base_size: int) -> dict[int, int]:
    """Return {part: bits} of the blocks below base_size that are in an overlay's file without a hole.

    A block is put there as a whole before anybody may write to it: one with a hole was never finished.  What is
    appended shares a page of the disk with the end of the last block, which reads as zeros there if it is not local.
    """
    found: dict[int, int] = {}
    at = 0
    while at < base_size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        for block in range(-(-start // BLOCK_BYTES), -(-base_size // BLOCK_BYTES)):
            end = min((block + 1) * BLOCK_BYTES, base_size)
            if end > at or (end % BLOCK_BYTES and not any(os.pread(fd, end % BLOCK_BYTES, block * BLOCK_BYTES))):
                break
            part = block // PART_BLOCKS
            found[part] = found.get(part, 0) | 1 << block % PART_BLOCKS
    return found
