"""Archived objects: what is known of them, and `fanoutfs tier restore`.

Core, trio thread only; requests run in worker threads.  A read of an archived object is refused by the store; its
readers get ENODATA at once, the log says which object it was and what to do, and the file is `archived` from then on.
A restore asks the store, once for each object, and with `wait` looks until all can be read.

    {"op": "tier_restore", "paths": […], "days": 7, "speed": "", "wait": true}
      → {"job": id}; result: {"counts": {"readable", "asked", "ongoing", "restored"}, "failures": […]}
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
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
from fanoutfs.errors import DatabaseError, FanoutError, UsageError
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
            counts = {"readable": 0, "asked": 0, "ongoing": 0, "restored": 0}
            job.result = {"counts": counts, "failures": []}
            job.progress.update(files=0, waiting=0)
            waiting: dict[int, tuple[str, Inode]] = {}
            for path in paths:
                walk = TreeWalk(self._reader, path, await self._listed(path))
                while batch := walk.batch():
                    await self._each(job, batch, partial(self._ask, days, speed, counts, waiting))
            if request.get("wait"):
                await self._wait(job, counts, waiting)

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
                job.progress["files"] += 1

        async with trio.open_nursery() as nursery:
            for _worker in range(min(_PARALLEL, len(files))):
                nursery.start_soon(work)

    async def _ask(
        self,
        days: int,
        speed: str,
        counts: dict[str, int],
        waiting: dict[int, tuple[str, Inode]],
        path: str,
        inode: Inode,
    ) -> None:
        """Ask for one object, if it has to be restored at all."""
        if inode.is_staged or not inode.etag:
            counts["readable"] += 1
            return
        state = await self._look(inode)
        if state is Restore.ARCHIVED:
            state = await self._in_thread(partial(self._backend.restore, inode.key, days, speed))
            counts["asked"] += 1
            log.info("restore asked for key=%s days=%d", inode.key, days)
        if state.is_archived:
            counts["ongoing"] += 1
            waiting[inode.ino] = (path, inode)
        else:
            counts["readable" if state is Restore.READABLE else "restored"] += 1

    async def _look(self, inode: Inode) -> Restore:
        """Ask how an object stands, and note it."""
        details = await self._in_thread(partial(self._backend.details, inode.key))
        is_archived = details.restore.is_archived
        await self._note(inode, StoredAs(details.properties.storage_class, is_archived=is_archived))
        if not is_archived:
            self._told.discard(inode.ino)
        return details.restore

    async def _wait(self, job: Job, counts: dict[str, int], waiting: dict[int, tuple[str, Inode]]) -> None:
        pause_s = _LOOK_S

        async def look(_path: str, inode: Inode) -> None:
            if await self._look(inode) in (Restore.READABLE, Restore.RESTORED):
                del waiting[inode.ino]
                counts["ongoing"] -= 1
                counts["restored"] += 1

        while waiting:
            job.progress["waiting"] = len(waiting)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LOOK_MAX_S)
            await self._each(job, list(waiting.values()), look)
        job.progress["waiting"] = 0

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)
