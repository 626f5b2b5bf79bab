"""Import: everything below a prefix by flat listings, thousand keys a request, many requests at once.

Core, trio thread only.  The key space is divided into shards, each scanned in order by one task; who has nothing to do
divides the shard that has most before it.  A border is put behind a group of keys that begin alike and followed by a
key that exists (found by a few one-key LISTs), so a flat directory of a million files is divided as well as a tree.
Stores that cannot begin in the middle (gs, az, http, memory, a directory) are scanned by one task.

Invariants:
* Memory: a page per shard and its stack of directories.  Nothing grows with the number of objects.
* A page and the place behind it are one transaction: a killed import goes on behind its last page (`index.importing`).
* A directory is marked as listed when its scan is complete, dated to when that began.
* An ordinary listing (or the lookup of one name) that runs while a directory is being scanned knows it better: the
  import leaves that directory alone from then on, and has it listed at the end if it still is not.
* A border never divides names on which key order and tree order disagree while it is unknown which the store follows.

Measured (one directory of 1,000,000 files, file:// source, 2 cores at a load of 9): 110 s, again without a change 37 s;
the core's anonymous memory 24 MB before, 33 MB after, whatever the number (its mapped, reclaimable index pages count as
resident, too: 88 MB); 253 bytes of index a file.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.clock import Clock
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.listing import Listings
from fanoutfs.core.notify import ChangeLog
from fanoutfs.core.scanning import LAST_CHARACTER, Order, TreeWalk, observed_order, shared_directories
from fanoutfs.errors import DisorderedListingError, NotADirectoryInIndexError
from fanoutfs.index.format import Inode, Ownership
from fanoutfs.index.importing import (
    CompleteDirectory,
    EnterPage,
    ForgetImport,
    KeyRange,
    PagePart,
    PageResult,
    Place,
    PutSettings,
    import_setting,
    place_setting,
    range_setting,
    unpack_place,
    unpack_range,
)
from fanoutfs.index.operations import Change
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.removal import RemoveName
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import ListPage

log = logging.getLogger(__name__)

T = TypeVar("T")

_SCANNERS: Final = 8
"""Tasks that scan: one core of the machine enters about as many pages as four of them fetch from a store with 30 ms."""
_RESUMED_FOR_NS: Final = 24 * 3600 * 10**9
"""An import that was broken off longer ago begins anew: what it listed is old."""
_SPLIT_PAGES: Final = 2
"""A shard is divided when it has entered so many pages since it last was: most directories have fewer."""
_ALIKE: Final = 2
_IDLE_S: Final = 0.05


class _Shard:
    """One range of keys and the walk through it."""

    def __init__(self, number: int, after: str, upto: str | None) -> None:
        self.number = number
        self.after = after
        self.upto = upto
        self.place: Place | None = None
        self.last_key = after
        """The last key that was handed to the writer: a border must lie behind it."""
        self.pages = 0
        self.is_taken = False
        self.is_done = False
        self.is_whole = False
        """No border was found that divides what is left."""


class Import:
    """One import of one prefix."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        backend: Backend,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        listings: Listings,
        ownership: Ownership,
        clock: Clock,
        row: memoryview,
        has_epoch: bool,
        directory: Inode,
        root_prefix: str,
        job: Job,
    ) -> None:
        self._jobs = jobs
        self._backend = backend
        self._reader = reader
        self._writer = writer
        self._listings = listings
        self._ownership = ownership
        self._clock = clock
        self._row = row
        self._has_epoch = has_epoch
        self._ino = directory.ino
        self._prefix = directory.key or root_prefix
        self._progress = job.progress
        self._shards: list[_Shard] = []
        self._order = Order.UNKNOWN
        self._started_ns = 0
        self._clear: dict[str, bool] = {}
        """Whether both orders agree on all keys around this beginning of a border."""
        self._left_alone: set[int] = set()
        self._is_over = False
        self._is_first = not directory.is_listed
        self._is_resumed = False
        self._threads = trio.CapacityLimiter(2 * _SCANNERS)

    async def run(self) -> None:
        """Import, or go on with what an earlier import of this prefix left.  Checkpoint.

        Raises BackendError, DisorderedListingError, DatabaseError.  Cancelled, it leaves its place behind.
        """
        try:
            with self._listings.watched():
                await self._load()
                try:
                    await self._scan()
                except DisorderedListingError as error:
                    if not self._is_resumed:
                        raise
                    # The place may have been no place in this store's order.
                    log.warning("import begins anew prefix=%s: %s", self._prefix, error)
                    await self._begin()
                    await self._scan()
                await self._complete()
                await self._writer.run(ForgetImport(self._prefix).apply)
        finally:
            self._is_over = True

    # --- progress ----------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        with self._reader.begin() as txn:
            known = self._reader.settings(txn, import_setting(self._prefix))
        record = known.get(import_setting(self._prefix))
        started_ns, order = (0, Order.UNKNOWN) if record is None else _unpack_import(record)
        if not 0 <= self._clock.wall_ns() - started_ns < _RESUMED_FOR_NS:
            await self._begin()
            return
        self._started_ns, self._order = started_ns, order
        self._is_resumed = True
        number = 0
        while (found := known.get(range_setting(self._prefix, number))) is not None:
            keys = unpack_range(found)
            shard = _Shard(number, keys.after, keys.upto)
            if (place := known.get(place_setting(self._prefix, number))) is not None:
                shard.place = unpack_place(place)
                shard.last_key, shard.is_done = shard.place.key, shard.place.is_done
            self._shards.append(shard)
            number += 1
        self._progress["resumed_keys"] = sum(shard.place.keys for shard in self._shards if shard.place is not None)
        log.info("import goes on prefix=%s keys=%d", self._prefix, self._progress["resumed_keys"])

    async def _begin(self) -> None:
        self._started_ns = self._clock.wall_ns()
        self._is_resumed = False
        self._order = Order.UNKNOWN
        self._shards = [_Shard(0, "", None)]
        await self._writer.run(ForgetImport(self._prefix).apply)
        first = (range_setting(self._prefix, 0), KeyRange("", None).pack())
        await self._writer.run(PutSettings((self._record(), first)).apply)

    def _record(self) -> tuple[bytes, bytes]:
        value = json.dumps({"started_ns": self._started_ns, "order": self._order.name})
        return import_setting(self._prefix), value.encode()

    def _note(self, keys: int, hidden: int) -> None:
        self._progress["keys"] = self._progress.get("keys", 0) + keys
        self._progress["hidden"] = self._progress.get("hidden", 0) + hidden
        self._progress["shards"] = sum(not shard.is_done for shard in self._shards)

    # --- scanning ----------------------------------------------------------------------------------------------

    async def _scan(self) -> None:
        self._note(sum(shard.place.keys for shard in self._shards if shard.place is not None), 0)
        try:
            async with trio.open_nursery() as nursery:
                for _n in range(_SCANNERS if self._backend.can_seek else 1):
                    nursery.start_soon(self._work)
        except BaseExceptionGroup as group:
            error = _first_error(group)
            if error is None:
                raise
            raise error from None

    async def _work(self) -> None:
        """Scan shards, and make new ones, until all is done."""
        while not all(shard.is_done for shard in self._shards):
            waiting = next((shard for shard in self._shards if not shard.is_done and not shard.is_taken), None)
            if waiting is not None:
                waiting.is_taken = True
                await self._scan_shard(waiting)
            elif not await self._divide_one():
                await trio.sleep(_IDLE_S)

    async def _scan_shard(self, shard: _Shard) -> None:
        walk = TreeWalk(self._prefix, self._ino, shard.after, shard.place, self._started_ns, self._order)
        pages = self._backend.scan(self._prefix, walk.key)
        last_key = ""
        while True:
            requested_ns = self._clock.wall_ns()
            page = await self._in_thread(partial(_next_page, pages))
            infos = () if page is None else page.objects
            keys = [info.key for info in infos if not info.key.endswith("/")]
            self._order = observed_order(self._order, [last_key, *keys] if last_key else keys)
            last_key = keys[-1] if keys else last_key
            upto = None if shard.upto is None else self._order.rank(shard.upto)
            here = [info for info in infos if upto is None or self._order.rank(info.key) <= upto]
            is_last = page is None or len(here) < len(infos)
            hidden = walk.feed(here, requested_ns) + (0 if page is None else page.hidden)
            if is_last:
                walk.finish(shard.upto, self._order)
            shard.last_key = walk.key
            await self._enter(shard, walk)
            shard.pages += 1
            self._note(len(here), hidden)
            if self._is_first:
                bump(self._row, Count.HIDDEN_NAMES, hidden)
            if is_last:
                shard.is_done = True
                return

    async def _enter(self, shard: _Shard, walk: TreeWalk) -> None:
        """Enter what the walk was fed, and the place behind it.  Checkpoint."""
        parts = walk.page(shard.upto)
        while not await self._jobs.outlasting(partial(self._enter_some, shard, walk, parts)):
            pass

    async def _enter_some(self, shard: _Shard, walk: TreeWalk, parts: Sequence[PagePart]) -> bool:
        """Enter parts as far as one transaction goes and tell the kernel; return whether that was all.  Checkpoint."""
        for ino in self._resolve(parts):
            if ino is not None:
                await self._listings.wait_idle(ino)
        if self._is_over:
            return False  # what was listed is not remembered any more
        inos = self._resolve(parts)
        left_alone = frozenset(
            ino
            for ino, part in zip(inos, parts, strict=True)
            if ino is not None and self._listings.was_touched(ino, part.started_ns)
        )
        self._left_alone |= left_alone
        enter = EnterPage(tuple(parts), left_alone, self._ownership, self._clock.wall_ns())
        upto = shard.upto

        def apply(txn: IndexTransaction) -> tuple[PageResult, Place | None]:
            result = enter.apply(txn)
            if not result.is_done:
                return result, None
            place = walk.place(result, upto)
            txn.set_setting(place_setting(self._prefix, shard.number), place.pack())
            return result, place

        # Submitted before any listing that begins now can submit a page.
        result, place = await self._writer.run(apply)
        await self._tell(result.changes)
        if place is not None:
            walk.entered(result, place)
        return place is not None

    async def _tell(self, changes: Iterable[Change]) -> None:
        """Tell the kernel.  Checkpoint.

        Nobody who waits for this can hold a request that the kernel waits for: no listing waits for an import.
        """
        told = ChangeLog(has_epoch=self._has_epoch)
        told.add(changes)
        await self._listings.publish(told)

    def _resolve(self, parts: Sequence[PagePart]) -> list[int | None]:
        """Return the directory of each part, as far as the index knows it already.  No checkpoint."""
        inos: list[int | None] = []
        with self._reader.begin() as txn:
            for part in parts:
                above = None if part.parent is None else inos[part.parent]
                if part.ino is not None or above is None:
                    inos.append(part.ino)
                else:
                    inos.append(self._reader.child(txn, above, part.name))
        return inos

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)

    # --- dividing ----------------------------------------------------------------------------------------------

    async def _divide_one(self) -> bool:
        """Divide the shard that has come farthest from its beginning; return whether there is one more.  Checkpoint."""
        active = [
            shard
            for shard in self._shards
            if shard.is_taken and not shard.is_done and not shard.is_whole and shard.pages >= _SPLIT_PAGES
        ]
        if not active:
            return False
        shard = max(active, key=lambda each: each.pages)
        shard.is_whole = True  # nobody else tries meanwhile
        found = await self._find_border(shard)
        if found is None or shard.is_done or self._order.rank(found) <= self._order.rank(shard.last_key):
            return False
        new = _Shard(len(self._shards), found, shard.upto)
        shard.upto = found
        self._shards.append(new)
        # Submitted before anything that the shard enters with its new end.
        ranges = (
            self._record(),  # a border may lie where only this order is right
            (range_setting(self._prefix, shard.number), KeyRange(shard.after, shard.upto).pack()),
            (range_setting(self._prefix, new.number), KeyRange(new.after, new.upto).pack()),
        )
        shard.pages = 0
        shard.is_whole = False
        await self._writer.run(PutSettings(ranges).apply)
        return True

    async def _find_border(self, shard: _Shard) -> str | None:
        """Return a border behind which the shard still has keys: as few as possible before it, but a whole group."""
        key, upto = shard.last_key, shard.upto
        low, high = len(self._prefix) + 1, len(key)
        best: str | None = None
        while low <= high:
            length = (low + high) // 2
            candidate = key[:length] + LAST_CHARACTER
            following = await self._first_behind(candidate)
            is_inside = following is not None and (
                upto is None or self._order.rank(following) <= self._order.rank(upto)
            )
            if is_inside:
                best, high = candidate, length - 1
            else:
                low = length + 1
        # Beyond what is left here all keys are alike but for the last characters: few.
        if best is None or len(best) + _ALIKE > len(key) or not await self._is_clear(best):
            return None
        return best

    async def _first_behind(self, key: str) -> str | None:
        """Return the first key behind a place, or its directory."""
        pages = self._backend.scan(self._prefix, key, limit=1)
        while (page := await self._in_thread(partial(_next_page, pages))) is not None:
            if page.objects:
                return page.objects[0].key
        return None

    async def _is_clear(self, key: str) -> bool:
        """Tell whether key order and tree order agree on which keys lie before a border.  Checkpoint.

        They differ only on `a/…` and `a-…`: where a border has a "/" or a character that sorts before it.
        """
        for at in range(len(self._prefix), len(key)):
            if self._order is not Order.UNKNOWN:
                return True
            if key[at] > "/":
                continue
            beginning = key[:at]
            if beginning not in self._clear:
                self._clear[beginning] = not await self._has_both(beginning)
            if not self._clear[beginning]:
                return self._order is not Order.UNKNOWN
        return True

    async def _has_both(self, beginning: str) -> bool:
        """Tell whether there are keys `beginning/…` and `beginning-…`, which show the order, too.  Checkpoint."""
        inside = beginning + "/"
        pages = self._backend.scan(inside, limit=1)
        page = await self._in_thread(partial(_next_page, pages))
        if page is None or not page.objects:
            return False
        for place, order in ((inside + LAST_CHARACTER, Order.TREE), (beginning, Order.KEY)):
            following = await self._first_behind(place)
            if following is not None and following.startswith(beginning) and following[len(beginning)] < "/":
                if self._order is Order.UNKNOWN:
                    self._order = order
                return True
        return False

    # --- the end -----------------------------------------------------------------------------------------------

    async def _complete(self) -> None:
        """Complete the directories that several shards share, and list those that were left alone.  Checkpoint."""
        borders = [shard.after for shard in self._shards if shard.after]
        for prefix in shared_directories(self._prefix, borders):
            found = self._find(prefix)
            if found is None:
                continue
            parent, name, ino = found
            if parent is None or not await self._is_empty(ino, prefix):
                await self._complete_directory(ino)
                continue
            while not await self._jobs.outlasting(partial(self._remove_some, parent, name, ino)):
                pass
        for ino in self._left_alone:
            with self._reader.begin() as txn:
                directory = self._reader.inode(txn, ino)
                is_gone = self._reader.is_orphan(txn, ino)
            if directory is not None and not is_gone and directory.listed_at_ns < self._started_ns:
                await self._listings.refresh(ino)

    async def _complete_directory(self, ino: int) -> None:
        if self._listings.was_touched(ino, self._started_ns):
            self._left_alone.add(ino)
        else:
            await self._writer.run(CompleteDirectory(ino, self._started_ns).apply)

    async def _remove_some(self, parent: int, name: bytes, ino: int) -> bool:
        """Take away an empty directory, unless a listing knows it better; return whether that was all.  Checkpoint."""
        if self._is_over:
            return False
        with self._reader.begin() as txn:
            has_names = next(self._reader.children(txn, ino, b""), None) is not None
        if has_names or any(self._listings.was_touched(each, self._started_ns) for each in (parent, ino)):
            self._left_alone |= {parent, ino}
            return True
        changes, is_done = await self._writer.run(RemoveName(parent, name, self._clock.wall_ns()).apply)
        await self._tell(changes)
        return is_done

    def _find(self, prefix: str) -> tuple[int | None, bytes, int] | None:
        """Return (parent, name, inode) of a directory at or below the import's own."""
        parent, name, ino = None, b"", self._ino
        with self._reader.begin() as txn:
            for part in prefix[len(self._prefix) :].split("/")[:-1]:
                parent, name = ino, part.encode("utf-8", "surrogateescape")
                child = self._reader.child(txn, parent, name)
                if child is None:
                    return None
                ino = child
        return parent, name, ino

    async def _is_empty(self, ino: int, prefix: str) -> bool:
        with self._reader.begin() as txn:
            if next(self._reader.children(txn, ino, b""), None) is not None:
                return False
        page = await self._in_thread(partial(_next_page, self._backend.scan(prefix, limit=1)))
        return page is None or not page.objects


class Imports:
    """Starts imports; what they need of the core."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        backend: Backend,
        root_prefix: str,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        listings: Listings,
        ownership: Ownership,
        clock: Clock,
        row: memoryview,
        has_epoch: bool,
    ) -> None:
        self._jobs = jobs
        self._one_at_a_time = trio.Lock()  # two that overlap would undo each other's pages
        self._backend = backend
        self._root_prefix = root_prefix
        self._reader = reader
        self._writer = writer
        self._listings = listings
        self._ownership = ownership
        self._clock = clock
        self._row = row
        self._has_epoch = has_epoch

    def start(self, ino: int) -> Job:
        """Start the job that imports everything below a directory, or return the one under way.  No checkpoint."""
        return self._jobs.start("import", ino, partial(self.run, ino))

    def is_unfinished(self, ino: int) -> bool:
        """Tell whether an import of this directory was broken off."""
        with self._reader.begin() as txn:
            directory = self._reader.inode(txn, ino)
            prefix = self._root_prefix if directory is None else directory.key or self._root_prefix
            return bool(self._reader.settings(txn, import_setting(prefix)))

    async def run(self, ino: int, job: Job) -> None:
        """Import everything below a directory of the index.  Checkpoint.  Raises as `Import.run`."""
        with self._reader.begin() as txn:
            directory = self._reader.inode(txn, ino)
        if directory is None or not directory.is_dir:
            raise NotADirectoryInIndexError("only a directory can be imported")
        importing = Import(
            jobs=self._jobs,
            backend=self._backend,
            reader=self._reader,
            writer=self._writer,
            listings=self._listings,
            ownership=self._ownership,
            clock=self._clock,
            row=self._row,
            has_epoch=self._has_epoch,
            directory=directory,
            root_prefix=self._root_prefix,
            job=job,
        )
        async with self._one_at_a_time:
            await importing.run()


def _unpack_import(value: bytes) -> tuple[int, Order]:
    record = json.loads(value)
    return record["started_ns"], Order[record["order"]]


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """Return one of the errors of a group, None when there is nothing but Cancelled."""
    for error in group.exceptions:
        found = _first_error(error) if isinstance(error, BaseExceptionGroup) else error
        if found is not None and not isinstance(found, trio.Cancelled):
            return found
    return None


def _next_page(pages: Iterator[ListPage]) -> ListPage | None:
    return next(pages, None)
