"""Many small files, opened, read and closed in a shuffled order by several processes.

On a fanoutfs mount from the store (evicted before), from the local cache and from the page cache; elsewhere from the
disk and from the page cache.  Names are known in all of them: only the files' own pages are dropped.
"""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from fanoutfs.bench import load
from fanoutfs.bench.field import work
from fanoutfs.bench.field.files import Files, small_files
from fanoutfs.bench.field.options import Options
from fanoutfs.bench.field.result import DISK, LESS, Results
from fanoutfs.bench.field.site import Site
from fanoutfs.bench.program import say
from fanoutfs.records import MIB

_HOT_READS: Final = 20_000  # so many at least: a pass over a thousand files takes some ms
_TIME_S: Final = 30.0
_STRAY_MESSAGES: Final = 10
_WHERE: Final = {
    "store": "from the store",
    "hot": "from the page cache",
    "cache": "from the local cache",
    DISK: "from the disk",
}


def measure(sites: Sequence[Site], options: Options, results: Results) -> None:
    """Measure the sites in turn, round by round."""
    with ExitStack() as scope:
        places: list[Files] = []
        for site in sites:
            count, size = options.files, options.file_bytes
            if places:
                count, size = len(places[0].paths), places[0].mean_bytes
            places.append(scope.enter_context(small_files(site, count, size)))
        for number in range(options.runs):
            for files in places:
                say(f"- small, round {number + 1}, {files.site.path}")
                # Whoever has read them once, finds them in the page cache.
                for distance in ("store", "hot", "cache") if files.site.is_fanoutfs else (DISK, "hot"):
                    _read(files, options, results, distance, number)


def _read(files: Files, options: Options, results: Results, distance: str, number: int) -> None:
    site, processes = files.site, options.processes
    title = (
        f"{len(files.paths):,} files of {files.mean_bytes:,} bytes {_WHERE[distance]}, shuffled, {processes} processes"
    )
    job = results.job(
        f"small-{distance}",
        title,
        site,
        "files/s",
        numjobs=processes,
        nrfiles=len(files.paths),
        filesize=files.mean_bytes,
    )
    if distance == "store":
        job.not_measured = files.forget()
        if job.not_measured:
            return
    elif distance != "hot":
        files.cool()
    order = list(range(len(files.paths)))
    random.Random(number).shuffle(order)
    if distance == "hot":
        order *= -(-_HOT_READS // len(order))
    names = files.names
    paths, sizes = [names[at] for at in order], [files.sizes[at] for at in order]
    if distance == "hot":
        load.run_together(1, work.whole_files(names, files.sizes, 1, _TIME_S), deadline_s=options.deadline_s)
    with site.watched() as seen:
        reads = work.whole_files(paths, sizes, processes, _TIME_S)
        job.add(load.run_together(processes, reads, deadline_s=options.deadline_s))
    if distance == "hot":
        job.note("messages to the daemon", "1", seen.messages, LESS, slack=_STRAY_MESSAGES)
    elif seen.backend_bytes is not None:
        job.note("from the store", "MiB", seen.backend_bytes / MIB, LESS, slack=1.0)
