"""The files that hold content which is not, or not all, in the object store yet: staging/<inode, hex>-<life, hex>.

While an inode is staged its file's size, times and blocks are those that users see.  Which parts of an overlay's file
are valid says the index (`staged`, `local`).  The core makes and removes these files; fronts write and read them, each
with a bounded table of descriptors of its own.  An inode that becomes clean and is staged again gets a new life, which
stands in its record: so a descriptor that a front kept is never taken for the new file's.  The core removes or renames
a file only after a grace period.

Two extended attributes save the content when the index is lost (see `cache.salvage`): `user.fanoutfs.key` is the
object key that it shall have, and `user.fanoutfs.base` the object it was before, which fills what the file lacks, as
JSON [size up to where, etag, version id, size, mtime ns].  A file without a key was never acknowledged to anybody.
"""

import contextlib
import json
import os
import stat
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fanoutfs.records import Version
from fanoutfs.wire.kernel import ATTR_SIZE

_NS: Final = 1_000_000_000
_U64_MASK: Final = (1 << 64) - 1
# The fields of fuse_attr that a staging file knows; the others lie between them.
_SIZE_BLOCKS: Final = struct.Struct("<QQ")
_TIMES: Final = struct.Struct("<QQ")
_NANOSECONDS: Final = struct.Struct("<II")
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
        fd = self.make(ino, life)
        try:
            if size_bytes:
                os.ftruncate(fd, size_bytes)
        except OSError:
            os.close(fd)
            os.unlink(self.name(ino, life), dir_fd=self._root)
            raise
        self._keep(ino, life, fd)
        return fd

    def make(self, ino: int, life: int) -> int:
        """Make an empty file and return its descriptor, for `adopt`.  Any thread.  Raises FileExistsError, OSError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.name(ino, life), flags, 0o600, dir_fd=self._root)

    def adopt(self, ino: int, life: int, fd: int) -> None:
        """Keep the descriptor of a file that was made elsewhere."""
        self._keep(ino, life, fd)

    def is_blank(self, ino: int, life: int) -> bool:
        """Tell whether a file was only made ahead of need.  Raises OSError."""
        fd = self.descriptor(ino, life)
        return not os.fstat(fd).st_size and KEY_XATTR not in os.listxattr(fd)

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

    def scratch(self) -> int:
        """Return a descriptor of an empty file without a name, which the caller closes.  Raises OSError."""
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self._root)

    def _keep(self, ino: int, life: int, fd: int) -> None:
        self._open[ino, life] = fd
        if len(self._open) > _MAX_DESCRIPTORS:
            os.close(self._open.popitem(last=False)[1])

    def forget(self, ino: int, life: int) -> None:
        """Close the inode's descriptor."""
        fd = self._open.pop((ino, life), None)
        if fd is not None:
            os.close(fd)

    @property
    def has_open(self) -> bool:
        """Tell whether any descriptor is kept."""
        return bool(self._open)

    def close_removed(self) -> None:
        """Close descriptors of files that no name leads to any more: they hold the disk space."""
        for (ino, life), fd in list(self._open.items()):
            if not os.fstat(fd).st_nlink:
                self.forget(ino, life)

    def stat(self, ino: int, life: int) -> os.stat_result:
        """Return size, times and blocks of an inode's content.  Raises OSError."""
        return os.fstat(self.descriptor(ino, life))

    def touch(self, ino: int, life: int, atime_ns: int | None = None, mtime_ns: int | None = None) -> None:
        """Move the ctime of an inode's content, and set its mtime where one is given.  Raises OSError."""
        fd = self.descriptor(ino, life)
        if mtime_ns is not None:
            os.utime(fd, ns=(mtime_ns if atime_ns is None else atime_ns, mtime_ns))
        else:
            os.fchmod(fd, 0o600)

    def remove(self, ino: int, life: int) -> None:
        """Remove a file, if it is there."""
        self.forget(ino, life)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name(ino, life), dir_fd=self._root)

    def erase(self, ino: int, life: int) -> None:
        """Remove a file that nobody reads any more, and give its space back though a front may keep a descriptor.

        But not the space of what has another name, in the cache: there it is content.
        """
        with contextlib.suppress(FileNotFoundError):
            fd = self.descriptor(ino, life)
            if os.fstat(fd).st_nlink == 1:
                os.ftruncate(fd, 0)
        self.remove(ino, life)

    def tag(self, ino: int, life: int, key: str | None) -> None:
        """Say in the file itself which object its content shall be; None: none any more."""
        with contextlib.suppress(OSError):  # a file system without extended attributes: only a lost index needs it
            if key is None:
                os.removexattr(self.descriptor(ino, life), KEY_XATTR)
            else:
                os.setxattr(self.descriptor(ino, life), KEY_XATTR, key.encode("utf-8", "surrogateescape"))

    def tag_base(self, ino: int, life: int, base: Version, base_size: int) -> None:
        """Say in a file which object it was before; that fills what it lacks below base_size.

        To be called before the index says so.
        """
        record = [base_size, base.etag, base.version_id, base.size_bytes, base.mtime_ns]
        with contextlib.suppress(OSError):
            os.setxattr(self.descriptor(ino, life), BASE_XATTR, json.dumps(record).encode())

    def forget_base(self, ino: int, life: int) -> None:
        """Say in a file that all of its content is in it."""
        with contextlib.suppress(OSError):
            os.removexattr(self.descriptor(ino, life), BASE_XATTR)

    def path(self, ino: int, life: int) -> Path:
        """Return a file's path, for renaming it into the cache."""
        return Path(os.readlink(f"/proc/self/fd/{self._root}")) / self.name(ino, life)

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


def staged_attr(value: bytes | memoryview, status: os.stat_result, *, is_whole: bool) -> bytes:
    """Return the fuse_attr of a staged inode: the record's, with size, mtime, ctime and blocks of the staging file.

    An overlay's file has holes where the object's blocks are still good: they count as blocks, or programs that
    compare size and blocks would take the file for a sparse one.
    """
    size = status.st_size
    blocks = status.st_blocks if is_whole else (size + 511) // 512
    mtime, mtime_ns = divmod(status.st_mtime_ns, _NS)
    ctime, ctime_ns = divmod(status.st_ctime_ns, _NS)
    return b"".join(
        (
            value[0:8],
            _SIZE_BLOCKS.pack(size, blocks),
            value[24:32],
            _TIMES.pack(mtime & _U64_MASK, ctime & _U64_MASK),
            value[48:52],
            _NANOSECONDS.pack(mtime_ns, ctime_ns),
            value[60:ATTR_SIZE],
        )
    )
