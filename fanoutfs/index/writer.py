"""The core's writer: operations from many tasks, committed in groups by one thread.

While one group is being committed the next one collects, so that each waiting task pays for one commit, not for one
per operation.  Order is the order of submission.  A task that is cancelled while it waits does not undo its operation.

LMDB binds a write transaction to the thread that began it; that thread is this writer's own.  But an operation that is
short, and alone, is applied where it is asked for: to hand it over takes four times as long as to commit it (30 µs).

A group for which the disk has no room is tried once more after room was made: commits that were not synced yet keep the
pages that they replaced, a sync gives those back.

Fronts that enter new files take LMDB's lock as well, for a tenth of a millisecond each, and keep away from it while a
group is at work.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import outcome
import trio

from fanoutfs.errors import IndexFullError

T = TypeVar("T")
Txn = TypeVar("Txn")

_GROUP_LIMIT = 512
"""Operations per commit at most: bounds how long the first one waits and how large LMDB's dirty list grows."""


class _Job:
    """One submitted operation and the task that waits for it."""

    __slots__ = ("apply", "done", "result", "token")

    def __init__(self, apply: Callable[[Any], Any], token: trio.lowlevel.TrioToken) -> None:
        self.apply = apply
        self.token = token
        self.done = trio.Event()
        self.result: outcome.Maybe[Any] | None = None


class GroupWriter(Generic[Txn]):
    """Runs functions of a write transaction.  begin: a context manager that commits on success, aborts on error."""

    def __init__(
        self,
        name: str,
        begin: Callable[[], Any],
        note_committed: Callable[[], None] | None = None,
        note_busy: Callable[[bool], None] | None = None,
        make_room: Callable[[], None] | None = None,
    ) -> None:
        """note_committed: told, in the thread of who submits, after what was submitted is committed.

        note_busy: told, in the writer's thread, when it begins a group, which may take long, and when that is done.
        make_room: called there, may block, before what raised IndexFullError is tried once more.
        """
        self._begin = begin
        self._note_committed = note_committed or _tell_nobody
        self._note_busy = note_busy or _mark_nothing
        self._make_room = make_room or _tell_nobody
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._submitted = 0
        """Changed by whoever submits only: one thread."""
        self._finished = 0
        """Changed by the writer's thread only."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, apply: Callable[[Txn], T], *, is_short: bool = False) -> T:
        """Apply within the next group; return its result once the group is committed.  Checkpoint, unless is_short.

        is_short: it changes a few records.  Raises what `apply` raised; then nothing of it is in the environment.
        """
        if is_short and self._submitted == self._finished:  # the thread waits, and nothing is before this one
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                with self._begin() as txn:
                    applied = apply(txn)
            except IndexFullError:
                pass  # to make room takes long
            else:
                self._note_committed()
                return applied
        job = _Job(apply, trio.lowlevel.current_trio_token())
        self._submitted += 1
        self._jobs.put(job)
        await job.done.wait()
        self._note_committed()
        assert job.result is not None  # noqa: S101 - set before done
        result: T = job.result.unwrap()
        return result

    def stop(self) -> None:
        """Commit what was submitted and end the thread.  Blocks."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            group = [job]
            last = False
            while len(group) < _GROUP_LIMIT:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                group.append(more)
            self._note_busy(True)
            try:
                self._commit(group)
            finally:
                self._note_busy(False)
            if last:
                return

    def _commit(self, group: list[_Job], *, is_again: bool = False) -> None:
        """Apply a group in one transaction; if one of it fails, each in its own, so that it fails alone."""
        try:
            with self._begin() as txn:
                results = [outcome.Value(job.apply(txn)) for job in group]
        except Exception as error:  # noqa: BLE001 - carried to the task that asked
            if isinstance(error, IndexFullError) and not is_again:
                self._make_room()
                self._commit(group, is_again=True)
                return
            if len(group) == 1:
                self._finish(group[0], outcome.Error(error))
                return
            for job in group:
                self._commit([job])
            return
        for job, result in zip(group, results, strict=True):
            self._finish(job, result)

    def _finish(self, job: _Job, result: "outcome.Maybe[Any]") -> None:
        self._finished += 1
        job.result = result
        try:
            job.token.run_sync_soon(job.done.set)
        except trio.RunFinishedError:
            pass  # the core is ending and nobody waits any more


def _tell_nobody() -> None:
    """Nobody wants to know."""


def _mark_nothing(_is_busy: bool) -> None:
    """Nobody keeps away."""
