"""How much memory a push may take now: a share of what is available, nothing while processes wait for memory.

Linux tells both: MemAvailable of /proc/meminfo (proc(5)), and the pressure-stall file /proc/pressure/memory
(Documentation/accounting/psi.rst), which a kernel built without PSI does not have.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

_PERIOD_S: Final = 1.0
_STALL_PERCENT: Final = 10.0
"""Of the last 10 s, how much some process waited for memory.  A page cache at work costs a few per cent."""
_AVAILABLE_SHARE: Final = 8

ReadText = Callable[[str], str]


def read_proc(name: str) -> str:
    """Return a file below /proc, or "" where the kernel does not have it."""
    try:
        return (Path("/proc") / name).read_text(encoding="ascii")
    except OSError:
        return ""


class MemoryGauge:
    """The limit, looked up at most once a second."""

    def __init__(self, most_bytes: int, read: ReadText = read_proc) -> None:
        self._most_bytes = most_bytes
        self._read = read
        self._limit_bytes = 0
        self._until_s = 0.0

    def limit_bytes(self, now_s: float) -> int:
        """Return how many bytes may be outstanding at this (monotonic) time; 0: pause."""
        if now_s >= self._until_s:
            self._until_s = now_s + _PERIOD_S
            self._limit_bytes = self._look()
        return self._limit_bytes

    def _look(self) -> int:
        if stalled_percent(self._read("pressure/memory")) > _STALL_PERCENT:
            return 0
        available = available_bytes(self._read("meminfo"))
        return self._most_bytes if available is None else min(self._most_bytes, available // _AVAILABLE_SHARE)


def stalled_percent(text: str) -> float:
    """Return `some avg10` of a pressure file; 0 when it is not there."""
    for line in text.splitlines():
        kind, *fields = line.split()
        if kind == "some":
            return next((float(field[6:]) for field in fields if field.startswith("avg10=")), 0.0)
    return 0.0


def available_bytes(text: str) -> int | None:
    """Return MemAvailable of a meminfo file."""
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
