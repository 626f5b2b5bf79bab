"""The figures as rows, for the terminal and for the page."""

from collections.abc import Iterator
from dataclasses import dataclass

from fanoutfs.bench.field.baseline import Baseline, verdict
from fanoutfs.bench.field.result import TAIL_NOISE, Figure, Job, Results
from fanoutfs.bench.report import number, table

Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A job, here and at the contrast.  rows: figure, unit, then what `columns` says."""

    name: str
    title: str
    rows: list[Cells]
    notes: list[str]


def columns(has_contrast: bool, baseline: Baseline | None) -> Cells:
    """Return what stands above the cells."""
    found: Cells = ("", "", "here")
    if has_contrast:
        found += ("contrast", "ratio")
    if baseline is not None:
        found += ("baseline", "ratio", "")
    return found


def sections(results: Results, baseline: Baseline | None, noise: float) -> Iterator[Section]:
    """Yield the jobs."""
    has_contrast = any(other is not None for _job, other in results.pairs())
    for job, other in results.pairs():
        either = job or other
        if either is None:
            continue
        names = list(dict.fromkeys(name for each in (job, other) if each is not None for name in each.figures))
        rows = [_row(name, job, other, has_contrast, baseline, noise) for name in names]
        notes = [
            f"not measured: {each.not_measured}" for each in (job, other) if each is not None and each.not_measured
        ]
        yield Section(either.name, either.title, rows, notes)


def _row(
    name: str, job: Job | None, other: Job | None, has_contrast: bool, baseline: Baseline | None, noise: float
) -> Cells:
    here = None if job is None else job.figures.get(name)
    there = None if other is None else other.figures.get(name)
    figure = here or there
    if figure is None:
        raise AssertionError(name)
    row: Cells = (name, "" if figure.unit == "1" else figure.unit, _shown(here))
    if has_contrast:
        row += (_shown(there), _ratio(here, there))
    if baseline is not None:
        then = None if job is None else baseline.figure(job, name)
        row += (_shown(then), _ratio(here, then))
        row += ("" if here is None or then is None else verdict(here, then, noise),)
    return row


def _shown(figure: Figure | None) -> str:
    return "-" if figure is None else number(figure.value)


def _ratio(one: Figure | None, other: Figure | None) -> str:
    return "" if one is None or other is None or not other.value else f"{one.value / other.value:.2f}"


def to_text(results: Results, baseline: Baseline | None, noise: float) -> str:
    """Return everything for a terminal."""
    has_contrast = any(other is not None for _job, other in results.pairs())
    head = columns(has_contrast, baseline)
    lines = [f"bench {results.bench}", ""]
    lines += table([(f"  {name}", str(value)) for name, value in results.environment.items()])
    rows: list[Cells] = []
    for section in sections(results, baseline, noise):
        rows += [("",), (section.title,)]
        rows += [(f"  {row[0]}", *row[1:]) for row in section.rows]
        rows += [(f"  {note}",) for note in section.notes]
    lines += _aligned([head, *rows])
    notes = remarks(results, baseline, noise)
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def remarks(results: Results, baseline: Baseline | None, noise: float) -> list[str]:
    """Return the lines below the figures."""
    found = list(results.notes)
    if any(job is not None and other is not None and job.name != other.name for job, other in results.pairs()):
        found.append("the contrast has no store and no cache of its own: what it reads, it reads from its disk")
    if baseline is not None:
        bound = f"counts beyond {noise:.0%} (p99: {TAIL_NOISE * noise:.0%}), if the rounds tell the runs apart"
        found.append(f"baseline: {baseline.file}, {baseline.time}; {bound}")
        found += [f"  {text}" for text in baseline.differences(results.environment)]
    return found


def _aligned(rows: list[Cells]) -> Iterator[str]:
    """Yield rows as lines; those with one cell are titles and do not widen anything."""
    full = [row for row in rows if len(row) > 1]
    widths = [max(len(row[at]) for row in full) for at in range(len(full[0]))]
    for row in rows:
        if len(row) == 1:
            yield row[0]
            continue
        cells = [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
