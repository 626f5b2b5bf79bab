"""What the processes of a mount hold, from /proc and LMDB's lock files; and whether it grows."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fanoutfs.cache.small import SmallEnvironment
from fanoutfs.index.store import IndexEnvironment

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one time.  at_s: since the soak began; bytes in MiB."""

    at_s: float
    mount: str
    role: str
    pid: int
    rss: float
    anonymous: float
    descriptors: int
    threads: int


def sample(at_s: float, mount: str, status: Mapping[str, Any]) -> list[Sample]:
    """Look at all processes of a mount; one that ends meanwhile is left out."""
    pids = {"keeper": status["keeper_pid"], "core": status["core_pid"], "pusher": status.get("pusher_pid", 0)}
    pids |= {f"front{number}": pid for number, pid in enumerate(status["front_pids"])}
    found = []
    for role, pid in pids.items():
        with contextlib.suppress(OSError):
            if pid:
                found.append(_sample(at_s, mount, role, pid))
    return found


def _sample(at_s: float, mount: str, role: str, pid: int) -> Sample:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    kib = {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon")}
    return Sample(
        at_s,
        mount,
        role,
        pid,
        kib["VmRSS"] / 1024,
        kib["RssAnon"] / 1024,
        len(os.listdir(f"/proc/{pid}/fd")),
        int(fields["Threads"]),
    )


class Readers:
    """Counts the slots that readers have in the lock files of a volume's databases."""

    def __init__(self, volume: Path) -> None:
        self._environments = (IndexEnvironment(volume, writable=False), SmallEnvironment(volume, writable=False))

    def count(self) -> int:
        """Return how many slots are taken in both."""
        texts = [environment.env.readers() for environment in self._environments]
        return sum(max(0, len(text.strip().splitlines()) - 1) for text in texts if "no active readers" not in text)

    def close(self) -> None:
        """Let go of both."""
        for environment in self._environments:
            environment.close()


@dataclass(frozen=True, slots=True)
class Series:
    """What became of one role of one mount.  slope: of anonymous memory over the last stretch, in MiB an hour."""

    mount: str
    role: str
    processes: int
    first: float
    last: float
    most: float
    rss_last: float
    slope: float
    descriptors: tuple[int, int, int]
    threads: tuple[int, int]


def series(samples: Iterable[Sample], calm_from_s: float) -> list[Series]:
    """Sum up; calm_from_s: when the last stretch begins, in which no process is replaced."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for each in samples:
        groups.setdefault((each.mount, each.role), []).append(each)
    result = []
    for (mount, role), found in sorted(groups.items()):
        calm = [each for each in found if each.at_s >= calm_from_s and each.pid == found[-1].pid]
        descriptors = [each.descriptors for each in found]
        result.append(
            Series(
                mount,
                role,
                len({each.pid for each in found}),
                found[0].anonymous,
                found[-1].anonymous,
                max(each.anonymous for each in found),
                found[-1].rss,
                slope([(each.at_s, each.anonymous) for each in calm]) * 3600,
                (descriptors[0], max(descriptors), descriptors[-1]),
                (found[0].threads, max(each.threads for each in found)),
            )
        )
    return result


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the line nearest to the points (least squares); 0 for fewer than three."""
    if len(points) < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
