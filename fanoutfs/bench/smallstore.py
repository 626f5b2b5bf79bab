"""How to keep small files: LMDB values against append-only segments, packed or page-aligned (`bench.smallpeers`).

For each nominal size (contents vary around it) and each way: fill in batches as the fill engine has them, sync, read
warm and with the store's own pages dropped, in the order of the fill and at random; then drop 30 % at random, fill as
much anew, and compare what the files occupy with the bytes stored.  One process, one thread: ratios count, not rates.
Dropping is by POSIX_FADV_DONTNEED on the store's files, so that no root is needed and nobody else's pages go.
"""

import argparse
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from fanoutfs.bench import machine
from fanoutfs.bench.program import say
from fanoutfs.bench.report import Report
from fanoutfs.bench.scope import scratch_directory, signals_unwind
from fanoutfs.bench.smallpeers import LmdbValues, Segments, Shipped, SmallPeer
from fanoutfs.records import KIB, MIB

_PEERS: Final[dict[str, Callable[[Path], SmallPeer]]] = {
    "fanoutfs": Shipped,
    "lmdb": LmdbValues,
    "packed": lambda directory: Segments(directory, is_aligned=False),
    "packed 3/4": lambda directory: Segments(directory, is_aligned=False, live_share=0.75),
    "aligned": lambda directory: Segments(directory, is_aligned=True),
    "packed random": lambda directory: Segments(directory, is_aligned=False, advice=os.POSIX_FADV_RANDOM),
    "packed sequential": lambda directory: Segments(directory, is_aligned=False, advice=os.POSIX_FADV_SEQUENTIAL),
    "packed 1 MiB ahead": lambda directory: Segments(directory, is_aligned=False, ahead_bytes=MIB),
}
_POOL_BYTES: Final = 16 * MIB
_CHURN: Final = 0.3


class Contents:
    """Sizes and bytes by inode number, the same in every run with the same seed."""

    def __init__(self, nominal_bytes: int, spread: float, seed: int) -> None:
        self._nominal = nominal_bytes
        self._spread = spread
        self._seed = seed
        self._pool = memoryview(random.Random(seed).randbytes(_POOL_BYTES + 2 * nominal_bytes))

    def of(self, ino: int) -> memoryview:
        """Return the content of an inode."""
        chance = hash((ino * 0x9E3779B97F4A7C15 + self._seed) & 0xFFFFFFFFFFFFFFFF)
        swing = (chance % 2001 - 1000) / 1000 * self._spread
        at = chance // 2048 % _POOL_BYTES
        return self._pool[at : at + round(self._nominal * (1 + swing))]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="scratch space")
    parser.add_argument("--json", type=Path, help="also write the report as JSON to this file")
    parser.add_argument("--runs", type=int, default=1, help="rounds; the median of them counts")
    parser.add_argument(
        "--sizes", default="4:500000,16:500000,110:100000", help="nominal KiB:files, separated by commas"
    )
    parser.add_argument("--spread", type=float, default=0.25, help="contents are this share larger or smaller")
    parser.add_argument("--batch", type=int, default=512, help="contents per batch")
    parser.add_argument("--jitter", type=int, default=1, help="fill in the order in which so many GETs in flight end")
    parser.add_argument("--reads", type=int, default=50_000, help="reads per measurement")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--peers", default="lmdb,packed,packed 3/4,aligned,fanoutfs", help=f"of: {', '.join(_PEERS)}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run, print the tables, return the exit code."""
    options = parse_arguments(arguments)
    wanted = [name.strip() for name in options.peers.split(",")]
    facts = machine.facts(options.dir.resolve())
    for name in ("runs", "spread", "batch", "jitter", "reads", "seed"):
        facts[name] = getattr(options, name)
    report = Report("Contents of small files: LMDB values against segments", facts)
    with signals_unwind(), scratch_directory(options.dir, "fanoutfs-bench-") as scratch:
        for size in options.sizes.split(","):
            kib, _, files = size.partition(":")
            contents = Contents(round(float(kib) * KIB), options.spread, options.seed)
            for _run in range(options.runs):
                for name in wanted:
                    say(f"- {kib} KiB x {int(files):,}, {name}")
                    directory = scratch / name.replace("/", "-")
                    directory.mkdir(exist_ok=True)
                    _Round(report, options, f"{kib} KiB x {int(files):,}", name, directory, contents).run(int(files))
    print(report.to_text(), end="")
    if options.json:
        options.json.write_text(report.to_json())
    return 0


class _Round:
    """One way, one size, once."""

    def __init__(
        self, report: Report, options: argparse.Namespace, title: str, name: str, directory: Path, contents: Contents
    ) -> None:
        self._report = report
        self._options = options
        self._title = title
        self._name = name
        self._directory = directory
        self._contents = contents
        self._random = random.Random(options.seed)

    def run(self, files: int) -> None:
        """Measure and remove what was written."""
        store = _PEERS[self._name](self._directory)
        inos = range(16, 16 + files)
        start = time.perf_counter()
        self._put(store, inos)
        filled = time.perf_counter()
        self._flush()
        self._rate("fill, to the page cache", files, filled - start)
        self._rate("fill, to the disk", files, time.perf_counter() - start)
        self._occupied("occupied / stored after the fill", inos)
        in_order = inos[: self._options.reads]
        at_random = self._random.sample(inos, min(files, self._options.reads))
        for order, chosen in (("in order", in_order), ("random", at_random)):
            self._read(store, chosen)
            self._rate(f"read warm, {order}", len(chosen), self._read(store, chosen))
        store.close()
        for order, chosen in (("in order", in_order), ("random", at_random)):
            self._forget_pages()
            store = _PEERS[self._name](self._directory)
            self._rate(f"read cold, {order}", len(chosen), self._read(store, chosen))
            store.close()
        self._remove()
        self._churn(files)
        self._remove()

    def _churn(self, files: int) -> None:
        """Begin anew: prototypes keep live bytes in memory only."""
        store = _PEERS[self._name](self._directory)
        self._put(store, range(16, 16 + files))
        victims = self._random.sample(range(16, 16 + files), int(files * _CHURN))
        start = time.perf_counter()
        for batch in _batches(victims, self._options.batch):
            store.drop(batch)
        dropped = time.perf_counter()
        gone = set(victims)
        left = [ino for ino in range(16, 16 + files) if ino not in gone]
        self._flush()
        self._occupied("occupied / stored, 30 % dropped", left)
        start_of_refill = time.perf_counter()
        fresh = range(16 + files, 16 + files + len(victims))
        self._put(store, fresh)
        seconds = dropped - start + time.perf_counter() - start_of_refill
        self._flush()
        self._occupied("occupied / stored, 30 % dropped and filled anew", [*left, *fresh])
        self._rate("churn: dropped and filled anew", len(victims), seconds)
        store.close()

    def _put(self, store: SmallPeer, inos: Sequence[int]) -> None:
        of = self._contents.of
        for batch in _batches(_jittered(inos, self._options.jitter, self._random), self._options.batch):
            store.put([(ino, of(ino)) for ino in batch])

    def _read(self, store: SmallPeer, inos: Sequence[int]) -> float:
        start = time.perf_counter()
        for ino in inos:
            store.get(ino)
        return time.perf_counter() - start

    def _rate(self, what: str, files: int, seconds: float) -> None:
        measure = self._report.measure(f"{self._title}: {what}", "files/s")
        self._report.add(measure, self._name, files / seconds)

    def _occupied(self, what: str, inos: Sequence[int]) -> None:
        stored = sum(len(self._contents.of(ino)) for ino in inos)
        occupied = sum(os.stat(path).st_blocks * 512 for path in self._files())
        measure = self._report.measure(f"{self._title}: {what}", "x", is_rate=False)
        self._report.add(measure, self._name, occupied / stored)

    def _files(self) -> list[Path]:
        return [path for path in self._directory.rglob("*") if path.is_file()]

    def _flush(self) -> None:
        for path in self._files():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)

    def _forget_pages(self) -> None:
        for path in self._files():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def _remove(self) -> None:
        for path in self._files():
            path.unlink()


def _batches(inos: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for at in range(0, len(inos), size):
        yield inos[at : at + size]


def _jittered(inos: Sequence[int], in_flight: int, chance: random.Random) -> Sequence[int]:
    """Return numbers as they end that begin in order, so many at a time, and take a random time each."""
    if in_flight <= 1:
        return inos
    ended: list[int] = []
    flying: list[int] = []
    for ino in inos:
        flying.append(ino)
        if len(flying) >= in_flight:
            at = chance.randrange(in_flight)
            flying[at], flying[-1] = flying[-1], flying[at]
            ended.append(flying.pop())
    return ended + flying
