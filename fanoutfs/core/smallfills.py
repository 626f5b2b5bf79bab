"""Fills of small files: as `fill` promises it, at a fraction of the cost.

Core.  The table and everything that decides is the trio thread's.  It also speaks to the store itself, where the
backend has a way for that (`WholeGets`); what does not go that way is fetched by worker threads, which take jobs from a
queue and hand back results, and share nothing else.

A task, a thread hop, a reservation and a commit for each file of 16 KiB cost more than its GET.  Here a file costs a
ticket, two queue operations and its share of a batch: results that arrive while one batch is being stored are the
next one, which is stored in one transaction, and trio is woken once for all of them.

Measured with 128 in flight from SeaweedFS, 16 KiB each, CPU time of a GET: 35 us through `WholeGets`; through obstore
190 us when threads wait for it, 370 us as coroutines.

Order of one fill:
  1. admission (memory, requests), then room in the cache, for all that were admitted at once
  2. GET of that version; when it fails by `WholeGets`, once more in a worker thread
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
from time import monotonic_ns
from typing import Final

import trio

from fanoutfs.backend.base import Backend, WholeGets
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.admission import Admission, Ticket, Urgency
from fanoutfs.core.failures import RecentFailures
from fanoutfs.core.fetch import fetch_version
from fanoutfs.core.space import Space
from fanoutfs.core.waits import Fetched
from fanoutfs.errors import (
    ArchivedError,
    CacheFullError,
    DatabaseError,
    DeadlineError,
    FanoutError,
    InvariantError,
    StaleInodeError,
)
from fanoutfs.index.format import Inode
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump

log = logging.getLogger(__name__)

_SMALL_PART: Final = -1  # where `Fetched` notes small files
_GATHER_S: Final = 0.003
"""How long results that nobody waits for yet may lie until more are there.  Storing each as it comes costs a third of
the core's time beside the GETs; this is short beside a round trip to any store."""

_MANY: Final = 16
_ROUND_S: Final = 0.005
"""With so many under way at the store, they are looked at in such rounds, whoever waits: a round (wake-ups, a look, a
transaction) takes 0.3 ms of CPU, in which two or three could be fetched."""
_STEP_S: Final = 1.0


class SmallFill:
    """One file under way.  error: set when it failed, before `done`."""

    __slots__ = (
        "_done", "_is_over", "begun_ns", "error", "fetched_ns", "fetching_ns", "inode", "is_again", "is_in_thread",
        "size_bytes", "ticket", "urgency",
    )  # fmt: skip

    def __init__(self, inode: Inode, urgency: Urgency) -> None:
        self.inode = inode
        self.size_bytes = inode.size_bytes
        self.urgency = urgency
        self.is_in_thread = False
        self.ticket: Ticket | None = None
        self.error: FanoutError | None = None
        # Phases, see `waits`.  Whoever fetches it sets the last two.
        self.begun_ns = monotonic_ns()
        self.fetching_ns = self.fetched_ns = 0
        self.is_again = False
        self._done: trio.Event | None = None
        self._is_over = False

    @property
    def is_demand(self) -> bool:
        """Tell whether a reader waits for it."""
        return self.urgency is Urgency.DEMAND

    @property
    def done(self) -> trio.Event:
        """Return the event that is set at the end; made for those who wait only: most prefetched files have none."""
        if self._done is None:
            self._done = trio.Event()
            if self._is_over:
                self._done.set()
        return self._done

    async def wait_readable(self, _end: int) -> None:
        """Return when it is over: fronts find a small file once it is stored.  Checkpoint."""
        await self.done.wait()

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
        fetched: Fetched,
        is_staged: Callable[[int], bool],
        requests: int,
        on_end: Callable[[], None],
        on_archived: Callable[[Inode], None],
        row: memoryview,
    ) -> None:
        """Take the parts.

        on_end: called when fills have ended, once for all that end together.  on_archived: called with a file that the
        store refused to read because it is archived.  No checkpoint in either.
        """
        self._nursery = nursery
        self._backend = backend
        self._small = small
        self._space = space
        self._admission = admission
        self._failures = failures
        self._fetched = fetched
        self._is_staged = is_staged
        self._requests = requests
        self._on_end = on_end
        self._on_archived = on_archived
        self._row = row
        self._table: dict[int, SmallFill] = {}
        self._ready: list[SmallFill] = []
        self._is_collecting = False
        self._jobs: queue.SimpleQueue[SmallFill | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._in_threads = 0
        self._gets = backend.whole_gets()
        self._asked = trio.Event()
        self._is_refreshing = False
        self._results: deque[tuple[SmallFill, memoryview | FanoutError]] = deque()
        self._is_signalled = False
        self._arrived = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        nursery.start_soon(self._store_results)
        if self._gets is not None:
            nursery.start_soon(self._serve_gets, self._gets)
            self._refresh_gets(self._gets)

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

    def start(self, inodes: Iterable[Inode], urgency: Urgency) -> list[SmallFill]:
        """Join or start the fills of files that are not stored, and return them.  No checkpoint."""
        with self._collecting():
            return [self._join(inode, urgency) for inode in inodes]

    def _join(self, inode: Inode, urgency: Urgency) -> SmallFill:
        fill = self._table.get(inode.ino)
        if fill is None:
            fill = self._table[inode.ino] = SmallFill(inode, urgency)
            fill.ticket = self._admission.enqueue(
                fill.size_bytes, urgency, on_admitted=partial(self._take_admitted, fill)
            )
            bump(self._row, Count.FILLS_STARTED)
            if self._fetched.note(inode.ino, _SMALL_PART, 1):
                fill.is_again = True
                bump(self._row, Count.REFETCHED_BYTES, fill.size_bytes)
            return fill
        if urgency is Urgency.DEMAND:
            bump(self._row, Count.FILLS_JOINED)
        self.promote(fill, urgency)
        return fill

    def promote(self, fill: SmallFill, urgency: Urgency) -> None:
        """Let a fill that is under way be as urgent as this, if it is less.  No checkpoint."""
        fill.urgency = min(fill.urgency, urgency)
        if fill.ticket is not None:
            self._admission.promote(fill.ticket, urgency)

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
        self._space.hold(sum([fill.size_bytes for fill in ready]), is_small=True)
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
        if self._gets is not None:
            ask = self._gets.ask
            self._refresh_gets(self._gets)
            fills = [fill for fill in fills if not ask(fill.inode.key, fill.inode.version, fill)]
            self._asked.set()
        for fill in fills:
            self._fetch_in_thread(fill)

    # --- the trio thread's own way to the store ----------------------------------------------------------------

    async def _serve_gets(self, gets: WholeGets) -> None:
        """Take what arrives, for ever."""
        try:
            while True:
                self._asked = trio.Event()
                if not gets.under_way:
                    await self._asked.wait()
                with trio.move_on_after(_STEP_S):
                    await trio.lowlevel.wait_readable(gets.fileno())
                for got in gets.step():
                    fill = got.tag
                    assert isinstance(fill, SmallFill)  # noqa: S101 - what was given to ask()
                    if got.body is None:
                        self._fetch_in_thread(fill)
                    else:
                        fill.fetched_ns = monotonic_ns()
                        fill.fetching_ns = fill.fetched_ns - int(got.seconds * 1e9)
                        self._results.append((fill, got.body))
                if self._results:
                    self._arrived.set()
                if gets.under_way >= _MANY:
                    await trio.sleep(_ROUND_S)
        finally:
            gets.close()

    def _refresh_gets(self, gets: WholeGets) -> None:
        """Keep that way open while it is used.  No checkpoint."""
        if self._is_refreshing or not gets.needs_refresh:
            return

        async def refresh() -> None:
            try:
                await trio.to_thread.run_sync(gets.refresh, abandon_on_cancel=True)
            finally:
                self._is_refreshing = False

        self._is_refreshing = True
        self._nursery.start_soon(refresh)

    # --- worker threads ----------------------------------------------------------------------------------------

    def _fetch_in_thread(self, fill: SmallFill) -> None:
        fill.is_in_thread = True
        self._in_threads += 1
        if len(self._threads) < min(self._in_threads, self._requests):
            thread = threading.Thread(target=self._serve, name=f"fetch-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(fill)

    def _serve(self) -> None:
        while (fill := self._jobs.get()) is not None:
            result: memoryview | FanoutError
            fill.fetching_ns = monotonic_ns()
            try:
                result = fetch_version(self._backend, fill.inode, 0, fill.size_bytes)
            except FanoutError as error:
                result = error
            except Exception:  # a fill must not end its thread; whoever waits gets EIO
                log.exception("fill failed unexpectedly key=%s", fill.inode.key)
                result = InvariantError(f"fill of {fill.inode.key} failed unexpectedly")
            fill.fetched_ns = monotonic_ns()
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
                if self._gets is None and not any(fill.is_demand for fill, _result in arrived):
                    await trio.sleep(_GATHER_S)
                self._arrived = trio.Event()
                self._is_signalled = False
                batch = [self._results.popleft() for _n in range(len(self._results))]
                self._in_threads -= sum([fill.is_in_thread for fill, _result in batch])
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
                self._space.release(fill.size_bytes, is_small=True)
                if fill.ticket is not None:
                    self._admission.release(fill.ticket)
                if error is not None:
                    self._fetched.forget(fill.inode.ino, _SMALL_PART, 1)
                    self._note_failure(fill, error)
                elif not fill.is_demand:
                    self._space.note_fetched_ahead(fill.inode.ino)
                    bump(self._row, Count.PREFETCH_BYTES, fill.size_bytes)
                fill.error = error
                fill.end()
        self._on_end()

    def _note_failure(self, fill: SmallFill, error: FanoutError) -> None:
        if isinstance(error, CacheFullError):
            return  # whoever waits reads through
        if isinstance(error, ArchivedError):
            bump(self._row, Count.FILLS_FAILED)
            self._on_archived(fill.inode)
            return
        if isinstance(error, DeadlineError) and fill.is_demand:
            self._failures.note(fill.inode.ino, error)
        bump(self._row, Count.FILLS_FAILED)
        log.warning("fill failed key=%s: %s", fill.inode.key, error)
