"""One epoch as loaders read it: list the directories, divide the files, open, read and close each once.

All of that is inside the time.  A loader is a process; all are forked and wait at the gate before the clock starts, so
that it measures reading and no start of Python.  The first loader lists, puts the files in order, announces the order
where that is asked for, and deals the others their shares through pipes; then all read.

Files are opened, read and closed by os.open, os.read and os.close: an `open()` of CPython before 3.13 sends an ioctl(2)
and an lseek(2) as well, which would cost every peer more than the read.
"""

import contextlib
import itertools
import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fanoutfs.bench import load

_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_PHASES: Final = struct.Struct("=2d")  # seconds of listing, seconds of announcing
_SEPARATOR: Final = b"\0"  # no path contains it
_END: Final = _SEPARATOR * 2


@dataclass(frozen=True, slots=True)
class DataSet:
    """Files of one size below one directory, in directories of their own."""

    name: str
    files: int
    size: int

    def first(self, files: int) -> "DataSet":
        """Return the same with fewer files: those that come first when it is listed."""
        return DataSet(self.name, min(files, self.files), self.size)

    def __str__(self) -> str:
        return f"{self.files:,} files x {self.size:,} bytes"


@dataclass(frozen=True, slots=True)
class Epoch:
    """How a data set is read.

    batch: files a loader is dealt at a time, in turn, as a DataLoader does; 0: one contiguous share each.
    seed: of the shuffled order; None: as listed.  announce: tell the daemon the order first.
    """

    data: DataSet
    loaders: int
    batch: int
    seed: int | None = None
    announce: Callable[[Sequence[str], Path], None] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What one epoch took; seconds: everything, the listing and the announcement included."""

    files: int
    seconds: float
    listing_s: float
    announcing_s: float

    @property
    def rate(self) -> float:
        """Files per second."""
        return self.files / self.seconds


def read_epoch(mountpoint: Path, epoch: Epoch, deadline_s: float) -> Result:
    """Read one epoch and return what it took.  Raises LoadError when a file is missing or not of its size."""
    with mmap.mmap(-1, _PHASES.size) as phases, _Dealer(epoch.loaders) as dealer:
        root = os.fsencode(mountpoint / epoch.data.name)

        def work(index: int, slot: load.Slot) -> None:
            mine = _deal(dealer, mountpoint, root, epoch, phases) if index == 0 else dealer.receive(index)
            _read_all(root, mine, epoch.data.size)
            slot.count(len(mine), len(mine) * epoch.data.size)

        outcome = load.run_together(epoch.loaders, work, deadline_s=deadline_s)
        listing_s, announcing_s = _PHASES.unpack(phases)
    if outcome.operations != epoch.data.files:
        raise load.LoadError(f"{outcome.operations} files read instead of {epoch.data.files}")
    return Result(outcome.operations, outcome.seconds, listing_s, announcing_s)


def list_files(root: bytes, limit: int) -> list[bytes]:
    """Return the first `limit` files below a directory, relative to it, sorted by directory and name.

    Sorted as ImageFolder sorts; on the local file system that is also the order in which they lie on the disk.
    """
    found: list[bytes] = []
    pending = [b""]
    while pending and len(found) < limit:
        folder = pending.pop()
        folders: list[bytes] = []
        files: list[bytes] = []
        with os.scandir(root + b"/" + folder) as entries:
            for entry in entries:
                (folders if entry.is_dir(follow_symlinks=False) else files).append(folder + entry.name)
        found += sorted(files)
        pending += sorted((name + b"/" for name in folders), reverse=True)
    return found[:limit]


def in_order(names: Sequence[bytes], seed: int | None) -> list[bytes]:
    """Return the order in which one epoch consumes the files.  seed: None: as they are."""
    order = list(names)
    if seed is not None:
        random.Random(seed).shuffle(order)
    return order


def divide(names: Sequence[bytes], loaders: int, batch: int) -> list[list[bytes]]:
    """Return the share of each loader: batches in turn, or contiguous shares when batch is 0; nothing is left out."""
    if batch == 0:
        edges = [len(names) * number // loaders for number in range(loaders + 1)]
        return [list(names[start:end]) for start, end in itertools.pairwise(edges)]
    shares: list[list[bytes]] = [[] for _ in range(loaders)]
    for number, start in enumerate(range(0, len(names), batch)):
        shares[number % loaders] += names[start : start + batch]
    return shares


def compare(copy: Path, source: Path, data: DataSet, processes: int, deadline_s: float) -> None:
    """Read every file through a mount and compare every byte with the original.  Raises LoadError."""
    names = list_files(os.fsencode(source / data.name), data.files)
    roots = [os.fsencode(place / data.name) + b"/" for place in (copy, source)]

    def work(index: int, slot: load.Slot) -> None:
        mine = names[index::processes]
        for name in mine:
            ours, original = (_content(root + name, data.size) for root in roots)
            if ours != original:
                raise load.LoadError(f"{os.fsdecode(name)}: {len(ours)} bytes, not those that were put there")
        slot.count(len(mine), 0)

    load.run_together(processes, work, deadline_s=deadline_s)


def _deal(dealer: "_Dealer", mountpoint: Path, root: bytes, epoch: Epoch, phases: mmap.mmap) -> list[bytes]:
    """List, announce, deal; return the share of loader 0."""
    try:
        started = time.monotonic()
        order = in_order(list_files(root, epoch.data.files), epoch.seed)
        listed = time.monotonic()
        if epoch.announce is not None:
            epoch.announce([os.fsdecode(root + b"/" + name) for name in order], mountpoint)
        _PHASES.pack_into(phases, 0, listed - started, time.monotonic() - listed)
    except BaseException:
        dealer.deal_nothing()
        raise
    shares = divide(order, epoch.loaders, epoch.batch)
    dealer.deal(shares)
    return shares[0]


def _read_all(root: bytes, names: Sequence[bytes], size: int) -> None:
    open_, read, close = os.open, os.read, os.close
    wanted = size + 1  # one read tells both that all is there and that no more is
    for name in names:
        fd = open_(root + b"/" + name, _READ)
        if len(read(fd, wanted)) != size:
            raise load.LoadError(f"{os.fsdecode(name)}: not {size} bytes")
        close(fd)


def _content(path: bytes, size: int) -> bytes:
    fd = os.open(path, _READ)
    try:
        return os.read(fd, size + 1)
    finally:
        os.close(fd)


class _Dealer(contextlib.AbstractContextManager["_Dealer"]):
    """A pipe to each loader but the first, which deals.  All processes hold all ends: no pipe ever ends."""

    def __init__(self, loaders: int) -> None:
        self._pipes = {number: os.pipe() for number in range(1, loaders)}

    def __exit__(self, *_: object) -> None:
        for fd in itertools.chain.from_iterable(self._pipes.values()):
            os.close(fd)

    def deal(self, shares: Sequence[Sequence[bytes]]) -> None:
        """Loader 0: send the others their shares; each is read from at once, so that no pipe stays full."""
        for number, (_, write_end) in self._pipes.items():
            with os.fdopen(write_end, "wb", closefd=False) as stream:
                stream.write(_SEPARATOR.join(shares[number]) + _END)

    def deal_nothing(self) -> None:
        """Loader 0: let the others end, there is nothing to read."""
        self.deal([[]] * (len(self._pipes) + 1))

    def receive(self, number: int) -> list[bytes]:
        """Another loader: wait for its share."""
        data = bytearray()
        while not data.endswith(_END):
            data += os.read(self._pipes[number][0], 1 << 20)
        return [name for name in bytes(data).split(_SEPARATOR) if name]
