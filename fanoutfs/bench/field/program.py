"""One command: check everything that can be wrong beforehand, measure, show, compare."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Final

from fanoutfs import __version__
from fanoutfs.bench import machine
from fanoutfs.bench.field import table
from fanoutfs.bench.field.baseline import Baseline, read_baseline, regressions
from fanoutfs.bench.field.options import Options
from fanoutfs.bench.field.result import Results
from fanoutfs.bench.field.site import CONTRAST, HERE, Site
from fanoutfs.bench.program import say
from fanoutfs.bench.scope import Interrupted, signals_unwind
from fanoutfs.cli.version import BUILT_ON
from fanoutfs.errors import RegressionError, UsageError
from fanoutfs.keeper.mountinfo import BDI_DIR

Measure = Callable[[Sequence[Site], Options, Results], None]
TO_STDOUT: Final = "-"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command was asked for.  Files as they were named; None: not asked for."""

    path: str
    contrast: str | None = None
    json: str | None = None
    html: str | None = None
    baseline: str | None = None
    is_saved: bool = False
    noise: float = 0.2


def run(bench: str, wanted: Wanted, options: Options, used: Sequence[str]) -> None:
    """Measure and tell.  used: the options that this measurement has.

    Raises RegressionError (after everything is written), UsageError, KeyboardInterrupt, FanoutError.
    """
    measure: Measure = import_module(f"fanoutfs.bench.field.{bench}").measure
    chosen = {name: value for name, value in asdict(options).items() if name in used}
    sites = [Site(wanted.path, HERE)]
    if wanted.contrast is not None:
        sites.append(Site(wanted.contrast, CONTRAST))
    baseline = _find_baseline(bench, wanted, chosen)
    draw = None if wanted.html is None else _page()
    for file in (wanted.json, wanted.html, wanted.baseline if wanted.is_saved else None):
        _check_writable(file)
    results = Results(bench, {"path": sites[0].path, "contrast": wanted.contrast, **chosen}, _environment(sites))
    try:
        with signals_unwind():
            measure(sites, options, results)
            if baseline is not None and regressions(results, baseline, wanted.noise):
                # Something else may have had the machine: it seldom has it for two runs.
                say("- some of it looks worse than the baseline: once more")
                measure(sites, options, results)
                results.notes.append("some of it looked worse than the baseline: measured twice, all rounds count")
    except (Interrupted, KeyboardInterrupt):
        say("interrupted; what was made for the measurement is removed")
        raise KeyboardInterrupt from None
    results.notes[:0] = [note for site in sites for note in site.notes]
    _write(results, baseline, wanted, draw)
    worse = [] if baseline is None else regressions(results, baseline, wanted.noise)
    if worse:
        raise RegressionError(f"worse than the baseline: {', '.join(worse)}")


def _find_baseline(bench: str, wanted: Wanted, chosen: dict[str, Any]) -> Baseline | None:
    if wanted.baseline is None:
        if wanted.is_saved:
            raise UsageError("--save-baseline: say where with --baseline FILE")
        return None
    file = Path(wanted.baseline)
    return None if wanted.is_saved and not file.exists() else read_baseline(file, bench, chosen)


def _page() -> Callable[[Results, Baseline | None, float], str]:
    """Load what draws, before anything is measured in vain."""
    try:
        from fanoutfs.bench.field.page import to_html  # loads the plots' library
    except ModuleNotFoundError as error:
        raise UsageError(f"--html needs {error.name}: pip install 'fanoutfs[bench]'") from None
    return to_html


def _check_writable(file: str | None) -> None:
    if file is None or file == TO_STDOUT:
        return
    directory = os.path.dirname(os.path.abspath(file))
    if not os.access(file if os.path.exists(file) else directory, os.W_OK) or os.path.isdir(file):
        raise UsageError(f"{file} cannot be written")


def _write(
    results: Results,
    baseline: Baseline | None,
    wanted: Wanted,
    draw: Callable[[Results, Baseline | None, float], str] | None,
) -> None:
    document = json.dumps(results.to_json(), indent=2) + "\n"
    sys.stdout.write(document if wanted.json == TO_STDOUT else table.to_text(results, baseline, wanted.noise))
    sys.stdout.flush()
    if wanted.json is not None and wanted.json != TO_STDOUT:
        Path(wanted.json).write_text(document, encoding="utf-8")
    if wanted.html is not None and draw is not None:
        Path(wanted.html).write_text(draw(results, baseline, wanted.noise), encoding="utf-8")
    if wanted.is_saved and wanted.baseline is not None:
        Path(wanted.baseline).write_text(document, encoding="utf-8")


def _environment(sites: Sequence[Site]) -> dict[str, Any]:
    """Return what a reader of the figures must know."""
    built_on = []
    for name in BUILT_ON:
        try:
            built_on.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    found: dict[str, Any] = {"fanoutfs": __version__, "built_on": ", ".join(built_on)}
    facts = machine.facts(sites[0].path.resolve())
    found |= {name: value for name, value in facts.items() if name != "file_system"}
    found["load"] = f"{os.getloadavg()[0]:.2f} before the run"
    for site in sites:
        found[site.role] = site.description
        found[f"{site.role}_read_ahead_kib"] = _read_ahead(site.path)
    return found


def _read_ahead(path: Path) -> str:
    device = path.stat().st_dev
    try:
        return (BDI_DIR / f"{os.major(device)}:{os.minor(device)}" / "read_ahead_kb").read_text().strip()
    except OSError:
        return "unknown"
