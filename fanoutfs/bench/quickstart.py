"""A first look: a real data set behind an object store on this machine, read as training jobs read it.

The program behind scripts/quickstart, which installs what is needed first.  Everything it starts or writes is gone at
the end, also after Ctrl-C; with --keep a process of its own holds it all until the mount is unmounted.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from fanoutfs.bench import load, witness
from fanoutfs.bench.counters import counters
from fanoutfs.bench.data import make_large_file, upload, walk
from fanoutfs.bench.lab import Lab, LabMaker
from fanoutfs.bench.peers import Fanoutfs
from fanoutfs.bench.program import EXIT_FAILED, EXIT_INTERRUPTED, say, stage
from fanoutfs.bench.report import table
from fanoutfs.bench.scope import Interrupted, is_mounted, scratch_directory, signals_unwind, temporary_files_in
from fanoutfs.errors import FanoutError
from fanoutfs.records import MIB

PACKAGES: Final = ("oxygen-icon-theme", "dataset-fashion-mnist")
"""Thousands of small PNGs, and a few large files, as Debian ships them."""
_READ: Final = os.O_RDONLY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Sample:
    """One file of the data set."""

    name: Path
    size: int
    digest: int
    """xxh3-64 of the original."""


def main(arguments: Sequence[str], make_lab: LabMaker) -> int:
    """Run it and return the exit code: 0, 3 when something failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="quickstart",
        description="Put a real data set into an object store on this machine, mount it with fanoutfs, and read it as "
        "training jobs do.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--jobs", type=int, default=4, help="training jobs at the same time")
    parser.add_argument("--epochs", type=int, default=3, help="how often each job reads everything")
    parser.add_argument("--image-mib", type=int, default=256, help="size of one large generated file; 0: none")
    parser.add_argument("--latency-ms", type=float, default=5.0, help="injected before every answer of the store")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="scratch space")
    parser.add_argument("--keep", action="store_true", help="leave it mounted, and say how to look around")
    options = parser.parse_args(arguments)
    if options.keep:
        return _run_detached(options, make_lab)
    return _run(options, make_lab, None)


def _run(options: argparse.Namespace, make_lab: LabMaker, linger: Callable[[Path], None] | None) -> int:
    try:
        with (
            signals_unwind(),
            scratch_directory(options.dir, "fanoutfs-quickstart-") as scratch,
            temporary_files_in(scratch),
            make_lab(scratch) as lab,
        ):
            _show(lab, scratch, options, linger)
    except (KeyboardInterrupt, Interrupted):
        say("interrupted")
        return EXIT_INTERRUPTED
    except FanoutError as error:
        say(f"failed: {error}")
        return EXIT_FAILED
    finally:
        say("cleaned up: no mount, no process and no temporary file is left")
    return 0


def _show(lab: Lab, scratch: Path, options: argparse.Namespace, linger: Callable[[Path], None] | None) -> None:
    with stage(f"getting the data set: {', '.join(PACKAGES)}"):
        _collect(lab.source, scratch)
        if options.image_mib:
            make_large_file(lab.source / "volume" / "scan.img", options.image_mib * MIB)
    with stage("putting it into the bucket"):
        samples = [_sample(lab.source, name) for name in walk(lab.source)]
        upload(lab.source, [sample.name for sample in samples], lab.bucket)
    lab.proxy.set_latency(options.latency_ms)
    with stage("mounting the bucket"), Fanoutfs(lab.watched).mounted() as mountpoint:
        before = counters(mountpoint)
        asked_before = len(lab.proxy.requests())
        epochs = []
        for epoch in range(options.epochs):
            with stage(f"epoch {epoch + 1}: {options.jobs} jobs read everything, each in an order of its own"):
                started = len(lab.proxy.requests())
                outcome = load.run_together(options.jobs, _training(mountpoint, samples, epoch))
                epochs.append((outcome, witness.traffic(lab.proxy.requests()[started:])))
        asked = lab.proxy.requests()[asked_before:]
        messages = counters(mountpoint).messages_since(before)
        sys.stdout.write("\n".join(_result(samples, epochs, asked, messages, options)) + "\n")
        sys.stdout.flush()
        if linger is not None:
            linger(mountpoint)


# --- the data set ----------------------------------------------------------------------------------------------


def _collect(target: Path, scratch: Path) -> None:
    """Unpack the packages into the target; without a network take Python's own library instead, and say so."""
    archives = scratch / "packages"
    archives.mkdir()
    done = subprocess.run(
        ["apt-get", "download", "--quiet", *PACKAGES], cwd=archives, capture_output=True, text=True, check=False
    )
    files = sorted(archives.glob("*.deb"))
    if done.returncode != 0 or len(files) < len(PACKAGES):
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        say(f"  apt-get download failed ({reason}); taking Python's standard library as the data set instead")
        shutil.copytree(Path(os.__file__).parent, target / "python", ignore=_without_packages)
        return
    for file in files:
        subprocess.run(["dpkg-deb", "-x", str(file), str(scratch / "unpacked")], check=True)
        file.unlink()
    (scratch / "unpacked" / "usr" / "share").rename(target / "share")
    shutil.rmtree(target / "share" / "doc", ignore_errors=True)


def _without_packages(_directory: str, names: list[str]) -> Iterable[str]:
    return {"site-packages", "dist-packages", "__pycache__"} & set(names)


def _sample(source: Path, name: Path) -> Sample:
    digest = xxhash.xxh3_64()
    with (source / name).open("rb") as file:
        while data := file.read(MIB):
            digest.update(data)
    return Sample(name, (source / name).stat().st_size, digest.intdigest())


# --- the jobs --------------------------------------------------------------------------------------------------


def _training(mountpoint: Path, samples: Sequence[Sample], epoch: int) -> load.Work:
    """Return what one job does in one epoch: open, read and close every sample, shuffled, and check every byte."""

    def work(index: int, slot: load.Slot) -> None:
        order = list(samples)
        random.Random(epoch * 1000 + index).shuffle(order)
        read = 0
        for opened, sample in enumerate(order, 1):
            digest = xxhash.xxh3_64()
            fd = os.open(mountpoint / sample.name, _READ)
            while data := os.read(fd, MIB):
                digest.update(data)
                read += len(data)
            os.close(fd)
            if digest.intdigest() != sample.digest:
                raise load.LoadError(f"{sample.name}: not the bytes that were put into the bucket")
            slot.count(opened, read)

    return work


def _result(
    samples: Sequence[Sample],
    epochs: Sequence[tuple[load.Outcome, witness.Traffic]],
    asked: Sequence[witness.Request],
    messages: dict[str, int],
    options: argparse.Namespace,
) -> list[str]:
    """Return the lines that show what the store was asked for and what the jobs read."""
    whole = sum(sample.size for sample in samples)
    objects = witness.traffic(request for request in asked if witness.object_key(request.path))
    listings = witness.traffic(request for request in asked if not witness.object_key(request.path))
    opened, read = sum(each.operations for each, _ in epochs), sum(each.bytes_read for each, _ in epochs)
    kinds = ", ".join(f"{count:,} {method}" for method, count in sorted(objects.by_method.items()))
    ratio = read / objects.bytes_sent if objects.bytes_sent else 0.0
    rows = [
        ("data set", f"{len(samples):,} files, {whole / MIB:,.1f} MiB"),
        (
            "the jobs",
            f"{options.jobs}, each {len(epochs)} epochs over everything; every byte compared with the original",
        ),
        ("they read", f"{opened:,} opens, {read / MIB:,.1f} MiB"),
        (
            "the store was asked",
            f"{objects.requests:,} times for objects ({kinds}), {listings.requests:,} times for listings",
        ),
        (
            "the store sent",
            f"{objects.bytes_sent / MIB:,.1f} MiB of objects: {objects.bytes_sent / whole:.3f} x the data set",
        ),
        (
            "ratio",
            f"{ratio:.1f} bytes read for every byte fetched, {opened / max(1, len(asked)):.1f} opens for every request",
        ),
        (
            "messages",
            f"{sum(messages.values()):,} from the kernel to the daemon; {_count(messages, 'open')} of them OPEN",
        ),
    ]
    lines = ["", *table(rows), ""]
    table_rows = [("epoch", "seconds", "opens/s", "MB/s", "store requests", "store MiB")]
    for number, (outcome, sent) in enumerate(epochs, 1):
        table_rows.append(
            (
                f"{number}",
                f"{outcome.seconds:.2f}",
                f"{outcome.rate:,.0f}",
                f"{outcome.bytes_per_second / 1e6:,.0f}",
                f"{sent.requests:,}",
                f"{sent.bytes_sent / MIB:,.1f}",
            )
        )
    return [*lines, *table(table_rows, right=range(1, 6)), ""]


def _count(messages: dict[str, int], opcode: str) -> int:
    return sum(messages.get(f"messages_{opcode}_{how}", 0) for how in ("answered", "relayed"))


# --- --keep ----------------------------------------------------------------------------------------------------


def _run_detached(options: argparse.Namespace, make_lab: LabMaker) -> int:
    """Run everything in a process of its own session, and return when it is mounted and read, or has failed."""
    ready, is_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = EXIT_FAILED
        try:
            os.setsid()
            os.close(ready)
            code = _run(options, make_lab, lambda mountpoint: _linger(mountpoint, is_ready))
        finally:
            os._exit(code)
    os.close(is_ready)
    try:
        if os.read(ready, 1):
            return 0
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
    finally:
        os.close(ready)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _linger(mountpoint: Path, is_ready: int) -> None:
    """Say how to look around, let the caller go, and return when the mount has been unmounted."""
    fanoutfs = f"{Path(sys.executable).parent}/fanoutfs"
    sys.stdout.write(
        f"Still mounted at {mountpoint}\n"
        f"  ls -R {mountpoint}/share/icons | head\n"
        f"  {fanoutfs} status {mountpoint}\n"
        f"To end it, with the object store and everything on disk:\n"
        f"  {fanoutfs} umount {mountpoint}\n"
    )
    sys.stdout.flush()
    with Path(os.devnull).open("r+b") as null:
        for fd in (0, 1, 2):
            os.dup2(null.fileno(), fd)
    with contextlib.suppress(BrokenPipeError):
        os.write(is_ready, b".")
    os.close(is_ready)
    while is_mounted(mountpoint):
        time.sleep(1.0)
