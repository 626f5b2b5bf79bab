"""One side of the comparison: every operation of the model as plain system calls below one directory.

The same class runs on the mount and on the reference, a directory of ext4.  A method is an operation: it returns what
a program would see, or raises OSError.  Descriptors have numbers of the model's own, so that both sides mean the same
one.  Everything is opened with O_NONBLOCK: a FIFO must not stop the run.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.model.reference import make_content
from tests.mount.kernel import renameat2

_libc: Final = ctypes.CDLL(None, use_errno=True)
_CHUNK_BYTES: Final = 1 << 20

# <linux/falloc.h>
KEEP_SIZE: Final = 1
PUNCH_HOLE: Final = 2
ZERO_RANGE: Final = 16

HIDDEN_XATTRS: Final = ("user.fanoutfs.",)
"""Names that only the mount shows."""


class Side:
    """A tree under test or the reference.  root: its top directory."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.handles: dict[int, int] = {}

    def path(self, relative: str) -> str:
        """Return the absolute path."""
        return f"{self.root}/{relative}" if relative else self.root

    def close_all(self) -> None:
        """Close every descriptor."""
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()

    @contextlib.contextmanager
    def _opened(self, path: str, flags: int, mode: int = 0o666) -> Iterator[int]:
        fd = os.open(self.path(path), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        try:
            yield fd
        finally:
            os.close(fd)

    # --- whole files by path ----------------------------------------------------------------------------------

    def create(self, path: str, flags: int, mode: int, size: int, seed: int) -> int:
        """Open with O_CREAT and write."""
        with self._opened(path, os.O_CREAT | os.O_WRONLY | flags, mode) as fd:
            return write_all(fd, make_content(size, seed))

    def write_at(self, path: str, offset: int, size: int, seed: int) -> int:
        with self._opened(path, os.O_WRONLY) as fd:
            return pwrite_all(fd, make_content(size, seed), offset)

    def append(self, path: str, size: int, seed: int) -> int:
        with self._opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            return write_all(fd, make_content(size, seed))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.path(path), size)

    def read(self, path: str, offset: int, size: int, forget: bool) -> bytes:
        """Read a range; forget: make the kernel drop the pages first, so that the daemon is asked."""
        with self._opened(path, os.O_RDONLY) as fd:
            if forget and stat.S_ISREG(os.fstat(fd).st_mode):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return pread_all(fd, size, offset)

    def mmap_write(self, path: str, at: int, size: int, seed: int) -> int:
        """Write through a shared mapping, msync, and read it back."""
        with self._opened(path, os.O_RDWR) as fd:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or not found.st_size:
                raise OSError(errno.ENODEV, "nothing to map")
            begin = found.st_size * at // 1000
            content = make_content(size, seed)[: found.st_size - begin]
            with mmap.mmap(fd, found.st_size) as mapping:
                mapping[begin : begin + len(content)] = content
                mapping.flush()
            return len(content)

    def fallocate(self, path: str, how: int, offset: int, size: int) -> None:
        with self._opened(path, os.O_RDWR) as fd:
            call_fallocate(fd, how, offset, size)

    def seek(self, path: str, whence: int, at: int) -> tuple[int, int, int]:
        """Return (offset asked for, answer or -1 for ENXIO, file size): checked by meaning, see holes_agree()."""
        with self._opened(path, os.O_RDONLY) as fd:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EISDIR, "positions of directories mean what the file system likes")
            size = found.st_size
            offset = size * at // 1000
            try:
                return offset, os.lseek(fd, offset, whence), size
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return offset, -1, size

    def copy_range(self, path: str, offset: int, size: int, target: str, target_offset: int) -> int:
        with self._opened(path, os.O_RDONLY) as source, self._opened(target, os.O_WRONLY) as fd:
            copied = 0
            while copied < size:
                count = os.copy_file_range(source, fd, size - copied, offset + copied, target_offset + copied)
                if not count:
                    break
                copied += count
            return copied

    def fsync(self, path: str, only_data: bool) -> None:
        with self._opened(path, os.O_RDONLY) as fd:
            (os.fdatasync if only_data else os.fsync)(fd)

    # --- names ------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.path(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.path(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.path(path))

    def rename(self, path: str, target: str) -> None:
        os.rename(self.path(path), self.path(target))

    def rename_with(self, path: str, target: str, flags: int) -> None:
        """RENAME_NOREPLACE, RENAME_EXCHANGE."""
        renameat2(Path(self.path(path)), Path(self.path(target)), flags)

    def link(self, path: str, target: str) -> None:
        os.link(self.path(path), self.path(target), follow_symlinks=False)

    def symlink(self, path: str, text: str) -> None:
        os.symlink(text, self.path(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self.path(path))

    def mknod(self, path: str, mode: int) -> None:
        """Make a FIFO, a socket's name or an empty file."""
        os.mknod(self.path(path), mode)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self.path(path)))

    def overlong(self, path: str, length: int) -> None:
        """Make a name that is exactly as long as allowed, or longer, and take it away again."""
        name = f"{self.path(path)}{'x' * (length - len(path.rpartition('/')[2]))}"
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        os.unlink(name)

    # --- attributes -------------------------------------------------------------------------------------------

    def stat(self, path: str, follow: bool) -> dict[str, Any]:
        return visible(os.stat(self.path(path), follow_symlinks=follow))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        os.chown(self.path(path), uid, gid, follow_symlinks=follow)

    def utimens(self, path: str, atime_ns: int, mtime_ns: int, follow: bool) -> None:
        os.utime(self.path(path), ns=(atime_ns, mtime_ns), follow_symlinks=follow)

    def setxattr(self, path: str, name: str, size: int, flags: int) -> None:
        os.setxattr(self.path(path), name, make_content(size, len(name)), flags, follow_symlinks=False)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self.path(path), name, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        return visible_xattrs(self.path(path))

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.path(path), name, follow_symlinks=False)

    def statfs(self, path: str) -> int:
        """Return the longest name: all that two file systems have in common."""
        return os.statvfs(self.path(path)).f_namemax

    def access(self, path: str, how: int) -> bool:
        return os.access(self.path(path), how)

    # --- descriptors that stay open ---------------------------------------------------------------------------

    def open(self, handle: int, path: str, flags: int, mode: int) -> None:
        self.handles[handle] = os.open(self.path(path), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)

    def open_unlinked(self, handle: int, path: str) -> None:
        """Open a file and take its name away."""
        fd = os.open(self.path(path), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.unlink(self.path(path))
        except OSError:
            os.close(fd)
            raise
        self.handles[handle] = fd

    def handle_close(self, handle: int) -> str:
        """Close, and return what was in it: for a file without a name it is the last chance to look."""
        fd = self.handles.pop(handle)
        try:
            can_read = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
            return digest_of(fd) if can_read and stat.S_ISREG(os.fstat(fd).st_mode) else ""
        finally:
            os.close(fd)

    def handle_read(self, handle: int, offset: int, size: int, forget: bool) -> bytes:
        fd = self.handles[handle]
        if forget and stat.S_ISREG(os.fstat(fd).st_mode):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return pread_all(fd, size, offset)

    def handle_write(self, handle: int, offset: int, size: int, seed: int) -> int:
        """pwrite(2): with O_APPEND Linux writes to the end whatever the offset."""
        return pwrite_all(self.handles[handle], make_content(size, seed), offset)

    def handle_truncate(self, handle: int, size: int) -> None:
        os.ftruncate(self.handles[handle], size)

    def handle_fallocate(self, handle: int, how: int, offset: int, size: int) -> None:
        call_fallocate(self.handles[handle], how, offset, size)

    def handle_fsync(self, handle: int, only_data: bool) -> None:
        (os.fdatasync if only_data else os.fsync)(self.handles[handle])

    def handle_stat(self, handle: int) -> dict[str, Any]:
        return visible(os.fstat(self.handles[handle]))

    def handle_chmod(self, handle: int, mode: int) -> None:
        os.fchmod(self.handles[handle], mode)

    def handle_setxattr(self, handle: int, name: str, size: int) -> None:
        os.setxattr(self.handles[handle], name, make_content(size, len(name)))

    def handle_list(self, handle: int) -> list[str]:
        """List an open directory, perhaps one that was removed."""
        return sorted(os.listdir(self.handles[handle]))

    def handle_flock(self, handle: int, how: int) -> None:
        fcntl.flock(self.handles[handle], how | fcntl.LOCK_NB)

    # --- all of it --------------------------------------------------------------------------------------------

    def tree(self) -> dict[str, dict[str, Any]]:
        """Return everything below the root: path → what can be seen of it.

        Hard links show as `links`: the paths of one inode.  Modification times count where the model has set them to
        a moment in the past.
        """
        found: dict[str, dict[str, Any]] = {}
        same: dict[int, list[str]] = {}
        for folder, folders, files in os.walk(self.root, onerror=raise_error):
            for name in (*folders, *files):
                path = f"{folder}/{name}"
                shown = path.removeprefix(f"{self.root}/")
                status = os.lstat(path)
                entry = visible(status)
                if stat.S_ISREG(status.st_mode):
                    entry["content"] = digest(path)
                    same.setdefault(status.st_ino, []).append(shown)
                if stat.S_ISLNK(status.st_mode):
                    entry["target"] = os.readlink(path)
                else:
                    entry["xattrs"] = {
                        name: os.getxattr(path, name, follow_symlinks=False) for name in visible_xattrs(path)
                    }
                found[shown] = entry
        for links in same.values():
            for path in links:
                found[path]["links"] = sorted(links)
        return found


PAST_NS: Final = 1_500_000_000 * 10**9
"""Whatever the model sets as a time lies before this, whatever happens by itself after it."""


def visible(status: os.stat_result) -> dict[str, Any]:
    """Return what must be equal on both sides; a directory's size and links are the file system's own affair."""
    shown: dict[str, Any] = {"mode": oct(status.st_mode), "owner": (status.st_uid, status.st_gid)}
    if not stat.S_ISDIR(status.st_mode):
        shown |= {"links_count": status.st_nlink, "size": status.st_size, "rdev": status.st_rdev}
    if status.st_mtime_ns < PAST_NS:
        shown["mtime_ns"] = status.st_mtime_ns
    return shown


def visible_xattrs(path: str) -> list[str]:
    """Return the names of a file's own user attributes."""
    names = os.listxattr(path, follow_symlinks=False)
    return sorted(name for name in names if not name.startswith(HIDDEN_XATTRS))


def write_all(fd: int, content: bytes) -> int:
    """Write everything at the descriptor's position (or the end, with O_APPEND)."""
    done = 0
    while done < len(content):
        done += os.write(fd, content[done : done + _CHUNK_BYTES])
    return done


def pwrite_all(fd: int, content: bytes, offset: int) -> int:
    """Write everything at an offset."""
    done = 0
    while done < len(content):
        done += os.pwrite(fd, content[done : done + _CHUNK_BYTES], offset + done)
    return done


def pread_all(fd: int, size: int, offset: int) -> bytes:
    """Read a range, to the end of the file at most."""
    pieces = []
    while size > 0:
        piece = os.pread(fd, min(size, _CHUNK_BYTES), offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        size -= len(piece)
    return b"".join(pieces)


def call_fallocate(fd: int, how: int, offset: int, size: int) -> None:
    """fallocate(2): os.posix_fallocate knows one mode, and writes zeros where a file system refuses."""
    if _libc.fallocate(fd, ctypes.c_int(how), ctypes.c_int64(offset), ctypes.c_int64(size)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def digest(path: str) -> str:
    """Return a hash of a file's content."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        return digest_of(fd)
    finally:
        os.close(fd)


def digest_of(fd: int) -> str:
    """Return a hash of an open file's content."""
    hasher = hashlib.blake2b(digest_size=12)
    offset = 0
    while piece := os.pread(fd, _CHUNK_BYTES, offset):
        hasher.update(piece)
        offset += len(piece)
    return hasher.hexdigest()


def holes_agree(content: bytes, whence: int, answer: tuple[int, int, int]) -> str:
    """Return what is wrong with an answer of lseek(SEEK_DATA or SEEK_HOLE), "" when nothing is.

    lseek(2) lets a file system report holes as data, never data as a hole.
    """
    offset, found, size = answer
    if size != len(content):
        return f"size {size} instead of {len(content)}"
    if offset >= size:
        return "" if found == -1 else f"{found} instead of ENXIO at {offset} of {size}"
    if whence == os.SEEK_HOLE:
        return "" if offset <= found <= size else f"hole at {found}, asked at {offset} of {size}"
    skipped = content[offset : size if found == -1 else found]
    if found != -1 and not offset <= found < size:
        return f"data at {found}, asked at {offset} of {size}"
    return "" if not any(skipped) else f"data skipped between {offset} and {found}"


def raise_error(error: OSError) -> None:
    """For os.walk, which swallows errors."""
    raise error
