"""Archived objects: what is known of them, and `fanoutfs tier restore`.

Core, trio thread only; requests run in worker threads.  A read of an archived object is refused by the store; its
readers get ENODATA at once, the log says which object it was and what to do, and the file is `archived` from then on.
A restore asks the store, once for each object, and with `wait` looks until all can be read.

    {"op": "tier_restore", "paths": […], "days": 7, "speed": "", "wait": true}
      → {"job": id}; result: {"counts": {"readable", "asked", "ongoing", "restored"}, "failures": […]}
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import trio

from fanoutfs.backend.archive import Restore
from fanoutfs.backend.base import Backend
from fanoutfs.config.schema import RESTORE_SPEEDS
from fanoutfs.core.control import Command
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.tiers import paths_of
from fanoutfs.core.walking import TreeWalk
from fanoutfs.core.warming import Warming
from fanoutfs.errors import (
    DatabaseError,
    DeadlineError,
    FanoutError,
    ObjectMissingError,
    TransientError,
    UsageError,
)
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.tiering import NoteStored
from fanoutfs.index.tiers import StoredAs
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter

log = logging.getLogger(__name__)

T = TypeVar("T")

_PARALLEL: Final = 16
_LOOK_S: Final = 1.0
_LOOK_MAX_S: Final = 60.0
"""The pause between two looks at what is being restored doubles up to here: a restore takes minutes to days."""
_NAMED: Final = 100
_MOST_TOLD: Final = 100_000
_MAX_DAYS: Final = 36_500


@dataclass
class _Awaited:
    """A file of which a restore is under way: its path when it was asked for, and how the last look found it."""

    path: str
    inode: Inode
    is_missing: bool = False


@dataclass
class _Order:
    """What was asked for at once, and what became of it so far."""

    job: Job
    days: int
    speed: str
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("readable", "asked", "ongoing", "restored"), 0)
    )
    waiting: dict[int, _Awaited] = field(default_factory=dict)


class Restoring:
    """Restores."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        backend: Backend,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        warming: Warming,
        jobs: Jobs,
    ) -> None:
        self._nursery = nursery
        self._backend = backend
        self._reader = reader
        self._writer = writer
        self._warming = warming
        self._jobs = jobs
        self._threads = trio.CapacityLimiter(_PARALLEL)
        self.refused = 0
        """Files of which a read was refused since this core began, each counted once."""
        self._told: set[int] = set()
        """Of these files the log says so; a listing may have said before that they are archived."""

    def note_refused(self, inode: Inode) -> None:
        """Take note that the store refused to read an object because it is archived.  No checkpoint."""
        if inode.ino in self._told:
            return
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told.add(inode.ino)
        with self._reader.begin() as txn:
            known = self._reader.tiers(txn).stored_as(inode.ino)
        self.refused += 1
        log.warning("object is archived, readers get ENODATA until `fanoutfs tier restore` key=%s", inode.key)
        self._nursery.start_soon(self._note, inode, StoredAs(known.storage_class, is_archived=True))

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {"tier_restore": self._restore}

    async def _note(self, inode: Inode, stored: StoredAs) -> None:
        try:
            await self._writer.run(NoteStored(inode.ino, inode.etag, stored).apply)
        except DatabaseError as error:
            log.warning("state of an object not noted key=%s: %s", inode.key, error)

    async def _restore(self, request: Mapping[str, Any]) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        paths, days, speed = paths_of(request), request.get("days", 7), request.get("speed", "")
        if not isinstance(days, int) or not 1 <= days <= _MAX_DAYS:
            raise UsageError(f"days: from 1 to {_MAX_DAYS}")
        if speed not in ("", *RESTORE_SPEEDS):
            raise UsageError(f"speed: one of {', '.join(RESTORE_SPEEDS)}")

        async def work(job: Job) -> None:
            order = _Order(job, days, speed)
            job.result = {"counts": order.counts, "failures": []}
            job.progress.update(files=0, waiting=0)
            for path in paths:
                walk = TreeWalk(self._reader, path, await self._listed(path))
                while batch := walk.batch():
                    await self._each(job, batch, partial(self._ask, order))
            if request.get("wait"):
                await self._wait(order)

        return {"job": self._jobs.start("tier restore", None, work).id}

    async def _listed(self, path: str) -> Inode:
        """Return what a path leads to; of a directory at least the names in it are known then."""
        inode = await self._warming.locate_named(path)
        if inode.is_dir and not inode.is_listed:
            await self._warming.make_listed(inode, inode, 0)
        return inode

    async def _each(
        self, job: Job, files: list[tuple[str, Inode]], do: Callable[[str, Inode], Awaitable[None]]
    ) -> None:
        left = iter(files)

        async def work() -> None:
            for path, inode in left:
                try:
                    await do(path, inode)
                except FanoutError as error:
                    if len(job.result["failures"]) < _NAMED:
                        job.result["failures"].append(f"{path}: {error}")

        async with trio.open_nursery() as nursery:
            for _worker in range(min(_PARALLEL, len(files))):
                nursery.start_soon(work)

    async def _ask(self, order: _Order, path: str, inode: Inode) -> None:
        """Ask for one object, if it has to be restored at all."""
        order.job.progress["files"] += 1
        if inode.is_staged or not inode.etag:
            order.counts["readable"] += 1
            return
        state = await self._look(inode)
        if state is Restore.ARCHIVED:
            state = await self._ask_for(order, inode)
        if state.is_archived:
            order.counts["ongoing"] += 1
            order.waiting[inode.ino] = _Awaited(path, inode)
        else:
            order.counts["readable" if state is Restore.READABLE else "restored"] += 1

    async def _ask_for(self, order: _Order, inode: Inode) -> Restore:
        state = await self._in_thread(partial(self._backend.restore, inode.key, order.days, order.speed))
        order.counts["asked"] += 1
        log.info("restore asked for key=%s days=%d", inode.key, order.days)
        return state

    async def _look(self, inode: Inode) -> Restore:
        """Ask how an object stands, and note it."""
        details = await self._in_thread(partial(self._backend.details, inode.key))
        is_archived = details.restore.is_archived
        await self._note(inode, StoredAs(details.properties.storage_class, is_archived=is_archived))
        if not is_archived:
            self._told.discard(inode.ino)
        return details.restore

    async def _wait(self, order: _Order) -> None:
        """Look until nothing is awaited.  Failures that a later look may not meet end no waiting."""
        counts, waiting, progress = order.counts, order.waiting, order.job.progress
        pause_s = _LOOK_S

        async def look(_path: str, inode: Inode) -> None:
            awaited = waiting[inode.ino]
            try:
                state = await self._state(awaited)
                if state is Restore.ARCHIVED:  # its object was copied, and the copy has to be restored anew
                    state = await self._ask_for(order, awaited.inode)
            except (TransientError, DeadlineError) as error:
                log.info("restored object not looked at, trying again key=%s: %s", inode.key, error)
                return
            except FanoutError:
                del waiting[inode.ino]
                counts["ongoing"] -= 1
                raise
            if not state.is_archived:
                del waiting[inode.ino]
                counts["ongoing"] -= 1
                counts["restored"] += 1

        while waiting:
            progress["waiting"] = len(waiting)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_MAX_S)
            await self._each(order.job, [(each.path, each.inode) for each in waiting.values()], look)
        progress["waiting"] = 0

    async def _state(self, awaited: _Awaited) -> Restore:
        """Look at an object under the key it has now: its file may have been renamed, or its content replaced.

        Raises ObjectMissingError where two looks in a row met no object: between a move in the store and its record
        in the index there is one such moment.
        """
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, awaited.inode.ino)
        if inode is None or inode.is_staged or not inode.etag:
            return Restore.READABLE  # removed, or written here: nothing of it is in the archive any more
        was, awaited.inode = awaited.inode, inode
        try:
            state = await self._look(inode)
        except ObjectMissingError:
            if awaited.is_missing and inode.key == was.key:
                raise
            awaited.is_missing = True
            return Restore.ONGOING
        awaited.is_missing = False
        return state

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)
