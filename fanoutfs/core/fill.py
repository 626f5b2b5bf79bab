"""Fills: bring ranges of objects into the cache, each byte once, however many ask for it.

Core, trio thread only; what blocks (backend, disk, checksums) runs in worker threads that touch no shared state.

A fill covers consecutive missing blocks of one part; whole small files are the business of `smallfills`, on the same
terms.  The first request for a block starts
its fill in the core's nursery, every later one waits for the same fill; cancelling a waiter never cancels the fill.
An error is shared by all who wait and is not remembered, save for a moment one that took the whole deadline (see
`failures`): the next request tries again.

Between looking at the index and registering a fill there is no checkpoint, and a fill leaves the table only after
its blocks are committed: a block is always either in the index, in the table, or missing.

Order of one fill, so that the index never promises bytes that are not in the file:
  1. admission (memory, requests), then room in the cache
  2. ranged GET with If-Match
  3. into a slot of the arena, published to the fronts as it arrives; who waits for what has arrived may go on
  4. write to the cache file, checksums
  5. commit the block map
  6. leave the table; the waiters go on, if they have not yet
Step 3 is left out for fills too short to be worth a slot, and while all slots are in use by fills.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic_ns
from typing import Final

import trio

from fanoutfs.backend.base import Backend, Landing
from fanoutfs.cache.blocks import (
    add_checksums,
    disk_of,
    find_torn_blocks,
    missing_blocks,
    store_blocks,
    write_directly,
)
from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.admission import Admission, Urgency
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.failures import RecentFailures
from fanoutfs.core.fetch import fetch_version
from fanoutfs.core.largefill import Fill
from fanoutfs.core.readahead import ReadAhead
from fanoutfs.core.smallfills import SmallFill, SmallFills
from fanoutfs.core.space import Space
from fanoutfs.core.waits import Fetched, waits_of
from fanoutfs.errors import (
    ArchivedError,
    CacheFullError,
    DatabaseError,
    DeadlineError,
    DiskGoneError,
    FanoutError,
    InvariantError,
    StaleInodeError,
)
from fanoutfs.index.format import Inode
from fanoutfs.index.operations import DropBlocks, PutBlocks
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import BLOCK_BYTES, NO_WAITS, PART_BLOCKS, PART_BYTES, Waits

log = logging.getLogger(__name__)

_MIN_ARENA_BYTES: Final = 4 * BLOCK_BYTES
"""A slot holds 32 blocks: random reads of single ones go through the page cache, where the next one may find them."""


class Fills:
    """The table of fills under way and everything that starts one."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        backend: Backend,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        files: CacheFiles,
        small: SmallStore,
        arena: ArenaSlots,
        space: Space,
        admission: Admission,
        readahead: ReadAhead,
        requests: int,
        op_timeout_s: float,
        row: memoryview,
    ) -> None:
        self._nursery = nursery
        self._backend = backend
        self._reader = reader
        self._writer = writer
        self._files = files
        self._small = small
        self._arena = arena
        self._space = space
        self._admission = admission
        self._readahead = readahead
        self._threads = trio.CapacityLimiter(requests)
        self._op_timeout_s = op_timeout_s
        self._row = row
        self._table: dict[int, dict[int, Fill]] = {}
        self._failures = RecentFailures()
        self._fetched = Fetched()
        self.on_small_miss: Callable[[Inode, bool], None] = _ignore_miss
        """Called when a reader has to wait for a small file; the flag: its fill was under way.  No checkpoint."""
        self.on_large_read: Callable[[Inode, int, bool], None] = _ignore_read
        """Called when a reader of a large file comes to a part of it, with the part's end, and whether it was not there
        when he began it.  No checkpoint."""
        self.on_small_end: Callable[[], None] = _ignore_end
        """Called when fills of small files have ended.  No checkpoint."""
        self.on_archived: Callable[[Inode], None] = _ignore_archived
        """Called with a file that the store refused to read because it is archived.  No checkpoint."""
        self._smalls = SmallFills(
            on_end=self._note_small_end,
            on_archived=self._note_archived,
            nursery=nursery,
            backend=backend,
            small=small,
            space=space,
            admission=admission,
            failures=self._failures,
            fetched=self._fetched,
            is_staged=self._is_staged,
            requests=requests,
            row=row,
        )

    # --- what readers ask --------------------------------------------------------------------------------------

    async def ensure(self, ino: int, offset: int, length: int) -> Waits:
        """Make bytes [offset, offset + length) of a file present, as far as the file goes.  Checkpoint.

        Returns what was waited for.
        Raises StaleInodeError, CacheFullError (read through instead), DeadlineError, or what the backend raised.
        """
        inode = self._inode(ino)
        end = min(offset + length, inode.size_bytes)
        if offset >= end or inode.is_staged:
            return NO_WAITS
        if inode.is_small:
            return await self._ensure_small(inode)
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        missing = self._missing(inode, first, last)
        if missing:
            self._failures.check(ino)
        waits = self._start(inode, missing, Urgency.DEMAND)
        self._fetch_ahead(inode, first, last)
        self._note_arrival(inode, last // PART_BLOCKS, is_missing=bool(missing) and not first % PART_BLOCKS)
        return await self._wait(waits, inode, end)

    async def store(self, inode: Inode, offset: int, end: int) -> None:
        """Make bytes [offset, end) of a large file's object present in its cache file.  Checkpoint.

        Raises as `ensure`.  Also of a file that is staged by now, and returns only when the bytes have left the arena.
        """
        missing = self._missing(inode, offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES)
        with trio.move_on_after(self._op_timeout_s) as scope:
            for fill in (fills := self._start(inode, missing, Urgency.DEMAND)):
                await fill.done.wait()
        if scope.cancelled_caught:
            raise DeadlineError(f"no answer for {inode.key} within {self._op_timeout_s:g} s")
        for fill in fills:
            if fill.error is not None:
                raise fill.error

    async def wait_idle(self, ino: int) -> None:
        """Return when no fill of this inode is under way; those that are need not wait for others.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        while under_way := self._table.get(ino):
            for fill in set(under_way.values()):
                self._promote(fill, Urgency.DEMAND)
            await next(iter(under_way.values())).done.wait()
        while small := self._smalls.under_way_of(ino):
            self._smalls.promote(small, Urgency.DEMAND)
            await small.done.wait()

    async def store_arrived(self) -> None:
        """Return when all that readers could read by now is in the cache: a core that ends loses none of it.

        Checkpoint.
        """
        await trio.lowlevel.checkpoint()
        for fill in {fill for under_way in self._table.values() for fill in under_way.values()}:
            if fill.shown >= fill.size_bytes:
                await fill.done.wait()

    async def _ensure_small(self, inode: Inode) -> Waits:
        if self._small.has(inode.ino):
            return NO_WAITS
        self._failures.check(inode.ino)
        is_under_way = self._smalls.is_filling(inode.ino)
        waits = self._smalls.start((inode,), Urgency.DEMAND)
        self.on_small_miss(inode, is_under_way)
        return await self._wait(waits, inode, inode.size_bytes)

    def fetch_ahead(self, ino: int) -> Sequence[Fill | SmallFill]:
        """Start fetching what is missing of a file, behind everybody else; return the fills to wait for.

        Empty: all of it is cached.  No checkpoint.  Raises StaleInodeError.
        """
        inode = self._inode(ino)
        if inode.is_staged:
            return []
        if inode.is_small:
            return self.fetch_small_ahead((inode,), Urgency.BACKGROUND)
        return self._start(inode, self._missing(inode, 0, (inode.size_bytes - 1) // BLOCK_BYTES), Urgency.BACKGROUND)

    def fetch_small_ahead(self, inodes: Sequence[Inode], urgency: Urgency = Urgency.PREFETCH) -> list[SmallFill]:
        """Start fetching the small files among these that are not cached, as `fetch_ahead`.  No checkpoint."""
        wanted = [
            inode for inode in inodes if inode.size_bytes and not inode.is_staged and not self._small.has(inode.ino)
        ]
        return self._smalls.start(wanted, urgency)

    def fetch_part_ahead(self, inode: Inode, part: int, urgency: Urgency = Urgency.PREFETCH) -> list[Fill]:
        """Start fetching what is missing of one part of a large file, as `fetch_ahead`.  No checkpoint."""
        if inode.is_staged:
            return []
        return self._start(inode, self._missing_of_part(inode, part), urgency)

    def is_part_missing(self, inode: Inode, part: int) -> bool:
        """Tell whether anything of one part of a large file is neither cached nor on its way."""
        return not set(self._missing_of_part(inode, part)) <= self._table.get(inode.ino, {}).keys()

    @property
    def small_under_way(self) -> int:
        """Return how many small files are being fetched or wait for it."""
        return self._smalls.under_way

    def _note_small_end(self) -> None:
        self.on_small_end()

    def _note_archived(self, inode: Inode) -> None:
        self.on_archived(inode)

    def is_small_under_way(self, ino: int) -> bool:
        """Tell whether a small file is being fetched or waits for it."""
        return self._smalls.is_filling(ino)

    def note_part_read(self, ino: int, part: int) -> None:
        """Take a front's word that a reader arrived at this part, and fetch ahead of it."""
        try:
            inode = self._inode(ino)
        except StaleInodeError:
            return
        if not inode.is_small and not inode.is_staged:
            self._start_ahead(inode, self._readahead.follow(ino, part, -(-inode.size_bytes // BLOCK_BYTES)))
            self._note_arrival(inode, part, is_missing=False)

    def _note_arrival(self, inode: Inode, part: int, *, is_missing: bool) -> None:
        # The READs that follow in this part may be answered by a front that was told of it before, and is silent.
        self.on_large_read(inode, min(inode.size_bytes, (part + 1) * PART_BYTES), is_missing)

    async def fetch_direct(self, ino: int, offset: int, length: int) -> memoryview:
        """Return bytes of a file without caching them.  Checkpoint.  Raises as `ensure`."""
        inode = self._inode(ino)
        end = min(offset + length, inode.size_bytes)
        if offset >= end:
            return memoryview(b"")
        ticket = self._admission.enqueue(end - offset, Urgency.DEMAND)
        try:
            with trio.move_on_after(self._op_timeout_s):
                await ticket.admitted.wait()
                get = partial(fetch_version, self._backend, inode, offset, end)
                data = await trio.to_thread.run_sync(get, limiter=self._threads, abandon_on_cancel=True)
                bump(self._row, Count.READ_THROUGH_BYTES, len(data))
                return data
        finally:
            self._admission.release(ticket)
        raise DeadlineError(f"no answer for {inode.key} within {self._op_timeout_s:g} s")

    async def discard_damaged(self, ino: int, offset: int, length: int) -> None:
        """Look at the cached blocks of a range and drop those whose checksum is wrong.  Checkpoint."""
        inode = self._inode(ino)
        if inode.is_staged:
            return
        if inode.is_small:
            if self._small.has(ino) and not self._small.is_intact(ino):
                bump(self._row, Count.VERIFY_FAILURES)
                log.warning("damaged small file dropped ino=%d key=%s", ino, inode.key)
                await self._small.drop(ino)
            return
        await self.discard_blocks(inode, offset, offset + length)

    async def discard_blocks(self, inode: Inode, start: int, end: int) -> None:
        """Do so with a large file's, also when it is staged by now.  Checkpoint."""
        ino = inode.ino
        for part in range(start // PART_BYTES, (end - 1) // PART_BYTES + 1):
            with self._reader.begin() as txn:
                value = self._reader.part_value(txn, ino, part)
            if value is None:
                continue
            value, disk = bytes(value), disk_of(value)
            self._files.forget(ino)  # what counts is what fronts find under the name
            try:
                torn = await self._find_torn(inode, part, value, disk)
            except OSError as error:
                log.error("cache file cannot be read ino=%d part=%d disk=%d: %s", ino, part, disk, error)
                bump(self._row, Count.DISK_ERRORS)
                self._space.disks.note_error(disk, error)
                torn = int.from_bytes(value[:4], "little")
            else:
                bump(self._row, Count.VERIFY_FAILURES, torn.bit_count())
            if torn:
                log.warning("damaged blocks dropped ino=%d part=%d mask=%#x key=%s", ino, part, torn, inode.key)
                await self._writer.run(DropBlocks(ino, part, torn).apply)

    async def _find_torn(self, inode: Inode, part: int, value: bytes, disk: int) -> int:
        """Return which blocks of a part are not what was stored.  Checkpoint.  Raises OSError."""
        fd = self._files.duplicate(inode.ino, disk)
        try:
            look = partial(find_torn_blocks, fd, inode.ino, part, value, inode.size_bytes)
            return await trio.to_thread.run_sync(look)
        finally:
            os.close(fd)

    def is_filling(self, ino: int) -> bool:
        """Tell whether a fill of this inode is under way: its bytes must not be evicted now."""
        return ino in self._table or self._smalls.is_filling(ino)

    # --- starting and waiting ----------------------------------------------------------------------------------

    def _inode(self, ino: int) -> Inode:
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
        if inode is None or inode.is_dir:
            raise StaleInodeError(f"inode {ino} is not a file in the index")
        return inode

    def _is_staged(self, ino: int) -> bool:
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
        return inode is not None and inode.is_staged

    def _missing(self, inode: Inode, first: int, last: int) -> list[int]:
        """Return the blocks of [first, last] that are not cached; some may be in the table."""
        found = []
        with self._reader.begin() as txn:
            for part in range(first // PART_BLOCKS, last // PART_BLOCKS + 1):
                mask = missing_blocks(self._reader.part_value(txn, inode.ino, part), part, first, last)
                base = part * PART_BLOCKS
                found += [base + block for block in range(PART_BLOCKS) if mask >> block & 1]
        return found

    def _missing_of_part(self, inode: Inode, part: int) -> list[int]:
        last_block = (inode.size_bytes - 1) // BLOCK_BYTES
        return self._missing(inode, part * PART_BLOCKS, min(last_block, (part + 1) * PART_BLOCKS - 1))

    def _fetch_ahead(self, inode: Inode, first: int, last: int) -> None:
        self._start_ahead(inode, self._readahead.access(inode.ino, first, last, -(-inode.size_bytes // BLOCK_BYTES)))

    def _start_ahead(self, inode: Inode, ahead: range) -> None:
        if ahead:
            self._start(inode, self._missing(inode, ahead.start, ahead.stop - 1), Urgency.PREFETCH)

    def _start(self, inode: Inode, blocks: list[int], urgency: Urgency) -> list[Fill]:
        """Join or start the fills of these blocks and return them.  No checkpoint."""
        under_way = self._table.setdefault(inode.ino, {})
        joined: dict[int, Fill] = {}
        fresh = []
        for block in blocks:
            fill = under_way.get(block)
            if fill is None:
                fresh.append(block)
            else:
                joined[id(fill)] = fill
        for fill in joined.values():
            self._promote(fill, urgency)
        if urgency is Urgency.DEMAND:
            bump(self._row, Count.FILLS_JOINED, len(joined))
        started = [Fill(inode, first, count, urgency) for first, count in _runs(fresh)]
        for fill in started:
            for block in range(fill.first, fill.first + fill.count):
                under_way[block] = fill
            bump(self._row, Count.FILLS_STARTED)
            if self._fetched.note(inode.ino, *_mask_of(fill)):
                fill.is_again = True
                bump(self._row, Count.REFETCHED_BYTES, fill.size_bytes)
            self._nursery.start_soon(self._run, fill)
        if not under_way:
            del self._table[inode.ino]
        return [*joined.values(), *started]

    def _promote(self, fill: Fill, urgency: Urgency) -> None:
        fill.urgency = min(fill.urgency, urgency)
        if fill.ticket is not None:
            self._admission.promote(fill.ticket, urgency)

    async def _wait(self, fills: Sequence[Fill | SmallFill], inode: Inode, end: int) -> Waits:
        came_ns = monotonic_ns()
        with trio.move_on_after(self._op_timeout_s) as scope:
            for fill in fills:
                await fill.wait_readable(end)
        if scope.cancelled_caught:
            late = DeadlineError(f"no answer for {inode.key} within {self._op_timeout_s:g} s")
            self._failures.note(inode.ino, late)
            raise late
        for fill in fills:
            if fill.error is not None:
                raise fill.error
        return waits_of(fills, came_ns, monotonic_ns())

    # --- one fill ----------------------------------------------------------------------------------------------

    async def _run(self, fill: Fill) -> None:
        fill.ticket = self._admission.enqueue(fill.end - fill.start, fill.urgency)
        try:
            await fill.ticket.admitted.wait()
            await self._fill_blocks(fill)
        except CacheFullError as error:
            fill.error = error
        except ArchivedError as error:
            fill.error = error
            bump(self._row, Count.FILLS_FAILED)
            self.on_archived(fill.inode)
        except FanoutError as error:
            fill.error = error
            if isinstance(error, DeadlineError) and fill.is_demand:
                self._failures.note(fill.inode.ino, error)
            bump(self._row, Count.FILLS_FAILED)
            log.warning("fill failed key=%s start=%d end=%d: %s", fill.inode.key, fill.start, fill.end, error)
        except Exception:  # a fill must not end the core; whoever waits gets EIO
            fill.error = InvariantError(f"fill of {fill.inode.key} failed unexpectedly")
            bump(self._row, Count.FILLS_FAILED)
            log.exception("fill failed unexpectedly key=%s start=%d end=%d", fill.inode.key, fill.start, fill.end)
        finally:
            if fill.error is not None:
                self._fetched.forget(fill.inode.ino, *_mask_of(fill))
            self._admission.release(fill.ticket)
            self._remove(fill)
            fill.finish()

    def _remove(self, fill: Fill) -> None:
        under_way = self._table[fill.inode.ino]
        for block in range(fill.first, fill.first + fill.count):
            del under_way[block]
        if not under_way:
            del self._table[fill.inode.ino]

    async def _fill_blocks(self, fill: Fill) -> None:
        inode = fill.inode
        slot: int | None = None
        tried: set[int] = set()
        try:
            while True:
                # What is fetched of a staged file is for its writers, or its upload.
                is_readers = not self._is_staged(inode.ino)
                if not is_readers:
                    self._space.written_here.note_written(inode.ino)
                held = self._space.reserved_part(fill.size_bytes, (inode.ino, fill.part), takes_readers=is_readers)
                async with held as disk:
                    if not tried and fill.size_bytes >= _MIN_ARENA_BYTES:
                        slot = await self._arena.take()
                    try:
                        known = await self._store(fill, slot, disk)
                        self._space.disks.note_written(disk)
                        break
                    except (OSError, DatabaseError, DiskGoneError) as error:
                        bump(self._row, Count.DISK_ERRORS)
                        self._space.note_disk_error(error, disk)
                        # To another disk, with what was fetched; but where the rest of the part is, it must be.
                        if not disk or disk in tried or isinstance(error, DatabaseError):
                            raise CacheFullError(f"cannot write to the cache: {error}") from error
                        tried.add(disk)
        finally:
            fill.fetched = None
            if slot is not None:
                self._arena.settle(slot)
            for refusing in tried:
                await self._space.holes.clear((inode.ino, fill.part), refusing)
        if not fill.is_demand:
            bump(self._row, Count.PREFETCH_BYTES, fill.size_bytes)
        if not known:
            self._files.remove(inode.ino)
            if not self._inode(inode.ino).is_small:  # (repacked meanwhile: whoever waits asks again)
                raise StaleInodeError(f"inode {inode.ino} was freed while it was fetched")

    async def _store(self, fill: Fill, slot: int | None, disk: int) -> bool:
        """Fetch, if that is not done yet, and write to a disk and the index; False: the inode is gone.  Checkpoint.

        Raises OSError, DatabaseError, DiskGoneError, or what the backend raised.
        """
        inode, first_block = fill.inode, fill.first % PART_BLOCKS
        if slot is None:
            checksums = await self._fetch_and_store(fill, first_block, disk)
        else:
            if fill.checksums is None:
                fill.checksums = await self._fetch_into(slot, fill, first_block)
            checksums = fill.checksums
            await self._store_from(slot, fill, disk)
        return await self._writer.run(PutBlocks(inode.ino, fill.part, checksums, disk).apply)

    async def _fetch_and_store(self, fill: Fill, first_block: int, disk: int) -> dict[int, int]:
        """Fetch into memory of our own and write through the page cache; return the checksums.  Checkpoint."""
        inode = fill.inode
        fd = self._files.duplicate(inode.ino, disk)

        def fetch_and_store() -> dict[int, int]:
            try:
                if fill.fetched is None:
                    fill.fetched = self._fetch(fill)
                return store_blocks(fd, inode.ino, fill.part, first_block, fill.fetched)
            finally:
                os.close(fd)  # here, because a cancelled fill leaves this thread running

        return await trio.to_thread.run_sync(fetch_and_store, limiter=self._threads, abandon_on_cancel=True)

    async def _fetch_into(self, slot: int, fill: Fill, first_block: int) -> dict[int, int]:
        """Fetch into a slot of the arena, let the fronts have it as it arrives; return the checksums.  Checkpoint."""
        length = fill.size_bytes
        buffer = self._arena.arena.buffer(slot)[:length]
        checksums: dict[int, int] = {}
        token = trio.lowlevel.current_trio_token()
        arena, is_over = self._arena.arena, False

        def note_arrival(arrived: int) -> None:  # in the worker thread, while the bytes are in its processor's cache
            add_checksums(checksums, fill.inode.ino, first_block, buffer, arrived)
            if not is_over:
                arena.publish(slot, fill.inode.ino, fill.first, arrived)
                fill.shown = arrived
                if fill.wanted <= arrived:
                    with contextlib.suppress(trio.RunFinishedError):
                        token.run_sync_soon(fill.wake)

        landing = Landing(buffer, note_arrival)
        try:
            await trio.to_thread.run_sync(self._fetch, fill, landing, limiter=self._threads, abandon_on_cancel=True)
        finally:
            is_over = True  # from now on the slot may be another's
        return checksums

    def _fetch(self, fill: Fill, into: Landing | None = None) -> memoryview:
        """Get the bytes.  In a worker thread."""
        fill.fetching_ns = monotonic_ns()
        try:
            return fetch_version(self._backend, fill.inode, fill.start, fill.end, into)
        finally:
            fill.fetched_ns = monotonic_ns()

    async def _store_from(self, slot: int, fill: Fill, disk: int) -> None:
        """Write a slot to the cache file.  Checkpoint."""
        buffer = self._arena.arena.buffer(slot)
        fd = self._files.open_direct(fill.inode.ino, fill.inode.size_bytes, disk)

        def store() -> None:
            try:
                write_directly(fd, fill.start, buffer, fill.size_bytes)
            finally:
                os.close(fd)

        await trio.to_thread.run_sync(store, abandon_on_cancel=True)


def _ignore_miss(_inode: Inode, _is_under_way: bool) -> None:
    """Prefetch nothing."""


def _ignore_end() -> None:
    """Push nothing."""


def _ignore_archived(_inode: Inode) -> None:
    """Tell nobody."""


def _ignore_read(_inode: Inode, _end: int, _is_missing: bool) -> None:
    """Follow nobody."""


def _mask_of(fill: Fill) -> tuple[int, int]:
    """Return the part of a fill, and its blocks there as bits."""
    part, first = divmod(fill.first, PART_BLOCKS)
    return part, (1 << fill.count) - 1 << first


def _runs(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, count) of consecutive blocks within one part."""
    start = previous = -1
    for block in blocks:
        if start >= 0 and block == previous + 1 and block % PART_BLOCKS:
            previous = block
            continue
        if start >= 0:
            yield start, previous - start + 1
        start = previous = block
    if start >= 0:
        yield start, previous - start + 1
