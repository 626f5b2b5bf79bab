"""What the processes of a load do; each operation's latency is taken.

Taking the time costs 0.1 to 0.15 µs an operation.  An open + pread + close of a hot file costs 2 to 5.
"""

import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice, repeat
from operator import sub
from typing import Final

from fanoutfs.bench.load import LoadError, Slot, Work

_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_HOT_PREAD_BYTES: Final = 64
_OPENS_PER_STEP: Final = 256
_STAMPS: Final = 1 << 21
"""So many are kept (16 MiB a process) before they are counted, 0.3 µs each, which belongs to nobody's latency: with the
default of 3 s that happens after the clock has stopped.
"""


def opens(path: bytes, seconds: float) -> Work:
    """Open, pread 64 bytes of and close one file for a time.  The latency is that of all three."""

    def work(_index: int, slot: Slot) -> None:
        open_, pread, close, size, now = os.open, os.pread, os.close, _HOT_PREAD_BYTES, time.monotonic_ns
        seen: Counter[int] = Counter()
        stamps = array("q", [now()])
        end = stamps[0] + int(seconds * 1e9)
        done = 0
        while stamps[-1] < end:
            if len(stamps) > _STAMPS:
                _count(seen, stamps)
                stamps = array("q", [now()])
            for _ in repeat(None, _OPENS_PER_STEP):
                fd = open_(path, _READ)
                pread(fd, size, 0)
                close(fd)
                stamps.append(now())
            done += _OPENS_PER_STEP
        slot.count(done, done * size)
        _count(seen, stamps)
        slot.record(seen)

    return work


def blocks(paths: Sequence[bytes], offsets: Sequence[Sequence[int]], block_bytes: int, seconds: float) -> Work:
    """Read blocks of one file in the order of its offsets, for a time at most; process i has file i."""

    def work(index: int, slot: Slot) -> None:
        buffer = [bytearray(block_bytes)]
        now = time.monotonic_ns
        fd = os.open(paths[index], _READ)
        stamps = array("q", [now()])
        end = stamps[0] + int(seconds * 1e9)
        read = 0
        for offset in offsets[index]:
            count = os.preadv(fd, buffer, offset)
            stamps.append(now())
            if not count:
                raise LoadError(f"{os.fsdecode(paths[index])}: nothing at {offset}")
            read += count
            if stamps[-1] > end:
                break
        os.close(fd)
        slot.count(len(stamps) - 1, read)
        slot.record(_counted(stamps))

    return work


def whole_files(paths: Sequence[bytes], sizes: Sequence[int], processes: int, seconds: float) -> Work:
    """Open, read and close files once each, for a time at most; process i takes paths i, i + processes, ...

    A size that is not the file's is an error: a cheap sign that the file system really answered.
    """

    def work(index: int, slot: Slot) -> None:
        open_, pread, close, now = os.open, os.pread, os.close, time.monotonic_ns
        stamps = array("q", [now()])
        end = stamps[0] + int(seconds * 1e9)
        read = 0
        for path, size in zip(paths[index::processes], sizes[index::processes], strict=True):
            fd = open_(path, _READ)
            if len(pread(fd, size + 1, 0)) != size:
                raise LoadError(f"{os.fsdecode(path)}: not {size} bytes")
            close(fd)
            read += size
            stamps.append(now())
            if stamps[-1] > end:
                break
        slot.count(len(stamps) - 1, read)
        slot.record(_counted(stamps))

    return work


def creates(directory: bytes, count: int, size: int, processes: int) -> Work:
    """Create `count` files altogether, process i in a directory of its own: open with O_EXCL, write once, close."""
    content = os.urandom(size)

    def create(path: bytes) -> None:
        fd = os.open(path, _CREATE, 0o644)
        if content:
            os.write(fd, content)
        os.close(fd)

    return on_files(directory, count, processes, create, size=size)


def on_files(
    directory: bytes,
    count: int,
    processes: int,
    operation: Callable[[bytes], object],
    *,
    passes: int = 1,
    size: int = 0,
) -> Work:
    """Do something with each of the files that `creates` makes.  size: bytes that each call moves."""

    def work(index: int, slot: Slot) -> None:
        _each(names_of(directory, index, count, processes) * passes, operation, slot, size)

    return work


def listings(directory: bytes, count: int, processes: int, passes: int) -> Work:
    """List the directories that `creates` filled."""

    def work(index: int, slot: Slot) -> None:
        expected = len(names_of(directory, index, count, processes))

        def list_one(path: bytes) -> None:
            found = len(os.listdir(path))
            if found != expected:
                raise LoadError(f"{os.fsdecode(path)}: {found} names instead of {expected}")

        _each([directory_of(directory, index)] * passes, list_one, slot)

    return work


def directory_of(directory: bytes, index: int) -> bytes:
    """Return the directory of process `index`."""
    return b"%s/process-%03d" % (directory, index)


def names_of(directory: bytes, index: int, count: int, processes: int) -> list[bytes]:
    """Return the files of process `index` when there are `count` altogether."""
    own = directory_of(directory, index)
    return [b"%s/sample-%06d" % (own, number) for number in range(index, count, processes)]


def _each(paths: Sequence[bytes], operation: Callable[[bytes], object], slot: Slot, size: int = 0) -> None:
    now = time.monotonic_ns
    stamps = array("q", [now()])
    for path in paths:
        operation(path)
        stamps.append(now())
    slot.count(len(paths), len(paths) * size)
    slot.record(_counted(stamps))


def _counted(stamps: "array[int]") -> Counter[int]:
    seen: Counter[int] = Counter()
    _count(seen, stamps)
    return seen


def _count(seen: Counter[int], stamps: "array[int]") -> None:
    seen.update(map(sub, islice(stamps, 1, None), stamps))
