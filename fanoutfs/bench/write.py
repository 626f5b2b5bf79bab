"""Writing: checkpoints, many small files, a copied tree, a renamed directory, an upload; behind scripts/bench-write.

checkpoint: one file of 1 GiB, one of 4 GiB, written from beginning to end and fsynced.
create: 5,000 files of 200 bytes in one directory.
copy: `cp -r` of a tree of 6,400 files.
rename: a directory with 100,000 files that are in the store, and known; one with 200, which the peers can do, too.
upload: 1 GiB that lies in the cache, from `drain` to its end, against the store's client on the same bytes.

Every peer writes to a disk cache of its own on the disk that ext4 is measured on.  rclone's fsync waits for that disk,
s3fs's for the store.  What was written is removed before its upload begins, where a peer delays that.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fanoutfs.bench import write_load
from fanoutfs.bench.counters import counters
from fanoutfs.bench.data import make_large_file, make_small_files, upload
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.load import run_together
from fanoutfs.bench.peers import Ext4, Fanoutfs, Peer, Rclone, S3fs, describe, start_peers
from fanoutfs.bench.program import Race, make_parser, parse_choice, run, say, stage
from fanoutfs.bench.report import REFERENCE, SUBJECT, Measure, Report
from fanoutfs.cli.drain import drain_mount
from fanoutfs.records import MIB

SCENARIOS: Final = ("checkpoint", "create", "copy", "rename", "upload")
PEERS: Final = ("ext4", "rclone", "s3fs", SUBJECT)
SLOW: Final = ("rclone", "s3fs")
DIRECT: Final = "direct"
QUICK: Final = {
    "runs": 1,
    "checkpoint_mib": "8,16",
    "creates": 50,
    "tree_files": 64,
    "rename_files": 300,
    "few_files": 10,
    "slow_files": 10,
    "upload_mib": 16,
}

CHECKPOINT_VS_EXT4: Final = 0.7
CREATES_PER_S: Final = 3000.0
CREATES_VS_EXT4: Final = 0.3
RENAME_MS: Final = 10.0
UPLOAD_VS_DIRECT: Final = 0.8

RCLONE_FLAGS: Final = (
    "--vfs-cache-mode=full",
    "--vfs-cache-max-size=100G",
    "--vfs-cache-max-age=24h",
    "--vfs-write-back=60s",
    "--buffer-size=64M",
    "--dir-cache-time=24h",
    "--attr-timeout=24h",
    "--poll-interval=0",
    "--no-modtime",
    "--no-checksum",
)
S3FS_OPTIONS: Final = (
    "use_path_request_style",
    "kernel_cache",
    "parallel_count=8",
    "multipart_size=8",
    "max_stat_cache_size=200000",
    "stat_cache_expire=86400",
    "enable_noobj_cache",
    "umask=0022",
)
FANOUTFS_SETTINGS: Final = ("--cache-size=60GiB", "--metadata-ttl=indefinite")
_MB: Final = 1e6


def main(arguments: Sequence[str], make_lab: LabMaker) -> int:
    """Run the program and return its exit code."""
    parser = make_parser(
        "Checkpoints, creates, copies, renames and uploads, on ext4, rclone, s3fs and fanoutfs.", PEERS
    )
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios to run")
    parser.add_argument("--checkpoint-mib", default="1024,4096", help="checkpoint: sizes of the file")
    parser.add_argument("--creates", type=int, default=5000, help="create: files in one directory")
    parser.add_argument("--create-bytes", type=int, default=200)
    parser.add_argument("--tree-files", type=int, default=6400, help="copy: files in the tree")
    parser.add_argument("--tree-bytes", type=int, default=4096)
    parser.add_argument("--rename-files", type=int, default=100_000, help="rename: files in the directory")
    parser.add_argument("--few-files", type=int, default=200, help="rename: files in the one for rclone and s3fs")
    parser.add_argument("--slow-files", type=int, default=500, help="create, copy: files for rclone and s3fs")
    parser.add_argument("--slow-runs", type=int, default=1, help="rounds of rclone and s3fs")
    parser.add_argument("--upload-mib", type=int, default=1024, help="upload: size of the file")
    parser.add_argument("--upload-requests", type=int, default=8, help="upload: requests in flight, here as there")
    options = parse_choice(parser, arguments, QUICK, scenarios=SCENARIOS, peers=PEERS)
    return run(options, make_lab, "bench-write: what a training stack writes", _bench)


def _bench(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    for line in describe(_peers(lab, options)):
        report.note(line)
    if options.quick:
        report.note("--quick: too small and too short for any figure or target to mean something")
    scenarios = {
        "checkpoint": _checkpoint,
        "create": _create,
        "copy": _copy,
        "rename": _rename,
        "upload": _upload,
    }
    for name in options.only.split(","):
        scenarios[name](lab, report, options)


def _peers(lab: Lab, options: argparse.Namespace, *extra: str) -> list[Peer]:
    """Return who takes part; extra: settings of fanoutfs."""
    settings = (*FANOUTFS_SETTINGS, *extra, *options.option)
    peers: tuple[Peer, ...] = (
        Ext4(lab.source),
        Rclone(lab.bucket, RCLONE_FLAGS),
        S3fs(lab.bucket, S3FS_OPTIONS),
        Fanoutfs(lab.bucket, settings, log=options.daemon_log),
    )
    return [peer for peer in peers if peer.name in options.peers.split(",")]


def _rounds(
    peers: Sequence[Peer],
    report: Report,
    options: argparse.Namespace,
    text: str,
    measures: Sequence[Measure],
    once: Callable[[str, Path, int], None],
) -> None:
    """Mount all peers and let each have its rounds, in turn.  once: (peer, directory, number of the round)."""
    race = Race(report)
    with start_peers(peers) as (places, reasons):
        for name, reason in reasons.items():
            race.give_up(name, reason, *measures)
        for number in range(options.runs):
            for name, directory in places.items():
                if race.has(name) and not (name in SLOW and number >= options.slow_runs):
                    with race.attempt(name, f"{text}, run {number + 1}", *measures):
                        once(name, directory, number)


# --- checkpoint ------------------------------------------------------------------------------------------------


def _checkpoint(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    for size_mib in map(int, options.checkpoint_mib.split(",")):
        measure = report.measure(f"checkpoint of {size_mib:,} MiB, write and fsync", "MB/s")

        def once(name: str, directory: Path, number: int, size_mib: int = size_mib, measure: Measure = measure) -> None:
            path = directory / f"checkpoint-{size_mib}-{number}"
            os.sync()  # nobody pays for what the one before has left to write
            try:
                work = write_load.checkpoint(bytes(path), size_mib * MIB)
                outcome = run_together(1, work, deadline_s=options.deadline)
                report.add(measure, name, outcome.bytes_per_second / _MB)
            finally:
                write_load.remove(path)

        _rounds(_peers(lab, options), report, options, f"checkpoint of {size_mib:,} MiB", [measure], once)
        report.check_ratio(measure, REFERENCE, CHECKPOINT_VS_EXT4)


# --- many files ------------------------------------------------------------------------------------------------


def _create(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    measure = report.measure(f"creating files of {options.create_bytes} bytes in one directory", "files/s")
    messages: list[float] = []

    def once(name: str, directory: Path, number: int) -> None:
        count = options.slow_files if name in SLOW else options.creates
        path = directory / f"created-{number}"
        path.mkdir()
        os.sync()
        before = counters(directory) if name == SUBJECT else None
        try:
            work = write_load.creates(bytes(path), count, options.create_bytes)
            report.add(measure, name, run_together(1, work, deadline_s=options.deadline).rate)
            if before is not None:
                messages.append(sum(counters(directory).messages_since(before).values()) / count)
        finally:
            write_load.remove(path)

    _rounds(_peers(lab, options), report, options, "creating files", [measure], once)
    if messages:
        report.note(f"create: {min(messages):.2f} messages per file reached the daemon")
    _check_creates(report, measure)


def _check_creates(report: Report, measure: Measure) -> None:
    """Check the target: the higher of a rate and a share of ext4's."""
    name = f"{measure.name}: >= {CREATES_PER_S:,.0f}/s and >= {CREATES_VS_EXT4:g} x ext4"
    ours, ratio = measure.series.get(SUBJECT), report.ratio(measure, SUBJECT, REFERENCE)
    if ours is None or ours.reason or not ours.values or ratio is None:
        report.check(name, False if ours and ours.reason else None, ours.reason if ours else "not measured")
        return
    is_met = ratio >= CREATES_VS_EXT4 and ours.median >= CREATES_PER_S
    report.check(name, is_met, f"{ours.median:,.0f}/s, {ratio:.2f} x")


def _copy(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    measure = report.measure(f"cp -r of a tree, files of {options.tree_bytes} bytes", "files/s")
    with stage(f"making trees of {options.tree_files:,} and {options.slow_files:,} files"):
        originals = {count: lab.source / f"tree-{count}" for count in (options.tree_files, options.slow_files)}
        for count, original in originals.items():
            make_small_files(original, count, options.tree_bytes)

    def once(name: str, directory: Path, number: int) -> None:
        count = options.slow_files if name in SLOW else options.tree_files
        path = directory / f"copy-{number}"
        os.sync()
        try:
            report.add(measure, name, count / write_load.copy_tree(originals[count], path, options.deadline))
        finally:
            write_load.remove(path)

    _rounds(_peers(lab, options), report, options, "copying a tree", [measure], once)


# --- rename ----------------------------------------------------------------------------------------------------


def _rename(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    """Measure a directory that the slow peers can rename, too, and a large one."""
    few, many = options.few_files, options.rename_files
    peers = _peers(lab, options)
    _rename_of(few, peers, lab, report, options)
    measure = _rename_of(many, [peer for peer in peers if peer.name not in SLOW], lab, report, options)
    ours = measure.series.get(SUBJECT)
    name = f"{measure.name}: < {RENAME_MS:g} ms"
    if ours is None or ours.reason or not ours.values:
        report.check(name, False if ours and ours.reason else None, ours.reason if ours else "not measured")
    else:
        report.check(name, ours.median < RENAME_MS, f"{ours.median:.2f} ms, at most {max(ours.values):.2f} ms")


def _rename_of(count: int, peers: Sequence[Peer], lab: Lab, report: Report, options: argparse.Namespace) -> Measure:
    """Rename there and back, round by round; what follows of the objects runs beside it.

    Each peer has a directory of its own, and ext4 its own on the disk.
    """
    measure = report.measure(f"rename of a directory with {count:,} files", "ms", is_rate=False)
    original = lab.source / f"many-{count}"
    with stage(f"making a directory with {count:,} files, here and in the store"):
        names = make_small_files(original, count, options.create_bytes)
        for peer in peers:
            if peer.name != REFERENCE:
                upload(original, names, lab.bucket, f"{original.name}-{peer.name}/")
    original.rename(original.with_name(f"{original.name}-{REFERENCE}"))
    turns = {
        peer.name: itertools.cycle((f"{original.name}-{peer.name}", f"renamed-{count}-{peer.name}")) for peer in peers
    }
    now = {name: next(turn) for name, turn in turns.items()}

    def once(name: str, directory: Path, number: int) -> None:
        if number == 0:
            found = sum(len(files) for _at, _folders, files in os.walk(directory / now[name]))
            if found != count:
                raise OSError(f"{found} of {count} files are listed")
        new = next(turns[name])
        report.add(measure, name, write_load.rename(directory / now[name], directory / new) * 1000)
        now[name] = new

    _rounds(peers, report, options, f"renaming a directory with {count:,} files", [measure], once)
    return measure


# --- upload ----------------------------------------------------------------------------------------------------


def _upload(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    size = options.upload_mib * MIB
    measure = report.measure(f"upload of {options.upload_mib:,} MiB", "MB/s")
    file = lab.source / "upload.bin"
    with stage(f"making {file.name}, {options.upload_mib} MiB"):
        make_large_file(file, size)
    settings = ("-oupload_delay=1h", "-oupload_deadline=1h", f"-oupload_requests={options.upload_requests}")
    peers = [peer for peer in _peers(lab, options, *settings) if peer.name == SUBJECT]

    def once(name: str, directory: Path, number: int) -> None:
        say(f"- direct upload, run {number + 1}")
        os.sync()
        seconds = write_load.upload_directly(lab.bucket, file, "uploaded-directly", options.upload_requests)
        report.add(measure, DIRECT, size / seconds / _MB)
        path = directory / f"uploaded-{number}"
        write_load.copy_tree(file, path, options.deadline)
        os.sync()
        seconds = _drain(directory)
        report.add(measure, name, size / seconds / _MB)
        write_load.remove(path)

    _rounds(peers, report, options, "upload", [measure], once)
    report.check_ratio(measure, DIRECT, UPLOAD_VS_DIRECT)


def _drain(mountpoint: Path) -> float:
    """Upload what waits; return seconds until the store has it."""
    started = time.monotonic()
    drain_mount(mountpoint)
    return time.monotonic() - started
