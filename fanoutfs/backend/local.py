"""The backend over a directory: file:///dir.

Not obstore's LocalStore (tried with 0.12): it hides and refuses `name#1` (the form of its own temporary files), fails a
whole directory for one name that is not UTF-8, and its ETag cuts times to microseconds.

* Names that are not UTF-8 (or hold a newline or another control character: keys.is_addressable) are hidden and counted.
* Symlinks are followed, also out of the directory, as any program reading the directory would; whoever mounts it
  trusts it.  Broken ones and those in a loop are hidden and counted; so are devices, sockets and fifos, and a
  directory that is one of those above it (`sub -> ..`): there would be no end to what is below.
* The ETag is inode, modification and change time, size.  A file that is overwritten twice within one timestamp tick
  (4 ms before Linux 6.13) with equal size cannot be told apart.
* Files that are being written (localwrite.py) are not shown and not counted.
* A range is checked after the read against fstat of the same descriptor: a mixture of two versions is VersionGoneError.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Set
from itertools import dropwhile, islice
from pathlib import Path
from typing import Final

from fanoutfs.backend.base import Landing, Pages
from fanoutfs.backend.keys import is_addressable
from fanoutfs.backend.localfiles import MISSING, is_scratch, is_version, translate, version_of
from fanoutfs.backend.localwrite import LocalWriter
from fanoutfs.backend.ordered import sorted_names
from fanoutfs.backend.writing import PassedWrites
from fanoutfs.errors import (
    BucketMissingError,
    ObjectMissingError,
    TransientError,
    VersionGoneError,
)
from fanoutfs.records import ListPage, ObjectInfo, Version

PAGE_KEYS: Final = 1000


class LocalBackend(PassedWrites):
    """The files below one directory.  Stateless, hence thread-safe; localwrite.py has the other half."""

    def __init__(self, directory: str) -> None:
        """directory: absolute.  Nothing is opened or checked here: a listing says whether it is missing."""
        self._root = directory.rstrip("/")
        super().__init__(LocalWriter(self._root))

    def head(self, key: str) -> ObjectInfo:
        """See Backend.head."""
        path = self._path(key)
        try:
            found = os.stat(path)
        except OSError as error:
            raise translate(error, f"stat {key}") from None
        if not stat.S_ISREG(found.st_mode):
            raise ObjectMissingError(f"stat {key}: not a regular file")
        return ObjectInfo(key, version_of(found))

    def whole_gets(self) -> None:
        """See Backend.whole_gets: a file is read at once."""
        return

    def get_range(self, key: str, start: int, end: int, version: Version, into: Landing | None = None) -> memoryview:
        """See Backend.get_range."""
        path = self._path(key)
        try:
            # O_NONBLOCK: a fifo put in the file's place must not hold the thread.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise translate(error, f"open {key}") from None
        try:
            self._check_version(key, version, fd)
            view = memoryview(bytearray(max(0, end - start))) if into is None else into.memory
            done = 0
            while done < len(view):
                count = os.preadv(fd, [view[done:]], start + done)
                if count == 0:
                    break
                done += count
            self._check_version(key, version, fd)
        except OSError as error:
            raise translate(error, f"read {key}") from None
        finally:
            os.close(fd)
        if done != len(view):
            raise TransientError(f"read {key} [{start}, {end}): {done} bytes came instead of {len(view)}")
        if into is not None:
            into.arrive(done - into.arrived)
        return view.toreadonly()

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.list; in tree order.  With a limit one page, cut there, in no order."""
        if limit is not None:
            return Pages(lambda _token: (self._probe(prefix, limit), ""))
        return Pages(_Directory(self._root, prefix).fetch)

    def scan(self, prefix: str, after: str = "", limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.scan; in tree order."""
        return Pages(_Walk(self._root, prefix, after, limit).fetch)

    @property
    def can_seek(self) -> bool:
        """See Backend.can_seek: the directories on the way are read and sorted anew."""
        return False

    def close(self) -> None:
        """See Backend.close."""

    def _probe(self, prefix: str, limit: int) -> ListPage:
        _check_root(self._root)
        above = _identities(self._root, prefix)
        if above is None:
            return ListPage((), ())
        objects: list[ObjectInfo] = []
        prefixes: list[str] = []
        hidden = 0
        try:
            with os.scandir(f"{self._root}/{prefix}") as entries:
                for entry in entries:
                    if len(objects) + len(prefixes) >= limit:
                        break
                    key = f"{prefix}{entry.name}"
                    try:
                        if is_scratch(entry.name):
                            continue
                        if not is_addressable(entry.name):
                            hidden += 1
                        elif entry.is_dir() and _identity(entry.stat()) not in above:
                            prefixes.append(f"{key}/")
                        elif entry.is_file():
                            objects.append(ObjectInfo(key, version_of(entry.stat())))
                        else:
                            hidden += 1
                    except OSError:
                        hidden += 1  # gone since, a loop, or not ours to see
        except OSError as error:
            if error.errno in MISSING:
                return ListPage((), ())
            raise translate(error, f"list {prefix or '/'}") from None
        return ListPage(tuple(objects), tuple(prefixes), hidden)

    def _path(self, key: str) -> str:
        if not is_addressable(key):
            raise ObjectMissingError(f"{key!r}: no file under this name can be addressed")
        return f"{self._root}/{key}"

    def _check_version(self, key: str, asked: Version, fd: int) -> None:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not is_version(found, asked):
            raise VersionGoneError(f"{key}: the file has changed")


def _check_root(root: str) -> None:
    if not Path(root or "/").is_dir():
        raise BucketMissingError(f"{root or '/'}: no such directory")


def _names(root: str, prefix: str) -> tuple[Iterator[str], int]:
    """Return the names in a directory, sorted, and how many cannot be shown.  None at all if it is missing."""
    _check_root(root)
    hidden = 0

    def good() -> Iterator[str]:
        nonlocal hidden
        with os.scandir(f"{root}/{prefix}") as entries:
            for entry in entries:
                if is_scratch(entry.name):
                    continue
                if is_addressable(entry.name):
                    yield entry.name
                else:
                    hidden += 1

    try:
        names = sorted_names(good())
    except OSError as error:
        if error.errno in MISSING:
            return iter(()), 0
        raise translate(error, f"list {prefix or '/'}") from None
    return names, hidden


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _identities(root: str, prefix: str) -> set[tuple[int, int]] | None:
    """Return which directories a prefix goes through, from the file system's root down, with its own.

    None: in a circle, or nothing can have its name.
    """
    if prefix and not is_addressable(prefix.removesuffix("/")):
        return None
    identities = _above(root)
    at = -1
    while True:
        try:
            identity = _identity(os.stat(f"{root}/{prefix[: at + 1]}"))
        except OSError as error:
            if error.errno in MISSING:
                return identities  # whoever opens it will see
            raise translate(error, f"list {prefix or '/'}") from None
        if identity in identities:
            return None
        identities.add(identity)
        at = prefix.find("/", at + 1)
        if at < 0:
            return identities


def _above(root: str) -> set[tuple[int, int]]:
    """Return the directories above the source: a link to one of them leads back here, or through the mount itself."""
    identities = set()
    for parent in Path(os.path.realpath(root)).parents:
        with contextlib.suppress(OSError):
            identities.add(_identity(os.stat(parent)))
    with contextlib.suppress(OSError):
        identities.discard(_identity(os.stat(root)))  # (one of them may be mounted here once more: it is no circle yet)
    return identities


def _look(root: str, key: str, above: Set[tuple[int, int]]) -> ObjectInfo | None:
    """Return what is at a path: a directory's key ends with "/"; None: nothing that can be shown.

    above: the directories that the path goes through.
    """
    try:
        found = os.stat(f"{root}/{key}")
    except OSError:
        return None  # gone since, a loop, or not ours to see
    if stat.S_ISDIR(found.st_mode):
        return None if _identity(found) in above else ObjectInfo(key + "/", version_of(found))
    return ObjectInfo(key, version_of(found)) if stat.S_ISREG(found.st_mode) else None


class _Directory:
    """The listing of one directory under way.  One thread at a time."""

    def __init__(self, root: str, prefix: str) -> None:
        self._root = root
        self._prefix = prefix
        self._names: Iterator[str] | None = None
        self._above: set[tuple[int, int]] = set()

    def fetch(self, _token: str) -> tuple[ListPage, str]:
        """Return the next page, and "" as the next token at the end."""
        hidden = 0
        if self._names is None:
            above = _identities(self._root, self._prefix)
            if above is None:
                return ListPage((), ()), ""
            self._above = above
            self._names, hidden = _names(self._root, self._prefix)
        names = list(islice(self._names, PAGE_KEYS))
        looks = [_look(self._root, self._prefix + name, self._above) for name in names]
        found = [info for info in looks if info is not None]
        objects = tuple(info for info in found if not info.key.endswith("/"))
        prefixes = tuple(info.key for info in found if info.key.endswith("/"))
        hidden += len(looks) - len(found)
        return ListPage(objects, prefixes, hidden), "more" if len(names) == PAGE_KEYS else ""


class _Walk:
    """A scan under way: the directories above the place reached, each with the names still to come."""

    def __init__(self, root: str, prefix: str, after: str, limit: int | None) -> None:
        self._root = root
        reached = after.removeprefix(prefix) if after.startswith(prefix) else ""
        self._next: tuple[str, list[str]] | None = (prefix, reached.split("/") if reached else [])
        """A directory to open, and the place in it behind which to begin: the parts of a relative key."""
        self._left = limit
        self._open: list[tuple[str, set[tuple[int, int]], Iterator[str]]] = []
        """(prefix, the directories it goes through, names), from the scan's root down."""
        self._found: list[ObjectInfo] = []
        self._hidden = 0

    def fetch(self, _token: str) -> tuple[ListPage, str]:
        """Return the next page, and "" as the next token at the end.  An error leaves the place as it was."""
        wanted = PAGE_KEYS if self._left is None else max(1, min(PAGE_KEYS, self._left))
        while len(self._found) < wanted:
            if self._next is not None:
                self._enter(*self._next)
                continue
            if not self._open:
                break
            prefix, above, names = self._open[-1]
            name = next(names, None)
            if name is None:
                self._open.pop()
            elif (found := _look(self._root, prefix + name, above)) is None:
                self._hidden += 1
            else:
                self._found.append(found)
                if found.key.endswith("/"):
                    self._next = (found.key, [])
        page = ListPage(tuple(self._found), (), self._hidden)
        self._found, self._hidden = [], 0
        if self._left is not None:
            self._left -= len(page.objects)
        is_more = bool(self._open or self._next) and (self._left is None or self._left > 0)
        return page, "more" if is_more else ""

    def _identities(self, prefix: str) -> set[tuple[int, int]] | None:
        """Do as the function of this name, with one look when the directory above is known."""
        if not self._open:
            return _identities(self._root, prefix)
        above = self._open[-1][1]
        try:
            identity = _identity(os.stat(f"{self._root}/{prefix}"))
        except OSError as error:
            if error.errno in MISSING:
                return None
            raise translate(error, f"list {prefix}") from None
        return None if identity in above else above | {identity}

    def _enter(self, prefix: str, after: list[str]) -> None:
        names, hidden = _names(self._root, prefix)
        above = self._identities(prefix)
        if above is None:  # gone, or a circle, since it was looked at
            self._next = None
            return
        if after:
            reached = after[0].encode("utf-8", "surrogateescape")
            names = dropwhile(lambda name: name.encode("utf-8", "surrogateescape") <= reached, names)
        else:
            self._hidden += hidden
        self._open.append((prefix, above, names))
        self._next = (f"{prefix}{after[0]}/", after[1:]) if len(after) > 1 else None
