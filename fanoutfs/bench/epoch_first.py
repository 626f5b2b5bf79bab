"""The first epoch: nothing is cached anywhere but in the store, and every answer of the store is delayed.

Four loaders read serially, each file once, in the order of the listing, shuffled with the order announced, and shuffled
without a word.  What the network side can give is the direct client (direct.py) with many requests in flight: it lists
the keys and gets them, in an order that makes no difference to the store, so that one run of it per round counts for
all three.  Every round begins with an empty cache.

rclone and s3fs have as many requests in flight as there are loaders, whatever their settings; they read fewer files, so
that the benchmark ends, and are compared by rate.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import fanoutfs
from fanoutfs.bench import direct
from fanoutfs.bench.cpu import Meter
from fanoutfs.bench.data import Bucket
from fanoutfs.bench.delay import Distance, Once, at_distance, once_of
from fanoutfs.bench.epoch_parts import Bench, make, meter
from fanoutfs.bench.epoch_read import DataSet, Epoch, list_files
from fanoutfs.bench.load import LoadError
from fanoutfs.bench.peers import Peer, Rclone, S3fs
from fanoutfs.bench.program import Race, stage
from fanoutfs.bench.report import SUBJECT, Measure

DIRECT: Final = "direct"
KEYS_KNOWN: Final = "direct, keys known"
VS_DIRECT: Final = 0.8
LISTED: Final = "listing order"
ANNOUNCED: Final = "shuffled, order announced"
SHUFFLED: Final = "shuffled"
RCLONE_FLAGS: Final = (
    "--read-only",
    "--vfs-cache-mode=off",  # measured: 117 files/s, with the cache on disk 104; a second epoch is not asked for
    "--buffer-size=64k",
    "--vfs-read-chunk-size=0",
    "--max-read-ahead=1M",
    "--dir-cache-time=24h",
    "--attr-timeout=24h",
    "--poll-interval=0",
    "--no-modtime",
    "--no-checksum",
    "--use-server-modtime",
)
S3FS_EXTRA: Final = ("notsup_compat_dir", "multireq_max=200")
"""It asks for every file of a directory when it lists it, so many at once, and again at every open: no option helps."""


@dataclass(slots=True)
class _Order:
    """One order of reading, what is measured of it, and what the proxy saw of fanoutfs."""

    name: str
    measure: Measure
    seen: list[Once] = field(default_factory=list)


def measure(bench: Bench) -> None:
    """Run the scenario."""
    options, report = bench.options, bench.report
    data = DataSet("first", options.first_files, options.first_bytes)
    make(bench.lab, data)
    text = f"first epoch of {data}, store {options.latency_ms:g} ms away, {options.loaders} loaders, {{}}"
    orders = [_Order(name, report.measure(text.format(name), "files/s")) for name in (LISTED, ANNOUNCED, SHUFFLED)]
    race = Race(report)
    with at_distance(bench.lab.bucket, options.latency_ms) as distance:
        for turn in range(options.runs):
            _direct_round(bench, data, distance, orders, f"run {turn + 1}")
            for order in orders:
                _order_round(bench, data, distance, order, race, turn)
    for order in orders:
        if order.name != SHUFFLED:
            report.check_ratio(order.measure, DIRECT, VS_DIRECT)
        if order.seen:
            is_met = all(once.is_met for once in order.seen)
            worst = next((once for once in order.seen if not once.is_met), order.seen[-1])
            report.check(f"first epoch, {order.name}: each file sent once, by the proxy's count", is_met, str(worst))
    for peer, files in _peers(bench, bench.lab.bucket):
        report.note(f"{peer.name}, first epoch: {peer.description}; reads {files:,} files")
    report.note(
        "direct: obstore, called synchronously in threads of one process, "
        f"{options.in_flight} requests in flight; lists the keys and gets them in that order"
    )


def _order_round(bench: Bench, data: DataSet, distance: Distance, order: _Order, race: Race, turn: int) -> None:
    report = bench.report
    announce = _announce if order.name == ANNOUNCED else None
    for peer, files in _peers(bench, distance.bucket):
        row = peer.name if files == data.files else f"{peer.name} ({files:,} files)"
        if not race.has(row):
            continue
        if order.name == ANNOUNCED and peer.name != SUBJECT:
            report.not_run(order.measure, row, f"it cannot be told an order: see {SHUFFLED!r}")
            continue
        seed = None if order.name == LISTED else turn
        epoch = replace(bench.epoch(data.first(files)), seed=seed, announce=announce)
        with race.attempt(row, f"first epoch, {order.name}, run {turn + 1}", order.measure):
            once = _mounted_round(bench, distance, order, peer, row, epoch)
            if peer.name == SUBJECT:
                order.seen.append(once)


def _announce(paths: Sequence[str], mountpoint: Path) -> None:
    fanoutfs.announce(paths, mount=mountpoint)


def _peers(bench: Bench, bucket: Bucket) -> list[tuple[Peer, int]]:
    """Return who takes part, and how many files each reads."""
    options = bench.options
    slow = min(options.slow_files, options.first_files)
    ours = bench.fanoutfs(bucket, (f"--requests={options.in_flight}",))
    everybody: list[tuple[Peer, int]] = [
        (ours, options.first_files),
        (Rclone(bucket, RCLONE_FLAGS), slow),
        (S3fs(bucket, (*S3fs(bucket).options, *S3FS_EXTRA)), slow),
    ]
    return [(peer, files) for peer, files in everybody if bench.takes_part(peer.name)]


def _mounted_round(bench: Bench, distance: Distance, order: _Order, peer: Peer, row: str, epoch: Epoch) -> Once:
    with peer.mounted() as place:
        os.sync()  # nobody pays for what the one before has left to write
        distance.take()  # what mounting asked for
        spent = meter(bench.lab, peer, place, distance.pid)
        bench.read(place, epoch, order.measure, row, spent)
        requests = distance.take()
    return once_of(requests, _sizes(bench.lab.source, epoch.data))


def _sizes(source: Path, data: DataSet) -> dict[str, int]:
    names = list_files(os.fsencode(source / data.name), data.files)
    return {f"{data.name}/{os.fsdecode(name)}": data.size for name in names}


# --- the direct client -------------------------------------------------------------------------------------------


def _direct_round(bench: Bench, data: DataSet, distance: Distance, orders: list[_Order], turn: str) -> None:
    """Run the direct client at the distance, then twice without a delay: to see what the proxy itself costs."""
    options, report = bench.options, bench.report
    first = orders[0].measure
    with stage(f"direct, {options.in_flight} in flight, {turn}"):
        distance.take()
        fetched = _fetch(bench, distance.bucket, data, first, distance.pid)
        once = once_of(distance.take(), _sizes(bench.lab.source, data))
        if not once.is_met:
            raise LoadError(f"the proxy miscounts: {once}")
        for order in orders:
            report.add(order.measure, DIRECT, fetched.files / fetched.seconds)
            report.add(order.measure, KEYS_KNOWN, fetched.files / (fetched.seconds - fetched.listing_s))
    witness = report.measure(f"what the proxy costs: direct client, {options.in_flight} in flight, no delay", "files/s")
    with stage(f"direct, without a delay, {turn}"):
        distance.set_latency(0.0)
        for name, bucket in (("to the store", bench.lab.bucket), ("through the proxy", distance.bucket)):
            found = _fetch(bench, bucket, data, None, distance.pid)
            report.add(witness, name, found.files / found.seconds)
        distance.take()
        distance.set_latency(options.latency_ms)


def _fetch(bench: Bench, bucket: Bucket, data: DataSet, measure: Measure | None, proxy_pid: int) -> direct.Fetched:
    """Run the direct client; record the CPU time when there is a measure to record it under."""
    os.sync()
    spent = Meter({"store": [bench.lab.store_pid], "proxy": [proxy_pid]})
    fetched = direct.fetch(bucket, f"{data.name}/", bench.options.in_flight, bench.options.deadline)
    if (fetched.files, fetched.bytes_read) != (data.files, data.files * data.size):
        raise LoadError(f"the direct client fetched {fetched.files} files, {fetched.bytes_read} bytes")
    if measure is not None:
        seconds = {name: spent.seconds()[name] for name in ("store", "proxy")}
        bench.record_cpu(measure, DIRECT, {"client": fetched.cpu_s, **seconds}, fetched.files)
    return fetched
