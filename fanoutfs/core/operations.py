"""The pyfuse3 door: translates between pyfuse3's types and `filesystem`.  Core only; nothing else imports pyfuse3.

Only what a front relays arrives here: LOOKUP and changes as they are, and intents disguised as READ (see wire.relay).
`ctx.pid` of a change is its token.  pyfuse3 ends the whole mount on any exception but FUSEError, so every operation
goes through `_guarded`.
"""

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from time import monotonic_ns
from typing import Any, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from fanoutfs.core.changes import Changes
from fanoutfs.core.filesystem import FileSystem
from fanoutfs.core.staging import Staging
from fanoutfs.core.stalls import Stalls
from fanoutfs.errors import BackendError, FanoutError, ObjectMissingError, StoreBrokenError
from fanoutfs.index.format import Inode, attr_times_ns
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import Waits
from fanoutfs.wire.kernel import ATTR, FOREVER_S
from fanoutfs.wire.relay import Outcome, Verb, pack_done, split_intent

log = logging.getLogger(__name__)

_WRITER_WAIT_S: Final = 1.0
"""So long at a time a write waits here at the staging cap: see `stagingroom`."""

P = ParamSpec("P")
R = TypeVar("R")


def _guarded(operation: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn every exception into a FUSEError; cancellation passes (it is a BaseException)."""

    @functools.wraps(operation)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        door: Any = args[0]
        try:
            with door.stalls.waiting():
                return await operation(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except StoreBrokenError:
            await trio.sleep_forever()  # the core ends, and the next one gets this request again
            raise
        except FanoutError as error:
            raise pyfuse3.FUSEError(error.errno_code) from error
        except MemoryError as error:
            raise pyfuse3.FUSEError(errno.ENOMEM) from error
        except OSError as error:
            log.warning("operation failed operation=%s: %s", operation.__name__, error)
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            if door.is_broken():
                await trio.sleep_forever()  # likewise: readers of the index meet it, too
            door.count_unexpected()
            log.exception("unexpected exception operation=%s args=%r", operation.__name__, args[1:])
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded


class Operations(pyfuse3.Operations):
    """What pyfuse3 calls."""

    def __init__(
        self,
        filesystem: FileSystem,
        changes: Changes,
        staging: Staging,
        entry_timeout_s: float,
        row: memoryview,
        stalls: Stalls,
        wait_until_stored: Callable[[int], Awaitable[None]] | None = None,
        is_broken: Callable[[], bool] = bool,
    ) -> None:
        """wait_until_stored: what fsync waits for besides the local disk.  is_broken: whether the core is to end."""
        super().__init__()
        self._wait_until_stored = wait_until_stored
        self.is_broken = is_broken
        self._filesystem = filesystem
        self._changes = changes
        self._staging = staging
        self._entry_timeout_s = entry_timeout_s
        self._row = row
        self.stalls = stalls

    def count_unexpected(self) -> None:
        """Count a request that met an exception nobody foresaw."""
        bump(self._row, Count.REQUEST_ERRORS)

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        found = await self._filesystem.lookup(parent_inode, name)
        if found is None:
            # Not a negative entry, which the kernel would remember: a listing that finds the name may be committed
            # while this answer is still on its way.  Fronts, for which grace periods hold, answer those.
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(self._staging.shown(found))

    @_guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self._staging.shown(self._filesystem.inode(inode)))

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        verb, ino = split_intent(fh)
        if verb in (Verb.FILL, Verb.REFILL, Verb.DIRECT):
            return await self._filesystem.prepare_read(verb, ino, off, size)
        came_ns = monotonic_ns()
        if verb is Verb.LIST:
            await self._filesystem.make_listed(ino)
        elif verb is Verb.LOCALISE:
            await self._filesystem.following(ino, partial(self._staging.make_readable, ino, off, size))
        elif not await self._staging.wait_for_room(size, at_most_s=_WRITER_WAIT_S):
            return pack_done(Outcome.NOT_YET, Waits(0, monotonic_ns() - came_ns, 0))
        elif verb is Verb.STAGE:
            await self._filesystem.following(ino, partial(self._staging.stage, ino, off, size))
        took_ns = monotonic_ns() - came_ns
        if verb is Verb.LIST:
            waits = Waits(took_ns, 0, 0)  # pages of a listing
        elif verb is Verb.ROOM:
            waits = Waits(0, took_ns, 0)  # until others' content has left the disk
        else:
            waits = Waits(0, 0, took_ns)  # journal and staging file, seldom a block of the object
        return pack_done(Outcome.READY, waits)

    # --- changes -----------------------------------------------------------------------------------------------

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        return entry_attributes(inode, self._entry_timeout_s)

    @_guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        token = token_of(ctx)
        return self._entry(await self._changes.make(parent_inode, name, mode, ctx.uid, ctx.gid, token, rdev=rdev))

    @_guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._changes.make(parent_inode, name, mode, ctx.uid, ctx.gid, token_of(ctx)))

    @_guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        made = await self._changes.symlink(parent_inode, name, target, ctx.uid, ctx.gid, token_of(ctx))
        return self._entry(made)

    @_guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._changes.link(inode, new_parent_inode, new_name, token_of(ctx)))

    @_guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._changes.unlink(parent_inode, name, token_of(ctx))

    @_guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._changes.rmdir(parent_inode, name, token_of(ctx))

    @_guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._changes.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, token_of(ctx))

    @_guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changed = await self._changes.setattr(
            inode,
            token_of(ctx),
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entry(changed)

    @_guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._changes.readlink(inode)

    @_guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._changes.setxattr(inode, name, value, token_of(ctx))

    @_guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return self._changes.getxattr(inode, name, token_of(ctx))

    @_guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        return self._changes.listxattr(inode)

    @_guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._changes.removexattr(inode, name, token_of(ctx))

    @_guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._staging.sync(fh, data_only=datasync)
        await self._stored(fh)

    @_guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._staging.sync_names()
        await self._stored(fh)

    async def _stored(self, ino: int) -> None:
        """Return when the store has an inode, if fsync waits for that."""
        if self._wait_until_stored is None:
            return
        try:
            await self._wait_until_stored(ino)
        except ObjectMissingError as error:  # (ESTALE would say that the open file is not there)
            raise BackendError(str(error)) from error


def token_of(ctx: pyfuse3.RequestContext) -> int:
    """Return the token of a change: pyfuse3 takes it for a process's number, which has a sign."""
    return int(ctx.pid) & 0xFFFF_FFFF


def entry_attributes(inode: Inode, entry_timeout_s: float) -> pyfuse3.EntryAttributes:
    """Return an inode's attributes in pyfuse3's form."""
    fields = ATTR.unpack(inode.attr)
    atime_ns, mtime_ns, ctime_ns = attr_times_ns(inode.attr)
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.ino
    entry.generation = 0
    entry.entry_timeout = entry_timeout_s
    entry.attr_timeout = FOREVER_S
    entry.st_size = fields[1]
    entry.st_blocks = fields[2]
    entry.st_atime_ns = atime_ns
    entry.st_mtime_ns = mtime_ns
    entry.st_ctime_ns = ctime_ns
    entry.st_mode = fields[9]
    entry.st_nlink = fields[10]
    entry.st_uid = fields[11]
    entry.st_gid = fields[12]
    entry.st_rdev = fields[13]
    entry.st_blksize = 4096
    return entry
