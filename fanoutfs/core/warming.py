"""Warm: fill the data of files and trees, or count how much of it is cached.

Core, trio thread only.  Paths come from the client in batches, a few at a time; a tree is walked in the index, name by
name, never collected.  At most _WINDOW files are under way, and _PARTS parts of one.  What is cached already is
skipped, so that a warm that was broken off goes on where it was when it is called again.

`bytes_per_s` bounds what is asked of the store: each small file and each part of a large one (8 MiB) is paid for before
its GET may begin, so in any stretch of time at most the rate, half a second of it, and one part are asked for.

A directory that was never listed is listed first; when a tree has many of those (_LISTED_SINGLY), what is below the
path that was asked for is imported: a million directories do not cost a million LISTs.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

import trio

from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.control import Command
from fanoutfs.core.fill import Fills
from fanoutfs.core.filling import Filling
from fanoutfs.core.imports import Imports
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.listing import Listings
from fanoutfs.core.rate import Rate
from fanoutfs.errors import FanoutError, NotADirectoryInIndexError, ObjectMissingError, StaleInodeError, UsageError
from fanoutfs.index.format import DT_DIR, Inode
from fanoutfs.index.operations import blocks_bytes
from fanoutfs.index.reader import IndexReader
from fanoutfs.records import ROOT_INO

log = logging.getLogger(__name__)

_LISTED_SINGLY: Final = 8
_FAILURES_NAMED: Final = 100
_QUEUED_BATCHES: Final = 2
_WALK_BATCH: Final = 500
"""Entries read in one go: the index is left alone in between, a reader's transaction must not live long."""
_FEED_WAIT_S: Final = 2.0


class Warm:
    """One warming under way."""

    def __init__(self, warming: "Warming", job: Job, *, only_check: bool, keep_order: bool, rate: float | None) -> None:
        self._warming = warming
        self._progress = job.progress
        self._only_check = only_check
        self._keep_order = keep_order
        self._rate_bytes = rate
        self.send, self._batches = trio.open_memory_channel[list[str]](_QUEUED_BATCHES)
        self._failures: list[str] = []
        job.progress.update(files=0, bytes=0, cached_files=0, cached_bytes=0, failed=0)
        job.result = {"failures": self._failures}

    async def run(self) -> None:
        """Take batches of paths until there are no more.  Checkpoint."""
        filling = self._warming.filling(Rate(self._rate_bytes), self._note_end)
        async with self._batches:
            async for batch in self._batches:
                for path in batch if self._keep_order else sorted(set(batch)):
                    try:
                        await self._path(path, filling)
                    except FanoutError as error:
                        self._fail(path, str(error))
        await filling.finish()

    async def _path(self, path: str, filling: Filling) -> None:
        inode = await self._warming.locate(path)
        if not inode.is_dir:
            await self._file(path, inode, filling)
            return
        await self._tree(path, inode, filling)

    async def _tree(self, top_path: str, top: Inode, filling: Filling) -> None:
        """Take everything below a directory, depth first.  Memory: the names above, and a batch of entries each."""
        listed_singly = 0
        above: list[tuple[str, Iterator[tuple[bytes, int, int]], int, bytes]] = []
        following: tuple[str, int] | None = (top_path, top.ino)
        while above or following is not None:
            if following is not None:
                path, ino = following
                following = None
                directory = self._warming.inode_or_none(ino)
                if directory is not None and not directory.is_listed:
                    try:
                        await self._warming.make_listed(directory, top, listed_singly)
                    except FanoutError as error:
                        self._fail(path, str(error))
                        continue
                    listed_singly += 1
                above.append((path, iter(()), ino, b""))
            path, entries, ino, after = above.pop()
            entry = next(entries, None)
            if entry is None:
                batch = self._warming.batch(ino, after)
                if batch:
                    above.append((path, iter(batch), ino, batch[-1][0]))
                continue
            above.append((path, entries, ino, after))
            name, child, dtype = entry
            child_path = f"{path}/{os.fsdecode(name)}".lstrip("/")
            if dtype == DT_DIR:
                following = (child_path, child)
            elif (inode := self._warming.inode_or_none(child)) is not None:
                await self._file(child_path, inode, filling)

    async def _file(self, path: str, inode: Inode, filling: Filling) -> None:
        cached = self._warming.cached_bytes(inode)
        self._progress["files"] += 1
        self._progress["bytes"] += inode.size_bytes
        if cached >= inode.size_bytes:
            self._count_cached(inode.size_bytes)
            await trio.lowlevel.checkpoint()
            return
        if self._only_check:
            self._progress["cached_bytes"] += cached
            return
        await filling.add(path, inode)

    def _count_cached(self, size_bytes: int) -> None:
        self._progress["cached_files"] += 1
        self._progress["cached_bytes"] += size_bytes

    def _note_end(self, path: str, inode: Inode, error: FanoutError | None) -> None:
        if error is None:
            self._count_cached(inode.size_bytes)
        else:
            self._fail(path, str(error))

    def _fail(self, path: str, reason: str) -> None:
        self._progress["failed"] += 1
        if len(self._failures) < _FAILURES_NAMED:
            self._failures.append(f"{path}: {reason}")
        log.warning("not warmed path=%s: %s", path, reason)


class Warming:
    """Starts warmings and feeds them: the control commands `warm` and `feed`.

        {"op": "warm", "check": false, "order": false, "bytes_per_s": null}   → {"job": id}
        {"op": "feed", "id": id, "paths": ["rel/ative", …], "is_last": true}  → {"state": …}

    Paths are relative to the mountpoint.  `feed` answers when they were taken, or "busy" when there was no room for a
    while: then the same is to be sent again.
    """

    def __init__(
        self,
        *,
        jobs: Jobs,
        reader: IndexReader,
        listings: Listings,
        imports: Imports,
        fills: Fills,
        small: SmallStore,
        metadata_ttl_s: float,
    ) -> None:
        self._jobs = jobs
        self._reader = reader
        self._listings = listings
        self._imports = imports
        self.fills = fills
        self._small = small
        self._ttl_s = metadata_ttl_s
        self._fed: dict[str, Warm] = {}

    async def warm(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Answer `warm`."""
        rate = request.get("bytes_per_s")
        if rate is not None and (not isinstance(rate, int | float) or rate <= 0):
            raise UsageError("bytes_per_s must be above 0")

        async def work(job: Job) -> None:
            warm = self._fed[job.id] = Warm(
                self,
                job,
                only_check=bool(request.get("check")),
                keep_order=bool(request.get("order")),
                rate=rate,
            )
            try:
                await warm.run()
            finally:
                del self._fed[job.id]

        job = self._jobs.start("warm", None, work)
        while job.id not in self._fed and job.state == "running":
            await trio.lowlevel.checkpoint()
        return {"job": job.id}

    async def feed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `feed`.  Checkpoint."""
        job = self._jobs.find(request)
        if job is None:
            return {"state": "unknown"}
        warm = self._fed.get(job.id)
        paths = request.get("paths", [])
        if not isinstance(paths, list):
            raise UsageError("paths must be a list")
        if warm is not None:
            try:
                if paths:
                    with trio.move_on_after(_FEED_WAIT_S) as scope:
                        await warm.send.send([str(path) for path in paths])
                    if scope.cancelled_caught:
                        return {"state": "busy"}
                if request.get("is_last"):
                    warm.send.close()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it has ended: its state tells
        return {"state": job.state}

    # --- the tree ----------------------------------------------------------------------------------------------

    async def locate(self, path: str) -> Inode:
        """Return what a path leads to, listing what must be listed on the way.  Checkpoint.

        Raises ObjectMissingError, or what the backend raised.
        """
        inode = self._inode(ROOT_INO)
        for name in os.fsencode(path).split(b"/"):
            if name in (b"", b"."):
                continue
            if not inode.is_dir:
                raise ObjectMissingError("not a directory on the way")
            if not inode.is_listed:
                await self._listings.refresh(inode.ino)
            child = self._child(inode.ino, name)
            if child is None and inode.is_listed and self._is_old(inode):
                await self._listings.refresh(inode.ino)
                child = self._child(inode.ino, name)
            if child is None:
                raise ObjectMissingError("no such file")
            inode = self._inode(child)
        return inode

    async def locate_named(self, path: str) -> Inode:
        """Do the same, for an error that names the path.  Checkpoint.  Raises as `locate`."""
        try:
            return await self.locate(path)
        except ObjectMissingError as error:
            raise ObjectMissingError(f"{path}: {error}") from None

    def batch(self, directory: int, after: bytes) -> list[tuple[bytes, int, int]]:
        """Return some (name, inode, DT_ type) of a directory behind a name."""
        with self._reader.begin() as txn:
            return [found[:3] for found in islice(self._reader.children(txn, directory, after), _WALK_BATCH)]

    def inode_or_none(self, ino: int) -> Inode | None:
        """Return an inode's record."""
        with self._reader.begin() as txn:
            return self._reader.inode(txn, ino)

    async def make_listed(self, directory: Inode, top: Inode, singly: int) -> None:
        """List a directory, or import everything below `top` when that many were listed before.  Checkpoint."""
        if singly < _LISTED_SINGLY:
            await self._listings.refresh(directory.ino)
        else:
            await self._imports.run(top.ino, Job("import", None))

    def _is_old(self, directory: Inode) -> bool:
        age_ns = self._listings.age_ns(directory)
        return age_ns is None or age_ns > self._ttl_s * 1e9

    def _child(self, parent: int, name: bytes) -> int | None:
        with self._reader.begin() as txn:
            return self._reader.child(txn, parent, name)

    def _inode(self, ino: int) -> Inode:
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
        if inode is None:
            raise StaleInodeError(f"inode {ino} is not in the index")
        return inode

    def filling(self, rate: Rate, on_end: Callable[[str, Inode, FanoutError | None], None]) -> Filling:
        """Return what fills files in the background; see there."""
        return Filling(self._reader, self.fills, rate, on_end)

    def cached_bytes(self, inode: Inode) -> int:
        """Return how many bytes of a file are in the cache."""
        if inode.is_small:
            return inode.size_bytes if not inode.size_bytes or self._small.has(inode.ino) else 0
        with self._reader.begin() as txn:
            parts = self._reader.parts(txn, inode.ino)
            return sum(blocks_bytes(inode.size_bytes, part, mask) for part, mask in parts)


def long_commands(jobs: Jobs, imports: Imports, warming: Warming) -> dict[str, Command]:
    """Return the control commands for long operations."""

    async def import_below(request: Mapping[str, Any]) -> dict[str, str]:
        path = str(request.get("path", ""))
        inode = await warming.locate_named(path)
        if not inode.is_dir:
            raise NotADirectoryInIndexError(f"{path}: only a directory can be imported")
        return {"job": imports.start(inode.ino).id}

    return {
        "import": import_below,
        "warm": warming.warm,
        "feed": warming.feed,
        "job": jobs.ask,
        "cancel": jobs.cancel,
    }
