"""What those see who look at a mount from outside: put together from the parts of a core.  Core, trio thread only.

Metrics (`exporter`), what took long (`slowlog`), and how long requests had to wait at all (`stalls`).
"""

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from fanoutfs.config.schema import LOG_LEVELS
from fanoutfs.core.assembly import Core
from fanoutfs.core.control import Command
from fanoutfs.core.exporter import Exporter
from fanoutfs.core.outbound import Outbound
from fanoutfs.core.slowlog import SlowLog, why_request
from fanoutfs.core.stalls import Stalls
from fanoutfs.core.status import describe
from fanoutfs.core.task import CoreTask
from fanoutfs.errors import UsageError
from fanoutfs.observe import logs
from fanoutfs.observe.dump import DUMP_SIGNAL
from fanoutfs.observe.shared import KEEPER_ROW, LOG_LEVEL, PID


@dataclass(frozen=True, slots=True)
class Watching:
    """The parts.  describe: makes the status."""

    task: CoreTask
    describe: Callable[[], dict[str, Any]]
    exporter: Exporter
    slow: SlowLog
    stalls: Stalls

    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return the background tasks by name."""
        task = self.task
        tasks: dict[str, Callable[[], Awaitable[None]]] = {"slow requests": self.slow.run, "stalls": self.stalls.run}
        if task.metrics is not None:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(task.metrics))
            tasks["metrics"] = partial(self.exporter.serve, listener)
        if task.config.metrics_file is not None:
            tasks["metrics file"] = partial(self.exporter.keep_file, task.config.metrics_file)
        return tasks

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {
            "status": self._status,
            "stats": self._stats,
            "why": self._why,
            "top": self._top,
            "log_level": self._log_level,
            "dump": self._dump,
        }

    async def _status(self, _request: Mapping[str, Any]) -> Any:
        return self.describe()

    async def _stats(self, request: Mapping[str, Any]) -> Any:
        if request.get("format") == "prometheus":
            return (await self.exporter.text("text/plain"))[0].decode()
        return self.exporter.stats()

    async def _why(self, request: Mapping[str, Any]) -> Any:
        return {"requests": why_request(self.slow, request), "facts": self.exporter.facts(self.task.config)}

    async def _top(self, _request: Mapping[str, Any]) -> Any:
        waiting = self.slow.in_flight(self.task.shared.in_flight())
        return self.exporter.snapshot() | {"processes": self.slow.users(), "waiting": waiting}

    async def _log_level(self, request: Mapping[str, Any]) -> None:
        level = str(request.get("level"))
        if level not in LOG_LEVELS:
            raise UsageError(f"level `{level}`: one of {', '.join(LOG_LEVELS)}")
        self.task.shared.flags[LOG_LEVEL] = logs.level_number(level)
        self._tell_keeper(logs.LEVEL_SIGNAL)

    async def _dump(self, _request: Mapping[str, Any]) -> None:
        self._tell_keeper(DUMP_SIGNAL)

    def _tell_keeper(self, number: int) -> None:
        os.kill(self.task.shared.row(KEEPER_ROW)[PID], number)


def build_watching(core: Core, outbound: Outbound | None) -> Watching:
    """Put the parts together.  Starts no task."""
    base, data = core.base, core.data
    task, config = base.task, base.config
    describe_it = partial(
        describe,
        config,
        task.shared,
        data.space,
        data.disks,
        base.volume.small,
        base.volume.environment,
        core.filesystem,
        core.names.freshness,
        data.admission,
        core.ahead.plans,
        core.placement,
        core.writing.room,
        outbound,
    )
    task.shared.slow.limit(config.front_count())
    return Watching(
        task=task,
        describe=describe_it,
        exporter=Exporter(config.mountpoint, task.shared, describe_it, config.price_table()),
        slow=SlowLog(
            task.shared.slow, base.reader, task.root_prefix, base.row, config.slow_request, is_first=task.is_first
        ),
        stalls=Stalls(task.shared, config.front_count(), base.row, base.clock),
    )
