"""The backend over a directory: file:///dir.

Not obstore's LocalStore (tried with 0.12): it hides and refuses `name#1` (the form of its own temporary files), fails a
whole directory for one name that is not UTF-8, and its ETag cuts times to microseconds.

* Names that are not UTF-8 (or hold a newline or another control character: keys.is_addressable) are hidden and counted.
* Symlinks are followed, also out of the directory, as any program reading the directory would; whoever mounts it
  trusts it.  Broken ones and those in a loop are hidden and counted; so are devices, sockets and fifos.
* The ETag is inode, modification and change time, size.  A file that is overwritten twice within one timestamp tick
  (4 ms before Linux 6.13) with equal size cannot be told apart.
* A range is checked after the read against fstat of the same descriptor: a mixture of two versions is VersionGoneError.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fanoutfs.backend.base import Pages
from fanoutfs.backend.keys import is_addressable
from fanoutfs.errors import (
    AccessDeniedError,
    BackendError,
    BucketMissingError,
    ObjectMissingError,
    TransientError,
    VersionGoneError,
)
from fanoutfs.records import ListPage, ObjectInfo, Version

_MISSING: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
# What a network file system under the directory says when it is gone for now.
_TRANSIENT: Final = (errno.EIO, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EHOSTDOWN, errno.ENETUNREACH)


class LocalBackend:
    """The files below one directory.  Stateless, hence thread-safe."""

    def __init__(self, directory: str) -> None:
        """directory: absolute.  Nothing is opened or checked here: a listing says whether it is missing."""
        self._root = directory.rstrip("/")

    def head(self, key: str) -> ObjectInfo:
        """See Backend.head."""
        path = self._path(key)
        try:
            found = os.stat(path)
        except OSError as error:
            raise _translate(error, f"stat {key}") from None
        if not stat.S_ISREG(found.st_mode):
            raise ObjectMissingError(f"stat {key}: not a regular file")
        return ObjectInfo(key, _version(found))

    def get_range(self, key: str, start: int, end: int, version: Version) -> memoryview:
        """See Backend.get_range."""
        path = self._path(key)
        try:
            # O_NONBLOCK: a fifo put in the file's place must not hold the thread.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise _translate(error, f"open {key}") from None
        try:
            self._check_version(key, version, fd)
            body = bytearray(max(0, end - start))
            view = memoryview(body)
            done = 0
            while done < len(body):
                count = os.preadv(fd, [view[done:]], start + done)
                if count == 0:
                    break
                done += count
            self._check_version(key, version, fd)
        except OSError as error:
            raise _translate(error, f"read {key}") from None
        finally:
            os.close(fd)
        if done != len(body):
            raise TransientError(f"read {key} [{start}, {end}): {done} bytes came instead of {len(body)}")
        return view.toreadonly()

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.list; one page, cut at the limit."""
        return Pages(lambda _token: (self._scan(prefix, limit), ""))

    def close(self) -> None:
        """See Backend.close."""

    def _scan(self, prefix: str, limit: int | None) -> ListPage:
        if not Path(self._root or "/").is_dir():
            raise BucketMissingError(f"{self._root or '/'}: no such directory")
        if prefix and not is_addressable(prefix.removesuffix("/")):
            return ListPage((), ())
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        hidden = 0
        try:
            with os.scandir(f"{self._root}/{prefix}") as entries:
                for entry in entries:
                    if limit is not None and len(objects) + len(prefixes) >= limit:
                        break
                    key = f"{prefix}{entry.name}"
                    try:
                        if not is_addressable(entry.name):
                            hidden += 1
                        elif entry.is_dir():
                            prefixes.append(f"{key}/")
                        elif entry.is_file():
                            objects.append(ObjectInfo(key, _version(entry.stat())))
                        else:
                            hidden += 1
                    except OSError:
                        hidden += 1  # gone since, a loop, or not ours to see
        except OSError as error:
            if error.errno in _MISSING:
                return ListPage((), ())
            raise _translate(error, f"list {prefix or '/'}") from None
        return ListPage(tuple(objects), tuple(prefixes), hidden)

    def _path(self, key: str) -> str:
        if not is_addressable(key):
            raise ObjectMissingError(f"{key!r}: no file under this name can be addressed")
        return f"{self._root}/{key}"

    def _check_version(self, key: str, asked: Version, fd: int) -> None:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or _version(found) != asked:
            raise VersionGoneError(f"{key}: the file has changed")


def _version(found: os.stat_result) -> Version:
    etag = f"{found.st_dev:x}-{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}-{found.st_size:x}"
    return Version(etag, "", found.st_size, found.st_mtime_ns)


def _translate(error: OSError, what: str) -> BackendError:
    text = f"{what}: {error.strerror}"
    if error.errno in _MISSING:
        return ObjectMissingError(text)
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDeniedError(text)
    if error.errno == errno.ESTALE:
        return VersionGoneError(text)
    return TransientError(text) if error.errno in _TRANSIENT else BackendError(text)
