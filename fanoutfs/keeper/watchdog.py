"""Notices processes of the mount that live but do nothing any more: stopped, in an endless loop, in a deadlock.

Keeper only.  Each process has a mark in the shared rows that moves while it gets anything done: the core's event loop
counts its beats (BEATS), fronts and pusher count the requests they begin and end (BUSY).  A mark that stands still for
`timeout_s` is a hang, unless

* a front or the pusher sleeps between two requests: nobody asked for anything;
* the kernel holds the process (state D): a slow disk.  A slow store holds nobody up: the core waits for it in its loop;
* a debugger holds it (traced);
* it wants a processor and gets hardly any: a machine that has too much to do;
* the keeper itself was not running meanwhile (a frozen control group, a stopped virtual machine).

Time is monotonic, which does not count a machine's suspension.  A core that hangs again soon after it was replaced is
given twice as long each time: what takes so long (a huge index, read on the loop) must come to an end some day.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from fanoutfs.observe.shared import BEATS, BUSY, CORE_ROW, FIRST_FRONT_ROW, PUSHER_ROW, SharedState

_LOOKS: Final = 8
"""In each `timeout_s`."""
_FEW_CPU_SHARE: Final = 0.05
_SOON_S: Final = 600.0
_MOST_PATIENCE: Final = 16
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Kind(Enum):
    """What a process is."""

    CORE = "core"
    FRONT = "front"
    PUSHER = "pusher"
    NOTIFIER = "notifier"


@dataclass(frozen=True, slots=True)
class Member:
    """A living process of the mount.  number: a front's."""

    kind: Kind
    pid: int
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind.value}{self.number if self.kind is Kind.FRONT else ''}"


@dataclass(frozen=True, slots=True)
class Activity:
    """What the kernel says of a process's main thread.  state: the letter of proc(5); cpu_s: processor time so far."""

    state: str
    cpu_s: float
    is_traced: bool


@dataclass(frozen=True, slots=True)
class Hang:
    """A process that must be ended."""

    member: Member
    state: str
    idle_s: float

    @property
    def was_stopped(self) -> bool:
        """Tell whether somebody stopped it (SIGSTOP): no fault of what it was doing."""
        return self.state == "T"


@dataclass(slots=True)
class _Watch:
    mark: int
    since: float
    cpu_s: float
    is_told: bool = False


def activity(pid: int) -> Activity | None:
    """Look at the main thread of a process; None: it is gone."""
    thread = Path("/proc") / str(pid) / "task" / str(pid)
    try:
        # Behind the name, which may hold anything: state is field 3 of proc(5), utime and stime are 14 and 15.
        fields = (thread / "stat").read_bytes().rpartition(b")")[2].split()
        status = (thread / "status").read_bytes()
    except OSError:
        return None
    is_traced = b"\nTracerPid:\t0\n" not in status
    return Activity(fields[0].decode(), (int(fields[11]) + int(fields[12])) / _TICKS, is_traced)


class Watchdog:
    """Decides which processes hang.  Ends none itself."""

    def __init__(
        self, shared: SharedState, timeout_s: float, look_at: Callable[[int], Activity | None] = activity
    ) -> None:
        """timeout_s: 0: no process ever hangs."""
        self._shared = shared
        self._timeout_s = timeout_s
        self._look_at = look_at
        self._watches: dict[int, _Watch] = {}
        self._looked_at = 0.0
        self._patience = 1
        self._core_hung_at = float("-inf")

    @property
    def pause_s(self) -> float | None:
        """Return how often to look; None: never."""
        return self._timeout_s / _LOOKS if self._timeout_s else None

    def due_at(self) -> float | None:
        """Return when to look again (monotonic); None: never."""
        return None if self.pause_s is None else self._looked_at + self.pause_s

    def look(self, now: float, members: Iterable[Member]) -> list[Hang]:
        """Return the processes that hang, each once.  Does nothing before `due_at`."""
        due_at = self.due_at()
        if due_at is None or self.pause_s is None or now < due_at:
            return []
        if now - self._looked_at > 3 * self.pause_s:
            self._watches.clear()  # whoever did not run was perhaps we
        self._looked_at = now
        if now - self._core_hung_at > _SOON_S * self._patience:
            self._patience = 1
        before, self._watches = self._watches, {}
        hangs = []
        for member in members:
            seen = self._look_at(member.pid)
            if seen is None:
                continue
            watch = before.get(member.pid)
            mark = self._mark(member)
            if watch is None or watch.mark != mark or not _is_suspect(member, mark, seen):
                watch = _Watch(mark, now, seen.cpu_s)
            self._watches[member.pid] = watch
            if self._hangs(member, watch, seen, now) and not watch.is_told:
                watch.is_told = True
                hangs.append(Hang(member, seen.state, now - watch.since))
        self._note(hangs, now)
        return hangs

    def _mark(self, member: Member) -> int:
        if member.kind is Kind.CORE:
            return self._shared.row(CORE_ROW)[BEATS]
        if member.kind is Kind.FRONT:
            return self._shared.row(FIRST_FRONT_ROW + member.number)[BUSY]
        return self._shared.row(PUSHER_ROW)[BUSY] if member.kind is Kind.PUSHER else 0

    def _hangs(self, member: Member, watch: _Watch, seen: Activity, now: float) -> bool:
        limit_s = self._timeout_s * (self._patience if member.kind is Kind.CORE else 1)
        idle_s = now - watch.since
        is_starved = seen.state == "R" and seen.cpu_s - watch.cpu_s < _FEW_CPU_SHARE * idle_s
        return idle_s >= limit_s and not is_starved

    def _note(self, hangs: list[Hang], now: float) -> None:
        if any(hang.member.kind is Kind.CORE and not hang.was_stopped for hang in hangs):
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
            self._core_hung_at = now


def _is_suspect(member: Member, mark: int, seen: Activity) -> bool:
    """Tell whether a process in this state, whose mark does not move, may hang."""
    if seen.state in "DtZX" or seen.is_traced:
        return False
    if seen.state == "T" or member.kind is Kind.CORE:
        return True
    if member.kind is Kind.NOTIFIER:
        return False  # it writes what the kernel takes when it can
    is_asleep = seen.state == "S"
    if member.kind is Kind.PUSHER:
        return not is_asleep  # the kernel may hold it back until a READ is answered
    return not is_asleep or bool(mark & 1)
