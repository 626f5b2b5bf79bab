"""`fanoutfs bench` over an ordinary directory, as an operator runs it; over mounts: tests/mount/test_bench_path.py."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.bench.field.baseline import BETTER, NOISY, WORSE, verdict
from fanoutfs.bench.field.result import LESS, MORE, Figure
from fanoutfs.bench.report import number
from fanoutfs.cli import main
from fanoutfs.errors import RegressionError, UsageError
from tests.support.benches import interrupt_storm

Capture = pytest.CaptureFixture[str]
SMALL = {
    "storm": ("--size", "2MiB", "--seconds", "50ms", "--processes", "3"),
    "cold": ("--size", "2MiB", "--processes", "2"),
    "small": ("--files", "40", "--processes", "2"),
    "write": ("--size", "2MiB", "--files", "30", "--processes", "2"),
    "meta": ("--files", "40", "--processes", "2"),
}
"""Each measurement, in a moment."""
JOBS = {
    "storm": ["storm-cold", "storm-hot"],
    "cold": ["cold-random-disk", "cold-sequential-disk"],
    "small": ["small-disk", "small-hot"],
    "write": ["write-checkpoint", "write-create"],
    "meta": ["meta-create", "meta-stat", "meta-readdir", "meta-rename", "meta-unlink"],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "place"
    path.mkdir()
    return path


def _run(name: str, *arguments: object) -> int:
    return main(["bench", name, *map(str, arguments), "--runs", "2", *SMALL[name]])


def _measure(name: str, place: Path, *arguments: object) -> dict[str, Any]:
    """Run one command, return its document, and see that it left nothing."""
    file = place.parent / f"{name}.json"
    assert _run(name, place, "--json", file, *arguments) == 0
    assert list(place.iterdir()) == []
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def _totals(document: dict[str, Any]) -> dict[str, int]:
    return {job["jobname"]: job["read"]["total_ios"] + job["write"]["total_ios"] for job in document["jobs"]}


@pytest.mark.parametrize("name", SMALL)
def test_jobs_look_like_those_of_fio(name: str, place: Path) -> None:
    document = _measure(name, place)
    assert [job["jobname"] for job in document["jobs"]] == JOBS[name]
    assert {"kernel", "cores", "fanoutfs", "here"} <= set(document["environment"])
    assert document["global options"]["path"] == str(place)
    for job in document["jobs"]:
        used = job["read"] if job["read"]["total_ios"] else job["write"]
        assert used["iops"] == pytest.approx(used["total_ios"] / used["runtime"] * 1000, rel=0.5)
        assert used["bw_bytes"] == pytest.approx(used["io_bytes"] / used["runtime"] * 1000, rel=0.5)
        rate = job["fanoutfs"]["figures"][0]
        assert rate["name"] == "rate"
        assert len(rate["values"]) == 2
        took = used["clat_ns"]
        if took["N"]:
            assert took["N"] == used["total_ios"]
            percentiles = list(took["percentile"].values())
            assert percentiles == sorted(percentiles)
            assert took["min"] <= percentiles[0]
            assert percentiles[-1] <= took["max"]


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed")
def test_names_are_those_of_fio_itself(place: Path, tmp_path: Path) -> None:
    ours = _measure("cold", place)
    done = subprocess.run(
        ["fio", "--name=x", f"--directory={tmp_path}", "--size=1m", "--rw=read", "--bs=64k", "--output-format=json"],
        capture_output=True,
        text=True,
        check=True,
    )
    job, of_fio = ours["jobs"][0], json.loads(done.stdout)["jobs"][0]
    assert {"timestamp", "timestamp_ms", "time", "jobs"} <= set(ours)
    assert set(job) - set(of_fio) <= {"fanoutfs", "job_start"}  # the second since fio 3.34
    for name in ("read", "write", "trim"):
        assert set(job[name]) <= set(of_fio[name])
    assert set(job["read"]["clat_ns"]) == set(of_fio["read"]["clat_ns"])
    assert list(job["read"]["clat_ns"]["percentile"]) == list(of_fio["read"]["clat_ns"]["percentile"])
    assert set(job["read"]["lat_ns"]) <= set(of_fio["read"]["lat_ns"])


def test_counts_are_what_was_asked_for(place: Path) -> None:
    assert _totals(_measure("small", place))["small-disk"] == 2 * 40
    meta = _totals(_measure("meta", place))
    assert (meta["meta-create"], meta["meta-rename"], meta["meta-unlink"]) == (80, 80, 80)
    cold = _totals(_measure("cold", place))
    assert cold == {"cold-random-disk": 2 * 2 * 16, "cold-sequential-disk": 2 * 2 * 2}
    write = {job["jobname"]: job["write"] for job in _measure("write", place)["jobs"]}
    assert write["write-checkpoint"]["io_bytes"] == 2 * 2 << 20
    assert write["write-create"]["io_bytes"] == 2 * 30 * 4096


def test_contrast_is_measured_beside_it(place: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / "other"
    other.mkdir()
    document = _measure("meta", place, "--contrast", other)
    assert list(other.iterdir()) == []
    roles = [(job["jobname"], job["fanoutfs"]["role"]) for job in document["jobs"]]
    assert sorted(roles) == sorted((name, role) for name in JOBS["meta"] for role in ("here", "contrast"))
    table = capsys.readouterr().out
    assert re.search(r"here +contrast +ratio", table)
    assert len(re.findall(r"rate +\S+ +[\d,.]+ +[\d,.]+ +[\d.]+$", table, re.MULTILINE)) == len(JOBS["meta"])


def test_json_to_stdout_is_nothing_but_json(place: Path, capsys: Capture) -> None:
    assert _run("meta", place, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["bench"] == "meta"


# --- baseline --------------------------------------------------------------------------------------------------


def _changed(file: Path, by: float) -> None:
    """Make the stored run better than it was, or worse."""
    document = json.loads(file.read_text())
    for job in document["jobs"]:
        for figure in job["fanoutfs"]["figures"]:
            factor = by if figure["better"] == MORE else 1 / by
            figure["values"] = [value * factor for value in figure["values"]]
    file.write_text(json.dumps(document))


def test_worse_than_the_baseline_exits_40_and_says_what(place: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "baseline.json"
    assert _run("meta", place, "--baseline", file, "--save-baseline") == 0
    assert not re.search(r"worse$", capsys.readouterr().out, re.MULTILINE)
    _changed(file, 1000.0)
    assert _run("meta", place, "--baseline", file) == RegressionError.exit_code == 40
    told = capsys.readouterr()
    assert "fanoutfs: worse than the baseline: meta-create rate, meta-create p50" in told.err
    assert re.search(r"^  rate .* 0\.00 +worse$", told.out, re.MULTILINE)
    assert told.err.count("round 2,") == 2
    assert "measured twice" in told.out
    assert list(place.iterdir()) == []


def test_better_than_the_baseline_is_marked_and_no_failure(place: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "baseline.json"
    assert _run("meta", place, "--baseline", file, "--save-baseline") == 0
    _changed(file, 0.001)
    assert _run("meta", place, "--baseline", file, "--save-baseline") == 0
    out = capsys.readouterr().out
    assert re.search(r"^  rate .* better$", out, re.MULTILINE)
    stored = json.loads(file.read_text())  # this run has taken the place of the other
    assert stored["jobs"][0]["fanoutfs"]["figures"][0]["values"][0] > 10


def test_what_is_not_measured_any_more_is_worse(place: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "baseline.json"
    assert _run("meta", place, "--baseline", file, "--save-baseline") == 0
    file.write_text(file.read_text().replace('"max"', '"messages for each"'))  # as if it had been a mount
    _changed(file, 0.001)
    assert _run("meta", place, "--baseline", file) == RegressionError.exit_code
    assert "worse than the baseline: meta-create messages for each (not measured)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("now", "then", "better", "expected"),
    [
        ([70, 71, 72], [100, 101, 102], MORE, WORSE),
        ([100, 101, 102], [70, 71, 72], MORE, BETTER),
        ([100, 101, 102], [70, 71, 72], LESS, WORSE),
        ([90, 91, 92], [100, 101, 102], MORE, ""),  # within the noise bound
        ([70, 71, 105], [100, 101, 102], MORE, NOISY),  # one round was as good
        ([70, 71, 72], [100, 101, 71.5], MORE, NOISY),  # one round of the baseline was as bad
        ([40, 70, 90], [100, 101, 102], MORE, NOISY),  # the rounds differ more than the runs
        ([40, 45, 50], [100, 101, 150], MORE, WORSE),
        ([0, 1, 2], [4, 4, 4], LESS, NOISY),
        ([70, 71, 72], [100, 101, 102], "", ""),  # told, not judged
        ([5, 5, 5], [0, 0, 0], LESS, WORSE),
        ([0, 0, 0], [5, 5, 5], LESS, BETTER),
        ([0, 0, 0], [0, 0, 0], LESS, ""),
    ],
)
def test_verdict(now: list[float], then: list[float], better: str, expected: str) -> None:
    assert verdict(Figure("x", "1", better, values=now), Figure("x", "1", better, values=then), 0.2) == expected


def test_slack_is_never_a_difference() -> None:
    now, then = (Figure("messages", "1", LESS, slack=10.0, values=[value]) for value in (9.0, 0.0))
    assert verdict(now, then, 0.2) == ""
    now.values = [11.0]
    assert verdict(now, then, 0.2) == WORSE


def test_tails_may_differ_by_three_times_the_bound() -> None:
    now, then = (Figure("p99", "µs", LESS, noise=3.0, values=[value]) for value in (159.0, 100.0))
    assert verdict(now, then, 0.2) == ""
    now.values = [161.0]
    assert verdict(now, then, 0.2) == WORSE


# --- the page --------------------------------------------------------------------------------------------------


def test_page_has_every_figure_and_needs_nothing_else(place: Path, tmp_path: Path) -> None:
    other, page, file = tmp_path / "other", tmp_path / "page.html", tmp_path / "baseline.json"
    other.mkdir()
    _measure("meta", place, "--contrast", other, "--baseline", file, "--save-baseline")
    assert _run("meta", place, "--contrast", other, "--baseline", file, "--html", page, "--json", tmp_path / "j") in (
        0,
        RegressionError.exit_code,
    )
    text = page.read_text()
    cells = [unescape(cell) for cell in re.findall(r"<td[^>]*>([^<]*)</td>", text)]
    figures = [
        figure
        for source in (tmp_path / "j", file)
        for job in json.loads(source.read_text())["jobs"]
        for figure in job["fanoutfs"]["figures"]
        if source != file or job["fanoutfs"]["role"] == "here"
    ]
    assert len(figures) == 5 * 4 * 3
    for figure in figures:
        assert number(figure["value"]) in cells, figure
    assert text.count("<svg") == 2
    for name in JOBS["meta"]:
        assert f">{name}<" in text  # the title of a plot, as text
    assert not re.search(r"""(src|href)=["'](?!#)""", text.replace('xlink:href="#', ""))


def test_page_without_its_library_is_refused_before_anything_is_measured(place: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None; from fanoutfs.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "bench", "meta", str(place), "--html", str(place / "page.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (UsageError.exit_code, "")
    assert done.stderr == "fanoutfs: --html needs matplotlib: pip install 'fanoutfs[bench]'\n"
    assert list(place.iterdir()) == []


# --- what cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["storm", "{none}"], "none is no directory"),
        (["storm", "{place}", "--contrast", "{none}"], "none is no directory"),
        (["storm", "{place}", "--size", "1000000GiB"], "are needed"),
        (["storm", "{place}", "--size", "100KiB"], "--size: `100KiB`: at least 1MiB"),
        (["cold", "{place}", "--block", "1000B"], "--block: `1000B`: at least 512B, in steps of 512B"),
        (["small", "{place}", "--file-size", "16"], "--file-size: `16` has no unit"),
        (["storm", "{place}", "--seconds", "2h"], "--seconds"),
        (["storm", "{place}", "--noise", "much"], "--noise: `much` is no share"),
        (["meta", "{place}", "--save-baseline"], "say where with --baseline"),
        (["meta", "{place}", "--baseline", "{none}"], "--baseline"),
        (["meta", "{place}", "--baseline", "{garbage}"], "is no run stored by"),
        (["meta", "{place}", "--json", "{none}/file"], "cannot be written"),
        (["meta", "{place}", "--html", "{place}"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    place: Path, tmp_path: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    (tmp_path / "garbage").write_text('{"jobs": 3}')
    names = {"place": place, "none": tmp_path / "none", "garbage": tmp_path / "garbage"}
    assert main(["bench", *(each.format(**names) for each in arguments)]) == UsageError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(place.iterdir()) == []


def test_baseline_of_something_else_is_no_baseline(place: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "baseline.json"
    assert _run("meta", place, "--baseline", file, "--save-baseline") == 0
    assert _run("small", place, "--baseline", file) == UsageError.exit_code
    assert "a run of `meta`, not of `small`" in capsys.readouterr().err
    assert main(["bench", "meta", str(place), "--baseline", str(file), "--files", "41"]) == UsageError.exit_code
    assert "not comparable" in capsys.readouterr().err


@pytest.mark.parametrize("number_of_signal", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(place: Path, number_of_signal: signal.Signals) -> None:
    def writes_there() -> None:
        assert len(list(place.iterdir())) == 1

    errors = interrupt_storm(place, "--processes", "3", number=number_of_signal, meanwhile=writes_there)
    assert "interrupted" in errors
    assert list(place.iterdir()) == []


def test_help_loads_no_measurement() -> None:
    program = (
        "import sys; from fanoutfs.cli import main; main(['bench', 'storm', '--help']); "
        "sys.exit(any(name.startswith(('fanoutfs.bench', 'tqdm', 'matplotlib')) for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Example:  fanoutfs bench storm" in done.stdout
