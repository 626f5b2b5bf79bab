"""Segment files: append (the core's writer thread), read (fronts, core), remove, and what they occupy on disk.

What lies where in them says `small.lmdb` alone.  A place once published is never written again, and files are shortened
only when they go: readers use pread, so that a file that goes under their hands is a short read, not a SIGBUS.

Read-ahead is left to the kernel (no POSIX_FADV): readers in listing order follow the order of the fill, which it
recognises.  Cold reads of 4 KiB in order: POSIX_FADV_RANDOM is 6 times slower, POSIX_FADV_SEQUENTIAL and asking for
1 MiB ahead with POSIX_FADV_WILLNEED are within the noise (scripts/bench-smallstore --runs 3 --sizes 4:100000 --peers
"packed,packed random,packed sequential,packed 1 MiB ahead").
"""

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

FOLDER: Final = "segments"
_MAX_DESCRIPTORS: Final = 256
_IOV_MAX: Final = 1024
_PAGE_BYTES: Final = 4096
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def segment_name(number: int) -> str:
    """Return a segment's file name."""
    return f"{number:08x}"


class SegmentDescriptors:
    """A bounded table of descriptors to read with.  One thread."""

    def __init__(self, volume: Path) -> None:
        self._folder_path = volume / FOLDER
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, number: int, offset: int, into: memoryview) -> bool:
        """Fill `into` from a segment; False when the file is missing, too short or unreadable."""
        try:
            return os.preadv(self._descriptor(number), [into], offset) == len(into)
        except OSError:
            return False

    def _descriptor(self, number: int) -> int:
        fd = self._open.get(number)
        if fd is not None:
            self._open.move_to_end(number)
            return fd
        fd = os.open(self._folder_path / segment_name(number), _READ_FLAGS)
        self._open[number] = fd
        if len(self._open) > _MAX_DESCRIPTORS:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def forget(self, number: int) -> None:
        """Close a segment's descriptor, if there is one."""
        fd = self._open.pop(number, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all."""
        for number in list(self._open):
            self.forget(number)


class SegmentFiles:
    """The files for whoever writes.  `append` and `remove` belong to one thread each, the rest to any.

    The file that is being appended to is measured whenever somebody asks: some file systems preallocate behind its end.
    """

    def __init__(self, volume: Path) -> None:
        self._path = volume / FOLDER
        self._path.mkdir(mode=0o700, exist_ok=True)
        self._folder = os.open(self._path, _FOLDER_FLAGS)
        self._lock = threading.Lock()
        """Guards what follows; never held during I/O on contents."""
        self._active = -1
        self._active_fd = -1
        self._disk_bytes: dict[int, int] = {}
        """Of every file but the active one."""
        self._total_bytes = 0

    def scan(self) -> dict[int, int]:
        """Take stock of what is there and return number → length; what has no segment's name is passed over."""
        lengths = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    number = int(entry.name, 16)
                except ValueError:
                    continue
                if entry.name == segment_name(number) and entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    lengths[number] = found.st_size
                    with self._lock:
                        self._count(number, found)
        return lengths

    def append(self, number: int, offset: int, contents: Sequence[memoryview]) -> None:
        """Write contents end to end, all of them or raise OSError; then the bytes there are nobody's.  Blocking."""
        fd = self._begin(number)
        left = [content for content in contents if len(content)]
        at = 0
        while at < len(left):
            written = os.pwritev(fd, left[at : at + _IOV_MAX], offset)
            offset += written
            while at < len(left) and written >= len(left[at]):
                written -= len(left[at])
                at += 1
            if written:
                left[at] = left[at][written:]

    def _begin(self, number: int) -> int:
        """Return the descriptor to append with; whatever was appended to before is complete now."""
        if number == self._active:
            return self._active_fd
        self.seal()
        try:
            fd = os.open(segment_name(number), _WRITE_FLAGS, 0o600, dir_fd=self._folder)
        except FileNotFoundError:
            self._make_folder_anew()
            fd = os.open(segment_name(number), _WRITE_FLAGS, 0o600, dir_fd=self._folder)
        with self._lock:
            self._total_bytes -= self._disk_bytes.pop(number, 0)
            self._active, self._active_fd = number, fd
        return fd

    def _make_folder_anew(self) -> None:
        """Make the folder that somebody has removed; what was in it is fetched again when it is read."""
        self._path.mkdir(mode=0o700, exist_ok=True)
        folder = os.open(self._path, _FOLDER_FLAGS)
        try:
            os.dup2(folder, self._folder, inheritable=False)
        finally:
            os.close(folder)

    def seal(self) -> None:
        """Close the file that was appended to."""
        with self._lock:
            number, fd = self._active, self._active_fd
            self._active = self._active_fd = -1
            if fd >= 0:
                os.close(fd)  # XFS gives back what it preallocated
                with contextlib.suppress(FileNotFoundError):
                    self._count(number, os.stat(segment_name(number), dir_fd=self._folder, follow_symlinks=False))

    def _count(self, number: int, found: os.stat_result) -> None:
        # A page more: ext4 may need one for the map of a fragmented file, and only when it is written back.
        occupied = found.st_blocks * 512 + _PAGE_BYTES
        self._total_bytes += occupied - self._disk_bytes.get(number, 0)
        self._disk_bytes[number] = occupied

    def remove(self, number: int) -> None:
        """Delete a file that is not being appended to; no error when there is none.  Blocking.  Raises OSError.

        Shortened first: a reader may keep a descriptor of it for long, and with it the disk space.
        """
        try:
            fd = os.open(segment_name(number), os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder)
            try:
                os.ftruncate(fd, 0)
            finally:
                os.close(fd)
            os.unlink(segment_name(number), dir_fd=self._folder)
        except FileNotFoundError:
            pass
        with self._lock:
            self._total_bytes -= self._disk_bytes.pop(number, 0)

    def disk_bytes(self) -> int:
        """Return what all files occupy, at most two pages for each away from the truth."""
        with self._lock:
            active = os.fstat(self._active_fd).st_blocks * 512 + _PAGE_BYTES if self._active_fd >= 0 else 0
            return self._total_bytes + active

    def close(self) -> None:
        """Close everything."""
        self.seal()
        os.close(self._folder)
