"""Long operations asked for over the control socket: started, asked about, cancelled.

Core, trio thread only.  A request starts a job and gets its id at once; the client asks for the state until it has
ended.  Polling, not a stream: a client may come back after it lost the connection, several may watch one job, and a
core that was restarted says "unknown", whereupon the client starts the job again (every job goes on where it was).

A client that goes away does not end its job; `cancel` does, for all who watch it.

    {"op": "import", …}                  → {"job": "…"}       one per operation; the same target joins the same job
    {"op": "job", "id": …, "wait_s": 1}  → {"state", "progress", "error", "exit_code", "result"}; waits until it ended
    {"op": "cancel", "id": …}            → the same, when it has ended
state: running, done, failed (error, exit_code), cancelled, unknown
"""

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import trio

from fanoutfs.errors import FanoutError

log = logging.getLogger(__name__)

T = TypeVar("T")

_KEPT: Final = 32
"""Jobs remembered after their end."""
_MAX_WAIT_S: Final = 2.0
_CANCEL_WAIT_S: Final = 4.0


class Job:
    """One long operation.  progress, result: for JSON; written by the operation as it goes."""

    def __init__(self, job_id: str, target: object) -> None:
        self.id = job_id
        self.target = target
        self.progress: dict[str, Any] = {}
        self.result: Any = None
        self.state = "running"
        self.error = ""
        self.exit_code = 0
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    def describe(self) -> dict[str, Any]:
        """Return the state, for JSON."""
        return {
            "state": self.state,
            "progress": dict(self.progress),
            "error": self.error,
            "exit_code": self.exit_code,
            "result": self.result,
        }


class Jobs:
    """The jobs of this core."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._jobs: dict[str, Job] = {}
        self._started = 0

    def start(self, kind: str, target: object, work: Callable[[Job], Awaitable[None]]) -> Job:
        """Start a job, or return the one under way for this target.  No checkpoint."""
        wanted = (kind, target)
        for job in self._jobs.values():
            if target is not None and job.target == wanted and job.state == "running":
                return job
        ended = [job.id for job in self._jobs.values() if job.state != "running"]
        for job_id in ended[: max(0, len(ended) - _KEPT)]:
            del self._jobs[job_id]
        self._started += 1
        # The process number: a core after this one must not answer for its jobs.
        job = Job(f"{kind}-{os.getpid()}-{self._started}", wanted)
        self._jobs[job.id] = job
        self._nursery.start_soon(self._run, job, work)
        return job

    async def outlasting(self, step: Callable[[], Awaitable[T]]) -> T:
        """Carry a step of a job to its end even if the job is cancelled meanwhile, and return its result.  Checkpoint.

        For what must not be left half done, such as a commit and telling the kernel of it.
        """
        outcome: list[T | Exception] = []
        done = trio.Event()

        async def run() -> None:
            try:
                outcome.append(await step())
            except Exception as error:  # noqa: BLE001 - carried to the job that waits
                log.debug("step of a job failed: %r", error)  # the job says it, unless it has gone
                outcome.append(error)
            finally:
                done.set()

        self._nursery.start_soon(run)
        await done.wait()
        result = outcome[0]
        if isinstance(result, Exception):
            raise result
        return result

    def find(self, request: Mapping[str, Any]) -> Job | None:
        """Return the job that a request names; None: this core knows none."""
        return self._jobs.get(str(request.get("id", "")))

    async def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `job`.  Checkpoint."""
        job = self.find(request)
        if job is None:
            return {"state": "unknown"}
        with trio.move_on_after(min(float(request.get("wait_s", 0)), _MAX_WAIT_S)):
            await job.ended.wait()
        return job.describe()

    async def cancel(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `cancel`.  Checkpoint."""
        job = self.find(request)
        if job is None:
            return {"state": "unknown"}
        job.scope.cancel()
        with trio.move_on_after(_CANCEL_WAIT_S):
            await job.ended.wait()
        return job.describe()

    async def _run(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        state = "cancelled"
        try:
            with job.scope:
                await work(job)
                state = "done"
        except FanoutError as error:
            state, job.error, job.exit_code = "failed", str(error), error.exit_code
            log.warning("job failed id=%s: %s", job.id, error)
        except Exception as error:  # a job must not end the core
            state, job.error, job.exit_code = "failed", f"internal error: {error!r}", FanoutError.exit_code
            log.exception("job failed unexpectedly id=%s", job.id)
        finally:
            job.state = state
            job.ended.set()
