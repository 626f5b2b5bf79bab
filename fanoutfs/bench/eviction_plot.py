"""The hit rates as a picture (SVG): a panel for each trace, a line for each policy, circles for live mounts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fanoutfs.bench.eviction import Row
from fanoutfs.eviction.simulate import BELADY, SUBJECT

LivePoints = Mapping[tuple[str, float], Mapping[str, float]]
"""(trace, data set / cache) -> policy -> hit rate."""

_STYLES: Final = {
    BELADY: ("#000000", "6 4", 2.0),
    SUBJECT: ("#0a7d2c", "", 3.0),
    "LIRS": ("#8456c4", "", 1.5),
    "S3-FIFO": ("#2b6cd4", "", 1.5),
    "ARC": ("#3fb6c9", "", 1.5),
    "random": ("#d98324", "", 1.5),
    "2-random": ("#b8651b", "3 3", 1.5),
    "LRU": ("#cc2a36", "", 1.5),
    "CLOCK": ("#e08a92", "3 3", 1.5),
}
"""Policy -> (colour, dashes, width).  In this order in the legend."""
_WIDTH: Final = 250
_HEIGHT: Final = 210
_LEFT: Final = 46
_TOP: Final = 34
_GAP: Final = 22
_LEGEND: Final = 62


def draw(rows: Sequence[Row], live: LivePoints) -> str:
    """Return the picture of these rows; live: may be empty."""
    traces = list(dict.fromkeys(row.trace for row in rows))
    width = _LEFT + len(traces) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 44 + _LEGEND
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, trace in enumerate(traces):
        left = _LEFT + number * (_WIDTH + _GAP)
        lines += _panel(left, trace, [row for row in rows if row.trace == trace], live, has_scale=number == 0)
    lines += _legend(bool(live))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(left: int, trace: str, rows: Sequence[Row], live: LivePoints, *, has_scale: bool) -> Iterator[str]:
    yield _text(left + _WIDTH / 2, 20, trace, 14, "middle")
    for tenths in (0, 2, 4, 6, 8, 10):
        y = _y(tenths / 10)
        yield f'<path d="M{left} {y:.1f}h{_WIDTH}" stroke="#dddddd"/>'
        if has_scale:
            yield _text(left - 6, y + 4, f"{tenths / 10:g}", 11, "end")
    columns = {row.data_by_cache: left + (at + 0.5) * _WIDTH / len(rows) for at, row in enumerate(rows)}
    for share, x in columns.items():
        yield _text(x, _TOP + _HEIGHT + 16, f"{share:g} x", 11, "middle")
    yield _text(left + _WIDTH / 2, _TOP + _HEIGHT + 34, "data set / cache", 11, "middle")
    for policy, (colour, dashes, stroke) in reversed(_STYLES.items()):
        points = " ".join(f"{columns[row.data_by_cache]:.1f},{_y(row.rate(policy)):.1f}" for row in rows)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" {_stroke(dashes, stroke)}/>'
    for (name, share), rates in live.items():
        if name == trace and share in columns:
            for policy, rate in rates.items():
                yield _circle(columns[share], _y(rate), _STYLES[policy][0])


def _legend(has_live: bool) -> Iterator[str]:
    top = _TOP + _HEIGHT + 58
    for number, (policy, (colour, dashes, width)) in enumerate(_STYLES.items()):
        x, y = _LEFT + number % 5 * 150, top + number // 5 * 22
        yield f'<path d="M{x} {y}h24" stroke="{colour}" {_stroke(dashes, width)}/>'
        yield _text(x + 30, y + 4, policy, 12, "start")
    if has_live:
        x, y = _LEFT + 4 * 150, top + 22
        yield _circle(x + 12, y, _STYLES[SUBJECT][0])
        yield _text(x + 30, y + 4, "live mount", 12, "start")


def _circle(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="none" stroke="{colour}" stroke-width="2"/>'


def _y(rate: float) -> float:
    return _TOP + _HEIGHT * (1 - rate)


def _stroke(dashes: str, width: float) -> str:
    return f'stroke-width="{width:g}"' + (f' stroke-dasharray="{dashes}"' if dashes else "")


def _text(x: float, y: float, text: str, size: int, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}">{text}</text>'
