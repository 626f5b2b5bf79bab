"""What a training job writes: a checkpoint, and many small files; and, on a fanoutfs mount, until the store has them.

The checkpoint is written from beginning to end in writes of 8 MiB and fsynced, which the time includes.  The small
files are created, written once and closed, by several processes in a directory each.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fanoutfs.bench import load, write_load
from fanoutfs.bench.field import work
from fanoutfs.bench.field.files import UPLOAD_LIMIT_S, work_directory
from fanoutfs.bench.field.options import Options
from fanoutfs.bench.field.result import LESS, Results
from fanoutfs.bench.field.site import Site
from fanoutfs.bench.load import Outcome
from fanoutfs.bench.program import say
from fanoutfs.records import MIB


def measure(sites: Sequence[Site], options: Options, results: Results) -> None:
    """Measure the sites in turn, round by round."""
    need = options.size_bytes + options.files * options.file_bytes
    with ExitStack() as scope:
        places = [(site, scope.enter_context(work_directory(site, need, options.files))) for site in sites]
        for number in range(options.runs):
            for site, root in places:
                say(f"- write, round {number + 1}, {site.path}")
                _checkpoint(site, root / f"checkpoint-{number}", options, results)
                _creates(site, root / f"created-{number}", options, results)


def _checkpoint(site: Site, path: Path, options: Options, results: Results) -> None:
    size = options.size_bytes
    title = f"a checkpoint of {size // MIB:,} MiB: write and fsync"
    job = results.job(
        "write-checkpoint", title, site, "MB/s", is_write=True, size=size, bs=write_load.CHUNK_BYTES, end_fsync=1
    )
    work_of_one = write_load.checkpoint(bytes(path), size)
    outcome = load.run_together(1, work_of_one, deadline_s=options.deadline_s)
    job.add(outcome)
    job.note("time", "s", outcome.seconds, LESS)
    _upload(site, path, "write-checkpoint-upload", "… until the store has it", "MB/s", 1, size, results)
    path.unlink()


def _creates(site: Site, path: Path, options: Options, results: Results) -> None:
    count, size, processes = options.files, options.file_bytes, options.processes
    title = f"{count:,} files of {size:,} bytes created by {processes} processes"
    job = results.job(
        "write-create", title, site, "files/s", is_write=True, numjobs=processes, nrfiles=count, filesize=size
    )
    make_directories(path, processes)
    with site.watched() as seen:
        job.add(
            load.run_together(
                processes, work.creates(bytes(path), count, size, processes), deadline_s=options.deadline_s
            )
        )
    if seen.messages is not None:
        job.note("messages for each", "1", seen.messages / count, LESS, slack=0.05)
    _upload(
        site, path, "write-create-upload", "… until the store has them", "files/s", count, count * size, results
    )  # fmt: skip
    shutil.rmtree(path)


def _upload(site: Site, path: Path, name: str, title: str, rate: str, files: int, size: int, results: Results) -> None:
    seconds = site.upload(path, UPLOAD_LIMIT_S)
    if seconds is not None:
        job = results.job(name, title, site, rate, is_write=True, size=size, nrfiles=files)
        job.add(Outcome(seconds, files, size))
        job.note("time", "s", seconds, LESS)


def make_directories(path: Path, processes: int) -> None:
    """Make the directories of the processes."""
    path.mkdir()
    for index in range(processes):
        os.mkdir(work.directory_of(bytes(path), index))
