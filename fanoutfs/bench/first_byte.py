"""How long a job waits for the first byte of files that are in the store only; behind scripts/bench-first-byte.

Readers, a process each, open files in a shuffled order, each file once, and read its first 4 KiB; nothing is fetched
ahead, so that every open has to ask the store, whose answers come some milliseconds later.  Once with nothing else to
do, once beside everything that goes on in the background: a `warm` of another tree of as many files, a policy that
evicts what was warmed, a writer of checkpoints and their uploads.  What a store and its client give at best is told by
a direct client (obstore) in as many processes: what it waits for is one latency and the queues of this machine.

With one latency L before each answer and C readers, who wait for one file each, the k-th first byte is due at
L x ceil(k / C): that is told beside the time that all took, as a share of it.  What it took longer is the CPU time of a
file, told by process, and the queue for the cores when they are all used.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from fanoutfs.bench.counters import counters
from fanoutfs.bench.cpu import ENDED, MACHINE, Meter
from fanoutfs.bench.data import Bucket, make_small_files, upload
from fanoutfs.bench.delay import Distance, at_distance, once_of
from fanoutfs.bench.epoch_parts import meter
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.latencies import Latencies
from fanoutfs.bench.load import LoadError
from fanoutfs.bench.peers import Fanoutfs
from fanoutfs.bench.program import make_parser, parse_choice, run, stage
from fanoutfs.bench.report import Report
from fanoutfs.bench.scope import stop
from fanoutfs.records import KIB, MIB

_FIRST_BYTES: Final = 4 * KIB
_CHECKPOINT_BYTES: Final = 8 * MIB
_CHECKPOINT_PAUSE_S: Final = 0.5
_QUICK: Final = {"files": 200, "readers": 4, "runs": 1, "latency_ms": 2.0}
_POLICIES: Final = '[[policy]]\npath = "other"\nevict_after = "1s"\n[[policy]]\npath = "ckpt"\nupload_after = 0\n'
_SHARES: Final = {"p50": 0.5, "p99": 0.99, "max": 1.0}


def main(arguments: Sequence[str], make_lab: LabMaker) -> int:
    """Run the program and return its exit code."""
    parser = make_parser(
        "The first byte of many files that are in the store only, with and without background moves.", is_remote=True
    )
    parser.add_argument("--files", type=int, default=10_000, help="files that the job reads, and as many others")
    parser.add_argument("--file-bytes", type=int, default=16 * KIB)
    parser.add_argument("--readers", type=int, default=16, help="processes")
    options = parse_choice(parser, arguments, _QUICK)
    return run(options, make_lab, "first byte of files in the store", _bench)


def _bench(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    names: list[str] = []
    for tree in ("job", "other"):
        with stage(f"putting {options.files} files of {options.file_bytes // KIB} KiB into {tree}/"):
            made = make_small_files(lab.source / tree, options.files, options.file_bytes)
            upload(lab.source / tree, made, lab.bucket, f"{tree}/")
        if tree == "job":
            names = [f"job/{name.as_posix()}" for name in made]
    rules = lab.source.parent / "policies.toml"
    rules.write_text(_POLICIES)
    settings = (
        *("--metadata-ttl=indefinite", "--max-readahead=0B", "--free-space-floor=0", f"--policy-file={rules}"),
        *options.option,
    )
    with at_distance(lab.bucket, options.latency_ms) as distance:
        for turn in range(options.runs):
            order = list(names)
            random.Random(turn).shuffle(order)
            with stage(f"direct client, run {turn + 1}"):
                groups = {"store": [lab.store_pid], "proxy": [distance.pid]}
                ask = partial(_ask, distance.bucket)
                _record(report, options, "direct", _read_all(ask, order, options.readers, partial(Meter, groups)))
            for is_busy in (False, True):
                _mounted_round(lab, report, options, distance, settings, order, is_busy=is_busy)
    report.note(f"fanoutfs: {Fanoutfs(lab.bucket, settings).description}")


def _mounted_round(
    lab: Lab,
    report: Report,
    options: argparse.Namespace,
    distance: Distance,
    settings: tuple[str, ...],
    order: Sequence[str],
    *,
    is_busy: bool,
) -> None:
    row = "fanoutfs, busy" if is_busy else "fanoutfs"
    peer = Fanoutfs(distance.bucket, settings, log=options.daemon_log)
    with stage(row), peer.mounted() as mountpoint:
        subprocess.run([sys.executable, "-m", "fanoutfs", "import", str(mountpoint)], check=True, capture_output=True)
        distance.take()
        before = counters(mountpoint).values
        with _background(mountpoint) if is_busy else contextlib.nullcontext():
            count = partial(meter, lab, peer, mountpoint, distance.pid)
            found = _read_all(partial(_open, mountpoint), order, options.readers, count)
            after = counters(mountpoint).values
        _record(report, options, row, found)
        once = once_of(distance.take(), dict.fromkeys(order, options.file_bytes))
        report.check(f"{row}: each file of the job was sent once", once.is_met, str(once))
        moved = {"fetched": "backend_bytes", "uploaded": "backend_sent_bytes", "evicted": "evicted_bytes"}
        parts = {name: (after[each] - before[each]) / MIB for name, each in moved.items()}
        report.break_down("moved meanwhile", "MiB", row, parts)


@dataclass(frozen=True, slots=True)
class _Found:
    """latencies: of each first byte.  seconds: what all took together.  cpu_s: by process."""

    latencies: Latencies
    seconds: float
    cpu_s: dict[str, float]


def _record(report: Report, options: argparse.Namespace, row: str, found: _Found) -> None:
    if found.latencies.count != options.files:
        raise LoadError(f"{found.latencies.count} of {options.files} files were read")
    for name, share in _SHARES.items():
        measure = report.measure(f"first byte, {name}", "ms", is_rate=False)
        report.add(measure, row, found.latencies.percentile_ns(share) / 1e6)
    report.add(report.measure("files read", "files/s"), row, options.files / found.seconds)
    due_s = options.latency_ms / 1000 * -(-options.files // options.readers)
    measure = report.measure(
        "when all first bytes are due, latency x ceil(files / readers), of when they came", "share"
    )
    report.add(measure, row, due_s / found.seconds)
    used = found.cpu_s[MACHINE] / (found.seconds * (os.cpu_count() or 1))
    report.add(report.measure("CPU time used, of what the cores have", "share", is_rate=False), row, used)
    parts = {name: seconds * 1e6 / options.files for name, seconds in found.cpu_s.items()}
    report.break_down("CPU time of a file", "us", row, parts)


@contextlib.contextmanager
def _background(mountpoint: Path) -> Iterator[None]:
    """Have much to do beside the readers."""
    (mountpoint / "ckpt").mkdir()
    is_over = threading.Event()
    writer = threading.Thread(target=_write_checkpoints, args=(mountpoint / "ckpt", is_over))
    warm = subprocess.Popen(
        [sys.executable, "-m", "fanoutfs", "warm", str(mountpoint / "other")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    writer.start()
    try:
        yield
    finally:
        is_over.set()
        writer.join()
        stop(warm)


def _write_checkpoints(directory: Path, is_over: threading.Event) -> None:
    body = random.Random(0).randbytes(_CHECKPOINT_BYTES)
    number = 0
    while not is_over.wait(_CHECKPOINT_PAUSE_S):
        with (directory / f"{number % 4}.part").open("wb") as stream:
            stream.write(body)
            stream.flush()
            os.fsync(stream.fileno())
        (directory / f"{number % 4}.part").rename(directory / f"{number % 4}.pt")
        number += 1


# --- readers -----------------------------------------------------------------------------------------------------

_Make = Callable[[], Callable[[str], None]]
"""Called in a reader's process; returns what gets the first bytes of a name."""


def _read_all(make: _Make, names: Sequence[str], readers: int, count: Callable[[], Meter]) -> _Found:
    """Read all files, dealt to so many processes.  count: begins to count the CPU time of the others."""
    context = multiprocessing.get_context("spawn")  # (the client's threads do not survive a fork)
    with context.Pool(readers) as pool:
        pool.map(partial(_read_share, make), [()] * readers, chunksize=1)  # everybody has begun
        spent, started = count(), time.monotonic()
        shares = pool.map(partial(_read_share, make), [names[at::readers] for at in range(readers)], chunksize=1)
        seconds, cpu_s = time.monotonic() - started, spent.seconds()
    cpu_s[ENDED] = sum(used for _found, used in shares)  # the readers'
    return _Found(Latencies.of(Counter(ns for found, _used in shares for ns in found)), seconds, cpu_s)


def _read_share(make: _Make, names: Sequence[str]) -> tuple[list[int], float]:
    """Return how long each took, and the CPU time of this process for it."""
    read = make()
    found = []
    began_s = time.process_time()
    for name in names:
        started = time.monotonic_ns()
        read(name)
        found.append(time.monotonic_ns() - started)
    return found, time.process_time() - began_s


def _open(mountpoint: Path) -> Callable[[str], None]:
    def read(name: str) -> None:
        fd = os.open(mountpoint / name, os.O_RDONLY)
        try:
            if len(os.pread(fd, _FIRST_BYTES, 0)) != _FIRST_BYTES:
                raise LoadError(f"{name} is short")
        finally:
            os.close(fd)

    return read


def _ask(bucket: Bucket) -> Callable[[str], None]:
    import obstore

    store = bucket.store()

    def read(name: str) -> None:
        if len(obstore.get(store, name).bytes()) < _FIRST_BYTES:
            raise LoadError(f"{name} is short")

    return read
