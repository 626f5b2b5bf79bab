"""Notices threads that the kernel does not let go: they asked a disk for something, and it does not answer.

Keeper only.  Nobody can end such a thread (state D), and nothing is wrong with its process: so it is told, in the log
and by `status`, and no more.  That it is one and the same wait follows from the thread's count of waits
(voluntary_ctxt_switches of proc(5)), which does not move meanwhile.  Threads that speak to the kernel of this very
mount do not count: notifier and pusher may be held until a READ is answered.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fanoutfs.keeper.watchdog import Kind, Member

_COUNTED: Final = (Kind.CORE, Kind.FRONT)
_WAITS: Final = b"\nvoluntary_ctxt_switches:"


@dataclass(frozen=True, slots=True)
class Held:
    """A thread that is held.  place: the file it waits for, "" where the kernel does not tell us."""

    member: Member
    thread: int
    held_s: float
    place: str


@dataclass(slots=True)
class _Wait:
    number: int
    since: float
    is_told: bool = False


def waits_of(pid: int) -> dict[int, int]:
    """Return the threads of a process that are in state D: thread → how often it has waited so far."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for thread in (Path("/proc") / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError, ValueError):
                # Behind the name, which may hold anything, comes the state: field 3 of proc(5).
                if (thread / "stat").read_bytes().rpartition(b")")[2].split()[:1] == [b"D"]:
                    found[int(thread.name)] = int((thread / "status").read_bytes().partition(_WAITS)[2].split()[0])
    return found


def place_of(pid: int, thread: int) -> str:
    """Return the file that the system call of a thread is about, if its first argument is a descriptor of one."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = (Path("/proc") / str(pid) / "task" / str(thread) / "syscall").read_text().split()
        place = os.readlink(f"/proc/{pid}/fd/{int(words[1], 16)}")
        return place if place.startswith("/") else ""
    return ""


def explain(pid: int) -> str:
    """Return which process, this one or a child of it, waits for a disk right now, and for which file; "": none."""
    children: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for each in (pid, *children):
        for thread in waits_of(each):
            place = place_of(each, thread)
            return f"process {each} waits for a disk" + (f", {place}" if place else "")
    return ""


class HeldThreads:
    """Remembers since when each is held."""

    def __init__(self, limit_s: float, look_at: Callable[[int], Mapping[int, int]] = waits_of) -> None:
        """limit_s: what takes less is a slow disk."""
        self._limit_s = limit_s
        self._look_at = look_at
        self._waits: dict[tuple[int, int], _Wait] = {}
        self.count = 0
        """How many are held for so long, at the last look."""

    def look(self, now: float, members: Iterable[Member]) -> list[Held]:
        """Return the threads that are held by now, each once for each wait.  now: monotonic."""
        before, self._waits = self._waits, {}
        fresh = []
        self.count = 0
        for member in members:
            if member.kind not in _COUNTED:
                continue
            for thread, number in self._look_at(member.pid).items():
                wait = before.get((member.pid, thread))
                if wait is None or wait.number != number:
                    wait = _Wait(number, now)
                self._waits[member.pid, thread] = wait
                if now - wait.since >= self._limit_s:
                    self.count += 1
                    if not wait.is_told:
                        wait.is_told = True
                        fresh.append(Held(member, thread, now - wait.since, place_of(member.pid, thread)))
        return fresh
