"""What a fanoutfs mount counted, asked over its control socket, so that asking sends no message through the kernel."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fanoutfs.cli.client import call


@dataclass(frozen=True, slots=True)
class Counters:
    """The daemon's counters at one moment, and how often its fronts have returned from read(2).

    The second is a witness of the kernel's own: a front that gets no message makes no system call.
    """

    values: dict[str, int]
    front_reads: int

    def messages_since(self, before: "Counters") -> dict[str, int]:
        """Return the messages by name that reached the daemon after `before`."""
        names = (name for name in self.values if name.startswith("messages_"))
        counts = {name: self.values[name] - before.values.get(name, 0) for name in names}
        return {name: count for name, count in counts.items() if count}


def counters(mountpoint: Path) -> Counters:
    """Ask a fanoutfs mount.  Sends no message through the kernel: a control socket answers."""
    found = status(mountpoint)
    return Counters(dict(found.get("counters", {})), sum(_reads(pid) for pid in found.get("front_pids", ())))


def status(mountpoint: Path) -> dict[str, Any]:
    """Return what a fanoutfs mount says of itself, its processes among it."""
    return call(mountpoint, "status", timeout_s=30.0)


def settled_counters(mountpoint: Path, deadline_s: float = 20.0) -> Counters:
    """Return the counters once no message has come for half a second: the kernel reads ahead after a reader has ended.

    After the deadline return them as they are; whoever expects no message will see some.
    """
    end = time.monotonic() + deadline_s
    before = counters(mountpoint)
    while time.monotonic() < end:
        time.sleep(0.5)
        after = counters(mountpoint)
        if not after.messages_since(before):
            return after
        before = after
    return before


def _reads(pid: int) -> int:
    """Return syscr of /proc/PID/io, 0 when it cannot be read (another user's process)."""
    with contextlib.suppress(OSError), Path(f"/proc/{pid}/io").open(encoding="ascii") as table:
        for line in table:
            if line.startswith("syscr:"):
                return int(line.partition(":")[2])
    return 0
