"""The single writer: operations from many tasks, committed in groups by one thread.

While one group is being committed the next one collects, so that a slow disk (1–5 ms per sync) costs each waiting
task one commit, not one per operation.  Order is the order of submission.  A task that is cancelled while it waits
does not undo its operation.

LMDB binds a write transaction to the thread that began it; that thread is this writer's own.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import outcome
import trio

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

    def __init__(self, name: str, begin: Callable[[], Any]) -> None:
        self._begin = begin
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, apply: Callable[[Txn], T]) -> T:
        """Apply within the next group; return its result once the group is committed.  Checkpoint.

        Raises what `apply` raised; then nothing of it is in the environment.
        """
        job = _Job(apply, trio.lowlevel.current_trio_token())
        self._jobs.put(job)
        await job.done.wait()
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
            self._commit(group)
            if last:
                return

    def _commit(self, group: list[_Job]) -> None:
        """Apply a group in one transaction; if one of it fails, each in its own, so that it fails alone."""
        try:
            with self._begin() as txn:
                results = [outcome.Value(job.apply(txn)) for job in group]
        except Exception as error:  # noqa: BLE001 - carried to the task that asked
            if len(group) == 1:
                self._finish(group[0], outcome.Error(error))
                return
            for job in group:
                self._commit([job])
            return
        for job, result in zip(group, results, strict=True):
            self._finish(job, result)

    @staticmethod
    def _finish(job: _Job, result: "outcome.Maybe[Any]") -> None:
        job.result = result
        try:
            job.token.run_sync_soon(job.done.set)
        except trio.RunFinishedError:
            pass  # the core is ending and nobody waits any more
