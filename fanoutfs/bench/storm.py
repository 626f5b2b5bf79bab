"""The storm: many processes open one large file at once; the program behind scripts/bench-storm.

Cold: N processes open + pread + close a file nobody has fetched yet, so that every byte is wanted by several of them at
the same moment; the log of the proxy in front of the store says how often each byte was sent.  What is read is compared
with the original by checksum.  Hot: the same file again and again, in opens per second, with the messages that reached
the daemon meanwhile.  Headline: 132.7 million opens, once, in full.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fanoutfs.bench import load, machine, witness
from fanoutfs.bench.counters import settled_counters
from fanoutfs.bench.data import make_large_file, upload
from fanoutfs.bench.heard import Heard
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.peers import Peer, describe, start_peers
from fanoutfs.bench.program import (
    AS_EXAMPLE,
    PEER_NAMES,
    Race,
    add_large_file,
    make_parser,
    make_peers,
    run,
    say,
    stage,
)
from fanoutfs.bench.report import SUBJECT, Measure, Report
from fanoutfs.records import MIB

FILE: Final = "image.bin"
OVERLAP: Final = 4  # how many processes want each byte
HEADLINE_OPENS: Final = 132_700_000
HEADLINE_PROCESSES: Final = 1024
_WARM_OPENS: Final = 2000
_HOT: Final = "hot opens (open + pread 64 B + close), {} processes"
HOT_PEERS: Final = (*PEER_NAMES, AS_EXAMPLE)
HOT_VS_EXT4: Final = 0.75
HOT_VS_PASSTHROUGH: Final = 20.0


def main(arguments: Sequence[str], make_lab: LabMaker) -> int:
    """Run the program and return its exit code."""
    parser = make_parser("Many processes open one large file: cold, hot, and 132.7 million times.", HOT_PEERS)
    add_large_file(parser)
    parser.add_argument("--processes", default="64,1024", help="sizes of the storm")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long one hot run takes")
    parser.add_argument("--only", default="cold,hot", help="phases to run")
    parser.add_argument("--headline", action="store_true", help="finally the headline, once and in full")
    parser.add_argument("--headline-opens", type=int, default=HEADLINE_OPENS)
    return run(parser.parse_args(arguments), make_lab, "bench-storm: many processes, one large file", _bench)


def _bench(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    sizes = [int(size) for size in options.processes.split(",")]
    phases = options.only.split(",")
    source = lab.source / FILE
    with stage(f"making {FILE}, {options.size_mib} MiB, and putting it into the bucket"):
        make_large_file(source, options.size_mib * MIB)
        upload(lab.source, [Path(FILE)], lab.bucket)
    digests = list(load.chunk_digests(source))
    for line in describe(make_peers(options, lab, HOT_PEERS, is_watched=True)):
        report.note(line)
    if "cold" in phases:
        for processes in sizes:
            _cold(lab, report, options, processes, digests)
    if "hot" in phases:
        _hot(lab, report, options, sizes, digests)
    if options.headline:
        _headline(lab, report, options, digests)


# --- cold ------------------------------------------------------------------------------------------------------


def _cold(lab: Lab, report: Report, options: argparse.Namespace, processes: int, digests: Sequence[int]) -> None:
    peers = make_peers(options, lab, PEER_NAMES, is_watched=True)
    times = report.measure(f"cold storm, {processes} processes: time", "s", is_rate=False)
    volume = report.measure(f"cold storm, {processes} processes: sent by the store", "MiB", is_rate=False)
    race = Race(report)
    seen: list[witness.Sent] = []
    for number in range(options.runs):
        for peer in peers:
            if not race.has(peer.name):
                continue
            with race.attempt(peer.name, f"cold storm of {processes} processes, run {number + 1}", times):
                seconds, sent = _cold_run(lab, peer, options, processes, digests)
                report.add(times, peer.name, seconds)
                if peer.name not in ("ext4", "passthrough"):
                    report.add(volume, peer.name, sent.bytes_sent / MIB)
                if peer.name == SUBJECT:
                    seen.append(sent)
    name = f"cold storm, {processes} processes: every byte sent once, by the store's log"
    if any(peer.name == SUBJECT for peer in peers):
        report.check(name, _once(seen, options.runs), _describe_sent(seen))


def _once(seen: Sequence[witness.Sent], runs: int) -> bool:
    return len(seen) == runs and all(sent.is_each_byte_once for sent in seen)


def _describe_sent(seen: Sequence[witness.Sent]) -> str:
    if not seen:
        return "not measured"
    twice, never = max(sent.bytes_twice for sent in seen), max(sent.bytes_never for sent in seen)
    counts = sorted({sent.requests for sent in seen})
    return f"{len(seen)} runs: at most {twice:,} bytes sent again, {never:,} never; {counts} GETs"


def _cold_run(
    lab: Lab, peer: Peer, options: argparse.Namespace, processes: int, digests: Sequence[int]
) -> tuple[float, witness.Sent]:
    with peer.mounted() as directory:
        path = bytes(directory / FILE)
        if machine.can_drop_caches():
            machine.drop_caches()
        before = len(lab.proxy.requests())
        work = load.cold_opens(path, digests, processes, OVERLAP)
        outcome = load.run_together(processes, work, deadline_s=options.deadline)
        requests = lab.proxy.requests()[before:]
    return outcome.seconds, witness.sent_of(requests, FILE, len(digests) * MIB)


# --- hot -------------------------------------------------------------------------------------------------------


def _hot(lab: Lab, report: Report, options: argparse.Namespace, sizes: Sequence[int], digests: Sequence[int]) -> None:
    peers = make_peers(options, lab, HOT_PEERS, is_watched=False)
    with start_peers(peers) as (places, reasons):
        rates: dict[str, float] = {}
        race = Race(report)
        measures = [report.measure(_HOT.format(processes), "opens/s") for processes in sizes]
        for name, reason in reasons.items():
            race.give_up(name, reason, *measures)
        for name, directory in places.items():
            with race.attempt(name, "warming", *measures):
                path = bytes(directory / FILE)
                load.run_together(1, load.cold_opens(path, digests, 1, 1), deadline_s=options.deadline)
                rates[name] = load.run_together(2, load.hot_opens(path, _WARM_OPENS, 2)).rate
        for measure, processes in zip(measures, sizes, strict=True):
            heard = _hot_rounds(report, options, race, measure, processes, places, rates)
            report.check_ratio(measure, "ext4", HOT_VS_EXT4)
            report.check_ratio(measure, "passthrough", HOT_VS_PASSTHROUGH)
            if SUBJECT in places:
                heard.judge(report, f"{measure.name}: no message to the daemon", options.runs)


def _hot_rounds(
    report: Report,
    options: argparse.Namespace,
    race: Race,
    measure: Measure,
    processes: int,
    places: dict[str, Path],
    rates: dict[str, float],
) -> Heard:
    """Run all rounds of one storm; return what fanoutfs heard meanwhile."""
    heard = Heard()
    for number in range(options.runs):
        for peer, directory in places.items():
            if not race.has(peer):
                continue
            with race.attempt(peer, f"hot opens by {processes} processes, run {number + 1}", measure):
                opens = max(processes, int(rates[peer] * options.seconds))
                before = settled_counters(directory) if peer == SUBJECT else None
                work = load.hot_opens(bytes(directory / FILE), opens, processes)
                outcome = load.run_together(processes, work, deadline_s=options.deadline)
                rates[peer] = outcome.rate
                report.add(measure, peer, outcome.rate)
                if before is not None:
                    heard.listen(directory, before)
    return heard


# --- headline --------------------------------------------------------------------------------------------------


def _headline(lab: Lab, report: Report, options: argparse.Namespace, digests: Sequence[int]) -> None:
    opens = options.headline_opens
    for peer in make_peers(options, lab, [SUBJECT], is_watched=True):
        with stage(f"headline: {opens:,} opens by {HEADLINE_PROCESSES} processes"), peer.mounted() as directory:
            path = bytes(directory / FILE)
            sent_before = len(lab.proxy.requests())
            load.run_together(HEADLINE_PROCESSES, load.cold_opens(path, digests, HEADLINE_PROCESSES, OVERLAP))
            sent = witness.sent_of(lab.proxy.requests()[sent_before:], FILE, len(digests) * MIB)
            heard, before = Heard(), settled_counters(directory)
            work = load.hot_opens(path, opens, HEADLINE_PROCESSES)
            outcome = load.run_together(HEADLINE_PROCESSES, work, progress=_show_progress)
            heard.listen(directory, before)
        report.add(report.measure("headline: time", "s", is_rate=False), SUBJECT, outcome.seconds)
        report.add(report.measure("headline: opens per second", "opens/s"), SUBJECT, outcome.rate)
        name = f"headline: {outcome.operations:,} opens, no message to the daemon"
        heard.judge(report, name, 1)
        name = "headline: every byte of the file sent once before"
        report.check(name, sent.is_each_byte_once, _describe_sent([sent]))


def _show_progress(done: int) -> None:
    say(f"  {done:,} opens so far")
