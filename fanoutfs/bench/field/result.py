"""Jobs and their figures, and what they look like as JSON: fio's names and units where fio has the thing.

{"fanoutfs version", "bench", "timestamp", "time", "global options", "environment", "jobs": [{
    "jobname", "groupid", "error", "job_start", "elapsed", "job options", "job_runtime" ms,
    "read", "write", "trim": {"io_bytes", "io_kbytes", "bw_bytes", "bw", "iops", "runtime" ms, "total_ios",
        "clat_ns": {"min", "max", "mean", "stddev", "N", "percentile"}, "lat_ns"},
    "fanoutfs": {"role", "title", "not_measured", "figures": [
        {"name", "unit", "better": "more" | "less" | "", "slack", "noise", "values": one a round, "value": median}]}}]}

fio's part adds the rounds up, as fio does; the figures are medians of the rounds, and what a baseline is held against.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fanoutfs.bench.field.site import CONTRAST, HERE, Site
from fanoutfs.bench.latencies import Latencies
from fanoutfs.bench.load import Outcome

MORE: Final = "more"
LESS: Final = "less"
DISK: Final = "disk"
"""Ends the name of what a file system without a store does instead of reading from the cache or the store."""
PERCENTILES: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999)
"""Those of fio."""
TAIL_NOISE: Final = 3.0
_FIO_VERSION_KEY: Final = "fanoutfs version"


@dataclass(slots=True)
class Figure:
    """One number.

    better: MORE, LESS, or "" for what is not judged; slack: a difference that never matters; noise: how many times as
    noisy as a median it is.
    """

    name: str
    unit: str
    better: str
    slack: float = 0.0
    noise: float = 1.0
    values: list[float] = field(default_factory=list)

    @property
    def value(self) -> float:
        """The median of the rounds; of a maximum the most."""
        return max(self.values) if self.name == "max" else statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """Return it for the document."""
        shown = {name: getattr(self, name) for name in ("name", "unit", "better", "slack", "noise")}
        return {**shown, "values": self.values, "value": self.value}


@dataclass(slots=True)
class Job:
    """One measurement of one site.  rate: "MB/s" of the bytes, or "…/s" of the operations."""

    name: str
    title: str
    role: str
    rate: str
    is_write: bool
    options: Mapping[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    not_measured: str = ""
    started_at: float = field(default_factory=time.time)
    elapsed_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Record a round: rate and latencies."""
        self.outcomes.append(outcome)
        self.elapsed_s = time.time() - self.started_at
        rate = outcome.bytes_per_second / 1e6 if self.rate == "MB/s" else outcome.rate
        self.note("rate", self.rate, rate, MORE)
        took = outcome.latencies
        if took.count:
            self.note("p50", "µs", took.percentile_ns(0.5) / 1000, LESS)
            self.note("p99", "µs", took.percentile_ns(0.99) / 1000, LESS, noise=TAIL_NOISE)
            self.note("max", "µs", took.most_ns / 1000, "")  # one event: nothing to be held against

    def note(
        self, name: str, unit: str, value: float | None, better: str, *, slack: float = 0.0, noise: float = 1.0
    ) -> None:
        """Record another figure of the round; None: nobody can say."""
        if value is not None:
            self.figures.setdefault(name, Figure(name, unit, better, slack, noise)).values.append(value)

    def to_json(self) -> dict[str, Any]:
        """Return it as one of fio's jobs."""
        io, idle = _io(self.outcomes), _io([])
        return {
            "jobname": self.name,
            "groupid": 0,
            "error": 0,
            "job_start": round(self.started_at * 1000),
            "elapsed": round(self.elapsed_s),
            "job options": {name: str(value) for name, value in self.options.items()},
            "read": idle if self.is_write else io,
            "write": io if self.is_write else idle,
            "trim": idle,
            "job_runtime": io["runtime"],
            "fanoutfs": {
                "role": self.role,
                "title": self.title,
                "not_measured": self.not_measured,
                "figures": [figure.to_json() for figure in self.figures.values()],
            },
        }

    @property
    def latencies(self) -> Latencies:
        """Of all rounds."""
        return Latencies.merged(outcome.latencies for outcome in self.outcomes)


def _io(outcomes: list[Outcome]) -> dict[str, Any]:
    seconds = sum(outcome.seconds for outcome in outcomes)
    size = sum(outcome.bytes_read for outcome in outcomes)
    operations = sum(outcome.operations for outcome in outcomes)
    took = Latencies.merged(outcome.latencies for outcome in outcomes)
    shares = PERCENTILES if took.count else ()
    percentiles = {f"{share * 100:.6f}": round(took.percentile_ns(share)) for share in shares}
    return {
        "io_bytes": size,
        "io_kbytes": size >> 10,
        "bw_bytes": round(size / seconds) if seconds else 0,
        "bw": round(size / seconds / 1024) if seconds else 0,
        "iops": operations / seconds if seconds else 0.0,
        "runtime": round(seconds * 1000),
        "total_ios": operations,
        "short_ios": 0,
        "drop_ios": 0,
        "clat_ns": _took(took) | {"percentile": percentiles},
        "lat_ns": _took(took),
    }


def _took(took: Latencies) -> dict[str, Any]:
    return {
        "min": took.least_ns,
        "max": took.most_ns,
        "mean": took.mean_ns,
        "stddev": took.deviation_ns,
        "N": took.count,
    }


class Results:
    """Collects one command's measurements.  One thread."""

    def __init__(self, bench: str, options: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """options: of the command, by name; environment: what a reader of the figures must know."""
        self.bench = bench
        self.options = dict(options)
        self.environment = dict(environment)
        self.notes: list[str] = []
        self._jobs: dict[tuple[str, str], Job] = {}
        self._started_at = time.time()

    def job(self, name: str, title: str, site: Site, rate: str, *, is_write: bool = False, **options: Any) -> Job:
        """Return the job of this name and site, new or known.  options: fio's words for what it did."""
        known = self._jobs.get((name, site.role))
        if known is None:
            fully = {"directory": site.path, **options}
            known = self._jobs[name, site.role] = Job(name, title, site.role, rate, is_write, fully)
        return known

    def jobs(self, role: str) -> list[Job]:
        """Return the jobs of one site, in the order in which they were begun."""
        return [job for job in self._jobs.values() if job.role == role]

    def pairs(self) -> Iterator[tuple[Job | None, Job | None]]:
        """Yield (job here, job of the contrast), each job at least once.

        What is read from a cache or a store here is read from a disk there.
        """
        left = {job.name: job for job in self.jobs(CONTRAST)}
        used = set()
        for job in self.jobs(HERE):
            other = left.get(job.name) or left.get(f"{job.name.rpartition('-')[0]}-{DISK}")
            if other is not None:
                used.add(other.name)
            yield job, other
        for name, job in left.items():
            if name not in used:
                yield None, job

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        return {
            _FIO_VERSION_KEY: self.environment.get("fanoutfs", ""),
            "bench": self.bench,
            "timestamp": int(self._started_at),
            "timestamp_ms": int(self._started_at * 1000),
            "time": time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(self._started_at)),
            "global options": {name: str(value) for name, value in self.options.items()},
            "environment": self.environment,
            "notes": self.notes,
            "jobs": [job.to_json() for job in self._jobs.values()],
        }
