"""Names: create, stat, readdir, rename and unlink of empty files, by several processes in a directory each."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from fanoutfs.bench import load
from fanoutfs.bench.field import work
from fanoutfs.bench.field.files import work_directory
from fanoutfs.bench.field.options import Options
from fanoutfs.bench.field.result import LESS, Results
from fanoutfs.bench.field.site import Site
from fanoutfs.bench.field.write import make_directories
from fanoutfs.bench.program import say

_STATS: Final = 20_000  # so many at least: what the kernel knows takes it a microsecond
_LISTINGS: Final = 10
_RENAMED: Final = b".renamed"


def measure(sites: Sequence[Site], options: Options, results: Results) -> None:
    """Measure the sites in turn, round by round."""
    with ExitStack() as scope:
        places = [(site, scope.enter_context(work_directory(site, 0, options.files))) for site in sites]
        for number in range(options.runs):
            for site, root in places:
                say(f"- meta, round {number + 1}, {site.path}")
                _round(site, root / f"names-{number}", options, results)


def _round(site: Site, path: Path, options: Options, results: Results) -> None:
    root, count, processes = bytes(path), options.files, options.processes
    make_directories(path, processes)
    passes = -(-_STATS // count)
    works = {
        "create": work.creates(root, count, 0, processes),
        "stat": work.on_files(root, count, processes, os.stat, passes=passes),
        "readdir": work.listings(root, count, processes, _LISTINGS),
        "rename": work.on_files(root, count, processes, _rename),
        "unlink": work.on_files(root, count, processes, _unlink),
    }
    for name, work_of_all in works.items():
        what = f"a directory of {count // processes:,} names" if name == "readdir" else f"each of {count:,} files"
        is_change = name in ("create", "rename", "unlink")
        job = results.job(
            f"meta-{name}", f"{name} {what}, {processes} processes", site, f"{name}s/s",
            is_write=is_change, numjobs=processes, nrfiles=count,
        )  # fmt: skip
        with site.watched() as seen:
            outcome = load.run_together(processes, work_of_all, deadline_s=options.deadline_s)
        job.add(outcome)
        if seen.messages is not None:
            job.note("messages for each", "1", seen.messages / outcome.operations, LESS, slack=0.05)


def _rename(path: bytes) -> None:
    os.rename(path, path + _RENAMED)


def _unlink(path: bytes) -> None:
    os.unlink(path + _RENAMED)
