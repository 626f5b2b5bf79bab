"""Eviction in a live mount: bytes fetched from a real object store against the least possible; behind scripts/.

Files of one size, read whole by one reader in the patterns of the simulator, their page cache dropped after each read;
a new mount with an empty cache for each pattern and size.  The hit rate of the epochs that count is one minus bytes
fetched by bytes read.  The best possible is what the simulator's Belady hits of the same order with a cache of as many
bytes as the mount held at most: the cap less what index and reserve take; what it would be without those is told, too.
Every file read is verified.

With --announce the daemon knows the order of an epoch, and fetches ahead: what is evicted for that counts as any other
miss does.  With --policies the same mount chooses as other caches do (`eviction`), each with the same order of reads.
"""

import argparse
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from fanoutfs.bench.counters import status
from fanoutfs.bench.data import make_small_files, upload
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.load import LoadError
from fanoutfs.bench.peers import Fanoutfs
from fanoutfs.bench.program import make_parser, run, stage
from fanoutfs.bench.report import Report
from fanoutfs.cli.plans import announce
from fanoutfs.eviction.oracle import Belady
from fanoutfs.eviction.recency import CHOICES, LEARNT
from fanoutfs.eviction.simulate import replay
from fanoutfs.eviction.traces import PATTERNS
from fanoutfs.records import KIB, MIB

_PATTERNS: Final = ("same order", "new shuffle", "hot subset")
_KINDS: Final = {
    "large": (512 * KIB, 320, 0.05),
    "many": (512 * KIB, 1280, 0.02),
    "gigabytes": (2 * MIB, 2048, 0.02),
    "small": (64 * KIB, 2560, 0.9),
    "small-many": (64 * KIB, 10240, 0.9),
}
"""Kind of file -> (bytes of each, how many, small_cache_share)."""
_NEAR: Final = 0.95


def main(arguments: Sequence[str], make_lab: LabMaker) -> int:
    """Run the program and return its exit code."""
    parser = make_parser("Hit rates of live mounts whose cache is smaller than the data.")
    parser.add_argument(
        "--kinds",
        default="large,small",
        help="large: above the small-file limit; many, small-many: four times as many; gigabytes: 4 GiB",
    )
    parser.add_argument("--shares", default="1.1,1.5,2,4", help="data set / cache")
    parser.add_argument("--patterns", default=",".join(_PATTERNS))
    parser.add_argument("--policies", default=LEARNT, help=f"of {', '.join(CHOICES)}; {LEARNT} is the mount's own")
    parser.add_argument("--announce", action="store_true", help="announce the order of each epoch as it begins")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning", type=int, default=4, help="epochs that do not count")
    return run(parser.parse_args(arguments), make_lab, "eviction in a live mount: hit rates by bytes", _bench)


def _bench(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    for kind in options.kinds.split(","):
        size, count, _share = _KINDS[kind]
        with stage(f"putting {count} files of {size // KIB} KiB into the bucket"):
            names = make_small_files(lab.source / kind, count, size)
            upload(lab.source / kind, names, lab.bucket, f"{kind}/")
        sums = [zlib.crc32((lab.source / kind / name).read_bytes()) for name in names]
        for pattern in options.patterns.split(","):
            for share in map(float, options.shares.split(",")):
                for policy in options.policies.split(","):
                    with stage(f"{kind} files, {pattern}, {share:g} x the cache, {policy}"):
                        _measure(lab, report, options, (kind, pattern, share), policy, names, sums)


def _measure(
    lab: Lab,
    report: Report,
    options: argparse.Namespace,
    case: tuple[str, str, float],
    policy: str,
    names: Sequence[Path],
    sums: Sequence[int],
) -> None:
    kind, pattern, share = case
    size, count, small_share = _KINDS[kind]
    order = list(PATTERNS[pattern](count, options.epochs, 1))
    first = len(order) * options.learning // options.epochs
    cap_bytes = int(count * size / share)
    settings = (
        f"--cache-size={cap_bytes}",
        f"--small-cache-share={small_share}",
        "--free-space-floor=0",
        "--metadata-ttl=indefinite",
        "--read-only",
        "--push-memory=0",
        f"--eviction={policy}",
        *options.option,
    )
    held_as = "small_bytes" if kind.startswith("small") else "large_bytes"
    held = before = 0
    with Fanoutfs(lab.bucket, settings, log=options.daemon_log).mounted() as mountpoint:
        for at, number in enumerate(order):
            if options.announce and at % (len(order) // options.epochs) == 0:
                epoch = order[at : at + len(order) // options.epochs]
                announce([mountpoint / kind / names[each] for each in epoch])
            if at == first:
                before = status(mountpoint)["counters"]["backend_bytes"]
            data = _read(mountpoint / kind / names[number])
            if zlib.crc32(data) != sums[number]:
                raise LoadError(f"wrong bytes in {names[number]}")
            if at % 64 == 0:
                held = max(held, status(mountpoint)["cache"][held_as])
        found = status(mountpoint)
    fetched = found["counters"]["backend_bytes"] - before
    rate = 1 - fetched / ((len(order) - first) * size)
    measure = report.measure(f"{kind} files, {pattern}, data {share:g} x the cache: hit rate", "share")
    if policy != LEARNT:
        report.add(measure, policy, rate)
        return
    trace = [(key, size) for key in order]
    best = replay(Belady(max(size, held), order), trace, first).hit_rate
    report.add(measure, "fanoutfs", rate)
    report.add(measure, "best", best)
    report.add(measure, "best of the whole cap", replay(Belady(cap_bytes, order), trace, first).hit_rate)
    report.add(measure, "held / cap", held / cap_bytes)
    report.add(measure, "index / cap", found["cache"]["index_bytes"] / cap_bytes)
    report.check(measure.name + f" >= {_NEAR:.0%} of the best", rate >= _NEAR * best, f"{rate:.3f} of {best:.3f}")


def _read(path: Path) -> bytes:
    """Read a file whole, and have the kernel forget it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        data = b"".join(_pieces(fd))
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return data
    finally:
        os.close(fd)


def _pieces(fd: int) -> Iterator[bytes]:
    while piece := os.read(fd, MIB):
        yield piece
