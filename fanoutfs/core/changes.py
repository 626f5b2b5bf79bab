"""What processes on the mount change: names, attributes, extended attributes.  No FUSE types.

Core, trio thread only.  Names are bytes, results are index records as users see them, errors FanoutError.  What POSIX
asks is decided in the index's transaction (`index.changes`); here the store's side is made known first, so that the
answer is exact: a name that exists only there exists, and a directory is empty only if it is empty there.

Each request has a token (`wire.relay`).  A request that was delivered again is not carried out twice: one that this
core has carried out, or is carrying out, is answered with the outcome of the first; one of a core before this one is
recognised by what that committed.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import trio

from fanoutfs.clock import Clock
from fanoutfs.core.filesystem import FileSystem
from fanoutfs.core.numbers import Numbers
from fanoutfs.core.staging import Staging
from fanoutfs.errors import FanoutError, RefusedError
from fanoutfs.index.attributes import RemoveXattr, SetAttributes, SetXattr
from fanoutfs.index.changes import RENAME_NOREPLACE, Link, MakeNode, Rename, Rmdir, Unlink
from fanoutfs.index.format import Inode
from fanoutfs.index.places import Places
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.requests import CREATED, Request
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.wire.kernel import Opcode
from fanoutfs.wire.relay import TOKEN_MASK, TOKEN_RESENT

T = TypeVar("T")

_REMEMBERED: Final = 4096
"""Outcomes kept for requests that are delivered again: more than can be unanswered at once."""
XATTR_NAME_MAX: Final = 255
XATTR_SIZE_MAX: Final = 65536
VIRTUAL_XATTRS: Final = b"user.fanoutfs."
STATE_XATTR: Final = b"user.fanoutfs.state"
KEY_XATTR: Final = b"user.fanoutfs.key"


class _Outcome:
    """What came of a request; `done` is set at the end.  is_resent: it was the second delivery that came first."""

    __slots__ = ("done", "error", "is_resent", "result")

    def __init__(self, *, is_resent: bool) -> None:
        self.is_resent = is_resent
        self.done = trio.Event()
        self.result: Any = None
        self.error: BaseException | None = None


class Changes:
    """Carries out what requests ask to change."""

    def __init__(
        self,
        *,
        filesystem: FileSystem,
        staging: Staging,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        numbers: Numbers,
        root_prefix: str,
        clock: Clock,
    ) -> None:
        self._filesystem = filesystem
        self._staging = staging
        self._reader = reader
        self._writer = writer
        self._numbers = numbers
        self._root_prefix = root_prefix
        self._clock = clock
        self._outcomes: OrderedDict[int, _Outcome] = OrderedDict()
        self.note_made: Callable[[int], None] = _ignore
        """Called with an inode that was made here.  No checkpoint."""
        self.note_dirty: Callable[[int], None] = _ignore
        """Called with an inode that was changed here.  No checkpoint."""
        self.note_renamed: Callable[[], None] = _do_nothing
        """Called when a directory, and all that is below it, has another name.  No checkpoint."""
        self.is_uploading: Callable[[int], bool] = _is_never
        """Tells whether an inode is being uploaded."""
        self.virtual_xattr: Callable[[int, str], bytes | None] = _has_none
        """Returns what further attributes `user.fanoutfs.NAME` say of an inode; None: there is none of this name."""

    # --- names -------------------------------------------------------------------------------------------------

    async def make(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, token: int, *, rdev: int = 0
    ) -> Inode:
        """Make a file, directory or special file.  Checkpoint.  Raises RefusedError, StaleInodeError, BackendError."""
        opcode = Opcode.MKDIR if stat.S_ISDIR(mode) else Opcode.MKNOD
        return await self._once(token, lambda: self._make(parent, name, mode, uid, gid, token, opcode, rdev=rdev))

    async def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int, token: int) -> Inode:
        """Make a symbolic link.  Checkpoint.  Raises as `make`."""
        mode = stat.S_IFLNK | 0o777
        return await self._once(
            token, lambda: self._make(parent, name, mode, uid, gid, token, Opcode.SYMLINK, target=target)
        )

    async def _make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        token: int,
        opcode: Opcode,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        mode = mode if stat.S_IFMT(mode) else mode | stat.S_IFREG
        if not self._filesystem.knows_names(parent):  # else the transaction sees whether the name is there
            await self._make_known(parent, name, must_be_new=not token & TOKEN_RESENT)
        is_file = stat.S_ISREG(mode)
        ino, life = await self._staging.new_file() if is_file else (await self._numbers.take(), 0)
        request = self._request(token, opcode)
        make = MakeNode(parent, name, ino, mode, uid, gid, request, rdev=rdev, target=target, life=life)
        try:
            made = await self._apply(make.apply)
        except Exception:  # (cancelled it may have been committed: a start will tell)
            if is_file:
                self._staging.discard_file(ino, life)
            raise
        if made.ino != ino and is_file:  # an earlier core, or a front, made it for this request
            self._staging.discard_file(ino, life)
        if is_file:
            self._tag(made)
        self.note_made(made.ino)
        return self._staging.shown(made)

    async def link(self, ino: int, parent: int, name: bytes, token: int) -> Inode:
        """Give a file one more name.  Checkpoint.  Raises as `make`."""

        async def carry_out() -> Inode:
            await self._make_known(parent, name, must_be_new=not token & TOKEN_RESENT)
            cookie = await self._numbers.take()
            linked = await self._apply(Link(ino, parent, name, cookie, self._request(token, Opcode.LINK)).apply)
            self._staging.touch(linked)
            self._settle(ino)
            return self._staging.shown(linked)

        return await self._once(token, carry_out)

    async def unlink(self, parent: int, name: bytes, token: int) -> None:
        """Take one name of a file away.  Checkpoint.  Raises as `make`."""

        async def carry_out() -> None:
            await self._make_known(parent, name)
            ino = await self._apply(Unlink(parent, name, self._request(token, Opcode.UNLINK)).apply)
            self._touch(ino)
            self._retag(ino)
            self._settle(ino)

        await self._once(token, carry_out)

    async def rmdir(self, parent: int, name: bytes, token: int) -> None:
        """Take an empty directory away.  Checkpoint.  Raises as `make`."""

        async def carry_out() -> None:
            found = await self._make_known(parent, name)
            if found is not None and found.is_dir:
                await self._filesystem.make_listed(found.ino)
            self._settle(await self._apply(Rmdir(parent, name, self._request(token, Opcode.RMDIR)).apply))

        await self._once(token, carry_out)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, token: int) -> None:
        """Move a name, or exchange two.  flags: RENAME_*.  Checkpoint.  Raises as `make`."""

        async def carry_out() -> None:
            found = await self._make_known(parent, name)
            target = await self._make_known(new_parent, new_name)
            if found is not None and found.is_dir:
                await self._filesystem.make_listed(found.ino)
            if target is not None and target.is_dir and flags != RENAME_NOREPLACE:
                await self._filesystem.make_listed(target.ino)
            opcode = Opcode.RENAME2 if flags else Opcode.RENAME
            request = self._request(token, opcode)
            ino = await self._apply(Rename(parent, name, new_parent, new_name, flags, request).apply)
            self._touch(ino)
            self._retag(ino)
            self._settle(ino)
            if target is not None:
                self._touch(target.ino)
                self._retag(target.ino)
                self._settle(target.ino)
            if any(each is not None and each.is_dir for each in (found, target)):
                self.note_renamed()

        await self._once(token, carry_out)

    # --- attributes --------------------------------------------------------------------------------------------

    async def setattr(
        self,
        ino: int,
        token: int,
        *,
        size: int | None = None,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Inode:
        """Change attributes; a size is that of the content.  Checkpoint.  Raises as `make`, and CacheFullError."""

        async def carry_out() -> Inode:
            inode = self._filesystem.inode(ino)
            if size is not None:
                stage = partial(self._staging.stage, ino, 0, 0, truncate_to=size)
                inode = await self._filesystem.following(ino, stage)
            if size is None or any(value is not None for value in (mode, uid, gid, atime_ns, mtime_ns)):
                request = self._request(token, Opcode.SETATTR)
                change = SetAttributes(ino, request, mode, uid, gid, atime_ns, mtime_ns)
                # The file must not become clean between its record and its staging file, which has the times.
                async with self._staging.held(ino):
                    inode = await self._apply(change.apply)
                    self._staging.touch(inode, atime_ns, mtime_ns)
            self._settle(ino)
            return self._staging.shown(inode)

        return await self._once(token, carry_out)

    def readlink(self, ino: int) -> bytes:
        """Return what a symbolic link points to.  Raises RefusedError."""
        with self._reader.begin() as txn:
            target = self._reader.changed(txn).target(ino)
        if target is None:
            raise RefusedError(errno.EINVAL)
        return target

    # --- extended attributes -----------------------------------------------------------------------------------

    async def setxattr(self, ino: int, name: bytes, value: bytes, token: int) -> None:
        """Set an extended attribute.  Checkpoint.  Raises RefusedError, StaleInodeError."""

        async def carry_out() -> None:
            _check_xattr(name)
            if name.startswith(VIRTUAL_XATTRS):
                raise RefusedError(errno.EPERM)
            if len(value) > XATTR_SIZE_MAX:
                raise RefusedError(errno.E2BIG)
            self._check_kind(ino)
            request = self._request(token, Opcode.SETXATTR)
            await self._apply(SetXattr(ino, name, value, request).apply)
            self._touch(ino)
            self._settle(ino)

        await self._once(token, carry_out)

    async def removexattr(self, ino: int, name: bytes, token: int) -> None:
        """Remove an extended attribute.  Checkpoint.  Raises RefusedError, StaleInodeError."""

        async def carry_out() -> None:
            _check_xattr(name)
            if name.startswith(VIRTUAL_XATTRS):
                raise RefusedError(errno.EPERM)
            self._check_kind(ino)
            await self._apply(RemoveXattr(ino, name, self._request(token, Opcode.REMOVEXATTR)).apply)
            self._touch(ino)
            self._settle(ino)

        await self._once(token, carry_out)

    def getxattr(self, ino: int, name: bytes, token: int) -> bytes:
        """Return an extended attribute.  Raises RefusedError.

        token: not 0 when it is asked whether a SETXATTR of this token may be carried out (pyfuse3 looks first whether
        the attribute exists, for XATTR_CREATE and XATTR_REPLACE).
        """
        _check_xattr(name)
        if name == STATE_XATTR:
            return self._state(ino)
        with self._reader.begin() as txn:
            records = self._reader.changed(txn)
            if name == KEY_XATTR:
                key = Places.of_reader(self._reader, txn, self._root_prefix).key(ino)
                found = None if key is None else key.encode("utf-8", "surrogateescape")
            elif name.startswith(VIRTUAL_XATTRS):
                found = self.virtual_xattr(ino, name.removeprefix(VIRTUAL_XATTRS).decode(errors="replace"))
            else:
                found = records.xattr(ino, name)
            if token & TOKEN_RESENT:
                earlier = records.applied(token & TOKEN_MASK)
                if earlier is not None and earlier[0] == Opcode.SETXATTR | CREATED:
                    found = None  # it made the attribute, which did not exist then
        if found is None:
            raise RefusedError(errno.ENODATA)
        return found

    def listxattr(self, ino: int) -> list[bytes]:
        """Return the names of all extended attributes but the virtual ones, which `cp -a` shall not copy."""
        with self._reader.begin() as txn:
            return list(self._reader.changed(txn).xattrs(ino))

    def _state(self, ino: int) -> bytes:
        if self.is_uploading(ino):
            return b"uploading"
        with self._reader.begin() as txn:
            dirty = self._reader.changed(txn).dirty(ino)
        if dirty is None:
            return b"clean"
        return b"conflict" if dirty.what & dirty.what.CONFLICT else b"dirty"

    def _check_kind(self, ino: int) -> None:
        """Linux keeps user.* to files and directories (xattr(7))."""
        mode = self._filesystem.inode(ino).mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise RefusedError(errno.EPERM)

    # --- what they share ---------------------------------------------------------------------------------------

    async def _apply(self, apply: Callable[[IndexTransaction], T]) -> T:
        return await self._writer.run(apply, is_short=True)

    def _request(self, token: int, opcode: Opcode) -> Request:
        return Request(self._clock.wall_ns(), token, int(opcode), self._root_prefix)

    async def _make_known(self, parent: int, name: bytes, *, must_be_new: bool = False) -> Inode | None:
        """Let the index know what the store has under a name; return what that leads to.  Checkpoint."""
        if len(name) > 255:
            raise RefusedError(errno.ENAMETOOLONG)
        found = await self._filesystem.lookup(parent, name)
        if found is not None and must_be_new:
            raise RefusedError(errno.EEXIST)
        return found

    def _touch(self, ino: int) -> None:
        """Move the ctime of a staged file, as the transaction moved that of its record."""
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
        if inode is not None:
            self._staging.touch(inode)

    def _retag(self, ino: int) -> None:
        """Let a staging file say where its content belongs by now; nowhere: nobody shall bring it back."""
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
        if inode is not None:
            self._tag(inode)

    def _tag(self, inode: Inode) -> None:
        if inode.is_staged:
            with self._reader.begin() as txn:
                key = Places.of_reader(self._reader, txn, self._root_prefix).key(inode.ino)
            self._staging.tag(inode, key)

    def _settle(self, ino: int) -> None:
        self.note_dirty(ino)

    async def _once(self, token: int, carry_out: Callable[[], Awaitable[T]]) -> T:
        """Carry a request out, unless it was delivered before; return, or raise, what came of it.  Checkpoint."""
        number = token & TOKEN_MASK
        if not number:
            return await carry_out()
        known = self._outcomes.get(number)
        is_resent = bool(token & TOKEN_RESENT)
        if known is not None and (is_resent or known.is_resent):
            await known.done.wait()
            if known.error is not None:
                raise known.error
            result: T = known.result
            return result
        outcome = self._outcomes[number] = _Outcome(is_resent=is_resent)
        self._outcomes.move_to_end(number)
        if len(self._outcomes) > _REMEMBERED:
            self._outcomes.popitem(last=False)
        try:
            outcome.result = await carry_out()
        except (FanoutError, OSError) as error:
            outcome.error = error
            raise
        except BaseException:
            self._outcomes.pop(number, None)
            outcome.error = RefusedError(errno.EIO)
            raise
        finally:
            outcome.done.set()
        answer: T = outcome.result
        return answer


def _check_xattr(name: bytes) -> None:
    if not name.startswith(b"user."):
        raise RefusedError(errno.EOPNOTSUPP)
    if len(name) > XATTR_NAME_MAX:
        raise RefusedError(errno.ERANGE)


def _ignore(_ino: int) -> None:
    """Tell nobody."""


def _do_nothing() -> None:
    """Tell nobody."""


def _is_never(_ino: int) -> bool:
    """Nothing is uploaded."""
    return False


def _has_none(_ino: int, _name: str) -> bytes | None:
    """Nothing more is known."""
    return None


assert os.XATTR_SIZE_MAX == XATTR_SIZE_MAX  # noqa: S101 - the kernel's limit, which fuse keeps
