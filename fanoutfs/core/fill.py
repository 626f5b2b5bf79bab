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
  3. into a slot of the arena, published to the fronts; the waiters may go on (`readable`)
  4. write to the cache file, checksums
  5. commit the block map
  6. leave the table; the waiters go on, if they have not yet
Step 3 is left out for fills too short to be worth a slot, and while all slots are in use by fills.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.cache.blocks import find_torn_blocks, missing_blocks, store_blocks, store_blocks_directly
from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.admission import Admission, Ticket
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.failures import RecentFailures
from fanoutfs.core.fetch import fetch_version
from fanoutfs.core.readahead import ReadAhead
from fanoutfs.core.smallfills import SmallFill, SmallFills
from fanoutfs.core.space import Space
from fanoutfs.errors import (
    CacheFullError,
    DatabaseError,
    DeadlineError,
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
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES

log = logging.getLogger(__name__)

_MIN_ARENA_BYTES: Final = 4 * BLOCK_BYTES
"""A slot holds 32 blocks: random reads of single ones go through the page cache, where the next one may find them."""


class Fill:
    """One fetch under way.  first, count: blocks of the file.  readable: fronts find the bytes, done: so do others."""

    __slots__ = ("count", "done", "error", "first", "inode", "is_demand", "readable", "ticket")

    def __init__(self, inode: Inode, first: int, count: int, *, is_demand: bool) -> None:
        self.inode = inode
        self.first = first
        self.count = count
        self.is_demand = is_demand
        self.readable = trio.Event()
        self.done = trio.Event()
        self.error: FanoutError | None = None
        self.ticket: Ticket | None = None

    @property
    def size_bytes(self) -> int:
        """Return how many bytes it fetches."""
        return self.end - self.start

    @property
    def start(self) -> int:
        """Return the first byte's offset."""
        return self.first * BLOCK_BYTES

    @property
    def end(self) -> int:
        """Return the offset behind the last byte."""
        return min((self.first + self.count) * BLOCK_BYTES, self.inode.size_bytes)


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
        self.on_small_miss: Callable[[Inode, bool], None] = _ignore_miss
        """Called when a reader has to wait for a small file; the flag: its fill was under way.  No checkpoint."""
        self.on_large_read: Callable[[Inode, int], None] = _ignore_read
        """Called when a reader of a large file comes to a part of it, with the end of what he reads.  No checkpoint."""
        self._smalls = SmallFills(
            nursery=nursery,
            backend=backend,
            small=small,
            space=space,
            admission=admission,
            failures=self._failures,
            is_staged=self._is_staged,
            requests=requests,
            row=row,
        )

    # --- what readers ask --------------------------------------------------------------------------------------

    async def ensure(self, ino: int, offset: int, length: int) -> None:
        """Make bytes [offset, offset + length) of a file present, as far as the file goes.  Checkpoint.

        Raises StaleInodeError, CacheFullError (read through instead), DeadlineError, or what the backend raised.
        """
        inode = self._inode(ino)
        end = min(offset + length, inode.size_bytes)
        if offset >= end or inode.is_staged:
            return
        if inode.is_small:
            await self._ensure_small(inode)
            return
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        missing = self._missing(inode, first, last)
        if missing:
            self._failures.check(ino)
        waits = self._start(inode, missing, is_demand=True)
        self._fetch_ahead(inode, first, last)
        self.on_large_read(inode, end)
        await self._wait(waits, inode)

    async def store(self, inode: Inode, offset: int, end: int) -> None:
        """Make bytes [offset, end) of a large file's object present in its cache file.  Checkpoint.

        Raises as `ensure`.  Also of a file that is staged by now, and returns only when the bytes have left the arena.
        """
        missing = self._missing(inode, offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES)
        with trio.move_on_after(self._op_timeout_s) as scope:
            for fill in (fills := self._start(inode, missing, is_demand=True)):
                await fill.done.wait()
        if scope.cancelled_caught:
            raise DeadlineError(f"no answer for {inode.key} within {self._op_timeout_s:g} s")
        for fill in fills:
            if fill.error is not None:
                raise fill.error

    async def wait_idle(self, ino: int) -> None:
        """Return when no fill of this inode is under way.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        while under_way := self._table.get(ino):
            await next(iter(under_way.values())).done.wait()
        while small := self._smalls.under_way_of(ino):
            await small.done.wait()

    async def _ensure_small(self, inode: Inode) -> None:
        if self._small.has(inode.ino):
            return
        self._failures.check(inode.ino)
        is_under_way = self._smalls.is_filling(inode.ino)
        waits = self._smalls.start((inode,), is_demand=True)
        self.on_small_miss(inode, is_under_way)
        await self._wait(waits, inode)

    def fetch_ahead(self, ino: int) -> Sequence[Fill | SmallFill]:
        """Start fetching what is missing of a file, behind every reader; return the fills to wait for.  No checkpoint.

        Empty: all of it is cached.  Raises StaleInodeError.
        """
        inode = self._inode(ino)
        if inode.is_staged:
            return []
        if inode.is_small:
            return self.fetch_small_ahead((inode,))
        return self._start(inode, self._missing(inode, 0, (inode.size_bytes - 1) // BLOCK_BYTES), is_demand=False)

    def fetch_small_ahead(self, inodes: Sequence[Inode]) -> list[SmallFill]:
        """Start fetching the small files among these that are not cached, as `fetch_ahead`.  No checkpoint."""
        wanted = [
            inode for inode in inodes if inode.size_bytes and not inode.is_staged and not self._small.has(inode.ino)
        ]
        return self._smalls.start(wanted, is_demand=False)

    def fetch_part_ahead(self, inode: Inode, part: int) -> list[Fill]:
        """Start fetching what is missing of one part of a large file, as `fetch_ahead`.  No checkpoint."""
        if inode.is_staged:
            return []
        last_block = (inode.size_bytes - 1) // BLOCK_BYTES
        missing = self._missing(inode, part * PART_BLOCKS, min(last_block, (part + 1) * PART_BLOCKS - 1))
        return self._start(inode, missing, is_demand=False)

    @property
    def small_under_way(self) -> int:
        """Return how many small files are being fetched or wait for it."""
        return self._smalls.under_way

    def note_part_read(self, ino: int, part: int) -> None:
        """Take a front's word that a reader arrived at this part, and fetch ahead of it."""
        try:
            inode = self._inode(ino)
        except StaleInodeError:
            return
        if not inode.is_small and not inode.is_staged:
            self._fetch_ahead(inode, part * PART_BLOCKS, part * PART_BLOCKS)
            self.on_large_read(inode, min(inode.size_bytes, (part + 1) * PART_BYTES))

    async def fetch_direct(self, ino: int, offset: int, length: int) -> memoryview:
        """Return bytes of a file without caching them.  Checkpoint.  Raises as `ensure`."""
        inode = self._inode(ino)
        end = min(offset + length, inode.size_bytes)
        if offset >= end:
            return memoryview(b"")
        ticket = self._admission.enqueue(end - offset, is_demand=True)
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
            self._files.forget(ino)  # what counts is what fronts find under the name
            try:
                fd = self._files.duplicate(ino)
            except OSError as error:
                log.error("cache file cannot be opened ino=%d: %s", ino, error)
                torn = int.from_bytes(value[:4], "little")
            else:
                look = partial(find_torn_blocks, fd, ino, part, bytes(value), inode.size_bytes)
                try:
                    torn = await trio.to_thread.run_sync(look)
                finally:
                    os.close(fd)
            if torn:
                bump(self._row, Count.VERIFY_FAILURES, torn.bit_count())
                log.warning("damaged blocks dropped ino=%d part=%d mask=%#x key=%s", ino, part, torn, inode.key)
                await self._writer.run(DropBlocks(ino, part, torn).apply)

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

    def _fetch_ahead(self, inode: Inode, first: int, last: int) -> None:
        size_blocks = -(-inode.size_bytes // BLOCK_BYTES)
        ahead = self._readahead.access(inode.ino, first, last, size_blocks)
        if ahead:
            self._start(inode, self._missing(inode, ahead.start, ahead.stop - 1), is_demand=False)

    def _start(self, inode: Inode, blocks: list[int], *, is_demand: bool) -> list[Fill]:
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
        if is_demand:
            for fill in joined.values():
                self._promote(fill)
            bump(self._row, Count.FILLS_JOINED, len(joined))
        started = [Fill(inode, first, count, is_demand=is_demand) for first, count in _runs(fresh)]
        for fill in started:
            for block in range(fill.first, fill.first + fill.count):
                under_way[block] = fill
            bump(self._row, Count.FILLS_STARTED)
            self._nursery.start_soon(self._run, fill)
        if not under_way:
            del self._table[inode.ino]
        return [*joined.values(), *started]

    def _promote(self, fill: Fill) -> None:
        fill.is_demand = True
        if fill.ticket is not None:
            self._admission.promote(fill.ticket)

    async def _wait(self, fills: Sequence[Fill | SmallFill], inode: Inode) -> None:
        with trio.move_on_after(self._op_timeout_s) as scope:
            for fill in fills:
                await fill.readable.wait()
        if scope.cancelled_caught:
            late = DeadlineError(f"no answer for {inode.key} within {self._op_timeout_s:g} s")
            self._failures.note(inode.ino, late)
            raise late
        for fill in fills:
            if fill.error is not None:
                raise fill.error

    # --- one fill ----------------------------------------------------------------------------------------------

    async def _run(self, fill: Fill) -> None:
        fill.ticket = self._admission.enqueue(fill.end - fill.start, is_demand=fill.is_demand)
        try:
            await fill.ticket.admitted.wait()
            await self._fill_blocks(fill)
        except CacheFullError as error:
            fill.error = error
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
            self._admission.release(fill.ticket)
            self._remove(fill)
            fill.readable.set()
            fill.done.set()

    def _remove(self, fill: Fill) -> None:
        under_way = self._table[fill.inode.ino]
        for block in range(fill.first, fill.first + fill.count):
            del under_way[block]
        if not under_way:
            del self._table[fill.inode.ino]

    async def _fill_blocks(self, fill: Fill) -> None:
        inode = fill.inode
        part, first_block = divmod(fill.first, PART_BLOCKS)
        length = fill.end - fill.start
        async with self._space.reserved(length, (inode.ino, part)):
            slot = await self._arena.take() if length >= _MIN_ARENA_BYTES else None
            try:
                if slot is None:
                    checksums = await self._fetch_and_store(fill, part, first_block)
                else:
                    await self._fetch_into(slot, fill)
                    checksums = await self._store_from(slot, fill, part, first_block)
                known = await self._writer.run(PutBlocks(inode.ino, part, checksums).apply)
            except (OSError, DatabaseError) as error:
                self._space.note_disk_error(error)
                raise CacheFullError(f"cannot write to the cache: {error}") from error
            finally:
                if slot is not None:
                    self._arena.settle(slot)
        if not fill.is_demand:
            bump(self._row, Count.PREFETCH_BYTES, length)
        if not known:
            self._files.remove(inode.ino)
            raise StaleInodeError(f"inode {inode.ino} was freed while it was fetched")

    async def _fetch_and_store(self, fill: Fill, part: int, first_block: int) -> dict[int, int]:
        """Fetch into memory of our own and write through the page cache; return the checksums.  Checkpoint."""
        inode = fill.inode
        fd = self._files.duplicate(inode.ino)

        def fetch_and_store() -> dict[int, int]:
            try:
                return store_blocks(
                    fd, inode.ino, part, first_block, fetch_version(self._backend, inode, fill.start, fill.end)
                )
            finally:
                os.close(fd)  # here, because a cancelled fill leaves this thread running

        return await trio.to_thread.run_sync(fetch_and_store, limiter=self._threads, abandon_on_cancel=True)

    async def _fetch_into(self, slot: int, fill: Fill) -> None:
        """Fetch into a slot of the arena and let the fronts have it.  Checkpoint."""
        length = fill.end - fill.start
        buffer = self._arena.arena.buffer(slot)

        def fetch() -> None:
            buffer[:length] = fetch_version(self._backend, fill.inode, fill.start, fill.end)

        await trio.to_thread.run_sync(fetch, limiter=self._threads, abandon_on_cancel=True)
        self._arena.arena.publish(slot, fill.inode.ino, fill.first, length)
        fill.readable.set()

    async def _store_from(self, slot: int, fill: Fill, part: int, first_block: int) -> dict[int, int]:
        """Write a slot to the cache file; return the checksums.  Checkpoint."""
        ino, length = fill.inode.ino, fill.end - fill.start
        buffer = self._arena.arena.buffer(slot)
        fd = self._files.open_direct(ino, fill.inode.size_bytes)

        def store() -> dict[int, int]:
            try:
                return store_blocks_directly(fd, ino, part, first_block, buffer, length)
            finally:
                os.close(fd)

        return await trio.to_thread.run_sync(store, abandon_on_cancel=True)


def _ignore_miss(_inode: Inode, _is_under_way: bool) -> None:
    """Prefetch nothing."""


def _ignore_read(_inode: Inode, _end: int) -> None:
    """Follow nobody."""


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
