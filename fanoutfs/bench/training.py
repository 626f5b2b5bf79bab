"""A PyTorch DataLoader over the mount against the same images on ext4; the program behind scripts/bench-torch.

Three epochs: the first, from an object store 20 ms away into an empty cache; cold, from the local cache, mounted anew
and with the page cache dropped; warm, straight after it, from the page cache.  On ext4 the first epoch is a cold one.
Images are decoded and scaled: on a machine with few cores that, and not reading, sets the pace.  The job says in which
order it will read, where the build can be told.

training_job.py is the job, a process of its own that has loaded torch before any clock runs.
"""

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fanoutfs.bench import machine
from fanoutfs.bench.counters import settled_counters
from fanoutfs.bench.data import upload
from fanoutfs.bench.delay import Distance, at_distance
from fanoutfs.bench.epoch_parts import Bench, meter
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.load import LoadError
from fanoutfs.bench.peers import Ext4, Fanoutfs, Peer
from fanoutfs.bench.program import Race, make_parser, parse_choice, run, stage
from fanoutfs.bench.report import SUBJECT, Measure, Report
from fanoutfs.bench.scope import scratch_directory, stop, without_interrupts
from fanoutfs.errors import FanoutError
from fanoutfs.records import KIB

IMAGES: Final = "images"
PEERS: Final = ("ext4", SUBJECT)
QUICK: Final = {"runs": 1, "images": 64, "workers": "2"}
_PAINTERS: Final = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """What one epoch of the job was; seconds: everything; cpu_s: the job and its workers."""

    samples: int
    bytes_read: int
    seconds: float
    listing_s: float
    cpu_s: float


def main(arguments: Sequence[str], make_lab: LabMaker) -> int:
    """Run the program and return its exit code."""
    parser = make_parser("A PyTorch DataLoader over fanoutfs and over ext4, images decoded.", PEERS, is_remote=True)
    parser.add_argument("--images", type=int, default=2000, help="JPEGs of about 110 KiB")
    parser.add_argument("--workers", default="2,4", help="workers of the DataLoader")
    parser.add_argument("--batch", type=int, default=64, help="samples in a batch")
    options = parse_choice(parser, arguments, QUICK, peers=PEERS)
    return run(options, make_lab, "bench-torch: a DataLoader that decodes images", _bench)


def _bench(lab: Lab, report: Report, options: argparse.Namespace) -> None:
    try:
        from fanoutfs.bench.images import make_images
    except ModuleNotFoundError as error:
        raise FanoutError(f"{error}: install fanoutfs[bench-torch]") from None
    bench = Bench(lab, report, options)
    report.note(f"torch {version('torch')}, pillow {version('pillow')}")
    with stage(f"making {options.images:,} images and putting them into the bucket"):
        names = make_images(lab.source / IMAGES, options.images, _PAINTERS)
        size = upload(lab.source / IMAGES, names, lab.bucket, f"{IMAGES}/")
    report.note(f"{len(names):,} JPEGs of {size / len(names) / KIB:.0f} KiB on average, {size:,} bytes")
    report.note(f"fanoutfs: {bench.fanoutfs(lab.bucket).description}")
    if options.quick:
        report.note("--quick: too small and too short for any figure to mean something")
    race = Race(report)
    with _job() as job, at_distance(lab.bucket, options.latency_ms) as distance:
        for turn in range(options.runs):
            for workers in map(int, options.workers.split(",")):
                epochs = _Epochs(bench, job, distance, workers, turn, size)
                for peer in PEERS:
                    if bench.takes_part(peer) and race.has(peer):
                        text = f"{workers} workers, run {turn + 1}"
                        with race.attempt(peer, text, epochs.first, epochs.cold, epochs.warm):
                            epochs.of_ext4() if peer == "ext4" else epochs.of_fanoutfs()


class _Epochs:
    """The three epochs of one round."""

    def __init__(self, bench: Bench, job: "_Job", distance: Distance, workers: int, turn: int, size: int) -> None:
        self._bench = bench
        self._job = job
        self._distance = distance
        self._workers = workers
        self._turn = turn
        self._size = size
        report, away = bench.report, f"{bench.options.latency_ms:g} ms away"
        self.first = report.measure(f"first epoch, store {away} (ext4: cold), {workers} workers", "samples/s")
        self.cold = report.measure(f"cold epoch from the local cache, {workers} workers", "samples/s")
        self.warm = report.measure(f"warm epoch from the page cache, {workers} workers", "samples/s")

    def of_ext4(self) -> None:
        """Measure cold and warm; without the right to drop caches only warm."""
        peer = Ext4(self._bench.lab.source)
        with peer.mounted() as place:
            if machine.can_drop_caches():
                machine.drop_caches()
                self._train(peer, place, self.first, self.cold)
            else:
                self._train(peer, place)
            self._train(peer, place, self.warm)

    def of_fanoutfs(self) -> None:
        """Measure first, cold and warm; cold and warm over the cache that the first has filled."""
        with scratch_directory(Path(tempfile.gettempdir()), "cache-") as parent:
            peer = self._bench.fanoutfs(self._distance.bucket, cache=parent / "cache")
            with peer.mounted() as place:
                os.sync()
                self._train(peer, place, self.first)
            with peer.mounted() as place:
                settled_counters(place)
                if machine.can_drop_caches():
                    machine.drop_caches()
                    self._train(peer, place, self.cold)
                else:
                    self._train(peer, place)
                self._train(peer, place, self.warm)

    def _train(self, peer: Peer, place: Path, *measures: Measure) -> None:
        """Run one epoch and record it under these measures."""
        bench, options = self._bench, self._bench.options
        spent = meter(bench.lab, peer, place, self._distance.pid)
        order = {
            "root": str(place / IMAGES),
            "workers": self._workers,
            "batch": options.batch,
            "seed": self._turn,
            "mountpoint": str(place) if isinstance(peer, Fanoutfs) else None,
        }
        trained = self._job.train(order, options.deadline)
        if (trained.samples, trained.bytes_read) != (options.images, self._size):
            raise LoadError(f"{trained.samples} images, {trained.bytes_read} bytes read")
        seconds = spent.seconds()
        parts = {name: seconds[name] for name in seconds if name != "loaders"}
        for measure in measures:
            bench.report.add(measure, peer.name, trained.samples / trained.seconds)
            bench.record_cpu(measure, peer.name, {"job and workers": trained.cpu_s, **parts}, trained.samples)


class _Job:
    """A running training_job."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def train(self, order: dict[str, Any], deadline_s: float) -> Trained:
        """Have one epoch read.  Raises LoadError when the job fails or takes too long."""
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101  opened as a pipe
        try:
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise LoadError("the job has ended") from None
        return Trained(**json.loads(self.read_line(deadline_s)))

    def read_line(self, deadline_s: float) -> bytes:
        """Return the next line it says."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101  opened as a pipe
        if not select.select([stdout], [], [], deadline_s)[0]:
            self._process.kill()  # a late answer would be taken for that to the next order
            raise LoadError(f"the job has said nothing for {deadline_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise LoadError(f"the job has ended with exit code {self._process.wait()}")
        return line


@contextlib.contextmanager
def _job() -> Iterator[_Job]:
    """Start the job, wait until torch is loaded, end it with its workers."""
    # Workers hand tensors over through a Unix socket below TMPDIR.  Its path must be short (108 bytes, unix(7)): with a
    # longer one a batch is lost and the DataLoader waits for ever, having told nobody.
    with scratch_directory(Path("/tmp"), "fanoutfs-job-") as directory:
        process = subprocess.Popen(
            [sys.executable, "-m", "fanoutfs.bench.training_job"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(directory)},
        )
        try:
            job = _Job(process)
            with stage("loading torch"):
                job.read_line(120.0)
            yield job
        finally:
            with without_interrupts():
                stop(process)
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        with contextlib.suppress(BrokenPipeError):
                            stream.close()
