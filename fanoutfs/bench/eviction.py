"""Eviction policies against traces: hit rates beside the best possible, as a table, JSON and a plot.

Made-up traces (`eviction.traces.PATTERNS`) over files of one size, or a trace file.  What is read while the cache fills
and the policies learn (the first three epochs; of a trace file the first quarter) is not counted.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fanoutfs.bench.report import table
from fanoutfs.eviction.simulate import BELADY, SUBJECT, Result, compare
from fanoutfs.eviction.traces import PATTERNS, Access, data_bytes

SHARES: Final = (1.1, 1.5, 2.0, 4.0)
"""Data set ÷ cache."""
_EPOCHS: Final = 10
_LEARNING_EPOCHS: Final = 3
_SEED: Final = 1
_LIVE_NAMES: Final = {"fanoutfs": SUBJECT, "lru": "LRU", "clock": "CLOCK", "2-random": "2-random"}
"""What eviction_live calls the policies of this module."""


@dataclass(frozen=True, slots=True)
class Row:
    """One trace against one size of cache."""

    trace: str
    data_by_cache: float
    results: tuple[Result, ...]

    def rate(self, policy: str) -> float:
        """Return a policy's hit rate."""
        return next(result.hit_rate for result in self.results if result.policy == policy)

    @property
    def best(self) -> float:
        """Return what one who knows the future hits."""
        return self.rate(BELADY)


def made_up_rows(files: int, patterns: Sequence[str] = tuple(PATTERNS)) -> list[Row]:
    """Run all policies over the built-in traces."""
    rows = []
    for pattern in patterns:
        trace = [(key, 1) for key in PATTERNS[pattern](files, _EPOCHS, _SEED)]
        first = len(trace) * _LEARNING_EPOCHS // _EPOCHS
        rows += [Row(pattern, share, tuple(compare(trace, int(files / share), first))) for share in SHARES]
    return rows


def trace_rows(name: str, trace: Sequence[Access]) -> list[Row]:
    """Run all policies over a recorded trace."""
    total = data_bytes(trace)
    return [Row(name, share, tuple(compare(trace, int(total / share), len(trace) // 4))) for share in SHARES]


def live_points(report: str) -> dict[tuple[str, float], dict[str, float]]:
    """Return (trace, data / cache) -> policy -> hit rate from the JSON of eviction_live; of large files if it can."""
    found: dict[tuple[str, float], dict[str, float]] = {}
    for measure in json.loads(report)["measures"]:
        match = re.fullmatch(r"(\w+) files, (.*), data ([\d.]+) x the cache: hit rate", measure["name"])
        if match and (match[1] == "large" or (match[2], float(match[3])) not in found):
            found[match[2], float(match[3])] = {
                _LIVE_NAMES[peer]: times["median"] for peer, times in measure["peers"].items() if peer in _LIVE_NAMES
            }
    return found


def to_text(rows: Sequence[Row]) -> str:
    """Return the table: a line for each trace and size, a column for each policy."""
    policies = [result.policy for result in rows[0].results]
    lines = [("trace", "data/cache", *policies, f"{SUBJECT}/{BELADY}")]
    for row in rows:
        near = row.rate(SUBJECT) / row.best if row.best else 1.0
        rates = (f"{result.hit_rate:.3f}" for result in row.results)
        lines.append((row.trace, f"{row.data_by_cache:g}", *rates, f"{near:.1%}"))
    return "\n".join(table(lines, right=range(1, len(lines[0])))) + "\n"


def to_json(rows: Sequence[Row]) -> str:
    """Return the same for programs."""
    found: list[dict[str, Any]] = [
        {
            "trace": row.trace,
            "data_by_cache": row.data_by_cache,
            "hit_rates": {result.policy: result.hit_rate for result in row.results},
            "accesses": row.results[0].accesses,
        }
        for row in rows
    ]
    return json.dumps(found, indent=2) + "\n"
