"""A stored run, and whether this one is worse.

A figure is worse (or better) than the baseline's when its median differs by more than the noise bound (a p99 by more
than three times that) and by more than the rounds of either run differ among themselves, and none of the rounds is as
good (as bad) as any of the baseline's.  Two runs of three rounds that differ by chance alone are so far apart once in
twenty times, and seldom by that much.  A median that differs, while the rounds do not tell the runs apart, is noisy,
and nothing is concluded from it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fanoutfs.bench.field.result import MORE, Figure, Job, Results
from fanoutfs.bench.field.site import HERE
from fanoutfs.errors import UsageError

WORSE: Final = "worse"
BETTER: Final = "better"
NOISY: Final = "noisy"
_MAY_DIFFER: Final = ("runs", "contrast", "path")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What is known of the stored run.  figures: by job and name; file: where it is."""

    file: Path
    time: str
    environment: Mapping[str, Any]
    figures: Mapping[tuple[str, str], Figure]

    def figure(self, job: Job, name: str) -> Figure | None:
        """Return the figure of that run, None if it had none."""
        return self.figures.get((job.name, name))

    def differences(self, environment: Mapping[str, Any]) -> list[str]:
        """Tell in what else the two runs differ: the kernel, the version, the load before they began."""
        names = [name for name in environment if name in self.environment]
        pairs = [(name, self.environment[name], environment[name]) for name in names]
        return [f"{name} {now}, the baseline's {then}" for name, then, now in pairs if then != now]


def read_baseline(file: Path, bench: str, options: Mapping[str, Any]) -> Baseline:
    """Read a stored run.  Raises UsageError: none, damaged, or of something else."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        found = Baseline(file, document["time"], document["environment"], dict(_figures(document["jobs"])))
        of_bench, of_options = document["bench"], dict(document["global options"])
    except OSError as error:
        raise UsageError(f"--baseline: {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"--baseline: {file} is no run stored by --save-baseline or --json") from None
    if of_bench != bench:
        raise UsageError(f"--baseline: {file} is a run of `{of_bench}`, not of `{bench}`")
    for name, value in options.items():
        if name not in _MAY_DIFFER and of_options.get(name) != str(value):
            then = of_options.get(name, "not given")
            raise UsageError(f"--baseline: {file} was taken with {name} {then}, this would be {value}: not comparable")
    return found


def _figures(jobs: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, str], Figure]]:
    return [
        (
            (str(job["jobname"]), str(each["name"])),
            Figure(
                str(each["name"]),
                str(each["unit"]),
                str(each["better"]),
                float(each["slack"]),
                float(each["noise"]),
                [float(value) for value in each["values"]],
            ),
        )
        for job in jobs
        if job["fanoutfs"]["role"] == HERE
        for each in job["fanoutfs"]["figures"]
    ]


def verdict(now: Figure, then: Figure, noise: float) -> str:
    """Return WORSE, BETTER, NOISY or "".  noise: share of the value that is nothing, 0.2 for 20 %."""
    if not now.better or not now.values or not then.values or abs(now.value - then.value) <= now.slack:
        return ""
    is_more = now.value > then.value
    gain = _ratio((now.value, then.value))
    is_apart = min(now.values) > max(then.values) if is_more else max(now.values) < min(then.values)
    if gain <= 1 + noise * now.noise:
        return ""
    if not is_apart or gain <= max(_ratio(now.values), _ratio(then.values)):
        return NOISY
    return BETTER if is_more == (now.better == MORE) else WORSE


def _ratio(values: Sequence[float]) -> float:
    """Return how many times the least the most is."""
    if max(values) == min(values):
        return 1.0
    return max(values) / min(values) if min(values) > 0 else math.inf


def regressions(results: Results, baseline: Baseline, noise: float) -> list[str]:
    """Return what is worse, as words.  So is what cannot be measured any more: the mount is gone, a file is pinned."""
    now = {(job.name, name): figure for job in results.jobs(HERE) for name, figure in job.figures.items()}
    found = []
    for (job, name), then in baseline.figures.items():
        figure = now.get((job, name))
        if figure is None:
            found.append(f"{job} {name} (not measured)")
        elif verdict(figure, then, noise) == WORSE:
            found.append(f"{job} {name}")
    return found
