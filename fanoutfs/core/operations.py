"""The pyfuse3 door: translates between pyfuse3's types and `filesystem`.  Core only; nothing else imports pyfuse3.

Only what a front relays arrives here: LOOKUP as it is, and intents disguised as READ (see wire.relay).  pyfuse3 ends
the whole mount on any exception but FUSEError, so every operation goes through `_guarded`.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from fanoutfs.core.filesystem import FileSystem
from fanoutfs.errors import FanoutError, StoreBrokenError
from fanoutfs.index.format import Inode
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.wire.kernel import ATTR, FOREVER_S
from fanoutfs.wire.relay import DONE, Outcome, Verb, split_intent

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_NS: Final = 1_000_000_000


def _guarded(operation: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn every exception into a FUSEError; cancellation passes (it is a BaseException)."""

    @functools.wraps(operation)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
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
            door: Any = args[0]
            door.count_unexpected()
            log.exception("unexpected exception operation=%s args=%r", operation.__name__, args[1:])
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded


class Operations(pyfuse3.Operations):
    """What pyfuse3 calls."""

    def __init__(self, filesystem: FileSystem, entry_timeout_s: float, row: memoryview) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._entry_timeout_s = entry_timeout_s
        self._row = row

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
        return entry_attributes(found, self._entry_timeout_s)

    @_guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return entry_attributes(self._filesystem.inode(inode), self._entry_timeout_s)

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        verb, ino = split_intent(fh)
        if verb is Verb.LIST:
            await self._filesystem.make_listed(ino)
            return DONE.pack(Outcome.READY, 0, 0, 0)
        return await self._filesystem.prepare_read(verb, ino, off, size)


def entry_attributes(inode: Inode, entry_timeout_s: float) -> pyfuse3.EntryAttributes:
    """Return an inode's attributes in pyfuse3's form."""
    fields = ATTR.unpack(inode.attr)
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.ino
    entry.generation = 0
    entry.entry_timeout = entry_timeout_s
    entry.attr_timeout = FOREVER_S
    entry.st_size = fields[1]
    entry.st_blocks = fields[2]
    entry.st_atime_ns = fields[3] * _NS + fields[6]
    entry.st_mtime_ns = fields[4] * _NS + fields[7]
    entry.st_ctime_ns = fields[5] * _NS + fields[8]
    entry.st_mode = fields[9]
    entry.st_nlink = fields[10]
    entry.st_uid = fields[11]
    entry.st_gid = fields[12]
    entry.st_rdev = fields[13]
    entry.st_blksize = 4096
    return entry
