"""From what slow requests waited for to what can be done about it.  Pure functions over what `why` hears of a mount.

Each rule looks at the whole: one slow request says little.  Rules are tried in the order of what they would change
most; several may hold.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fanoutfs.config.units import show_size

WAITS: Final = ("backend", "queue", "disk", "daemon")
_NAMES: Final = ("LOOKUP", "READDIR", "READDIRPLUS", "GETATTR")
_WRITES: Final = ("WRITE", "FSYNC", "FSYNCDIR", "FALLOCATE")

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Facts:
    """What of settings and state the rules look at."""

    requests: int
    fill_memory: int
    cache_size: int
    cache_used: int
    known_bytes: int
    max_readahead: int
    metadata_ttl_s: float
    fronts: int
    processors: int


@dataclass(frozen=True, slots=True)
class Advice:
    """One cause.  change: what to do."""

    cause: str
    reason: str
    change: str


def split_of(entries: Sequence[Entry]) -> dict[str, float]:
    """Return the share of each wait in all the time of these requests; zeros when there was none."""
    sums = {wait: sum(entry[f"{wait}_ms"] for entry in entries) for wait in WAITS}
    total = sum(sums.values())
    return {wait: value / total if total else 0.0 for wait, value in sums.items()}


def explain(entries: Sequence[Entry], facts: Facts) -> list[Advice]:
    """Return the causes that the entries show, what matters most first; none of no entries."""
    if not entries:
        return []
    return [advice for rule in _RULES for advice in rule(entries, facts)]


def _failed(entries: Sequence[Entry], _facts: Facts) -> Iterator[Advice]:
    failed = [entry for entry in entries if entry["error"]]
    if failed:
        kinds = ", ".join(sorted({entry["error"] for entry in failed}))
        longest = max(entry["took_ms"] for entry in failed) / 1000
        yield Advice(
            "errors",
            f"{len(failed)} of {len(entries)} failed ({kinds}), the longest after {longest:.1f} s",
            "look at the log and run fanoutfs doctor; --op-timeout says how long the store may take",
        )


def _evicted(entries: Sequence[Entry], facts: Facts) -> Iterator[Advice]:
    again = [entry for entry in entries if entry["again"]]
    if len(again) * 5 < len(entries):
        return
    reason = f"{len(again)} of {len(entries)} wanted bytes that had been in the cache and were evicted before"
    if facts.cache_used < facts.cache_size * 0.8:
        yield Advice(
            "evicted", f"{reason}, though it is not full", "give the disk more room, or lower --free-space-floor"
        )
        return
    wanted = show_size(max(facts.known_bytes, facts.cache_size * 2))
    yield Advice(
        "evicted", reason, f"raise --cache-size ({show_size(facts.cache_size)} now; {wanted} would hold it all)"
    )


def _backend(entries: Sequence[Entry], facts: Facts) -> Iterator[Advice]:
    share = split_of(entries)["backend"]
    if share < 0.4:
        return
    slow = [entry for entry in entries if entry["backend_ms"]]
    mean_ms = sum(entry["backend_ms"] for entry in slow) / len(slow)
    reason = f"{share:.0%} of the time went to the store, {mean_ms:.0f} ms for each request that needed it"
    names = [entry for entry in slow if entry["opcode"] in _NAMES]
    if len(names) * 2 > len(slow):
        ttl = (
            "" if facts.metadata_ttl_s == float("inf") else ", or a longer --metadata-ttl if the source seldom changes"
        )
        yield Advice("store: names", f"{reason}, most of them for names", f"fanoutfs import PATH ahead of the job{ttl}")
        return
    ahead = "--max-readahead above 0, " if not facts.max_readahead else ""
    change = f"{ahead}fanoutfs warm PATH ahead of the job, or announce its order (fanoutfs plan)"
    yield Advice("store: content", reason, f"{change}; more readers at once hide latency, too")


def _queue(entries: Sequence[Entry], facts: Facts) -> Iterator[Advice]:
    share = split_of(entries)["queue"]
    if share < 0.25:
        return
    if sum(entry["opcode"] in _WRITES for entry in entries) * 2 > len(entries):
        yield Advice(
            "queue: staging",
            f"{share:.0%} of the time writers waited for room in staging",
            "raise --staging-size or --upload-requests: uploads are slower than the writers",
        )
        return
    now = f"{facts.requests} and {show_size(facts.fill_memory)} now"
    yield Advice(
        "queue: fills",
        f"{share:.0%} of the time was spent waiting for a turn, behind other fills",
        f"raise --requests and --fill-memory ({now}), if the store and the line have more to give",
    )


def _disk(entries: Sequence[Entry], _facts: Facts) -> Iterator[Advice]:
    share = split_of(entries)["disk"]
    if share < 0.3:
        return
    alone = [entry for entry in entries if not entry["asked_core"]]
    if len(alone) * 2 > len(entries):
        what = "reading or writing files of the cache, without any help of the store"
    else:
        what = "writing what was fetched, and making changes durable"
    yield Advice(
        "disk", f"{share:.0%} of the time went to {what}", "put --cache-dir on a faster disk, or a less busy one"
    )


def _daemon(entries: Sequence[Entry], facts: Facts) -> Iterator[Advice]:
    share = split_of(entries)["daemon"]
    if share < 0.4:
        return
    reason = f"{share:.0%} of the time is the daemon's own: it waited for a processor, or for its own work"
    if facts.fronts < min(8, facts.processors):
        yield Advice("daemon", reason, f"raise --fronts ({facts.fronts} now, {facts.processors} processors)")
    else:
        yield Advice(
            "daemon", reason, "leave it more processors: jobs take them all (look at top, nice, cgroup limits)"
        )


_RULES: Final[tuple[Callable[[Sequence[Entry], Facts], Iterator[Advice]], ...]] = (
    _failed,
    _evicted,
    _backend,
    _queue,
    _disk,
    _daemon,
)
