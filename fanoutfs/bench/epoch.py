"""Epochs over many small files; the program behind scripts/bench-epoch.

cached: a cold epoch from the local cache, page cache dropped, with push and without, against ext4.
second: an epoch from the page cache against ext4, and what it still costs the daemon.
first: the first epoch, from an object store 20 ms away, against its own client, rclone and s3fs.

epoch_cached.py and epoch_first.py say how; epoch_read.py says what a loader does.
"""

import argparse
from collections.abc import Sequence
from typing import Final

from fanoutfs.bench import epoch_cached, epoch_first
from fanoutfs.bench.epoch_parts import Bench
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.program import make_parser, parse_choice, run
from fanoutfs.bench.report import Report
from fanoutfs.records import KIB

SCENARIOS: Final = ("cached", "second", "first")
PEERS: Final = ("ext4", "rclone", "s3fs", "fanoutfs")
QUICK: Final = {"runs": 1, "small_files": 200, "medium_files": 20, "first_files": 200, "slow_files": 10}


def main(arguments: Sequence[str], make_lab: LabMaker) -> int:
    """Run the program and return its exit code."""
    parser = make_parser(
        "Epochs over many small files: from the local cache, the page cache, the object store.", PEERS, is_remote=True
    )
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios to run")
    parser.add_argument("--loaders", type=int, default=4, help="loader processes")
    parser.add_argument("--batch", type=int, default=64, help="files dealt to a loader at a time; 0: one share each")
    parser.add_argument("--small-files", type=int, default=100_000, help="cached, second: files of the first set")
    parser.add_argument("--small-bytes", type=int, default=4 * KIB)
    parser.add_argument("--medium-files", type=int, default=20_000, help="cached, second: files of the other set")
    parser.add_argument("--medium-bytes", type=int, default=110 * KIB)
    parser.add_argument("--first-files", type=int, default=20_000, help="first: files in the store")
    parser.add_argument("--first-bytes", type=int, default=16 * KIB)
    parser.add_argument("--slow-files", type=int, default=1000, help="first: of them, for rclone and s3fs")
    parser.add_argument(
        "--in-flight", type=int, default=128, help="first: requests of the direct client, and --requests"
    )
    options = parse_choice(parser, arguments, QUICK, scenarios=SCENARIOS, peers=PEERS)
    return run(options, make_lab, "bench-epoch: epochs over many small files", _bench)


def _bench(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    bench = Bench(lab, report, options)
    scenarios = options.only.split(",")
    report.note(f"fanoutfs: {bench.fanoutfs(lab.bucket).description}")
    report.note(
        f"{options.loaders} loader processes; listing, dividing ({options.batch or 'all'} at a time) and "
        "announcing are inside the time; files are read with os.open, os.read and os.close"
    )
    if options.quick:
        report.note("--quick: too small and too short for any figure or target to mean something")
    if {"cached", "second"} & set(scenarios):
        epoch_cached.measure(bench, is_cold="cached" in scenarios, is_second="second" in scenarios)
    if "first" in scenarios:
        epoch_first.measure(bench)
