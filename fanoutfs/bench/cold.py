"""Reads from every distance: page cache, local cache, object store; the program behind scripts/bench-cold.

sequential: one large file, from the page cache and from the disk with the page cache dropped.
remote: the same file, never fetched before, with 20 ms in front of every answer of the store; compared with what the
daemon's own client fetches directly with as many requests in flight.
small: 60,000 files of 4 KiB that are in the index and the local cache, page cache dropped, four readers.
fio: see fio.py.
"""

import argparse
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fanoutfs.bench import fio, load, machine
from fanoutfs.bench.counters import counters
from fanoutfs.bench.cpu import Meter
from fanoutfs.bench.data import fetch_directly, make_large_file, make_small_files, upload
from fanoutfs.bench.epoch_parts import meter
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.peers import Peer, describe, start_peers
from fanoutfs.bench.program import PEER_NAMES, Race, add_large_file, make_parser, make_peers, run, stage
from fanoutfs.bench.report import SUBJECT, Measure, Report
from fanoutfs.records import MIB, PART_BYTES

FILE: Final = "image.bin"
SMALL: Final = "small"
DIRECT: Final = "direct"  # obstore without a file system
SMALL_READERS: Final = 4
PAGE_CACHE_VS_EXT4: Final = 0.6
LOCAL_VS_EXT4: Final = 0.7
LOCAL_MB_PER_S: Final = 2000.0
REMOTE_VS_DIRECT: Final = 0.8
REMOTE_VS_RCLONE: Final = 3.0
SMALL_VS_PASSTHROUGH: Final = 4.0
_MB: Final = 1e6


def main(arguments: Sequence[str], make_lab: LabMaker) -> int:
    """Run the program and return its exit code."""
    parser = make_parser("Large and small reads from page cache, local cache and object store.", is_remote=True)
    add_large_file(parser)
    parser.add_argument("--only", default="sequential,remote,small,fio", help="parts to run")
    parser.add_argument(
        "--parallelism", type=int, default=8, help="requests in flight: direct fetch and read-ahead alike"
    )
    parser.add_argument("--small-files", type=int, default=60_000)
    parser.add_argument("--small-bytes", type=int, default=4096)
    parser.add_argument("--slow-small-files", type=int, default=2000, help="of them, for rclone and s3fs")
    parser.add_argument("--fio-mib", type=int, default=64, help="size of each of the four fio files")
    return run(parser.parse_args(arguments), make_lab, "bench-cold: reads from every distance", _bench)


def _bench(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    for line in describe(make_peers(options, lab, PEER_NAMES, is_watched=False)):
        report.note(line)
    parts = options.only.split(",")
    if {"sequential", "remote"} & set(parts):
        with stage(f"making {FILE}, {options.size_mib} MiB, and putting it into the bucket"):
            make_large_file(lab.source / FILE, options.size_mib * MIB)
            upload(lab.source, [Path(FILE)], lab.bucket)
    if "sequential" in parts:
        _sequential(lab, report, options)
    if "remote" in parts:
        _remote(lab, report, options)
    if "small" in parts:
        _small(lab, report, options)
    if "fio" in parts:
        fio.measure(lab, report, options)


# --- sequential ------------------------------------------------------------------------------------------------


def _sequential(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    digests = list(load.chunk_digests(lab.source / FILE))
    hot = report.measure("sequential read from the page cache", "MB/s")
    local = report.measure("sequential read from the local disk, page cache dropped", "MB/s")
    with start_peers(make_peers(options, lab, PEER_NAMES, is_watched=False)) as (places, reasons):
        race = Race(report)
        for name, reason in reasons.items():
            race.give_up(name, reason, hot, local)
        for name, directory in places.items():
            with race.attempt(name, f"fetching and verifying {FILE}", hot, local):
                work = load.cold_opens(bytes(directory / FILE), digests, 1, 1)
                load.run_together(1, work, deadline_s=options.deadline)
        for number in range(options.runs):
            for name, directory in places.items():
                if not race.has(name):
                    continue
                with race.attempt(name, f"sequential read, run {number + 1}", hot, local):
                    # The first reading brings the pages in, the second moves each to the active list; every later epoch
                    # is like the third.
                    for _warm_up in range(2):
                        _read(directory, options)
                    report.add(hot, name, _read(directory, options))
                    if machine.can_drop_caches():
                        machine.drop_caches()
                        report.add(local, name, _read(directory, options))
    report.check_ratio(hot, "ext4", PAGE_CACHE_VS_EXT4)
    _check_local(report)


def _read(directory: Path, options: argparse.Namespace) -> float:
    """Return MB/s of one sequential read."""
    outcome = load.run_together(1, load.sequential_read(bytes(directory / FILE)), deadline_s=options.deadline)
    if outcome.bytes_read != options.size_mib * MIB:
        raise load.LoadError(f"{directory / FILE}: {outcome.bytes_read} bytes read")
    return outcome.bytes_per_second / _MB


def _check_local(report: Report) -> None:
    measure = report.measure("sequential read from the local disk, page cache dropped", "MB/s")
    ours, ratio = measure.series.get(SUBJECT), report.ratio(measure, SUBJECT, "ext4")
    name = f"{measure.name}: >= {LOCAL_VS_EXT4} x ext4 or >= {LOCAL_MB_PER_S:.0f} MB/s"
    if ours is None or ours.reason or not ours.values or ratio is None:
        report.check(name, False if ours and ours.reason else None, ours.reason if ours else "not measured")
        return
    is_met = ratio >= LOCAL_VS_EXT4 or ours.median >= LOCAL_MB_PER_S
    report.check(name, is_met, f"{ratio:.2f} x, {ours.median:,.0f} MB/s")


# --- remote ----------------------------------------------------------------------------------------------------


def _remote(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    size = options.size_mib * MIB
    measure = report.measure(f"sequential read from the store, {options.latency_ms:g} ms before every answer", "MB/s")
    flight = report.measure("the same: requests in flight on average", "1")
    # As much read-ahead as the direct fetch has requests in flight: the same parallelism.
    options.option.append(f"--max-readahead={options.parallelism * PART_BYTES}")
    peers = make_peers(options, lab, ["rclone", "s3fs", SUBJECT], is_watched=True)
    options.option.pop()
    race = Race(report)
    lab.proxy.set_latency(options.latency_ms)
    try:
        for number in range(options.runs):
            with stage(f"direct fetch, {options.parallelism} in flight, run {number + 1}"):
                spent = Meter({"store": [lab.store_pid], "proxy": [lab.proxy.pid], "client": [os.getpid()]})
                before, started = len(lab.proxy.requests()), time.monotonic()
                fetch_directly(lab.watched, FILE, size, PART_BYTES, options.parallelism)
                seconds = time.monotonic() - started
                _record_cpu(report, measure, DIRECT, spent, options)
                report.add(measure, DIRECT, size / seconds / _MB)
                report.add(flight, DIRECT, _in_flight(lab, before, seconds))
            for peer in peers:
                if not race.has(peer.name):
                    continue
                with race.attempt(peer.name, f"first read from the store, run {number + 1}", measure):
                    _remote_run(lab, report, peer, options)
    finally:
        lab.proxy.set_latency(0.0)
    report.check_ratio(measure, DIRECT, REMOTE_VS_DIRECT)
    report.check_ratio(measure, "rclone", REMOTE_VS_RCLONE)


def _remote_run(lab: Lab, report: Report, peer: Peer, options: argparse.Namespace) -> None:
    measure = report.measure(f"sequential read from the store, {options.latency_ms:g} ms before every answer", "MB/s")
    flight = report.measure("the same: requests in flight on average", "1")
    with peer.mounted() as directory:
        os.sync()  # nobody pays for what the one before has left to write
        spent = meter(lab, peer, directory, lab.proxy.pid)
        before, started = len(lab.proxy.requests()), time.monotonic()
        report.add(measure, peer.name, _read(directory, options))
        _record_cpu(report, measure, peer.name, spent, options)
        report.add(flight, peer.name, _in_flight(lab, before, time.monotonic() - started))


def _record_cpu(report: Report, measure: Measure, name: str, spent: Meter, options: argparse.Namespace) -> None:
    parts = {group: used * 1024 / options.size_mib for group, used in spent.seconds().items()}
    report.break_down(f"CPU time per GiB by process: {measure.name}", "s", name, parts)


def _in_flight(lab: Lab, before: int, seconds: float) -> float:
    return sum(request.seconds for request in lab.proxy.requests()[before:]) / seconds


# --- small files -----------------------------------------------------------------------------------------------


def _small(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    with stage(f"making {options.small_files:,} files of {options.small_bytes} bytes and putting them into the bucket"):
        names = make_small_files(lab.source / SMALL, options.small_files, options.small_bytes)
        upload(lab.source / SMALL, names, lab.bucket, f"{SMALL}/")
    random.Random(1).shuffle(names)  # a training job's order; the same for everybody
    measure = report.measure(f"small files, page cache dropped, {SMALL_READERS} readers", "files/s")
    if not machine.can_drop_caches():
        for peer in make_peers(options, lab, PEER_NAMES, is_watched=False):
            report.not_run(measure, peer.name, "not run: only root can drop the page cache")
        return
    with start_peers(make_peers(options, lab, PEER_NAMES, is_watched=False)) as (places, reasons):
        race = Race(report)
        for name, reason in reasons.items():
            race.give_up(name, reason, measure)
        for name, directory in places.items():
            with race.attempt(name, "filling the cache with small files", measure):
                _read_small(directory, _share(name, names, options), options)
        before = counters(places[SUBJECT]) if SUBJECT in places and race.has(SUBJECT) else None
        for number in range(options.runs):
            for name, directory in places.items():
                if not race.has(name):
                    continue
                with race.attempt(name, f"small files, run {number + 1}", measure):
                    machine.drop_caches()
                    report.add(measure, name, _read_small(directory, _share(name, names, options), options))
        if before is not None and race.has(SUBJECT):
            after = counters(places[SUBJECT])
            fetched = after.values.get("backend_bytes", 0) - before.values.get("backend_bytes", 0)
            messages = sum(after.messages_since(before).values()) / (options.runs * len(names))
            report.check("small files: nothing fetched again", fetched == 0, f"{fetched:,} bytes")
            report.note(f"small files: {messages:.2f} messages per file reached the daemon, FORGETs included")
    report.check_ratio(measure, "passthrough", SMALL_VS_PASSTHROUGH)


def _share(peer: str, names: Sequence[Path], options: argparse.Namespace) -> Sequence[Path]:
    return names[: options.slow_small_files] if peer in ("rclone", "s3fs") else names


def _read_small(directory: Path, names: Sequence[Path], options: argparse.Namespace) -> float:
    """Return files per second of one pass."""
    paths = [bytes(directory / SMALL / name) for name in names]
    work = load.small_reads(paths, options.small_bytes, SMALL_READERS)
    return load.run_together(SMALL_READERS, work, deadline_s=options.deadline).rate
