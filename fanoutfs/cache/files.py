"""The sparse files that hold cached blocks of large objects: objects/<low byte of inode, hex>/<inode, hex>.

A file stands for one inode, that is for one version of one object; block b lies at offset b * BLOCK_BYTES.  Which
blocks are valid, and their checksums, says the index alone.  Names come from numbers, never from object keys.
Fronts open files to read, the core opens them to write, each with a bounded table of descriptors of its own.
"""

import ctypes
import errno
import os
from collections import OrderedDict
from pathlib import Path
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
_MAX_DESCRIPTORS: Final = 512

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class CacheFiles:
    """Descriptors of cache files.  Not thread-safe: one owner thread, or the caller's lock."""

    def __init__(self, volume: Path, *, writable: bool) -> None:
        self._root = os.open(volume / "objects", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._writable = writable
        self._open: OrderedDict[int, int] = OrderedDict()

    @staticmethod
    def relative_path(ino: int) -> str:
        """Return a file's path below objects/."""
        return f"{ino & 0xFF:02x}/{ino:x}"

    def descriptor(self, ino: int) -> int:
        """Return an open descriptor of the inode's file, valid until the next call.

        Raises FileNotFoundError when nothing was ever cached (readers), OSError when the disk refuses.
        """
        fd = self._open.get(ino)
        if fd is not None:
            self._open.move_to_end(ino)
            return fd
        path = self.relative_path(ino)
        if self._writable:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                fd = os.open(path, flags, 0o600, dir_fd=self._root)
            except FileNotFoundError:
                os.mkdir(path.partition("/")[0], 0o700, dir_fd=self._root)
                fd = os.open(path, flags, 0o600, dir_fd=self._root)
        else:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._root)
        self._open[ino] = fd
        if len(self._open) > _MAX_DESCRIPTORS:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def forget(self, ino: int) -> None:
        """Close the inode's descriptor: the file was replaced or removed."""
        fd = self._open.pop(ino, None)
        if fd is not None:
            os.close(fd)

    def duplicate(self, ino: int) -> int:
        """Return a descriptor that the caller closes: for a worker thread that outlives the table's entry."""
        return os.dup(self.descriptor(ino))

    def open_direct(self, ino: int, size_bytes: int) -> int:
        """Return a descriptor for writing past the page cache, which the caller closes.  Raises OSError.

        The file is made as long as it will be, so that writers of different parts need not wait for each other.
        A file system without O_DIRECT gets the bytes through its page cache.
        """
        path = self.relative_path(ino)
        if os.fstat(self.descriptor(ino)).st_size < size_bytes:
            os.ftruncate(self.descriptor(ino), size_bytes)
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags | os.O_DIRECT, dir_fd=self._root)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.open(path, flags, dir_fd=self._root)

    def remove(self, ino: int) -> None:
        """Delete the inode's file; no error when there is none.

        Truncated first: a front may keep a descriptor of it for long, and with it the disk space.  But not what has
        another name, in staging: there it is the only copy.
        """
        self.forget(ino)
        path = self.relative_path(ino)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._root)
            try:
                if os.fstat(fd).st_nlink == 1:
                    os.ftruncate(fd, 0)
            finally:
                os.close(fd)
            os.unlink(path, dir_fd=self._root)
        except FileNotFoundError:
            pass

    def adopt(self, ino: int, path: Path) -> None:
        """Let a file that holds a whole content be the inode's file as well.  Raises OSError.

        A link, not a rename: where it was it stays until the index says that it is here.
        """
        self.remove(ino)
        target = self.relative_path(ino)
        try:
            os.link(path, target, dst_dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(target.partition("/")[0], 0o700, dir_fd=self._root)
            os.link(path, target, dst_dir_fd=self._root, follow_symlinks=False)

    def folders(self) -> list[str]:
        """Return the names of the folders that hold files."""
        return os.listdir(self._root)

    def folder_contents(self, folder: str) -> list[tuple[int, int]]:
        """Return (inode, bytes on disk) of the files in a folder; what is not ours is passed over.  Any thread."""
        found = []
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        found.append((int(entry.name, 16), entry.stat(follow_symlinks=False).st_blocks * 512))
                    except (ValueError, FileNotFoundError):
                        continue
        finally:
            os.close(fd)
        return found

    def free_bytes(self) -> int:
        """Return what the disk under the cache still has for us."""
        found = os.fstatvfs(self._root)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        """Close everything."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        os.close(self._root)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the disk space of a range back.  Reads of it return zeros after that, so unpublish it first."""
    if _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
