"""The sparse files that hold cached blocks of large objects: objects/<low byte of inode, hex>/<inode, hex>.

A file stands for one inode, that is for one version of one object; block b lies at offset b * BLOCK_BYTES.  Which
blocks are valid, and their checksums, says the index alone.  Names come from numbers, never from object keys.
Fronts open files to read, the core opens them to write, each with a bounded table of descriptors of its own.

There may be several directories with such files, on several disks.  Each part of a file is on one of them, and its
record in the index has the number of that disk: 0 is the volume's own folder, the others are given out by
`index.disks` and never twice, so that no descriptor of a disk that was is ever taken for one of a disk that is.
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from fanoutfs.allocation import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, allocate
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES

_MAX_DESCRIPTORS: Final = 512


class CacheFiles:
    """Descriptors of cache files.  Not thread-safe: one owner thread, or the caller's lock."""

    def __init__(self, volume: Path, *, writable: bool, find: Callable[[int], Path | None] | None = None) -> None:
        """find: where a disk is that was not attached; None: nowhere.  Fronts meet disks in the index's records."""
        self._roots = {0: _open_objects(volume)}
        self._writable = writable
        self._find = find
        self._open: OrderedDict[tuple[int, int], int] = OrderedDict()
        """Keys: (disk, inode)."""
        self.on_error: Callable[[int, OSError], None] = _raise
        """Told of what a further disk says when a file of it is to be removed."""

    @staticmethod
    def relative_path(ino: int) -> str:
        """Return a file's path below objects/."""
        return f"{ino & 0xFF:02x}/{ino:x}"

    # --- disks -------------------------------------------------------------------------------------------------

    @property
    def disks(self) -> Iterable[int]:
        """Return the numbers of the disks that are open; 0 is one of them."""
        return tuple(self._roots)

    @property
    def count(self) -> int:
        """Return how many they are."""
        return len(self._roots)

    @property
    def has_further(self) -> bool:
        """Tell whether any but 0 is."""
        return len(self._roots) > 1

    def attach(self, disk: int, volume: Path) -> None:
        """Use a disk: `volume`/objects has files, too.  Raises OSError."""
        self._roots[disk] = _open_objects(volume)

    def detach(self, disk: int) -> None:
        """Close everything of a disk: it may be taken out of the machine."""
        for key in [key for key in self._open if key[0] == disk]:
            os.close(self._open.pop(key))
        root = self._roots.pop(disk, -1)
        if root >= 0:
            os.close(root)

    def detach_all(self) -> None:
        """Do so with all but 0."""
        for disk in [disk for disk in self._roots if disk]:
            self.detach(disk)

    def root(self, disk: int) -> int:
        """Return a descriptor of the folder that a disk's files are in, valid until it is detached.

        Raises FileNotFoundError: there is no such disk.  OSError.
        """
        fd = self._roots.get(disk)
        if fd is None:
            path = None if self._find is None else self._find(disk)
            if path is None:
                raise FileNotFoundError(errno.ENOENT, f"disk {disk} of the cache is not in use")
            self.attach(disk, path)
            fd = self._roots[disk]
        return fd

    def free_bytes(self, disk: int = 0) -> int:
        """Return what a disk still has for us.  Raises OSError."""
        found = os.fstatvfs(self.root(disk))
        return found.f_bavail * found.f_frsize

    def inodes(self, disk: int = 0) -> tuple[int, int] | None:
        """Return (how many files more a disk has room for, how many in all); None: as there are bytes for (btrfs).

        Raises OSError.
        """
        found = os.fstatvfs(self.root(disk))
        return (found.f_favail, found.f_files) if found.f_files else None

    # --- files -------------------------------------------------------------------------------------------------

    def descriptor(self, ino: int, disk: int = 0) -> int:
        """Return an open descriptor of the inode's file on a disk, valid until the next call.

        Raises FileNotFoundError when nothing was ever cached (readers), OSError when the disk refuses.
        """
        fd = self._open.get((disk, ino))
        if fd is not None:
            self._open.move_to_end((disk, ino))
            return fd
        path, root = self.relative_path(ino), self.root(disk)
        if self._writable:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                fd = os.open(path, flags, 0o600, dir_fd=root)
            except FileNotFoundError:
                os.mkdir(path.partition("/")[0], 0o700, dir_fd=root)
                fd = os.open(path, flags, 0o600, dir_fd=root)
        else:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root)
        self._open[disk, ino] = fd
        if len(self._open) > _MAX_DESCRIPTORS:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def forget(self, ino: int) -> None:
        """Close the inode's descriptors: a file of it was replaced or removed."""
        for disk in self._roots:
            fd = self._open.pop((disk, ino), None)
            if fd is not None:
                os.close(fd)

    def duplicate(self, ino: int, disk: int = 0) -> int:
        """Return a descriptor that the caller closes: for a worker thread that outlives the table's entry."""
        return os.dup(self.descriptor(ino, disk))

    def occupied(self, ino: int, disk: int = 0) -> tuple[int, int] | None:
        """Return (length, bytes on the disk) of the inode's file; None: there is none.  Raises OSError."""
        try:
            found = os.stat(self.relative_path(ino), dir_fd=self.root(disk), follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_size, found.st_blocks * 512

    def open_direct(self, ino: int, size_bytes: int, disk: int = 0) -> int:
        """Return a descriptor for writing past the page cache, which the caller closes.  Raises OSError.

        The file is made as long as it will be, so that writers of different parts need not wait for each other.
        A file system without O_DIRECT gets the bytes through its page cache.
        """
        path = self.relative_path(ino)
        if os.fstat(self.descriptor(ino, disk)).st_size < size_bytes:
            os.ftruncate(self.descriptor(ino, disk), size_bytes)
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags | os.O_DIRECT, dir_fd=self.root(disk))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.open(path, flags, dir_fd=self.root(disk))

    def remove(self, ino: int) -> None:
        """Delete the inode's files, on all disks; no error when there is none.  Raises OSError (of disk 0)."""
        for disk in self.disks:
            try:
                self.remove_from(disk, ino)
            except OSError as error:
                if not disk:
                    raise
                self.on_error(disk, error)

    def remove_from(self, disk: int, ino: int) -> None:
        """Delete the inode's file on one disk; no error when there is none.

        Truncated first: a front may keep a descriptor of it for long, and with it the disk space.  But not what has
        another name, in staging: there it is the only copy.
        """
        kept = self._open.pop((disk, ino), None)
        if kept is not None:
            os.close(kept)
        path, root = self.relative_path(ino), self.root(disk)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=root)
            try:
                if os.fstat(fd).st_nlink == 1:
                    os.ftruncate(fd, 0)
            finally:
                os.close(fd)
            os.unlink(path, dir_fd=root)
        except FileNotFoundError:
            pass

    def adopt(self, ino: int, path: Path) -> None:
        """Let a file that holds a whole content be the inode's file on disk 0 as well.  Raises OSError.

        A link, not a rename: where it was it stays until the index says that it is here.
        """
        self.remove(ino)
        target, root = self.relative_path(ino), self.root(0)
        try:
            os.link(path, target, dst_dir_fd=root, follow_symlinks=False)
        except FileNotFoundError:
            os.mkdir(target.partition("/")[0], 0o700, dir_fd=root)
            os.link(path, target, dst_dir_fd=root, follow_symlinks=False)

    def folders(self, disk: int = 0) -> list[str]:
        """Return the names of the folders that hold files.  Raises OSError."""
        return os.listdir(self.root(disk))

    def folder_contents(self, folder: str, disk: int = 0) -> list[tuple[int, int]]:
        """Return (inode, bytes on disk) of the files in a folder; what is not ours is passed over.  Any thread."""
        found = []
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.root(disk))
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

    def close(self) -> None:
        """Close everything."""
        for disk in self.disks:
            self.detach(disk)


def _open_objects(volume: Path) -> int:
    return os.open(volume / "objects", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _raise(_disk: int, error: OSError) -> None:
    raise error


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the disk space of a range back.  Reads of it return zeros after that, so unpublish it first."""
    allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def punch_blocks(fd: int, part: int, mask: int) -> None:
    """Punch holes for the blocks in `mask` (-1: the whole part) and close the descriptor.  Blocking."""
    try:
        if mask == -1:
            punch_hole(fd, part * PART_BYTES, PART_BYTES)
        for block in range(PART_BLOCKS):
            if mask != -1 and mask >> block & 1:
                punch_hole(fd, part * PART_BYTES + block * BLOCK_BYTES, BLOCK_BYTES)
    finally:
        os.close(fd)
