"""fio jobs with verification, on read-only mounts.

layout.fio writes self-describing blocks (checksum and offset in every 4 KiB) into the source tree, which is uploaded;
the other jobs read them through each peer with `verify`.  A negative control runs each job over a copy with one flipped
byte and one with two swapped blocks: a job that passes there verifies nothing and is reported as such.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from fanoutfs.bench.data import upload, walk
from fanoutfs.bench.lab import Lab
from fanoutfs.bench.peers import find_program, start_peers
from fanoutfs.bench.program import PEER_NAMES, make_peers, stage
from fanoutfs.bench.report import SUBJECT, Report
from fanoutfs.bench.scope import PeerError
from fanoutfs.records import MIB

JOBS: Final = ("sequential", "random", "mmap", "mmap-sequential", "many-jobs", "many-files")
GOOD: Final = "fio"
CONTROLS: Final = ("fio-flipped", "fio-swapped")
_BLOCK: Final = 4096
_PATTERN_FILE: Final = "fio.0.bin"  # the one every job reads


class FioError(PeerError):
    """fio reported an error or could not be run."""


def measure(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    """Lay the files out, upload them, and run every job through every peer."""
    try:
        find_program("fio")
    except PeerError as error:
        report.check("fio jobs verify", None, f"not run: {error}")
        return
    with stage(f"fio: writing 4 files of {options.fio_mib} MiB and putting them into the bucket"):
        lay_out(lab.source, options.fio_mib)
        upload(lab.source, [name for name in walk(lab.source) if name.parts[0] in (GOOD, *CONTROLS)], lab.bucket)
    with start_peers(make_peers(options, lab, PEER_NAMES, is_watched=False)) as (places, reasons):
        for job in JOBS:
            rates = report.measure(f"fio {job}, with verify", "MB/s")
            for name, reason in reasons.items():
                report.not_run(rates, name, reason)
            for name, directory in places.items():
                with stage(f"fio {job}, {name}"):
                    _measure_job(report, job, name, directory, options)


def _measure_job(report: Report, job: str, peer: str, directory: Path, options: argparse.Namespace) -> None:
    rates = report.measure(f"fio {job}, with verify", "MB/s")
    try:
        report.add(rates, peer, run_job(job, directory / GOOD, options.fio_mib, options.deadline))
    except FioError as error:
        report.not_run(rates, peer, f"failed: {error}")
        if peer == SUBJECT:
            report.check(f"fio {job} passes with verify", False, str(error))
        return
    if peer != SUBJECT:
        return
    report.check(f"fio {job} passes with verify", True, "passed")
    for control in CONTROLS:
        try:
            run_job(job, directory / control, options.fio_mib, options.deadline)
        except FioError as error:
            report.check(f"fio {job} fails on {control} (negative control)", True, str(error)[:90])
        else:
            report.check(f"fio {job} fails on {control} (negative control)", False, "it passed")


def run_job(job: str, directory: Path, size_mib: int, deadline_s: float) -> float:
    """Run one job file over a directory and return MB/s.  Raises FioError when fio does, also for a wrong byte."""
    arguments = [find_program("fio"), "--output-format=json", f"--directory={directory}"]
    if job != "layout":
        arguments.append("--readonly")
    with resources.as_file(resources.files("fanoutfs.bench") / "fio" / f"{job}.fio") as file:
        try:
            done = subprocess.run(
                [*arguments, str(file)],
                env=os.environ | {"FIO_SIZE": str(size_mib * MIB)},
                cwd=tempfile.gettempdir(),  # fio may leave files where it runs
                capture_output=True,
                text=True,
                check=False,
                timeout=deadline_s,
            )
        except subprocess.TimeoutExpired:
            raise FioError(f"not finished after {deadline_s:.0f} s") from None
    if done.returncode != 0:
        raise FioError(_first_complaint(done.stdout + done.stderr, done.returncode))
    # Lines of warnings may precede the document.
    jobs = json.loads(done.stdout[done.stdout.index("{\n") :])["jobs"]
    side = "write" if job == "layout" else "read"
    milliseconds = max(each[side]["runtime"] for each in jobs) or 1
    return float(sum(each[side]["io_bytes"] for each in jobs)) / milliseconds / 1000


def _first_complaint(output: str, code: int) -> str:
    lines = [line.strip() for line in output.splitlines() if not line.lstrip().startswith('"')]
    for word in ("verify", "rror"):  # what is wrong, rather than what follows from it
        for line in lines:
            if word in line:
                return line[:200]
    return f"fio ended with exit code {code}"


def lay_out(source: Path, size_mib: int) -> None:
    """Write the good files and the two corrupted copies below `source`."""
    (source / GOOD).mkdir()
    run_job("layout", source / GOOD, size_mib, 600.0)
    for control in CONTROLS:
        shutil.copytree(source / GOOD, source / control)
    size = size_mib * MIB
    with (source / CONTROLS[0] / _PATTERN_FILE).open("r+b") as file:
        file.seek(size // 2 + 2000)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with (source / CONTROLS[1] / _PATTERN_FILE).open("r+b") as file:
        first, second = size // 4 // _BLOCK * _BLOCK, size // 4 * 3 // _BLOCK * _BLOCK
        blocks = [os.pread(file.fileno(), _BLOCK, offset) for offset in (first, second)]
        os.pwrite(file.fileno(), blocks[1], first)
        os.pwrite(file.fileno(), blocks[0], second)
