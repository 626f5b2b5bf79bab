"""Fills of small files: as `fill` promises it, at a fraction of the cost.

Core.  The table and everything that decides is the trio thread's; worker threads take jobs from a queue, fetch, and
hand back results, and share nothing else.

A task, a thread hop, a reservation and a commit for each file of 16 KiB cost more than its GET.  Here a file costs a
ticket, two queue operations and its share of a batch: results that arrive while one batch is being stored are the
next one, which is stored in one transaction, and trio is woken once for all of them.

Blocking GETs in threads, not obstore's asyncio interface: measured with 128 in flight from SeaweedFS, 16 KiB each,
a GET with all our checks costs 120 us user + 100 us system time in threads, 180 + 190 us as coroutines without them.

Order of one fill:
  1. admission (memory, requests), then room in the cache, for all that were admitted at once
  2. GET with If-Match, in a worker thread
  3. one transaction of the small store for all that arrived meanwhile
  4. out of the table, budget given back, waiters woken
So a file is in the store, in the table, or missing, and held room is given back only when it counts as used.
"""

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.admission import Admission, Ticket
from fanoutfs.core.failures import RecentFailures
from fanoutfs.core.fetch import fetch_version
from fanoutfs.core.space import Space
from fanoutfs.errors import CacheFullError, DatabaseError, DeadlineError, FanoutError, InvariantError, StaleInodeError
from fanoutfs.index.format import Inode
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump

log = logging.getLogger(__name__)

_GATHER_S: Final = 0.003
"""How long results that nobody waits for yet may lie until more are there.  Storing each as it comes costs a third of
the core's time beside the GETs; this is short beside a round trip to any store."""


class SmallFill:
    """One file under way.  error: set when it failed, before `done`."""

    __slots__ = ("_done", "_is_over", "error", "inode", "is_demand", "size_bytes", "ticket")

    def __init__(self, inode: Inode, *, is_demand: bool) -> None:
        self.inode = inode
        self.size_bytes = inode.size_bytes
        self.is_demand = is_demand
        self.ticket: Ticket | None = None
        self.error: FanoutError | None = None
        self._done: trio.Event | None = None
        self._is_over = False

    @property
    def done(self) -> trio.Event:
        """Return the event that is set at the end; made for those who wait only: most prefetched files have none."""
        if self._done is None:
            self._done = trio.Event()
            if self._is_over:
                self._done.set()
        return self._done

    @property
    def readable(self) -> trio.Event:
        """Return the same: fronts find a small file once it is stored."""
        return self.done

    def end(self) -> None:
        """Wake who waits."""
        self._is_over = True
        if self._done is not None:
            self._done.set()


class SmallFills:
    """The table of small files under way, the threads that fetch them and the task that stores them."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        backend: Backend,
        small: SmallStore,
        space: Space,
        admission: Admission,
        failures: RecentFailures,
        is_staged: Callable[[int], bool],
        requests: int,
        row: memoryview,
    ) -> None:
        self._nursery = nursery
        self._backend = backend
        self._small = small
        self._space = space
        self._admission = admission
        self._failures = failures
        self._is_staged = is_staged
        self._requests = requests
        self._row = row
        self._table: dict[int, SmallFill] = {}
        self._ready: list[SmallFill] = []
        self._is_collecting = False
        self._jobs: queue.SimpleQueue[SmallFill | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._fetching = 0
        self._results: deque[tuple[SmallFill, memoryview | FanoutError]] = deque()
        self._is_signalled = False
        self._arrived = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        nursery.start_soon(self._store_results)

    @property
    def under_way(self) -> int:
        """Return how many files are under way."""
        return len(self._table)

    def is_filling(self, ino: int) -> bool:
        """Tell whether a file is under way."""
        return ino in self._table

    def under_way_of(self, ino: int) -> SmallFill | None:
        """Return the fill of a file that is under way."""
        return self._table.get(ino)

    def start(self, inodes: Iterable[Inode], *, is_demand: bool) -> list[SmallFill]:
        """Join or start the fills of files that are not stored, and return them.  No checkpoint."""
        with self._collecting():
            return [self._join(inode, is_demand=is_demand) for inode in inodes]

    def _join(self, inode: Inode, *, is_demand: bool) -> SmallFill:
        fill = self._table.get(inode.ino)
        if fill is None:
            fill = self._table[inode.ino] = SmallFill(inode, is_demand=is_demand)
            fill.ticket = self._admission.enqueue(
                fill.size_bytes, is_demand=is_demand, on_admitted=partial(self._take_admitted, fill)
            )
            bump(self._row, Count.FILLS_STARTED)
        elif is_demand:
            bump(self._row, Count.FILLS_JOINED)
            fill.is_demand = True
            if fill.ticket is not None:
                self._admission.promote(fill.ticket)
        return fill

    # --- room and jobs -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _collecting(self) -> Iterator[None]:
        """Look for room once for all that is admitted in this block."""
        self._is_collecting = True
        try:
            yield
        finally:
            self._is_collecting = False
            self._reserve()

    def _take_admitted(self, fill: SmallFill) -> None:
        self._ready.append(fill)
        if not self._is_collecting:
            self._reserve()

    def _reserve(self) -> None:
        """Hold room for what was admitted and let it go, at once if there is room."""
        if not self._ready:
            return
        ready, self._ready = self._ready, []
        self._space.hold(sum([fill.size_bytes for fill in ready]))
        if self._space.has_room():
            self._fetch(ready)
        else:
            self._nursery.start_soon(self._make_room, ready)

    async def _make_room(self, fills: list[SmallFill]) -> None:
        try:
            await self._space.make_room_for_held()
        except CacheFullError as error:
            # What nobody waits for yet gives way to what somebody does.
            wanted = [fill for fill in fills if fill.is_demand]
            if len(wanted) == len(fills):
                wanted = []
            self._finish([(fill, error) for fill in fills if fill not in wanted])
            if wanted:
                await self._make_room(wanted)
        except Exception:  # a fill must not end the core; whoever waits gets EIO
            log.exception("making room failed unexpectedly")
            self._finish([(fill, InvariantError("making room failed unexpectedly")) for fill in fills])
        else:
            self._fetch(fills)

    def _fetch(self, fills: list[SmallFill]) -> None:
        self._fetching += len(fills)
        while len(self._threads) < min(self._fetching, self._requests):
            thread = threading.Thread(target=self._serve, name=f"fetch-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        for fill in fills:
            self._jobs.put(fill)

    # --- worker threads ----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while (fill := self._jobs.get()) is not None:
            result: memoryview | FanoutError
            try:
                result = fetch_version(self._backend, fill.inode, 0, fill.size_bytes)
            except FanoutError as error:
                result = error
            except Exception:  # a fill must not end its thread; whoever waits gets EIO
                log.exception("fill failed unexpectedly key=%s", fill.inode.key)
                result = InvariantError(f"fill of {fill.inode.key} failed unexpectedly")
            self._results.append((fill, result))
            # Unset before the results are taken: whoever finds it set knows that his result will be.
            if not self._is_signalled:
                self._is_signalled = True
                try:
                    self._token.run_sync_soon(self._wake)
                except trio.RunFinishedError:
                    return

    def _wake(self) -> None:
        self._arrived.set()

    # --- results -----------------------------------------------------------------------------------------------

    async def _store_results(self) -> None:
        try:
            while True:
                await self._arrived.wait()
                arrived = list(self._results)  # threads go on appending
                if not any(fill.is_demand for fill, _result in arrived):
                    await trio.sleep(_GATHER_S)
                self._arrived = trio.Event()
                self._is_signalled = False
                batch = [self._results.popleft() for _n in range(len(self._results))]
                self._fetching -= len(batch)
                self._finish(await self._store(batch))
        finally:
            for _thread in self._threads:
                self._jobs.put(None)

    async def _store(
        self, batch: list[tuple[SmallFill, memoryview | FanoutError]]
    ) -> list[tuple[SmallFill, FanoutError | None]]:
        """Store what arrived and return each fill with its error, if any.  Checkpoint."""
        outcomes: list[tuple[SmallFill, FanoutError | None]] = []
        arrived: list[SmallFill] = []
        items: list[tuple[int, memoryview]] = []
        for fill, result in batch:
            if isinstance(result, FanoutError):
                outcomes.append((fill, result))
            elif self._is_staged(fill.inode.ino):  # asked for by a record from before
                outcomes.append((fill, StaleInodeError(f"{fill.inode.key} was changed here while it was fetched")))
            else:
                arrived.append(fill)
                items.append((fill.inode.ino, result))
        if not items:
            return outcomes
        try:
            stored = await self._small.put_many(items)
        except DatabaseError as error:
            self._space.note_disk_error(error)
            stored = [False] * len(items)
        except Exception:  # a fill must not end the core; whoever waits gets EIO
            log.exception("storing small files failed unexpectedly")
            return outcomes + [(fill, InvariantError(f"cannot store {fill.inode.key}")) for fill in arrived]
        for fill, is_stored in zip(arrived, stored, strict=True):
            outcomes.append((fill, None if is_stored else CacheFullError(f"no room for {fill.inode.key}")))
        return outcomes

    def _finish(self, outcomes: Iterable[tuple[SmallFill, FanoutError | None]]) -> None:
        """Take fills off the table, give their budget back and wake their waiters."""
        with self._collecting():
            for fill, error in outcomes:
                del self._table[fill.inode.ino]
                self._space.release(fill.size_bytes)
                if fill.ticket is not None:
                    self._admission.release(fill.ticket)
                if error is not None:
                    self._note_failure(fill, error)
                elif not fill.is_demand:
                    bump(self._row, Count.PREFETCH_BYTES, fill.size_bytes)
                fill.error = error
                fill.end()

    def _note_failure(self, fill: SmallFill, error: FanoutError) -> None:
        if isinstance(error, CacheFullError):
            return  # whoever waits reads through
        if isinstance(error, DeadlineError) and fill.is_demand:
            self._failures.note(fill.inode.ino, error)
        bump(self._row, Count.FILLS_FAILED)
        log.warning("fill failed key=%s: %s", fill.inode.key, error)
