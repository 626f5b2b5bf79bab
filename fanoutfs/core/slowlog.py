"""What took long lately, for the log and for `fanoutfs why`; and who uses the mount, for `fanoutfs top`.

Core, trio thread.  Fronts record (observe.slow), this looks once a second, while a process that asked still lives and
can be named.  What it keeps is bounded and ends with the core; the next one finds again what the rings still hold.
"""

import errno
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from fanoutfs.errors import UsageError
from fanoutfs.index.reader import IndexReader
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import InFlight, bump
from fanoutfs.observe.slow import ProcessUse, SlowMemory, SlowRequest
from fanoutfs.wire.kernel import Opcode

log = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_KEPT: Final = 2000
_PROC: Final = Path("/proc")
_ROOT: Final = "."
_NAMED_NS: Final = 60_000_000_000
"""Numbers of processes are not given out again within a minute."""
_MOST_NAMES: Final = 8192
ENDED: Final = "(ended)"


@dataclass(frozen=True, slots=True)
class Process:
    """Who asked.  pid: of the process that the asking thread belongs to."""

    pid: int
    command: str
    cgroup: str


class SlowLog:
    """The requests of late that took long."""

    def __init__(
        self,
        memory: SlowMemory,
        reader: IndexReader,
        root_prefix: str,
        row: memoryview,
        threshold_s: float,
        *,
        is_first: bool,
    ) -> None:
        """threshold_s: from here on a request is logged; 0: none is.  is_first: no core before this one logged any."""
        self._memory = memory
        self._reader = reader
        self._root_prefix = root_prefix
        self._row = row
        self._threshold_ns = threshold_s * 1e9 if threshold_s else float("inf")
        self._is_told = not is_first
        self._slowest: dict[str, Any] | None = None
        self._untold = 0
        self._told_ns = 0
        self._recent: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._names: dict[int, tuple[Process, int]] = {}
        """Who threads belong to, and when that was looked up: three files of /proc for each cost 0.1 ms."""

    async def run(self) -> None:
        """Look again and again."""
        while True:
            self.take()
            self._name_users()
            await trio.sleep(_PERIOD_S)

    def take(self) -> None:
        """Take over what the fronts recorded since the last time."""
        for request in self._memory.news():
            entry = self._describe(request, self._process(request.pid))
            self._recent.append(entry)
            if request.elapsed_ns >= self._threshold_ns and not self._is_told:
                bump(self._row, Count.SLOW_REQUESTS)
                self._untold += 1
                if self._slowest is None or entry["took_ms"] > self._slowest["took_ms"]:
                    self._slowest = entry
        self._is_told = False
        self._tell()

    def _tell(self) -> None:
        """Log the slowest request since the last line, if that was long enough ago."""
        now_ns = time.monotonic_ns()
        if self._slowest is None or now_ns - self._told_ns < _PERIOD_S * 1e9:
            return
        others = f" others={self._untold - 1}" if self._untold > 1 else ""
        log.warning("slow request %s%s", line_of(self._slowest), others)
        self._slowest, self._untold, self._told_ns = None, 0, now_ns

    def recent(self, *, path: str | None = None, pid: int | None = None) -> list[dict[str, Any]]:
        """Return what took long of a path (and below it) or of a process, oldest first."""
        self.take()
        found = list(self._recent)
        if pid is not None:
            return [entry for entry in found if pid in (entry["pid"], entry["thread"])]
        if path:
            return [entry for entry in found if entry["path"] == path or entry["path"].startswith(f"{path}/")]
        return found

    def users(self) -> list[dict[str, Any]]:
        """Return what each process asked for and waited for so far; threads of one process are added up."""
        users: dict[int, dict[str, Any]] = {}
        now_ns = time.monotonic_ns()
        for use in self._name_users():
            process = self._process(use.pid)
            user = users.setdefault(
                process.pid,
                {"pid": process.pid, "command": process.command, "cgroup": process.cgroup, "idle_s": float("inf")}
                | dict.fromkeys(("requests", "read_bytes", "written_bytes"), 0)
                | dict.fromkeys(("backend_ns", "queue_ns", "disk_ns", "daemon_ns"), 0),
            )
            user["idle_s"] = min(user["idle_s"], round(max(0, now_ns - use.seen_ns) / 1e9, 3))
            for name in ("requests", "read_bytes", "written_bytes", "backend_ns", "queue_ns", "disk_ns", "daemon_ns"):
                user[name] += getattr(use, name)
        return sorted(users.values(), key=lambda user: -user["read_bytes"] - user["written_bytes"])

    def _name_users(self) -> list[ProcessUse]:
        """Find out who asks, while they live; return all that the fronts know."""
        uses = self._memory.processes()
        for use in uses:
            self._process(use.pid)
        if len(self._names) > _MOST_NAMES:
            self._names = {use.pid: self._names[use.pid] for use in uses}
        return uses

    def _process(self, thread: int) -> Process:
        """Return who a thread belongs to, or belonged to when it was last looked for."""
        now_ns = time.monotonic_ns()
        known = self._names.get(thread)
        if known is not None and now_ns - known[1] < _NAMED_NS:
            return known[0]
        found = find_process(thread)
        if known is not None and found.command == ENDED:
            found = known[0]
        self._names[thread] = (found, now_ns)
        return found

    def in_flight(self, requests: list[InFlight]) -> list[dict[str, Any]]:
        """Describe requests that wait now, the oldest first."""
        return [
            {
                "opcode": _opcode(request.opcode),
                "path": self._path(request.nodeid),
                "pid": request.pid,
                "offset": request.offset,
                "size": request.size,
                "age_ms": round(request.age_ns / 1e6, 3),
            }
            for request in sorted(requests, key=lambda request: -request.age_ns)
        ]

    def _describe(self, request: SlowRequest, process: Process) -> dict[str, Any]:
        began_s = time.time() - (time.monotonic_ns() - request.started_ns) / 1e9
        return {
            "at": round(began_s, 3),
            "opcode": _opcode(request.opcode),
            "ino": request.nodeid,
            "path": self._path(request.nodeid),
            "offset": request.offset,
            "size": request.size,
            "pid": process.pid,
            "thread": request.pid,
            "command": process.command,
            "cgroup": process.cgroup,
            "took_ms": round(request.elapsed_ns / 1e6, 3),
            "backend_ms": round(request.waits.backend_ns / 1e6, 3),
            "queue_ms": round(request.waits.queue_ns / 1e6, 3),
            "disk_ms": round(request.waits.disk_ns / 1e6, 3),
            "daemon_ms": round(request.daemon_ns / 1e6, 3),
            "error": errno.errorcode.get(request.error, str(request.error)) if request.error else "",
            "again": request.waits.is_again,
            "asked_core": request.asked_core,
        }

    def _path(self, ino: int) -> str:
        """Return an inode's path in the mount, "." for the mountpoint, "" when no name is known for it."""
        with self._reader.begin() as txn:
            path = self._reader.path(txn, ino)
            if path is None:
                inode = self._reader.inode(txn, ino)
                path = "" if inode is None else inode.key.removeprefix(self._root_prefix)
                return path.rstrip("/")
        return path.rstrip("/") or _ROOT


def why_request(slow: SlowLog, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Answer {"op": "why", "path": ...} or {"op": "why", "pid": ...}.  Raises UsageError."""
    pid = request.get("pid")
    if pid is not None and not isinstance(pid, int):
        raise UsageError("why: pid is a number")
    return slow.recent(path=str(request.get("path") or "").strip("/"), pid=pid)


def line_of(entry: Mapping[str, Any]) -> str:
    """Return one line for the log."""
    names = (
        "opcode",
        "path",
        "ino",
        "offset",
        "size",
        "pid",
        "command",
        "took_ms",
        "backend_ms",
        "queue_ms",
        "disk_ms",
    )
    shown = [f"{name}={entry[name]}" for name in (*names, "daemon_ms")]
    return " ".join(shown + ([f"error={entry['error']}"] if entry["error"] else []))


def find_process(thread: int) -> Process:
    """Return the process a thread belongs to, as far as it lives and may be seen."""
    if not thread:
        return Process(0, "(kernel)", "")
    folder = _PROC / str(thread)
    try:
        status = (folder / "status").read_text(encoding="utf-8", errors="replace")
        pid = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("Tgid:")), thread)
        command = (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
        cgroup = (folder / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Process(thread, ENDED, "")
    return Process(pid, command, next((line.split(":", 2)[2] for line in reversed(cgroup)), ""))


def _opcode(number: int) -> str:
    return Opcode(number).name if number in Opcode._value2member_map_ else str(number)
