"""Large files with a cold page cache: one after the other's bytes, and blocks at random.

On a fanoutfs mount twice: from the store, having evicted the files, and from the local cache.  Random reads from the
store take one block of each part of 8 MiB, so that each is a first touch.  Process i reads file i.
"""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from fanoutfs.bench import load
from fanoutfs.bench.field import work
from fanoutfs.bench.field.files import Files, large_files
from fanoutfs.bench.field.options import Options
from fanoutfs.bench.field.result import DISK, LESS, Results
from fanoutfs.bench.field.site import Site
from fanoutfs.bench.program import say
from fanoutfs.records import MIB, PART_BYTES

SEQUENTIAL: Final = "sequential"
RANDOM: Final = "random"
STORE: Final = "store"
CACHE: Final = "cache"
_WHERE: Final = {STORE: "from the store", CACHE: "from the local cache", DISK: "from the disk"}


def measure(sites: Sequence[Site], options: Options, results: Results) -> None:
    """Measure the sites in turn, round by round."""
    with ExitStack() as scope:
        places: list[Files] = []
        for site in sites:
            size = places[0].size_bytes if places else options.size_bytes
            places.append(scope.enter_context(large_files(site, options.processes, size)))
        for number in range(options.runs):
            for files in places:
                say(f"- cold, round {number + 1}, {files.site.path}")
                _round(files, options, results, number)


def _round(files: Files, options: Options, results: Results, number: int) -> None:
    # The sequential read from the store is the last of the two: it leaves the whole files in the cache.
    distances = (STORE, CACHE) if files.site.is_fanoutfs else (DISK,)
    for distance in distances:
        for order in (RANDOM, SEQUENTIAL):
            _read(files, options, results, order, distance, number)


def _read(files: Files, options: Options, results: Results, order: str, distance: str, number: int) -> None:
    site, processes = files.site, options.processes
    block = MIB if order == SEQUENTIAL else options.block_bytes
    title = f"{order} reads of {block // 1024:,} KiB {_WHERE[distance]}, {processes} processes, a file each"
    job = results.job(
        f"cold-{order}-{distance}", title, site, "MB/s",
        numjobs=processes, size=max(files.sizes), bs=block, rw="read" if order == SEQUENTIAL else "randread",
    )  # fmt: skip
    if distance == STORE:
        job.not_measured = files.forget()
        if job.not_measured:
            return
    else:
        files.cool()
    stride = PART_BYTES if distance == STORE and order == RANDOM else block
    offsets = [list(range(0, size, stride)) for size in files.sizes]
    if order == RANDOM:
        for each in offsets:
            random.Random(number).shuffle(each)
    reads = work.blocks(files.names, offsets, block, options.seconds)
    with site.watched() as seen:
        job.add(load.run_together(processes, reads, deadline_s=options.deadline_s))
    if seen.backend_bytes is not None:
        job.note("from the store", "MiB", seen.backend_bytes / MIB, LESS, slack=1.0)
