"""One HTML page that needs nothing else: what was measured on, the plots, every figure."""

from collections.abc import Iterator
from html import escape
from typing import Final

from fanoutfs.bench.field import plots
from fanoutfs.bench.field.baseline import BETTER, WORSE, Baseline
from fanoutfs.bench.field.result import Results
from fanoutfs.bench.field.table import Cells, columns, remarks, sections

_STYLE: Final = """
body { font: 14px sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0 0 1.5em }
td, th { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left }
h3 { margin-bottom: .3em } .worse { color: #b00020; font-weight: bold } .better { color: #0a7d2c }
svg { max-width: 100%; height: auto }
"""


def to_html(results: Results, baseline: Baseline | None, noise: float) -> str:
    """Return the page."""
    document = results.to_json()
    title = f"fanoutfs bench {results.bench}"
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(document['time'])}</p>",
        *_facts(document["global options"] | document["environment"]),
    ]
    for name, picture in (("Rates", plots.rates(results, baseline)), ("Latencies", plots.latencies(results))):
        if picture:
            lines += [f"<h2>{name}</h2>", picture]
    lines.append("<h2>Figures</h2>")
    has_contrast = any(other is not None for _job, other in results.pairs())
    head = columns(has_contrast, baseline)
    for section in sections(results, baseline, noise):
        lines.append(f'<h3 id="{escape(section.name)}">{escape(section.title)}</h3>')
        lines += [f"<p>{escape(note)}</p>" for note in section.notes]
        if section.rows:
            lines += ["<table>", _row("th", head), *(_row("td", row) for row in section.rows), "</table>"]
    lines += [f"<p>{escape(text)}</p>" for text in remarks(results, baseline, noise)]
    return "\n".join([*lines, "</body></html>"]) + "\n"


def _facts(facts: dict[str, object]) -> Iterator[str]:
    yield "<table>"
    for name, value in facts.items():
        yield f'<tr><td>{escape(name)}</td><td style="text-align: left">{escape(str(value))}</td></tr>'
    yield "</table>"


def _row(tag: str, cells: Cells) -> str:
    marked = (f'<{tag} class="{cell}">' if cell in (WORSE, BETTER) else f"<{tag}>" for cell in cells)
    return "<tr>" + "".join(f"{mark}{escape(cell)}</{tag}>" for mark, cell in zip(marked, cells, strict=True)) + "</tr>"
