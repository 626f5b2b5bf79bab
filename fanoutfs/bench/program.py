"""What the benchmark programs share: options, the scratch directory, interruption, the output, the exit code."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from fanoutfs.bench import machine
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.load import LoadError
from fanoutfs.bench.peers import Ext4, Fanoutfs, Passthrough, Peer, Rclone, S3fs, passthrough_as_example
from fanoutfs.bench.report import Measure, Report
from fanoutfs.bench.scope import Interrupted, PeerError, scratch_directory, signals_unwind, temporary_files_in
from fanoutfs.errors import DaemonDiedError, FanoutError

PEER_NAMES: Final = ("ext4", "passthrough", "rclone", "s3fs", "fanoutfs")
AS_EXAMPLE: Final = "passthrough-as-example"
"""Takes part where the price of an open is the question."""
EXIT_MISSED: Final = 1
EXIT_FAILED: Final = 3
EXIT_INTERRUPTED: Final = 130


def make_parser(
    description: str, peers: Sequence[str] = PEER_NAMES, *, is_remote: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has.

    peers: who takes part unless said otherwise.  is_remote: it reads from a store at a distance, --latency-ms.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="scratch space: data, store and caches")
    parser.add_argument("--json", type=Path, help="also write the report as JSON to this file")
    parser.add_argument("--runs", type=int, default=5, help="rounds; the median of them counts")
    parser.add_argument("--peers", default=",".join(peers), help="who takes part")
    parser.add_argument(
        "--deadline", type=float, default=300.0, help="seconds after which one run of a peer is given up"
    )
    parser.add_argument("--daemon-log", type=Path, help="keep the log of the fanoutfs daemon in this file")
    parser.add_argument("-o", "--option", action="append", default=[], help="further option of `fanoutfs mount`")
    if is_remote:
        parser.add_argument("--latency-ms", type=float, default=20.0, help="before every answer of a store far away")
    return parser


def parse_choice(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    quick: Mapping[str, object],
    *,
    scenarios: Sequence[str] = (),
    peers: Sequence[str] = (),
) -> argparse.Namespace:
    """Add --quick and parse.  quick: the options that it sets.

    scenarios, peers: what --only and --peers may name, else the program ends; (): there is no such option, or no limit.
    """
    parser.add_argument("--quick", action="store_true", help="a tiny run that shows that all works; no figure counts")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(quick)
    for option, known in (("only", scenarios), ("peers", peers)):
        if known and (unknown := set(vars(options)[option].split(",")) - set(known)):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


def add_large_file(parser: argparse.ArgumentParser) -> None:
    """Add the option of the benchmarks that read one large file."""
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the large file")


def run(
    options: argparse.Namespace, make_lab: LabMaker, title: str, body: Callable[[Lab, Report, argparse.Namespace], None]
) -> int:
    """Make the lab, run the benchmark in it, print the report, clean up; return the exit code.

    0: done and no target missed; 1: a target was missed; 3: the benchmark failed; 130: interrupted.
    """
    options.dir.mkdir(parents=True, exist_ok=True)
    facts = machine.facts(options.dir.resolve()) | machine.peer_versions()
    facts["runs"] = options.runs
    if "size_mib" in options:
        facts["large_file_mib"] = options.size_mib
    report = Report(title, facts)
    if not machine.can_drop_caches():
        report.note("not root: the page cache cannot be dropped, measurements that need that are left out")
    code = EXIT_FAILED
    try:
        with (
            signals_unwind(),
            scratch_directory(options.dir, "fanoutfs-bench-") as scratch,
            temporary_files_in(scratch),
            make_lab(scratch) as lab,
        ):
            body(lab, report, options)
        code = EXIT_MISSED if report.has_failures else 0
    except (KeyboardInterrupt, Interrupted):
        say("interrupted; everything is cleaned up, what was measured so far follows")
        code = EXIT_INTERRUPTED
    except FanoutError as error:
        say(f"failed: {error}")
    sys.stdout.write(report.to_text())
    if options.json:
        options.json.write_text(report.to_json())
    return code


def make_peers(options: argparse.Namespace, lab: Lab, names: Sequence[str], *, is_watched: bool) -> list[Peer]:
    """Return the peers that take part; is_watched: through the proxy instead of from the store itself."""
    bucket = lab.watched if is_watched else lab.bucket
    settings = (*Fanoutfs(bucket).settings, *options.option)
    peers: tuple[Peer, ...] = (
        Ext4(lab.source),
        Passthrough(lab.source),
        passthrough_as_example(lab.source),
        Rclone(bucket),
        S3fs(bucket),
        Fanoutfs(bucket, settings, log=options.daemon_log),
    )
    chosen = [name.strip() for name in options.peers.split(",")]
    known = [peer.name for peer in peers]
    unknown = set(chosen) - set(known)
    if unknown:
        raise FanoutError(f"unknown peer {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [peer for peer in peers if peer.name in names and peer.name in chosen]


class Race:
    """Who is still measured: a peer that fails once is left out of the rounds that follow, and the reason is shown."""

    def __init__(self, report: Report) -> None:
        """report: where the reasons go."""
        self._report = report
        self._given_up: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether this peer still takes part."""
        return name not in self._given_up

    @contextlib.contextmanager
    def attempt(self, name: str, text: str, *measures: Measure) -> Iterator[None]:
        """Run one round of a peer; a failure ends the race for it, not for the others."""
        say(f"- {text}, {name}")
        try:
            yield
        except (PeerError, LoadError, DaemonDiedError, OSError) as error:
            self.give_up(name, f"failed: {error}", *measures)

    def give_up(self, name: str, reason: str, *measures: Measure) -> None:
        """Leave a peer out from now on."""
        say(f"  {name} {reason}")
        self._given_up.add(name)
        for measure in measures:
            self._report.not_run(measure, name, reason)


def say(text: str) -> None:
    """Tell the person who waits what happens now; stdout belongs to the report."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextlib.contextmanager
def stage(text: str) -> Iterator[None]:
    """Announce what the block does."""
    say(f"- {text}")
    yield
