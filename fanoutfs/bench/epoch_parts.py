"""What the scenarios of an epoch share: who takes part, whose CPU time is noted, how a round is recorded."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fanoutfs.bench.counters import status
from fanoutfs.bench.cpu import Meter, processes_with
from fanoutfs.bench.data import Bucket, make_small_files, upload
from fanoutfs.bench.epoch_read import DataSet, Epoch, Result, read_epoch
from fanoutfs.bench.lab import Lab
from fanoutfs.bench.peers import Ext4, Fanoutfs, Peer
from fanoutfs.bench.program import say, stage
from fanoutfs.bench.report import Measure, Report

READ_ONLY: Final = "--read-only"
"""An epoch writes nothing, and small files are pushed into the page cache of read-only mounts only."""
PUSH_OFF: Final = "fanoutfs, push off"


@dataclass(frozen=True, slots=True)
class Bench:
    """One run: where, with which options, and what is found."""

    lab: Lab
    report: Report
    options: argparse.Namespace

    def takes_part(self, name: str) -> bool:
        """Whether a peer was asked for."""
        return name in self.options.peers.split(",")

    def fanoutfs(self, bucket: Bucket, extra: Sequence[str] = (), cache: Path | None = None) -> Fanoutfs:
        """Return fanoutfs with the usual settings, these, and those of the command line, which come last."""
        peer = Fanoutfs(bucket, log=self.options.daemon_log, cache=cache)
        return replace(peer, settings=(*peer.settings, READ_ONLY, *extra, *self.options.option))

    def epoch(self, data: DataSet) -> Epoch:
        """Return an epoch in the order of the listing."""
        return Epoch(data, self.options.loaders, self.options.batch)

    def read(self, place: Path, epoch: Epoch, measure: Measure, name: str, meter: Meter) -> Result:
        """Read one epoch, record its rate and where the CPU time went since the meter was made."""
        result = read_epoch(place, epoch, self.options.deadline)
        self.report.add(measure, name, result.rate)
        self.record_cpu(measure, name, meter.seconds(), result.files)
        shown = f"{result.rate:,.0f} files/s, {result.listing_s:.2f} s of {result.seconds:.2f} s for the listing"
        say(f"    {shown}" + (f", {result.announcing_s:.2f} s for the announcement" if epoch.announce else ""))
        return result

    def record_cpu(self, measure: Measure, name: str, seconds: dict[str, float], files: int) -> None:
        """Record CPU time per file by process."""
        parts = {group: used / files * 1e6 for group, used in seconds.items()}
        self.report.break_down(f"CPU time per file by process: {measure.name}", "us", name, parts)


def make(lab: Lab, data: DataSet) -> None:
    """Make a data set on the local disk and put it into the bucket."""
    with stage(f"making {data} and putting them into the bucket"):
        names = make_small_files(lab.source / data.name, data.files, data.size)
        upload(lab.source / data.name, names, lab.bucket, f"{data.name}/")


def meter(lab: Lab, peer: Peer, place: Path, proxy_pid: int | None = None) -> Meter:
    """Begin to count the CPU time of a peer's processes, of the loaders, the store and the proxy."""
    groups: dict[str, list[int]] = {}
    if isinstance(peer, Fanoutfs):
        found = status(place)
        groups["core"] = [int(found["core_pid"])]
        groups["fronts"] = [int(pid) for pid in found["front_pids"]]
        known = {*groups["core"], *groups["fronts"]}
        groups["keeper and pusher"] = [pid for pid in processes_with(place) if pid not in known]
    elif not isinstance(peer, Ext4):
        groups["daemon"] = list(processes_with(place))
    if not isinstance(peer, Ext4):
        groups["store"] = [lab.store_pid]
    if proxy_pid is not None:
        groups["proxy"] = [proxy_pid]
    return Meter(groups)
