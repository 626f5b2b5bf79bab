"""The queue of dirty inodes: what is uploaded when, and what happens when the store does not take it.

Core, trio thread only.  Everything lasting is in the index (`dirty`, `departed`); this queue is rebuilt from there.

* An inode's turn comes `upload_delay` (or what a policy says) after its last change, but at most `upload_deadline` (or
  that delay, if it is longer) after the first; in order of that moment.  Then nobody waits any longer until writers
  pause (`publishing`).
* At most `upload_requests` inodes are under way.  While readers wait for their turn at the store none begins that
  nobody waits for, for up to another `upload_deadline` and as long as staging is not half full.
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
from typing import Any, Final

import trio

from fanoutfs.backend.unanswered import LATE_S
from fanoutfs.clock import Clock
from fanoutfs.core.facts import Asked, Outcome
from fanoutfs.core.publishing import Publisher
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
_BLOCKED_EACH_S: Final = 0.001
"""Looks at what is blocked are this far apart: thousands may wait for one directory to leave."""
_GIVE_WAY_S: Final = 0.5
_VERDICT_S: Final = 0.5
_LOOKED_AT: Final = 2000
"""Files looked at for one verdict: some 20 ms."""
_PATIENCE: Final = 3
"""Looks at an obstacle before it is moved aside: two that wait for each other would wait for ever."""


class _Entry:
    """One dirty inode.  Times: trio's clock."""

    __slots__ = (
        "asked", "attempts", "blocked", "changed_at", "done", "due_at", "error", "failed_at", "failed_attempt",
        "failures", "is_again", "is_never", "is_under_way", "is_urgent", "kept_at", "kept_bytes", "put_off_until",
        "since", "tried_at",
    )  # fmt: skip

    def __init__(self, since: float, changed_at: float) -> None:
        self.since = since
        self.changed_at = changed_at
        self.due_at = 0.0
        self.put_off_until: float | None = None
        self.asked: Asked | None = None
        self.is_urgent = False
        self.is_under_way = False
        self.is_again = False
        self.is_never = False
        self.kept_bytes = 0
        """Of what is never uploaded its size when it was looked at; kept_at: when that was."""
        self.kept_at = float("-inf")
        self.attempts = 0
        self.tried_at = float("-inf")
        """When the last attempt began; failed_at: when the last one did that failed."""
        self.failed_attempt = 0
        self.failed_at = float("-inf")
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
        delay_of: Callable[[int], float],
        deadline_s: float,
        requests: int,
        op_timeout_s: float,
        row: memoryview,
    ) -> None:
        """delay_of: returns how long an inode is left alone after its last change."""
        self._publisher = publisher
        publisher.note_dirty = self.note_dirty
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._delay_of = delay_of
        self._deadline_s = deadline_s
        self._requests = requests
        self._op_timeout_s = op_timeout_s
        self._row = row
        self._entries: dict[int, _Entry] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._order = itertools.count()
        self._wake = trio.Event()
        self._next_look = float("-inf")
        """When the queue is looked at again if nobody wakes it."""
        self._under_way = 0
        self._looked_at = float("-inf")
        self._may_free = True
        """What `may_free_staging` found then."""
        self._trouble: FanoutError | None = None
        self._trouble_since_ns = 0
        self._trouble_at = float("-inf")
        """When the last attempt began that met it."""
        self._tries = 0
        self._next_try = 0.0
        self._progress_at = trio.current_time()
        self.catch_up: Callable[[], None] = _nothing
        """Takes up what became dirty without a call of this core's.  No checkpoint."""
        self.gives_way: Callable[[], bool] = _never
        """Tells whether readers want the store more than uploads do.  No checkpoint."""
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

    def note_written(self, ino: int) -> None:
        """A front has written to an inode's staging file, a second ago perhaps: it may be clean by now.

        While it is uploaded its file tells (`content.Stamp`).  No checkpoint.
        """
        entry = self._entries.get(ino)
        if entry is None:
            self.take_up(ino)
        elif not entry.is_never and not entry.is_under_way:
            self.note_dirty(ino)

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

    def note_rules_changed(self) -> None:
        """Policies are others now: each waiting inode's turn may come at another moment, or at all.  No checkpoint."""
        for ino, entry in self._entries.items():
            entry.is_never = False
            if entry.is_under_way:
                entry.is_again = True
            elif not entry.failures:
                self._schedule(ino, entry)

    def ask(self, inos: Iterable[int], asked: Asked) -> dict[int, int]:
        """Upload these at once, also what is not uploaded by itself; return how often each was tried before."""
        wanted = list(inos)
        for ino in wanted:
            self.take_up(ino)
            if (entry := self._entries.get(ino)) is not None:
                entry.asked = asked
                entry.is_never = False
                entry.is_again = entry.is_under_way
        return self.retry(wanted)

    def is_refused(self, ino: int) -> bool:
        """Tell whether an inode that was asked for is never uploaded all the same: a policy keeps it local."""
        entry = self._entries.get(ino)
        return entry is not None and entry.is_never

    def note_way_is_free(self) -> None:
        """A directory has left where others wait to come.  No checkpoint."""
        for ino, entry in self._entries.items():
            if entry.blocked and not entry.is_under_way and not entry.is_never:
                self._schedule(ino, entry, trio.current_time())

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

        It is tried at once, whatever failed before.  Raises what stands in the way of a try that began after the call,
        once nothing has been getting through for `op_timeout`; it is tried on.  Names that are never uploaded are not
        waited for; further hard links are, of which each is a copy of the first name's object.
        """
        await self._wait(ino, ino)
        for cookie in self.further_names(ino):
            await self._wait(cookie, ino)

    async def _wait(self, ino: int, first: int) -> None:
        """Wait for an inode, or for a further name of one: that can be put only while `first` is clean."""
        await trio.lowlevel.checkpoint()
        self.take_up(ino)
        started_at = trio.current_time()
        while (entry := self._entries.get(ino)) is not None and not entry.is_never:
            concerned = {each: found for each in (ino, first) if (found := self._entries.get(each)) is not None}
            for each, found in concerned.items():
                if found.tried_at < started_at:
                    self.retry((each,))
                else:
                    self.hurry((each,))
            with trio.move_on_after(self._op_timeout_s):
                await entry.done.wait()
                continue
            now = trio.current_time()
            # What was given up a moment ago may come late: its key is left alone, see `late`.
            patience_s = self._op_timeout_s + (LATE_S if entry.blocked else 0.0)
            # One that is blocked may not be tried itself for as long as what is in its way is not.
            since = started_at if now < started_at + patience_s + _BACKOFF_MAX_S else float("-inf")
            errors = [found.error for found in concerned.values() if found.failed_at >= since and found.error]
            failure = errors[0] if errors else self._trouble if self._trouble_at >= since else None
            if failure is not None and now - max(self._progress_at, started_at) >= patience_s:
                raise failure

    def error_of(self, ino: int, attempts: int) -> FanoutError | None:
        """Return why an inode could not be uploaded, if it was tried more often than this since."""
        entry = self._entries.get(ino)
        return None if entry is None or entry.failed_attempt <= attempts else entry.error

    def may_free_staging(self) -> bool:
        """Tell whether anything that is staged is going to be uploaded; asked often.  No checkpoint."""
        now = trio.current_time()
        if now >= self._looked_at + _VERDICT_S:
            self._looked_at = now
            self.catch_up()
            waiting = ((ino, entry) for ino, entry in self._entries.items() if not entry.is_never)
            looked = list(itertools.islice(waiting, _LOOKED_AT))
            # Of more than these some are not to stay: else they would be known for it, by and by.
            self._may_free = len(looked) == _LOOKED_AT or any(self._will_leave(*each) for each in looked)
        return self._may_free

    def _will_leave(self, ino: int, entry: _Entry) -> bool:
        # Whose turn has not come yet does not know that it never will.
        return entry.is_under_way or self._publisher.is_to_free_staging(ino, is_asked=entry.asked is not None)

    def further_names(self, ino: int) -> list[int]:
        """Return the cookies of an inode's further names, whose objects are copies of the first one's."""
        return self._publisher.facts.further_names(ino)

    def is_queued(self, ino: int) -> bool:
        """Tell whether an inode is in the queue."""
        return ino in self._entries

    def waiting(self) -> list[int]:
        """Return the inodes that are to be uploaded, without those that never are."""
        self.catch_up()
        return [ino for ino, entry in self._entries.items() if not entry.is_never]

    # --- the queue -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Upload for ever."""
        self._rebuild()
        async with trio.open_nursery() as nursery:
            while True:
                wait_s = self._start_due(nursery)
                self._next_look = trio.current_time() + wait_s
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
            if entry.is_urgent:
                at = trio.current_time()
            else:
                delay_s = self._delay_of(ino)
                at = min(entry.changed_at + delay_s, entry.since + max(delay_s, self._deadline_s))
        entry.due_at = at
        heapq.heappush(self._heap, (at, next(self._order), ino))
        if at < self._next_look:
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
            if self._is_put_off(ino, entry, now):
                continue
            entry.is_under_way, entry.is_again = True, False
            entry.attempts += 1
            entry.tried_at = now
            self._under_way += 1
            nursery.start_soon(self._work, ino, entry)
        return float("inf")

    def _is_put_off(self, ino: int, entry: _Entry, now: float) -> bool:
        """Let readers go first, for a while: look again soon.  Tell whether it was so."""
        if entry.put_off_until is None:
            entry.put_off_until = now + self._deadline_s
        if entry.is_urgent or now >= entry.put_off_until or not self.gives_way():
            entry.put_off_until = None
            return False
        self._schedule(ino, entry, min(now + _GIVE_WAY_S, entry.put_off_until))
        return True

    async def _work(self, ino: int, entry: _Entry) -> None:
        deadline_s = max(self._deadline_s, self._delay_of(ino))
        is_overdue = trio.current_time() >= entry.since + deadline_s or entry.is_urgent
        try:
            outcome = await self._publisher.publish(
                ino, is_overdue=is_overdue, is_urgent=entry.is_urgent, asked=entry.asked
            )
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
            for cookie in self.further_names(ino):
                self.take_up(cookie)  # their objects are copies of this one
        elif outcome is Outcome.CLEAN:
            entry.since = entry.changed_at
            self._schedule(ino, entry)
        else:
            # Written to since its turn was set, which only its file knows: looked at again after another delay.
            delay_s = self._delay_of(ino)
            at = now + max(_BLOCKED_S, 0.0 if entry.is_urgent else delay_s)
            deadline = entry.since + max(self._deadline_s, delay_s)
            self._schedule(ino, entry, min(at, deadline) if deadline > now else at)

    @staticmethod
    def _release(entry: _Entry) -> None:
        entry.is_urgent = False
        entry.asked = None
        entry.done.set()
        entry.done = trio.Event()

    async def _unblock(self, ino: int, entry: _Entry) -> None:
        """Let what is in the way go first; if it does not, because it waits for this one in turn, move it aside."""
        facts = self._publisher.facts.look(ino)
        entry.blocked += 1
        pause_s = min(_BLOCKED_MAX_S, _BLOCKED_S * 2.0 ** min(entry.blocked, 16))
        pause_s = max(pause_s, min(_BACKOFF_MAX_S, _BLOCKED_EACH_S * len(self._entries)))
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
        entry.failed_attempt, entry.failed_at = entry.attempts, entry.tried_at
        entry.is_under_way = False
        is_news = entry.error is None or type(entry.error) is not type(failure)
        entry.error = failure
        now = trio.current_time()
        backoff_s = min(_BACKOFF_MAX_S, _BACKOFF_S * 2.0 ** min(entry.failures, 16)) * random.uniform(0.5, 1.0)
        if isinstance(failure, _STORE_WIDE):
            if self._trouble is None:
                self._trouble_since_ns = self._clock.wall_ns()
                log.warning("uploads wait for the store: %s", failure)
            self._trouble, self._trouble_at = failure, max(self._trouble_at, entry.tried_at)
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
        self.catch_up()
        never = self._kept()
        oldest = min((entry.since for entry in self._entries.values() if not entry.is_never), default=None)
        failed = [entry for entry in self._entries.values() if entry.error is not None]
        described: dict[str, Any] = {
            "dirty": len(self._entries) - len(never),
            "uploading": self._under_way,
            "never_uploaded": len(never),
            "never_uploaded_bytes": sum(entry.kept_bytes for entry in never),
            "failing": len(failed),
        }
        if oldest is not None:
            described["oldest_dirty_s"] = round(trio.current_time() - oldest, 1)
        error = self._trouble or (failed[-1].error if failed else None)
        if error is not None:
            described["last_error"] = str(error)
        return described

    def _kept(self) -> list[_Entry]:
        """Return what is never uploaded.  Nobody tells how it grows: those looked at longest ago are looked at."""
        never = {ino: entry for ino, entry in self._entries.items() if entry.is_never}
        now = trio.current_time()
        for ino in heapq.nsmallest(_LOOKED_AT, never, key=lambda ino: never[ino].kept_at):
            entry = never[ino]
            entry.kept_bytes, entry.kept_at = self._publisher.size_bytes(ino), now
        return list(never.values())

    def conflicts(self) -> list[dict[str, Any]]:
        """Return the last conflicts, for status: {"path", "kept_as", "at_ns"}."""
        with self._reader.begin() as txn:
            return [json.loads(value) for value in self._reader.settings(txn, CONFLICTS).values()]


def _nothing() -> None:
    """Nobody can help."""


def _never() -> bool:
    """Give way to nobody."""
    return False
