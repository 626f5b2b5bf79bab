"""System calls on a tree, each with a result that can be compared: the same steps on a mount and on a local disk."""

import contextlib
import errno
import hashlib
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.mount import kernel

Step = tuple[Any, ...]
"""(name of a method of Tree, arguments)."""


class Tree:
    """A directory and what is open in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fds: dict[str, int] = {}

    def run(self, step: Step) -> tuple[str, Any]:
        """Return ("ok", result) or ("error", name of the errno)."""
        name, *arguments = step
        try:
            return "ok", getattr(self, name)(*arguments)
        except OSError as error:
            return "error", errno.errorcode.get(error.errno or 0, str(error))

    def close_all(self) -> None:
        """Close what steps left open."""
        for fd in self.fds.values():
            with contextlib.suppress(OSError):
                os.close(fd)
        self.fds.clear()

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path)

    # --- descriptors -------------------------------------------------------------------------------------------

    def open(self, key: str, path: str, flags: int, mode: int = 0o644) -> None:
        self.fds[key] = os.open(self._at(path), flags, mode)

    def close(self, key: str) -> None:
        os.close(self.fds.pop(key))

    def write(self, key: str, data: bytes) -> int:
        return os.write(self.fds[key], data)

    def pwrite(self, key: str, data: bytes, offset: int) -> int:
        return os.pwrite(self.fds[key], data, offset)

    def pread(self, key: str, size: int, offset: int) -> bytes:
        return os.pread(self.fds[key], size, offset)

    def lseek(self, key: str, offset: int, whence: int) -> int:
        return os.lseek(self.fds[key], offset, whence)

    def ftruncate(self, key: str, size: int) -> None:
        os.ftruncate(self.fds[key], size)

    def fallocate(self, key: str, offset: int, length: int) -> None:
        os.posix_fallocate(self.fds[key], offset, length)

    def fsync(self, key: str) -> None:
        os.fsync(self.fds[key])

    def fdatasync(self, key: str) -> None:
        os.fdatasync(self.fds[key])

    def fchmod(self, key: str, mode: int) -> None:
        os.fchmod(self.fds[key], mode)

    def fchown(self, key: str, uid: int, gid: int) -> None:
        os.fchown(self.fds[key], uid, gid)

    def fstat(self, key: str) -> tuple[Any, ...]:
        return _shown(os.fstat(self.fds[key]))

    # --- contents ----------------------------------------------------------------------------------------------

    def put(self, path: str, data: bytes) -> None:
        fd = os.open(self._at(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def append(self, path: str, data: bytes) -> None:
        fd = os.open(self._at(path), os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def get(self, path: str) -> bytes:
        data = kernel.read_all(self.root / path)
        return data if len(data) < 200 else hashlib.sha256(data).digest()

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    # --- names -------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def renameat2(self, old: str, new: str, flags: int) -> None:
        kernel.renameat2(self.root / old, self.root / new, flags)

    def link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def mknod(self, path: str, mode: int, device: int = 0) -> None:
        os.mknod(self._at(path), mode, device)

    def listdir(self, path: str = "") -> list[str]:
        return sorted(os.listdir(self._at(path)))

    # --- attributes --------------------------------------------------------------------------------------------

    def stat(self, path: str) -> tuple[Any, ...]:
        return _shown(os.lstat(self._at(path)))

    def device(self, path: str) -> int:
        return os.lstat(self._at(path)).st_rdev

    def same_file(self, one: str, other: str) -> bool:
        return os.lstat(self._at(one)).st_ino == os.lstat(self._at(other)).st_ino

    def times(self, path: str) -> tuple[int, int]:
        found = os.lstat(self._at(path))
        return found.st_atime_ns, found.st_mtime_ns

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns))

    def moves(self, path: str, *step: Any) -> bool:
        """Tell whether a step moves the mtime of a file, which is set to one long ago before."""
        os.utime(self._at(path), ns=(10**18, 10**18))
        outcome = self.run(step)
        assert outcome[0] == "ok", outcome
        return os.lstat(self._at(path)).st_mtime_ns != 10**18

    def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        os.setxattr(self._at(path), name, value, flags)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self._at(path), name)

    def listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(self._at(path)))

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name)

    # --- somebody else -----------------------------------------------------------------------------------------

    def as_user(self, uid: int, gid: int, *step: Any) -> Any:
        """Take a step in a process of another user; what it opens is closed again."""
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.setgroups([])
                os.setgid(gid)
                os.setuid(uid)
                os.write(write_end, pickle.dumps(self.run(step)))
            finally:
                os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as answer:
            data = answer.read()
        os.waitpid(child, 0)
        outcome, result = pickle.loads(data)
        if outcome == "error":
            raise OSError(getattr(errno, result), result)
        return result

    # --- all of it ---------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Return everything below the root: attributes, contents, targets, extended attributes."""
        found: dict[str, Any] = {}
        for path in self._walk(self.root):
            status = os.lstat(path)
            entry: list[Any] = [_shown(status)]
            if stat.S_ISREG(status.st_mode):
                entry.append(hashlib.sha256(kernel.read_all(path)).hexdigest())
            elif stat.S_ISLNK(status.st_mode):
                entry.append(os.readlink(path))
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                entry.append({name: os.getxattr(path, name) for name in sorted(os.listxattr(path))})
            found[os.fspath(path.relative_to(self.root))] = entry
        return found

    def _walk(self, directory: Path) -> Iterator[Path]:
        for name in sorted(os.listdir(directory)):
            path = directory / name
            yield path
            if stat.S_ISDIR(os.lstat(path).st_mode):
                yield from self._walk(path)


def _shown(found: os.stat_result) -> tuple[Any, ...]:
    """Return what must be the same.  st_nlink of directories is 1 by design, their size nobody's business."""
    is_dir = stat.S_ISDIR(found.st_mode)
    size, links = (0, 0) if is_dir else (found.st_size, found.st_nlink)
    return stat.filemode(found.st_mode), links, size, found.st_uid, found.st_gid
