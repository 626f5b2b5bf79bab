"""CPU time by process: where two shared cores went while something was measured.

Processes live on are read from /proc/PID/stat (all threads); children that have ended are what getrusage(2) says of
them.  Work that the kernel does in threads of its own, and what others do on the machine, shows only as the difference
to "machine".
"""

import contextlib
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ENDED: Final = "loaders"
MACHINE: Final = "machine"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Meter:
    """CPU seconds of groups of processes from its creation on."""

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        """groups: name -> processes, none of them a loader (those are children that end meanwhile)."""
        self._groups = {name: list(pids) for name, pids in groups.items()}
        self._before = self._now()

    def seconds(self) -> dict[str, float]:
        """Return what each group has used since, ENDED and MACHINE (idle time left out) among them."""
        return {name: max(0.0, now - self._before[name]) for name, now in self._now().items()}

    def _now(self) -> dict[str, float]:
        found = {name: sum(map(cpu_seconds, pids)) for name, pids in self._groups.items()}
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[ENDED] = ended.ru_utime + ended.ru_stime
        found[MACHINE] = _machine_seconds()
        return found


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process with all its threads, 0 when it is gone (proc(5), fields 14 and 15)."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return 0.0


def _machine_seconds() -> float:
    """Return what all cores did: user nice system irq softirq steal; not idle, not iowait (proc(5), /proc/stat)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS_PER_S


def processes_with(argument: Path) -> Iterator[int]:
    """Yield the processes of this machine that have a path (a mountpoint) among their arguments."""
    wanted = os.fsencode(argument)
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and wanted in (entry / "cmdline").read_bytes().split(b"\0"):
                yield int(entry.name)
