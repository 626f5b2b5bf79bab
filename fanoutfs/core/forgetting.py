"""`fanoutfs invalidate`: what is known of names below a path, and with `content` what is cached, is asked for anew.

Core, trio thread only.  The names stay in the index, their directories count as never listed in time (`listed_at_ns`
0): the next access lists them again, and what changed goes the way of every listing.  So nothing that was changed here
is ever lost, and while the store is down the older names serve on.

Order, so that no later access is answered from before:
  1. a listing under way is waited for, and an import under way told to leave the directory alone
  2. the directories are marked, a batch in each transaction
  3. after a grace period the kernel forgets all names and these directories' listings
Before Linux 6.16 the kernel cannot be told to ask for all names again; there the directories are listed at once.

    {"op": "forget", "paths": […], "content": false}  → {"job": id}
        result: {"directories", "kept_directories", "kept": {reason: {"files", "bytes", "examples"}}, "failures": […]}
        kept_directories: made or renamed here and not in the store yet: nobody knows their names better
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from fanoutfs.core.control import Command
from fanoutfs.core.evicting import Evicting
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.listing import Listings
from fanoutfs.core.notify import ChangeLog, Notifier
from fanoutfs.core.tiers import paths_of
from fanoutfs.core.walking import TreeWalk, directories_below
from fanoutfs.errors import FanoutError
from fanoutfs.index.format import Inode
from fanoutfs.index.keeping import takes_no_names
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import ROOT_INO

_BATCH: Final = 1000
"""Directories in one transaction, and told to the kernel in one go."""


@dataclass(frozen=True, slots=True)
class ForgetListings:
    """Let directories count as never listed in time; returns those of which that is true now."""

    inos: tuple[int, ...]

    def apply(self, txn: IndexTransaction) -> list[int]:
        """Carry it out."""
        forgotten = []
        for ino in self.inos:
            directory = txn.inode(ino)
            if directory is None or not directory.is_dir or takes_no_names(txn.inode, txn.changed, directory):
                continue
            txn.put_inode(replace(directory, listed_at_ns=0))
            forgotten.append(ino)
        return forgotten


class Forgetting:
    """Forgets."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        listings: Listings,
        notifier: Notifier,
        evicting: Evicting,
        jobs: Jobs,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._listings = listings
        self._notifier = notifier
        self._evicting = evicting
        self._jobs = jobs

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {"forget": self._forget}

    async def _forget(self, request: Mapping[str, Any]) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        paths, has_content = paths_of(request), bool(request.get("content"))

        async def work(job: Job) -> None:
            job.progress.update(files=0, freed_files=0, freed_bytes=0)
            job.result = {"directories": 0, "kept_directories": 0, "kept": {}, "failures": []}
            for path in paths:
                found, inode = self._nearest(path)
                if has_content and inode is not None:
                    await self._content(job, path, inode)
                try:
                    await self._names(job, found, is_tree=inode is not None and inode.is_dir)
                except FanoutError as error:
                    job.result["failures"].append(f"{path}: {error}")
                    job.result["exit_code"] = error.exit_code

        return {"job": self._jobs.start("forget", None, work).id}

    def _nearest(self, path: str) -> tuple[int, Inode | None]:
        """Return the directory whose names are to be asked for, and what is at the path; None: nothing is known."""
        ino = ROOT_INO
        with self._reader.begin() as txn:
            parts = [os.fsencode(part) for part in path.split("/") if part not in ("", ".")]
            for name in parts:
                child = self._reader.child(txn, ino, name)
                inode = None if child is None else self._reader.inode(txn, child)
                if inode is None or not inode.is_dir:
                    return ino, inode if name is parts[-1] else None
                ino = inode.ino
            return ino, self._reader.inode(txn, ino)

    async def _names(self, job: Job, top: int, *, is_tree: bool) -> None:
        below = directories_below(self._reader, top) if is_tree else iter((top,))
        while batch := _take(below, _BATCH):
            for ino in batch:
                await self._listings.leave_alone(ino)
            forgotten = await self._jobs.outlasting(lambda batch=batch: self._mark_and_tell(batch))  # type: ignore[misc]
            job.result["directories"] += len(forgotten)
            job.result["kept_directories"] += len(batch) - len(forgotten)
            if not self._notifier.has_epoch:
                for ino in forgotten:
                    await self._listings.refresh_anew(ino)

    async def _mark_and_tell(self, batch: list[int]) -> list[int]:
        forgotten: list[int] = await self._writer.run(ForgetListings(tuple(batch)).apply)
        changes = ChangeLog(has_epoch=self._notifier.has_epoch)
        changes.is_everything = self._notifier.has_epoch and bool(forgotten)
        changes.directories.update(forgotten)
        await self._listings.publish(changes)
        return forgotten

    async def _content(self, job: Job, path: str, inode: Inode) -> None:
        walk = TreeWalk(self._reader, path, inode)
        while batch := walk.batch():
            files, freed_bytes = await self._evicting.evict_files(batch, job.result["kept"])
            job.progress["files"] += len(batch)
            job.progress["freed_files"] += files
            job.progress["freed_bytes"] += freed_bytes
            for _path, found in batch:
                await self._notifier.expire_attributes(found.ino)  # and its pages; changed ones are written first
        await self._evicting.free_dead_bytes()


def _take(inos: Iterator[int], count: int) -> list[int]:
    return [ino for ino, _ in zip(inos, range(count), strict=False)]
