"""Attributes that objects carry: asked for when a file is looked up for the first time (`object_attributes = lookup`).

Core, trio thread only.  One HEAD a file, and a GET for a symbolic link, whoever waits for it.  While the store does not
answer the file shows the mount's owner and mode, and the next lookup asks again: fronts let the kernel remember a name
only when the record says that it has attributes.
"""

import logging
import stat
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from fanoutfs.backend.attributes import FileAttributes, decode_attributes
from fanoutfs.backend.base import Backend
from fanoutfs.errors import BackendError, DatabaseError
from fanoutfs.index.filling import FillAttributes, ObjectAttributes
from fanoutfs.index.format import Inode
from fanoutfs.index.operations import is_same_version
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter

log = logging.getLogger(__name__)

_PARALLEL: Final = 64
_TARGET_MAX: Final = 4095
"""PATH_MAX without the NUL."""


class AttributeReader:
    """Asks the store, once for each file."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        backend: Backend,
        writer: GroupWriter[IndexTransaction],
        distrust: Callable[[Inode], None],
        patience_s: float,
    ) -> None:
        """distrust: called with a file whose object is another one by now.  patience_s: how long a lookup waits."""
        self._nursery = nursery
        self._backend = backend
        self._writer = writer
        self._distrust = distrust
        self._patience_s = patience_s
        self._under_way: dict[int, trio.Event] = {}
        self._threads = trio.CapacityLimiter(_PARALLEL)

    async def fill(self, parent: int, name: bytes, inode: Inode) -> None:
        """Have the record of a file hold what its object carries, as far as the store says so in time.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        if inode.has_attributes or inode.is_local or inode.is_staged or not stat.S_ISREG(inode.mode):
            return
        done = self._under_way.get(inode.ino)
        if done is None:
            done = self._under_way[inode.ino] = trio.Event()
            self._nursery.start_soon(self._run, parent, name, inode, done)
        with trio.move_on_after(self._patience_s):
            await done.wait()

    async def _run(self, parent: int, name: bytes, inode: Inode, done: trio.Event) -> None:
        try:
            await self._fill(parent, name, inode)
        except (BackendError, DatabaseError) as error:
            log.warning("attributes not read ino=%d key=%s: %s", inode.ino, inode.key, error)
        except Exception:  # nobody's request must end the core
            log.exception("attributes not read ino=%d key=%s", inode.ino, inode.key)
        finally:
            del self._under_way[inode.ino]
            done.set()

    async def _fill(self, parent: int, name: bytes, inode: Inode) -> None:
        ask = partial(self._ask, inode)
        found = await trio.to_thread.run_sync(ask, limiter=self._threads, abandon_on_cancel=True)
        if found is None:
            self._distrust(inode)
            return
        await self._writer.run(FillAttributes(parent, name, inode.ino, inode.version, found).apply)

    def _ask(self, inode: Inode) -> ObjectAttributes | None:
        """Return what the object carries; None: it has another version by now.  Blocks.  Raises BackendError."""
        details = self._backend.details(inode.key)
        if not is_same_version(inode.version, details.info.version):
            return None
        found = decode_attributes(details.properties.metadata)
        return _with_target(found, self._target(inode, found))

    def _target(self, inode: Inode, found: FileAttributes) -> bytes | None:
        if found.mode is None or not stat.S_ISLNK(found.mode) or not 0 < inode.size_bytes <= _TARGET_MAX:
            return None
        target = bytes(self._backend.get_range(inode.key, 0, inode.size_bytes, inode.version))
        return None if b"\0" in target else target


def _with_target(found: FileAttributes, target: bytes | None) -> ObjectAttributes:
    return ObjectAttributes(
        mode=found.mode,
        uid=found.uid,
        gid=found.gid,
        mtime_ns=found.mtime_ns,
        ctime_ns=found.ctime_ns,
        atime_ns=found.atime_ns,
        rdev=found.rdev,
        xattrs=found.xattrs,
        target=target,
    )
