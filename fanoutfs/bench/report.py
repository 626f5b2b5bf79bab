"""From single values to medians, ratios and verdicts: JSON for programs, aligned tables for people.

A value belongs to a measure ("hot opens, 64 processes") and a peer.  The table of a measure shows median, least and
most of each peer, how it compares with ext4, and how fanoutfs compares with it.  A check states a target and whether it
was met.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

REFERENCE: Final = "ext4"
SUBJECT: Final = "fanoutfs"


@dataclass(slots=True)
class Series:
    """The values of one peer under one measure, one per round, in the order they were taken."""

    values: list[float] = field(default_factory=list)
    reason: str = ""
    """Why there are none: "not run: rclone is not installed"."""

    @property
    def median(self) -> float:
        """The median; the mean of the middle two when their number is even."""
        return statistics.median(self.values)


@dataclass(slots=True)
class Measure:
    """One question, put to every peer.  is_rate: more is better."""

    name: str
    unit: str
    is_rate: bool = True
    series: dict[str, Series] = field(default_factory=dict)


@dataclass(slots=True)
class Breakdown:
    """What something of each peer is made of: CPU time by process.  values: peer -> part -> one value per round."""

    name: str
    unit: str
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def medians(self) -> dict[str, dict[str, float]]:
        """Return peer -> part -> median."""
        return {
            peer: {part: statistics.median(values) for part, values in parts.items()}
            for peer, parts in self.values.items()
        }


@dataclass(frozen=True, slots=True)
class Check:
    """A target, what was found, and whether it is met; None: it could not be decided."""

    name: str
    is_met: bool | None
    found: str


class Report:
    """Collects one benchmark run.  One thread."""

    def __init__(self, title: str, facts: Mapping[str, Any]) -> None:
        """facts: about the machine and the settings, printed as they are."""
        self._title = title
        self._facts = dict(facts)
        self._measures: dict[str, Measure] = {}
        self._breakdowns: dict[str, Breakdown] = {}
        self._checks: list[Check] = []
        self._notes: list[str] = []

    def measure(self, name: str, unit: str, *, is_rate: bool = True) -> Measure:
        """Return the measure of this name, new or known."""
        return self._measures.setdefault(name, Measure(name, unit, is_rate))

    def add(self, measure: Measure, peer: str, value: float) -> None:
        """Record the value of one round."""
        measure.series.setdefault(peer, Series()).values.append(value)

    def break_down(self, name: str, unit: str, peer: str, parts: Mapping[str, float]) -> None:
        """Record one round of a peer's parts in the breakdown of this name."""
        breakdown = self._breakdowns.setdefault(name, Breakdown(name, unit))
        known = breakdown.values.setdefault(peer, {})
        for part, value in parts.items():
            known.setdefault(part, []).append(value)

    def not_run(self, measure: Measure, peer: str, reason: str) -> None:
        """Record why a peer has no value (or no more values)."""
        measure.series.setdefault(peer, Series()).reason = reason

    def note(self, text: str) -> None:
        """Add a line below the tables: flags of a peer, what a number does not say."""
        self._notes.append(text)

    def check(self, name: str, is_met: bool | None, found: str) -> None:
        """Record a verdict."""
        self._checks.append(Check(name, is_met, found))

    def check_ratio(self, measure: Measure, peer: str, at_least: float, subject: str = SUBJECT) -> bool | None:
        """Check that the subject reaches `at_least` times the peer's median; return the verdict."""
        name = f"{measure.name}: {subject} >= {at_least:g} x {peer}"
        ratio = self.ratio(measure, subject, peer)
        ours = measure.series.get(subject)
        if ours is not None and ours.reason:  # it took part and failed: no number from before that makes it good
            self.check(name, False, ours.reason)
            return False
        if ratio is None:
            self.check(name, None, "not measured")
            return None
        self.check(name, ratio >= at_least, f"{ratio:.2f} x")
        return ratio >= at_least

    def ratio(self, measure: Measure, subject: str, peer: str) -> float | None:
        """Return how many times better the subject's median is than the peer's; None when either is missing."""
        ours, theirs = measure.series.get(subject), measure.series.get(peer)
        if not (ours and theirs and ours.values and theirs.values):
            return None
        better, worse = (ours, theirs) if measure.is_rate else (theirs, ours)
        return better.median / worse.median if worse.median else None

    @property
    def has_failures(self) -> bool:
        """Whether a target was missed; one that could not be measured is no failure."""
        return any(check.is_met is False for check in self._checks)

    def to_json(self) -> str:
        """Return everything, single values included."""
        document = {
            "title": self._title,
            "facts": self._facts,
            "measures": [self._measure_object(measure) for measure in self._measures.values()],
            "breakdowns": [
                {"name": each.name, "unit": each.unit, "medians": each.medians(), "values": each.values}
                for each in self._breakdowns.values()
            ],
            "checks": [{"name": each.name, "met": each.is_met, "found": each.found} for each in self._checks],
            "notes": self._notes,
        }
        return json.dumps(document, indent=2) + "\n"

    def to_text(self) -> str:
        """Return the tables."""
        return "\n".join(self._lines()) + "\n"

    def _measure_object(self, measure: Measure) -> dict[str, Any]:
        peers = {}
        for peer, series in measure.series.items():
            found: dict[str, Any] = {"values": series.values}
            if series.values:
                found |= {"median": series.median, "min": min(series.values), "max": max(series.values)}
                found["ratio_to_ext4"] = self.ratio(measure, peer, REFERENCE)
                found["fanoutfs_is"] = self.ratio(measure, SUBJECT, peer)
            if series.reason:
                found["not_run"] = series.reason
            peers[peer] = found
        return {"name": measure.name, "unit": measure.unit, "more_is_better": measure.is_rate, "peers": peers}

    def _lines(self) -> Iterator[str]:
        yield self._title
        yield ""
        yield from table([(f"  {name}", str(value)) for name, value in self._facts.items()])
        for measure in self._measures.values():
            yield ""
            yield f"{measure.name} [{measure.unit}]"
            yield from table(list(self._rows(measure)), right=(1, 2, 3, 4, 5, 6))
        for breakdown in self._breakdowns.values():
            yield ""
            yield f"{breakdown.name} [{breakdown.unit}]"
            yield from _breakdown_table(breakdown)
        if self._checks:
            yield ""
            yield "targets"
            marks = {True: "met", False: "MISSED", None: "open"}
            yield from table([(f"  {marks[each.is_met]}", each.name, each.found) for each in self._checks])
        if self._notes:
            yield ""
        yield from self._notes

    def _rows(self, measure: Measure) -> Iterator[Sequence[str]]:
        yield ("  peer", "median", "min", "max", "runs", f"x {REFERENCE}", f"{SUBJECT} is")
        for peer, series in measure.series.items():
            if not series.values:
                yield (f"  {peer}", series.reason or "not run")
                continue
            numbers = (number(each) for each in (series.median, min(series.values), max(series.values)))
            ratios = (self.ratio(measure, peer, REFERENCE), self.ratio(measure, SUBJECT, peer))
            shown = ("" if ratio is None else f"{ratio:.2f} x" for ratio in ratios)
            yield (
                f"  {peer}",
                *numbers,
                str(len(series.values)),
                *shown,
                f"  {series.reason}" if series.reason else "",
            )


def _breakdown_table(breakdown: Breakdown) -> Iterator[str]:
    medians = breakdown.medians()
    parts = list(dict.fromkeys(part for found in medians.values() for part in found))
    rows = [("  peer", *parts)]
    for peer, found in medians.items():
        rows.append((f"  {peer}", *(number(found[part]) if part in found else "-" for part in parts)))
    yield from table(rows, right=range(1, len(parts) + 1))


def number(value: float) -> str:
    """Return a number with about three significant digits, thousands separated."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Iterator[str]:
    """Yield rows as aligned lines; the last cell of a row never widens a column.  right: columns aligned right."""
    columns = max((len(row) for row in rows), default=0)
    widths = [
        max((len(row[i]) for row in rows if i < len(row) - 1 or len(row) == columns), default=0) for i in range(columns)
    ]
    for row in rows:
        cells = [
            cell.rjust(widths[i]) if i in right and len(row) > 2 else cell.ljust(widths[i])
            for i, cell in enumerate(row)
        ]
        yield "  ".join(cells).rstrip()
