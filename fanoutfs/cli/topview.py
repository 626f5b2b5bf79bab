"""What happened between two looks at a mount: rates, shares and who waited.  Pure functions."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fanoutfs.observe.explain import WAITS

_QUIET_S: Final = 60.0
"""Who asked for nothing for so long is not shown."""


@dataclass(frozen=True, slots=True)
class User:
    """One process: bytes a second, and of each second how long its requests waited (threads add up), by cause."""

    pid: int
    command: str
    cgroup: str
    requests_per_s: float
    read_per_s: float
    written_per_s: float
    waits: Mapping[str, float]
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class View:
    """An interval.  hits: share of the READs, by who answered; None while there was none."""

    mountpoint: str
    source: str
    interval_s: float
    read_per_s: float
    written_per_s: float
    fetched_per_s: float
    sent_per_s: float
    requests_per_s: float
    gets_per_s: float
    hits: Mapping[str, float] | None
    waits: Mapping[str, float]
    stalled: Mapping[str, float]
    gauges: Mapping[str, float]
    changes: Mapping[str, Any]
    waiting: Sequence[Mapping[str, Any]]
    processes: Sequence[User]

    def as_json(self) -> dict[str, Any]:
        """Return what json.dumps takes."""
        return dataclasses.asdict(self) | {"page_cache": "invisible to the daemon"}


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> View:
    """Return what happened between two answers to {"op": "top"}."""
    interval_s = max(1e-3, after["at_s"] - before["at_s"])
    was, now = before["counters"], after["counters"]

    def gained(name: str) -> int:
        return int(max(0, now.get(name, 0) - was.get(name, 0)))

    def rate(name: str) -> float:
        return float(round(gained(name) / interval_s, 3))

    messages = [name for name in now if name.startswith("messages_") and name.endswith("_answered")]
    return View(
        mountpoint=after["mountpoint"],
        source=after["source"],
        interval_s=round(interval_s, 3),
        read_per_s=rate("reader_bytes"),
        written_per_s=rate("writer_bytes"),
        fetched_per_s=rate("backend_bytes"),
        sent_per_s=rate("backend_sent_bytes"),
        requests_per_s=round(sum(gained(name) for name in messages) / interval_s, 3),
        gets_per_s=rate("backend_gets"),
        hits=hits_by_layer({name: gained(name) for name in now}),
        waits={wait: round(gained(f"wait_{wait}_ns") / 1e9 / interval_s, 4) for wait in WAITS},
        stalled={kind: round(min(1.0, gained(f"stall_{kind}_ns") / 1e9 / interval_s), 4) for kind in ("some", "full")},
        gauges=after["gauges"],
        changes=after["changes"],
        waiting=after["waiting"],
        processes=_users(before["processes"], after["processes"], interval_s),
    )


def hits_by_layer(gained: Mapping[str, int]) -> dict[str, float] | None:
    """Return which share of the READs was answered from where: small-file store, memory, cache files, the core."""
    reads = gained.get("messages_read_answered", 0)
    if not reads:
        return None
    asked = min(reads, gained.get("messages_read_relayed", 0))
    small = min(reads - asked, gained.get("small_reads", 0))
    memory = min(reads - asked - small, gained.get("arena_reads", 0))
    layers = {"small": small, "memory": memory, "files": reads - asked - small - memory, "core": asked}
    return {name: round(count / reads, 4) for name, count in layers.items()}


def _users(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], interval_s: float) -> list[User]:
    known = {user["pid"]: user for user in before}
    users = []
    for user in after:
        if user["idle_s"] > _QUIET_S:
            continue
        was = known.get(user["pid"])
        if was is not None and user["requests"] < was["requests"]:
            was = None  # its place was given to another one, and back

        def rate(name: str, user: Mapping[str, Any] = user, was: Mapping[str, Any] | None = was) -> float:
            return float(max(0, user[name] - (was[name] if was is not None else 0)) / interval_s)

        users.append(
            User(
                pid=user["pid"],
                command=user["command"],
                cgroup=user["cgroup"],
                requests_per_s=round(rate("requests"), 3),
                read_per_s=round(rate("read_bytes"), 3),
                written_per_s=round(rate("written_bytes"), 3),
                waits={wait: round(rate(f"{wait}_ns") / 1e9, 4) for wait in WAITS},
                read_bytes=user["read_bytes"],
                written_bytes=user["written_bytes"],
            )
        )
    return sorted(users, key=lambda user: (-user.read_per_s - user.written_per_s, -sum(user.waits.values()), user.pid))
