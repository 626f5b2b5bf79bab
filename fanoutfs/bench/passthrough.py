"""An ordinary pyfuse3 file system over a directory: the peer that shows what an open costs when it costs a message.

Its own process: `python -m fanoutfs.bench.passthrough [--as-example] SOURCE MOUNTPOINT`, in the foreground, until it is
unmounted or gets SIGTERM.
Read-only.  Every OPEN, READ and RELEASE reaches this process, as in most FUSE file systems.  It is given what a careful
author would give it, so that the comparison is fair: practically infinite entry and attribute timeouts, `keep_cache`
(the page cache survives a close), one descriptor per inode in use, as pyfuse3's own example has it (one per open file
runs out: the kernel does not wait for RELEASE, and thousands of them queue behind the OPENs).  It does no work that an
ordinary file system could leave out.

--as-example: answered with the settings of the example that pyfuse3 publishes (examples/passthroughfs.py) and that
authors start from: entry and attribute timeouts 0 and no `keep_cache`.  Every open then pays a LOOKUP and the GETATTRs
of the path walk as well, and drops the cached pages.  Only the settings are that example's; the program is this one.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import pyfuse3
import trio

if TYPE_CHECKING:
    from pyfuse3 import FileHandleT, FileNameT, InodeT, ReaddirToken

_T = TypeVar("_T")

FOREVER_S: Final = 1e6
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True, slots=True)
class Settings:
    """What the kernel may keep of an answer, and whether pages survive a close."""

    timeout_s: float
    keep_cache: bool


TUNED: Final = Settings(FOREVER_S, keep_cache=True)
AS_EXAMPLE: Final = Settings(0.0, keep_cache=False)
AS_EXAMPLE_FLAG: Final = "--as-example"


class Passthrough(pyfuse3.Operations):
    """LOOKUP, GETATTR, OPEN, READ, RELEASE, OPENDIR, READDIR(PLUS) and READLINK over one directory tree.

    Used by one trio thread only.  Inode numbers are made here, paths are kept for every inode ever seen.
    """

    def __init__(self, source: bytes, settings: Settings = TUNED) -> None:
        """source: the directory to show; it must not change meanwhile."""
        super().__init__()
        self._settings = settings
        self._paths: dict[int, bytes] = {pyfuse3.ROOT_INODE: source}
        self._inodes: dict[bytes, int] = {source: pyfuse3.ROOT_INODE}
        self._open: dict[int, list[int]] = {}  # inode -> [descriptor, opens]
        self._inode_of: dict[int, int] = {}  # descriptor -> inode

    async def lookup(
        self, parent_inode: "InodeT", name: "FileNameT", ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Answer LOOKUP; a missing name is remembered by the kernel too."""
        path = self._paths[parent_inode] + b"/" + name
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = self._settings.timeout_s
            return missing
        except OSError as error:
            raise _fuse_error(error) from None
        return self._attributes(self._inode(path), found)

    async def getattr(self, inode: "InodeT", ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Answer GETATTR."""
        return self._attributes(inode, _call(os.lstat, self._paths[inode]))

    async def open(self, inode: "InodeT", flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Answer OPEN."""
        if flags & _WRITES:
            raise pyfuse3.FUSEError(errno.EROFS)
        used = self._open.get(inode)
        if used is None:
            fd = _call(os.open, self._paths[inode], os.O_RDONLY | os.O_CLOEXEC)
            used = self._open[inode] = [fd, 0]
            self._inode_of[fd] = inode
        used[1] += 1
        return pyfuse3.FileInfo(fh=used[0], keep_cache=self._settings.keep_cache)

    async def read(self, fh: "FileHandleT", off: int, size: int) -> bytes:
        """Answer READ."""
        return _call(os.pread, fh, size, off)

    async def release(self, fh: "FileHandleT") -> None:
        """Answer RELEASE."""
        used = self._open[self._inode_of[fh]]
        used[1] -= 1
        if used[1] == 0:
            del self._open[self._inode_of.pop(fh)]
            os.close(fh)

    async def opendir(self, inode: "InodeT", ctx: pyfuse3.RequestContext) -> "FileHandleT":
        """Answer OPENDIR; the handle is the inode."""
        return inode

    async def readdir(self, fh: "FileHandleT", start_id: int, token: "ReaddirToken") -> None:
        """Answer READDIRPLUS in the order of names; offsets are positions, the source does not change."""
        directory = self._paths[fh]
        for position, name in enumerate(_call(_names, directory)[start_id:], start_id + 1):
            path = directory + b"/" + name
            attributes = self._attributes(self._inode(path), _call(os.lstat, path))
            if not pyfuse3.readdir_reply(token, name, attributes, position):
                return

    async def readlink(self, inode: "InodeT", ctx: pyfuse3.RequestContext) -> "FileNameT":
        """Answer READLINK."""
        target: bytes = _call(os.readlink, self._paths[inode])
        return target

    def _inode(self, path: bytes) -> int:
        inode = self._inodes.get(path)
        if inode is None:
            inode = self._inodes[path] = len(self._inodes) + 1
            self._paths[inode] = path
        return inode

    def _attributes(self, inode: int, found: os.stat_result) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.st_mode = found.st_mode
        attributes.st_nlink = found.st_nlink
        attributes.st_uid = found.st_uid
        attributes.st_gid = found.st_gid
        attributes.st_size = found.st_size
        attributes.st_blocks = found.st_blocks
        attributes.st_atime_ns = found.st_atime_ns
        attributes.st_mtime_ns = found.st_mtime_ns
        attributes.st_ctime_ns = found.st_ctime_ns
        attributes.entry_timeout = self._settings.timeout_s
        attributes.attr_timeout = self._settings.timeout_s
        return attributes


def _names(directory: bytes) -> list[bytes]:
    return sorted(os.listdir(directory))


def _call(function: Callable[..., _T], *arguments: object) -> _T:
    try:
        return function(*arguments)
    except OSError as error:
        raise _fuse_error(error) from None


def _fuse_error(error: OSError) -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(error.errno or errno.EIO)


async def _serve() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


def main(arguments: Sequence[str]) -> int:
    """Mount until somebody unmounts."""
    is_as_example = AS_EXAMPLE_FLAG in arguments
    places = [argument for argument in arguments if argument != AS_EXAMPLE_FLAG]
    if len(places) != 2:
        sys.stderr.write(f"usage: python -m fanoutfs.bench.passthrough [{AS_EXAMPLE_FLAG}] SOURCE MOUNTPOINT\n")
        return 2
    source, mountpoint = (os.path.realpath(place) for place in places)
    if not Path(source).is_dir():
        sys.stderr.write(f"{source}: not a directory\n")
        return 2
    options = set(pyfuse3.default_options) | {"fsname=passthrough", "subtype=passthrough", "ro"}
    operations = Passthrough(os.fsencode(source), AS_EXAMPLE if is_as_example else TUNED)
    pyfuse3.init(operations, mountpoint, options)
    try:
        trio.run(_serve)
    finally:
        pyfuse3.close(unmount=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
