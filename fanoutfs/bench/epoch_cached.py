"""Epochs without the store: cold, from the local cache, and second, from the page cache.

cached: each round fanoutfs is mounted anew over the cache it has filled before, so that the kernel knows nothing of the
mount, then the page cache of the machine is dropped.  With push, with push off, and ext4 with the page cache dropped;
the two mounts share one cache directory, one after the other: the same bytes in the same place of the same disk.
second: both stay mounted and have been read twice (the first reading brings pages in, the second moves each to the
active list; every later epoch is like the third).  The daemon's counters say what still reached it.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fanoutfs.bench import machine
from fanoutfs.bench.counters import counters, settled_counters
from fanoutfs.bench.epoch_parts import PUSH_OFF, Bench, make, meter
from fanoutfs.bench.epoch_read import DataSet, compare, read_epoch
from fanoutfs.bench.heard import Heard
from fanoutfs.bench.peers import Ext4, Fanoutfs, Peer
from fanoutfs.bench.program import Race, stage
from fanoutfs.bench.report import REFERENCE, SUBJECT, Measure, number
from fanoutfs.bench.scope import scratch_directory

FILLERS: Final = 16  # readers at once while the cache is filled, which is not measured
SMALL_VS_PUSH_OFF: Final = 4.0
SMALL_VS_EXT4: Final = 0.5
MEDIUM_VS_PUSH_OFF: Final = 1.5
SECOND_VS_EXT4: Final = 0.6
_PRIMINGS: Final = 2


def measure(bench: Bench, *, is_cold: bool, is_second: bool) -> None:
    """Run the scenarios over both data sets."""
    options = bench.options
    small = DataSet("small", options.small_files, options.small_bytes)
    medium = DataSet("medium", options.medium_files, options.medium_bytes)
    for data in (small, medium):
        make(bench.lab, data)
        with _filled_cache(bench, data) as cache:
            if is_cold:
                found = _cold(bench, data, cache)
                if data is small:
                    bench.report.check_ratio(found, PUSH_OFF, SMALL_VS_PUSH_OFF)
                    bench.report.check_ratio(found, REFERENCE, SMALL_VS_EXT4)
                    ratio = bench.report.ratio(found, SUBJECT, REFERENCE)
                    if ratio is not None:
                        bench.report.note(f"the moonshot is 1.0 x ext4; found {number(ratio)} x")
                else:
                    bench.report.check_ratio(found, PUSH_OFF, MEDIUM_VS_PUSH_OFF)
            if is_second:
                _second(bench, data, cache)


@contextlib.contextmanager
def _filled_cache(bench: Bench, data: DataSet) -> Iterator[Path]:
    """Yield a cache directory that holds the whole data set, every byte of it compared with the original."""
    with scratch_directory(Path(tempfile.gettempdir()), "cache-") as parent:
        cache = parent / "cache"
        if bench.takes_part(SUBJECT):
            with stage(f"filling the cache: {data}"), bench.fanoutfs(bench.lab.bucket, cache=cache).mounted() as place:
                compare(place, bench.lab.source, data, FILLERS, bench.options.deadline * 10)
        yield cache


# --- from the local cache ----------------------------------------------------------------------------------------


def _cold(bench: Bench, data: DataSet, cache: Path) -> Measure:
    report, options = bench.report, bench.options
    found = report.measure(f"cold epoch from the local cache, {data}, {options.loaders} loaders", "files/s")
    peers: list[Peer] = []
    if bench.takes_part(REFERENCE):
        peers.append(Ext4(bench.lab.source))
    if bench.takes_part(SUBJECT):
        peers.append(bench.fanoutfs(bench.lab.bucket, cache=cache))
    if not machine.can_drop_caches():
        for peer in peers:
            report.not_run(found, peer.name, "not run: only root can drop the page cache")
        return found
    if bench.takes_part(SUBJECT):
        silent = bench.fanoutfs(bench.lab.bucket, ("--push-memory=0",), cache)
        peers.append(Fanoutfs(silent.bucket, silent.settings, PUSH_OFF, silent.log, cache))
    race = Race(report)
    fetched = 0
    for turn in range(options.runs):
        for peer in peers:
            if race.has(peer.name):
                with race.attempt(peer.name, f"cold epoch, {data}, run {turn + 1}", found):
                    fetched += _cold_round(bench, data, found, peer, is_last=turn == options.runs - 1)
    if bench.takes_part(SUBJECT):
        report.check(f"{found.name}: nothing fetched again", fetched == 0, f"{fetched:,} bytes")
    return found


def _cold_round(bench: Bench, data: DataSet, found: Measure, peer: Peer, *, is_last: bool) -> int:
    """Read one cold epoch; return the bytes that came from the store."""
    with peer.mounted() as place:
        before = settled_counters(place) if isinstance(peer, Fanoutfs) else None
        machine.drop_caches()
        bench.read(place, bench.epoch(data), found, peer.name, meter(bench.lab, peer, place))
        if before is None:
            return 0
        after = counters(place)
        heard = sum(after.messages_since(before).values())
        messages = bench.report.measure(f"{found.name}: messages to the daemon", "1/file", is_rate=False)
        bench.report.add(messages, peer.name, heard / data.files)
        if is_last:  # what was pushed into the page cache is what is in the store
            compare(place, bench.lab.source, data, bench.options.loaders, bench.options.deadline)
        return after.values.get("backend_bytes", 0) - before.values.get("backend_bytes", 0)


# --- from the page cache -----------------------------------------------------------------------------------------


def _second(bench: Bench, data: DataSet, cache: Path) -> None:
    report, options = bench.report, bench.options
    found = report.measure(f"second epoch from the page cache, {data}, {options.loaders} loaders", "files/s")
    race = Race(report)
    heard = Heard()  # (a page that goes between priming and a round costs a READ as well)
    with contextlib.ExitStack() as scope:
        mounted: list[tuple[Peer, Path]] = []
        both: tuple[Peer, ...] = (Ext4(bench.lab.source), bench.fanoutfs(bench.lab.bucket, cache=cache))
        for peer in both:
            if bench.takes_part(peer.name):
                with race.attempt(peer.name, f"priming the page cache, {data}", found):
                    place = scope.enter_context(peer.mounted())
                    for _ in range(_PRIMINGS):
                        read_epoch(place, bench.epoch(data), options.deadline)
                    mounted.append((peer, place))
        os.sync()
        for turn in range(options.runs):
            for peer, place in mounted:
                if race.has(peer.name):
                    with race.attempt(peer.name, f"second epoch, {data}, run {turn + 1}", found):
                        _second_round(bench, data, found, peer, place, heard)
    report.check_ratio(found, REFERENCE, SECOND_VS_EXT4)
    if bench.takes_part(SUBJECT):
        heard.judge(report, f"{found.name}: no message to the daemon", options.runs)


def _second_round(bench: Bench, data: DataSet, found: Measure, peer: Peer, place: Path, heard: Heard) -> None:
    is_subject = isinstance(peer, Fanoutfs)
    before = settled_counters(place) if is_subject else None
    bench.read(place, bench.epoch(data), found, peer.name, meter(bench.lab, peer, place))
    if before is not None:
        heard.listen(place, before)
