"""The plots of the page, drawn by matplotlib as SVG: rates with every round, and latencies by percentile."""

import io
import statistics
from collections.abc import Sequence
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure as Canvas

from fanoutfs.bench.field.baseline import Baseline
from fanoutfs.bench.field.result import PERCENTILES, Job, Results

HERE_COLOUR: Final = "#0a7d2c"
CONTRAST_COLOUR: Final = "#2b6cd4"
BASELINE_COLOUR: Final = "#999999"
_SETTINGS: Final = {"svg.fonttype": "none", "svg.hashsalt": "fanoutfs", "font.size": 9, "font.family": "sans-serif"}
"""Text stays text; the same run gives the same file."""
_ACROSS: Final = 3
_TICKS: Final = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def rates(results: Results, baseline: Baseline | None) -> str:
    """Return a panel for each job: a bar for here, contrast and baseline, the median, and a dot for each round."""
    panels = []
    for job, other in results.pairs():
        bars = [("here", HERE_COLOUR, _rounds(job)), ("contrast", CONTRAST_COLOUR, _rounds(other))]
        then = None if job is None or baseline is None else baseline.figure(job, "rate")
        bars.append(("baseline", BASELINE_COLOUR, [] if then is None else then.values))
        bars = [bar for bar in bars if bar[2]]
        named = job or other
        if bars and named is not None:
            panels.append((named, bars))

    def draw(axes: Any, at: int) -> None:
        job, bars = panels[at]
        for row, (_name, colour, values) in enumerate(bars):
            axes.barh(row, statistics.median(values), color=colour, height=0.6, alpha=0.8)
            axes.plot(values, [row] * len(values), "o", color="#222222", markersize=3)
        axes.set_yticks(range(len(bars)), [name for name, _colour, _values in bars])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_title(job.name)
        axes.set_xlabel(job.rate)

    return _grid(len(panels), draw, height=1.7)


def latencies(results: Results) -> str:
    """Return a panel for each job whose operations were timed: latency over the share of operations."""
    panels = [
        (named, [(one, colour) for one, colour in ((job, HERE_COLOUR), (other, CONTRAST_COLOUR)) if _is_timed(one)])
        for job, other in results.pairs()
        if (_is_timed(job) or _is_timed(other)) and (named := job or other) is not None
    ]

    def draw(axes: Any, at: int) -> None:
        named, lines = panels[at]
        for job, colour in lines:
            if job is not None:
                took = job.latencies
                values = [max(1e-3, took.percentile_ns(share) / 1000) for share in PERCENTILES]
                axes.plot(PERCENTILES, values, color=colour, marker=".", label=job.role)
        axes.set_xscale("logit")
        axes.set_yscale("log")
        axes.set_xticks(_TICKS, [f"{share * 100:g}" for share in _TICKS])
        axes.minorticks_off()
        axes.grid(True, color="#dddddd")
        axes.set_title(named.name)
        axes.set_xlabel("% of operations took at most")
        axes.set_ylabel("µs")
        axes.legend()

    return _grid(len(panels), draw, height=2.6)


def _rounds(job: Job | None) -> Sequence[float]:
    return job.figures["rate"].values if job is not None and "rate" in job.figures else []


def _is_timed(job: Job | None) -> bool:
    return job is not None and any(outcome.latencies.count for outcome in job.outcomes)


def _grid(count: int, draw: Any, height: float) -> str:
    """Return an SVG of so many panels; height: of a row, in inches."""
    if not count:
        return ""
    rows = -(-count // _ACROSS)
    with matplotlib.rc_context(_SETTINGS):
        canvas = Canvas(figsize=(11, height * rows + 0.2), layout="constrained")
        for at in range(count):
            draw(canvas.add_subplot(rows, min(_ACROSS, count), at + 1), at)
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]  # without the XML declaration: it stands inside HTML
