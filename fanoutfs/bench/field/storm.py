"""Many processes open one file.

cold: nobody has read it.  Each process opens it, reads 64 KiB, closes, and then reads its share of the file and those
of the next three, so that every byte is wanted by four of them, in opens of 1 MiB, and compares checksums.
hot: each opens it, reads 64 bytes and closes it, again and again, for a time.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from fanoutfs.bench import load
from fanoutfs.bench.field import work
from fanoutfs.bench.field.files import Files, large_files
from fanoutfs.bench.field.options import Options
from fanoutfs.bench.field.result import LESS, Results
from fanoutfs.bench.field.site import Site
from fanoutfs.bench.program import say
from fanoutfs.records import MIB

OVERLAP: Final = 4
_WARM_S: Final = 0.2
_STRAY_MESSAGES: Final = 10
"""Somebody else may use the mount, too."""


def measure(sites: Sequence[Site], options: Options, results: Results) -> None:
    """Measure the sites in turn, round by round."""
    with ExitStack() as scope:
        places: list[Files] = []
        for site in sites:
            size = places[0].size_bytes if places else options.size_bytes
            places.append(scope.enter_context(large_files(site, 1, size, is_verified=True)))
        for number in range(options.runs):
            for files in places:
                say(f"- storm, round {number + 1}, {files.site.path}")
                _cold(files, options, results)
                _hot(files, options, results)


def _cold(files: Files, options: Options, results: Results) -> None:
    site, processes = files.site, options.processes
    title = (
        f"cold: {processes} processes read one file of {files.sizes[0] / MIB:,.0f} MiB, each byte wanted by {OVERLAP}"
    )
    job = results.job("storm-cold", title, site, "MB/s", numjobs=processes, size=files.sizes[0], bs=MIB)
    job.not_measured = files.forget()
    if job.not_measured:
        return
    load_of_all = load.cold_opens(files.names[0], files.digests, processes, OVERLAP)
    with site.watched() as seen:
        outcome = load.run_together(processes, load_of_all, deadline_s=options.deadline_s)
    job.add(outcome)
    job.note("time", "s", outcome.seconds, LESS)
    if seen.backend_bytes is not None:
        job.note("from the store", "MiB", seen.backend_bytes / MIB, LESS, slack=1.0)


def _hot(files: Files, options: Options, results: Results) -> None:
    site, processes, path = files.site, options.processes, files.names[0]
    title = f"hot: {processes} processes open it, read 64 bytes and close it, for {options.seconds:g} s"
    job = results.job("storm-hot", title, site, "opens/s", numjobs=processes, bs=64, runtime=options.seconds)
    load.run_together(processes, work.opens(path, _WARM_S), deadline_s=options.deadline_s)
    with site.watched() as seen:
        outcome = load.run_together(processes, work.opens(path, options.seconds), deadline_s=options.deadline_s)
    job.add(outcome)
    if seen.messages is not None:
        job.note("messages to the daemon", "1", seen.messages, LESS, slack=_STRAY_MESSAGES)
        if seen.messages and (lost := site.pages_lost()):
            results.notes.append(f"{lost} in a hot phase: its messages say nothing")
