"""The benchmark programs, as their scripts run them, small: they measure, they tell, they leave nothing behind."""

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import die_with_parent

pytestmark = pytest.mark.usefixtures("dropped_caches")

DOOR = Path(__file__).resolve().parents[2] / "scripts" / "lib" / "bench.py"
EXIT_CODES = (0, 1)  # a target may be missed: no figure of so small a run means anything
EXIT_INTERRUPTED = 130


@contextlib.contextmanager
def _started(directory: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, str(DOOR), *arguments, "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl through a library loaded before the fork
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def _run(directory: Path, *arguments: str) -> dict[str, Any]:
    """Run a program quickly and return its report."""
    document = directory.with_suffix(".json")
    with _started(directory, *arguments, "--quick", "--deadline", "180", "--json", str(document)) as process:
        _, errors = process.communicate(timeout=240)
    assert process.returncode in EXIT_CODES and document.exists(), errors
    assert list(directory.iterdir()) == []
    assert str(directory) not in Path("/proc/self/mountinfo").read_text()
    report: dict[str, Any] = json.loads(document.read_text())
    return report


def _values(report: dict[str, Any], name: str) -> dict[str, int]:
    """Return how many values each peer has at least under the rates whose name begins so."""
    fewest: dict[str, int] = {}
    for measure in report["measures"]:
        if measure["name"].startswith(name) and measure["more_is_better"]:
            for peer, series in measure["peers"].items():
                fewest[peer] = min(fewest.get(peer, sys.maxsize), len(series["values"]))
    return fewest


def _verdicts(report: dict[str, Any], text: str) -> list[bool | None]:
    return [check["met"] for check in report["checks"] if text in check["name"]]


def test_epochs_from_the_caches_are_measured_against_ext4(tmp_path: Path) -> None:
    report = _run(tmp_path / "scratch", "epoch", "--only", "cached,second")
    cold = _values(report, "cold epoch from the local cache")
    assert cold["ext4"] == cold["fanoutfs"] == 1
    assert _values(report, "second epoch from the page cache") == {"ext4": 1, "fanoutfs": 1}
    assert _verdicts(report, "nothing fetched again") == [True, True]
    heard = [check for check in report["checks"] if "no message to the daemon" in check["name"]]
    # (open when somebody else took pages: DAMON does on some machines, a page or three in one run of thirty)
    assert heard and not [check["found"] for check in heard if check["met"] is False]


def test_first_epoch_is_measured_against_the_direct_client_and_counted_at_the_proxy(tmp_path: Path) -> None:
    peers = "--peers=ext4,fanoutfs"  # rclone and s3fs need not be installed
    report = _run(tmp_path / "scratch", "epoch", "--only", "first", "--latency-ms", "2", peers)
    assert _values(report, "first epoch")["direct"] == 1
    assert _values(report, "what the proxy costs") == {"to the store": 1, "through the proxy": 1}
    assert set(_verdicts(report, "each file sent once")) == {True}
    parts = {part for each in report["breakdowns"] for part in each["medians"].get("fanoutfs", ())}
    assert {"core", "fronts", "loaders", "store", "proxy"} <= parts


def test_first_bytes_are_measured_alone_and_beside_background_moves(tmp_path: Path) -> None:
    report = _run(tmp_path / "scratch", "first_byte")
    assert _values(report, "files read") == {"direct": 1, "fanoutfs": 1, "fanoutfs, busy": 1}
    assert _verdicts(report, "each file of the job was sent once") == [True, True]


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed: fanoutfs[bench-torch]")
def test_dataloader_is_measured_against_ext4(tmp_path: Path) -> None:
    report = _run(tmp_path / "scratch", "training", "--latency-ms", "2")
    for epoch in ("first", "cold", "warm"):
        assert _values(report, f"{epoch} epoch") == {"ext4": 1, "fanoutfs": 1}


def test_writing_is_measured_against_ext4_and_the_direct_client(tmp_path: Path) -> None:
    report = _run(tmp_path / "scratch", "write", "--peers=ext4,fanoutfs")
    for name in ("checkpoint of 8 MiB", "checkpoint of 16 MiB", "creating files", "cp -r of a tree"):
        assert _values(report, name) == {"ext4": 1, "fanoutfs": 1}, name
    assert _values(report, "upload of 16 MiB") == {"direct": 1, "fanoutfs": 1}
    renames = [measure for measure in report["measures"] if measure["name"].startswith("rename of a directory")]
    assert [set(measure["peers"]) for measure in renames] == [{"ext4", "fanoutfs"}] * 2
    assert None not in _verdicts(report, "")


@pytest.mark.parametrize("moment", ["- starting SeaweedFS", "- filling the cache", "- second epoch"])
def test_interrupted_benchmark_leaves_nothing(tmp_path: Path, moment: str) -> None:
    scratch = tmp_path / "scratch"
    with _started(scratch, "epoch", "--quick", "--only", "second") as process:
        assert process.stderr is not None
        said = ""
        while not said.startswith(moment):
            said = process.stderr.readline()
            assert said, "it ended before"
        process.send_signal(signal.SIGTERM)
        errors = process.stderr.read()
        assert process.wait(120) == EXIT_INTERRUPTED, errors
    assert list(scratch.iterdir()) == []
    assert str(scratch) not in Path("/proc/self/mountinfo").read_text()
