"""The queue of dirty inodes: what is uploaded when, and what happens when the store does not take it.

Core, trio thread only.  Everything lasting is in the index (`dirty`, `departed`); this queue is rebuilt from there.

* An inode's turn comes `upload_delay` after its last change, but at most `upload_deadline` after the first; in order
  of that moment.  Then nobody waits any longer until writers pause (`publishing`).
* At most `upload_requests` inodes are under way.
* A failure that says something about the store, not about the one inode (it does not answer, refuses the credentials,
  takes no changes, is full) stops the queue: one inode at a time tries, ever less often, until one gets through.
  Nothing is given up; writers notice only when staging is full.  One log line when it begins, one when it is over.
* Whoever waits for an inode (fsync with `durability = "remote"`, drain) has it uploaded without delay.
"""

import contextlib
import heapq
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Final

import trio

from fanoutfs.clock import Clock
from fanoutfs.core.publishing import Outcome, Publisher
from fanoutfs.errors import (
    AccessDeniedError,
    BackendError,
    BucketMissingError,
    CredentialsError,
    DatabaseError,
    DeadlineError,
    FanoutError,
    ReadOnlyStoreError,
    StoreFullError,
    TransientError,
)
from fanoutfs.index.publishing import CONFLICTS, NoteState
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump

log = logging.getLogger(__name__)

_STORE_WIDE: Final = (
    TransientError, DeadlineError, CredentialsError, AccessDeniedError, ReadOnlyStoreError, BucketMissingError,
    StoreFullError,
)  # fmt: skip
_BACKOFF_S: Final = 0.5
_BACKOFF_MAX_S: Final = 30.0
_BLOCKED_S: Final = 0.05
_BLOCKED_MAX_S: Final = 2.0
_PATIENCE: Final = 3
"""Looks at an obstacle before it is moved aside: two that wait for each other would wait for ever."""


class _Entry:
    """One dirty inode.  Times: trio's clock."""

    __slots__ = (
        "attempts", "blocked", "changed_at", "done", "due_at", "error", "failed_attempt", "failures", "is_again",
        "is_never", "is_under_way", "is_urgent", "since",
    )  # fmt: skip

    def __init__(self, since: float, changed_at: float) -> None:
        self.since = since
        self.changed_at = changed_at
        self.due_at = 0.0
        self.is_urgent = False
        self.is_under_way = False
        self.is_again = False
        self.is_never = False
        self.attempts = 0
        self.failed_attempt = 0
        self.failures = 0
        self.blocked = 0
        self.error: FanoutError | None = None
        self.done = trio.Event()


class Uploads:
    """The queue.  `run` serves it."""

    def __init__(
        self,
        *,
        publisher: Publisher,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        clock: Clock,
        delay_s: float,
        deadline_s: float,
        requests: int,
        op_timeout_s: float,
        row: memoryview,
    ) -> None:
        self._publisher = publisher
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._delay_s = delay_s
        self._deadline_s = max(delay_s, deadline_s)
        self._requests = requests
        self._op_timeout_s = op_timeout_s
        self._row = row
        self._entries: dict[int, _Entry] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._order = itertools.count()
        self._wake = trio.Event()
        self._under_way = 0
        self._trouble: FanoutError | None = None
        self._trouble_since_ns = 0
        self._tries = 0
        self._next_try = 0.0
        self._progress_at = trio.current_time()
        self.on_blocked: Callable[[], None] = _nothing
        """Called when something departed is in the way.  No checkpoint."""

    # --- what others tell ----------------------------------------------------------------------------------------

    def note_dirty(self, ino: int) -> None:
        """An inode was changed: its record says how.  No checkpoint."""
        now = trio.current_time()
        entry = self._entries.get(ino)
        if entry is None:
            entry = self._entries[ino] = _Entry(now, now)
        entry.changed_at = now
        entry.is_never = False
        if entry.is_under_way:
            entry.is_again = True
        elif not entry.failures:
            self._schedule(ino, entry)

    def note_changed(self, ino: int) -> None:
        """An inode may have become dirty, or clean by losing its name.  No checkpoint."""
        with self._reader.begin() as txn:
            records = self._reader.changed(txn)
            dirty = records.dirty(ino)
            cookies = records.links(ino)
        if dirty is not None:
            self.note_dirty(ino)
        for cookie in cookies:
            self.take_up(cookie)
        entry = self._entries.get(ino)
        if dirty is not None:
            return
        if self._publisher.facts.intent(ino) is not None:
            self.note_dirty(ino)  # what became of the last try has to be found out
            self.hurry((ino,))
        elif entry is not None and not entry.is_under_way:
            del self._entries[ino]
            self._release(entry)

    def is_uploading(self, ino: int) -> bool:
        """Tell whether an inode is being uploaded."""
        entry = self._entries.get(ino)
        return entry is not None and entry.is_under_way

    def note_renamed(self) -> None:
        """A directory has another name: what was not to be uploaded because of its path may be now.  No checkpoint."""
        for ino in [ino for ino, entry in self._entries.items() if entry.is_never]:
            self.note_dirty(ino)

    def hurry(self, inos: Iterable[int]) -> None:
        """Upload these without waiting any longer.  No checkpoint."""
        for ino in inos:
            entry = self._entries.get(ino)
            if entry is not None and not entry.is_urgent:
                entry.is_urgent = True
                if not entry.is_under_way and not entry.is_never:
                    self._schedule(ino, entry)

    def retry(self, inos: Iterable[int]) -> dict[int, int]:
        """Try these at once, whatever failed a moment ago; return how often each was tried before.  No checkpoint."""
        self._next_try = 0.0
        attempts = {}
        for ino in inos:
            entry = self._entries.get(ino)
            if entry is not None and not entry.is_never:
                entry.is_urgent = True
                attempts[ino] = entry.attempts
                if not entry.is_under_way:
                    self._schedule(ino, entry, trio.current_time())
        return attempts

    async def wait(self, ino: int) -> None:
        """Return when the store has an inode as it is now.  Checkpoint.

        Raises what stands in the way, once nothing has been getting through for `op_timeout`; it is tried on.
        Names that are never uploaded are not waited for.
        """
        await trio.lowlevel.checkpoint()
        self.take_up(ino)
        started_at = trio.current_time()
        while (entry := self._entries.get(ino)) is not None and not entry.is_never:
            self.hurry((ino,))
            with trio.move_on_after(self._op_timeout_s):
                await entry.done.wait()
                continue
            failure = entry.error or self._trouble
            quiet_s = trio.current_time() - max(self._progress_at, started_at)
            if failure is not None and quiet_s >= self._op_timeout_s:
                raise failure

    def error_of(self, ino: int, attempts: int) -> FanoutError | None:
        """Return why an inode could not be uploaded, if it was tried more often than this since."""
        entry = self._entries.get(ino)
        return None if entry is None or entry.failed_attempt <= attempts else entry.error

    def is_queued(self, ino: int) -> bool:
        """Tell whether an inode is in the queue."""
        return ino in self._entries

    def waiting(self) -> list[int]:
        """Return the inodes that are to be uploaded, without those that never are."""
        return [ino for ino, entry in self._entries.items() if not entry.is_never]

    # --- the queue -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Upload for ever."""
        self._rebuild()
        async with trio.open_nursery() as nursery:
            while True:
                wait_s = self._start_due(nursery)
                self._wake = trio.Event()
                with trio.move_on_after(wait_s):
                    await self._wake.wait()

    def _rebuild(self) -> None:
        """Take up everything that is dirty, with the age that it has."""
        for entry in self._entries.values():
            entry.is_under_way = False  # of a run that failed
        self._under_way = 0
        now, now_ns = trio.current_time(), self._clock.wall_ns()
        with self._reader.begin() as txn:
            for ino, dirty in self._reader.changed(txn).all_dirty():
                ages_s = [max(0, now_ns - moment_ns) / 1e9 for moment_ns in (dirty.since_ns, dirty.changed_ns)]
                entry = self._entries.setdefault(ino, _Entry(now - ages_s[0], now - ages_s[1]))
                self._schedule(ino, entry)

    def take_up(self, ino: int) -> None:
        """Queue an inode if its record says that it is dirty and it is not queued.  No checkpoint."""
        if ino in self._entries:
            return
        with self._reader.begin() as txn:
            is_dirty = self._reader.changed(txn).dirty(ino) is not None
        if is_dirty:
            self.note_dirty(ino)

    def _schedule(self, ino: int, entry: _Entry, at: float | None = None) -> None:
        if at is None:
            at = min(entry.changed_at + self._delay_s, entry.since + self._deadline_s)
            if entry.is_urgent:
                at = trio.current_time()
        entry.due_at = at
        heapq.heappush(self._heap, (at, next(self._order), ino))
        self._wake.set()

    def _start_due(self, nursery: trio.Nursery) -> float:
        """Start what is due and may go; return in how many seconds to look again."""
        now = trio.current_time()
        limit = self._requests if self._trouble is None else 1
        if self._trouble is not None and now < self._next_try:
            return self._next_try - now
        while self._heap and self._under_way < limit:
            at, _order, ino = self._heap[0]
            entry = self._entries.get(ino)
            if entry is None or entry.due_at != at or entry.is_under_way or entry.is_never:
                heapq.heappop(self._heap)  # scheduled anew since, or nothing to do
                continue
            if at > now:
                return at - now
            heapq.heappop(self._heap)
            entry.is_under_way, entry.is_again = True, False
            entry.attempts += 1
            self._under_way += 1
            nursery.start_soon(self._work, ino, entry)
        return float("inf")

    async def _work(self, ino: int, entry: _Entry) -> None:
        is_overdue = trio.current_time() >= entry.since + self._deadline_s or entry.is_urgent
        try:
            outcome = await self._publisher.publish(ino, is_overdue=is_overdue, is_urgent=entry.is_urgent)
        except (FanoutError, OSError) as error:
            failure = error if isinstance(error, FanoutError) else BackendError(f"local disk: {error}")
            await self._note_failure(ino, entry, failure)
        except Exception as error:  # one inode must not stop the queue
            log.exception("upload failed unexpectedly ino=%d", ino)
            bump(self._row, Count.REQUEST_ERRORS)
            await self._note_failure(ino, entry, BackendError(f"internal error: {error!r}"))
        else:
            await self._note_outcome(ino, entry, outcome)
        finally:
            entry.is_under_way = False
            self._under_way -= 1
            self._wake.set()

    async def _note_outcome(self, ino: int, entry: _Entry, outcome: Outcome) -> None:
        now = trio.current_time()
        if outcome in (Outcome.CLEAN, Outcome.CHANGED):
            self._progress_at = now
            self._end_trouble()
        if outcome is not Outcome.BLOCKED:
            entry.blocked = 0
        if entry.error is not None and outcome is not Outcome.BLOCKED:
            await self._forget_error(ino, entry)
        entry.is_under_way = False
        if outcome is Outcome.NEVER and not entry.is_again:
            entry.is_never = True
            self._release(entry)
        elif outcome is Outcome.BLOCKED:
            await self._unblock(ino, entry)
        elif outcome is Outcome.CLEAN and not entry.is_again:
            self._entries.pop(ino, None)
            self._release(entry)
            for cookie in self._publisher.facts.further_names(ino):
                self.take_up(cookie)  # their objects are copies of this one
        elif outcome is Outcome.CLEAN:
            entry.since = entry.changed_at
            self._schedule(ino, entry)
        else:
            # Written to since its turn was set, which only its file knows: looked at again after another delay.
            at = now + max(_BLOCKED_S, 0.0 if entry.is_urgent else self._delay_s)
            deadline = entry.since + self._deadline_s
            self._schedule(ino, entry, min(at, deadline) if deadline > now else at)

    @staticmethod
    def _release(entry: _Entry) -> None:
        entry.is_urgent = False
        entry.done.set()
        entry.done = trio.Event()

    async def _unblock(self, ino: int, entry: _Entry) -> None:
        """Let what is in the way go first; if it does not, because it waits for this one in turn, move it aside."""
        facts = self._publisher.facts.look(ino)
        entry.blocked += 1
        pause_s = min(_BLOCKED_MAX_S, _BLOCKED_S * 2.0 ** min(entry.blocked, 16))
        if facts is not None and facts.obstacle is not None:
            in_the_way = facts.obstacle.ino
            self.on_blocked()
            if in_the_way and in_the_way != facts.inode.ino:
                self.take_up(in_the_way)
                self.hurry((in_the_way,))
            if in_the_way == facts.inode.ino or entry.blocked >= _PATIENCE:
                try:
                    if not await self._publisher.clear(facts.obstacle):
                        await self._publisher.park(ino)  # a directory that may wait for this one to leave it
                    self.take_up(in_the_way)
                except FanoutError as error:
                    await self._note_failure(ino, entry, error)
                    return
        self._schedule(ino, entry, trio.current_time() + pause_s)

    # --- failures --------------------------------------------------------------------------------------------------

    async def _note_failure(self, ino: int, entry: _Entry, failure: FanoutError) -> None:
        bump(self._row, Count.UPLOADS_FAILED)
        entry.failures += 1
        entry.failed_attempt = entry.attempts
        entry.is_under_way = False
        is_news = entry.error is None or type(entry.error) is not type(failure)
        entry.error = failure
        now = trio.current_time()
        backoff_s = min(_BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** min(entry.failures, 16)) * random.uniform(0.5, 1.0)
        if isinstance(failure, _STORE_WIDE):
            if self._trouble is None:
                self._trouble_since_ns = self._clock.wall_ns()
                log.warning("uploads wait for the store: %s", failure)
            self._trouble = failure
            self._tries += 1
            pause_s = min(_BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** min(self._tries, 16)) * random.uniform(0.5, 1.0)
            self._next_try = now + pause_s
        elif is_news:
            log.warning("upload failed ino=%d: %s", ino, failure)
        self._schedule(ino, entry, now + backoff_s)
        if is_news:
            with contextlib.suppress(DatabaseError):
                await self._writer.run(NoteState(ino, error=str(failure)).apply)

    async def _forget_error(self, ino: int, entry: _Entry) -> None:
        entry.error, entry.failures = None, 0
        with contextlib.suppress(DatabaseError):
            await self._writer.run(NoteState(ino, error="").apply)

    def _end_trouble(self) -> None:
        if self._trouble is not None:
            log.info("uploads go on after %.0f s", (self._clock.wall_ns() - self._trouble_since_ns) / 1e9)
            self._trouble, self._tries = None, 0

    # --- status ----------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return how things stand, for status."""
        never = sum(entry.is_never for entry in self._entries.values())
        oldest = min((entry.since for entry in self._entries.values() if not entry.is_never), default=None)
        failed = [entry for entry in self._entries.values() if entry.error is not None]
        described: dict[str, Any] = {
            "dirty": len(self._entries) - never,
            "uploading": self._under_way,
            "never_uploaded": never,
            "failing": len(failed),
        }
        if oldest is not None:
            described["oldest_dirty_s"] = round(trio.current_time() - oldest, 1)
        error = self._trouble or (failed[-1].error if failed else None)
        if error is not None:
            described["last_error"] = str(error)
        return described

    def conflicts(self) -> list[dict[str, Any]]:
        """Return the last conflicts, for status: {"path", "kept_as", "at_ns"}."""
        with self._reader.begin() as txn:
            return [json.loads(value) for value in self._reader.settings(txn, CONFLICTS).values()]


def is_excluded(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a path is not to be uploaded: the whole of it, or any name in it, matches a pattern."""
    names = path.strip("/").split("/")
    for pattern in patterns:
        if fnmatchcase(path, pattern) if "/" in pattern else any(fnmatchcase(name, pattern) for name in names):
            return True
    return False


def _nothing() -> None:
    """Nobody can help."""
