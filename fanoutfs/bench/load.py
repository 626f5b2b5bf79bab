"""The load: processes that start together, and what each of them does.

The generator must not hide the file system.  Measured on 2 cores: open + 64-byte pread + close of one ext4 file by two
of these Python loops 630k/s, by two C loops 700-780k/s: the loops below call nothing but the three system calls.

A load runs in forked processes, never threads: training jobs are processes, and the GIL would serialise the opens.
The children make plain system calls only, because their parent may hold the threads of an obstore client, and those do
not survive a fork.
"""

import contextlib
import gc
import mmap
import os
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Final

import xxhash

from fanoutfs.bench import latencies
from fanoutfs.bench.latencies import Latencies
from fanoutfs.bench.scope import without_interrupts
from fanoutfs.errors import FanoutError
from fanoutfs.records import KIB, MIB

_SLOT: Final = struct.Struct("=4Q")  # start_ns, end_ns, operations, bytes; then latencies
_SLOT_BYTES: Final = _SLOT.size + latencies.BYTES
_OPENS_PER_STEP: Final = 4096  # between two looks at the progress: 0.1 % of the time
_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_HOT_PREAD_BYTES: Final = 64
SEQUENTIAL_READ_BYTES: Final = MIB


class LoadError(FanoutError):
    """A process of the load failed, read wrong bytes, or did not finish in time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What all processes did together, between the first start and the last end."""

    seconds: float
    operations: int
    bytes_read: int
    latencies: Latencies = field(default_factory=Latencies)
    """Of the operations, where the work took them."""

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds

    @property
    def bytes_per_second(self) -> float:
        """Bytes per second."""
        return self.bytes_read / self.seconds


class Slot:
    """Where one process of a load counts; shared memory, written by that process only."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        """memory: _SLOT_BYTES per process."""
        self._memory = memory
        self._offset = index * _SLOT_BYTES
        self._started_ns = 0

    def start(self) -> None:
        """Note the time; CLOCK_MONOTONIC is one clock for all processes."""
        self._started_ns = time.monotonic_ns()

    def count(self, operations: int, bytes_read: int) -> None:
        """Publish the totals so far and the time of now as the end."""
        _SLOT.pack_into(self._memory, self._offset, self._started_ns, time.monotonic_ns(), operations, bytes_read)

    def record(self, seen: Mapping[int, int]) -> None:
        """Publish how often each latency was seen: ns → times.  Once, after the last `count`."""
        if seen:
            Latencies.of(seen).write_to(self._memory, self._offset + _SLOT.size)

    def read(self) -> tuple[int, int, int, int]:
        """Return (start_ns, end_ns, operations, bytes)."""
        return _SLOT.unpack_from(self._memory, self._offset)

    def latencies(self) -> Latencies:
        """Return what was recorded."""
        return Latencies.read_from(self._memory, self._offset + _SLOT.size)


Work = Callable[[int, Slot], None]
"""What process number i does; it counts into its slot, at least once at its end."""


def run_together(
    processes: int, work: Work, *, deadline_s: float = 3600.0, progress: Callable[[int], None] | None = None
) -> Outcome:
    """Fork processes that start at the same moment, wait for all, and return what they did.

    progress: called every ten seconds with the operations so far.
    Raises LoadError; no process of the load outlives the call.
    """
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page of the parent
    with contextlib.ExitStack() as scope:
        memory = scope.enter_context(mmap.mmap(-1, processes * _SLOT_BYTES))
        slots = [Slot(memory, index) for index in range(processes)]
        gate = _Gate()
        scope.callback(gate.close)
        pids: set[int] = set()
        scope.callback(_kill, pids)
        for index in range(processes):
            with without_interrupts():  # else a child could be forked and not be known
                pid = os.fork()
                if pid == 0:
                    _run_child(index, slots[index], gate, work)
                pids.add(pid)
        gate.open_for(processes)
        problem = gate.wait_for_all(deadline_s, None if progress is None else lambda: progress(_operations(slots)))
        if problem:
            raise LoadError(problem)
        failed = _reap(pids)
        if failed:
            raise LoadError(f"{failed} of {processes} processes failed without a word")
        return _outcome(slots)


class _Gate:
    """Three pipes: ready (a byte per child), go (closed by the parent), words (why one failed; all end: all ended)."""

    def __init__(self) -> None:
        """Open the pipes; before the first fork."""
        self._ready, self._is_ready = os.pipe()
        self._go, self._hold = os.pipe()
        self._words, self._speak = os.pipe()
        self._mine = [self._ready, self._is_ready, self._go, self._hold, self._words, self._speak]

    def pass_through(self) -> None:
        """Child: report ready and wait for the others."""
        os.close(self._hold)
        os.close(self._ready)
        os.close(self._words)
        os.write(self._is_ready, b".")
        os.close(self._is_ready)
        os.read(self._go, 1)  # ends when the last holder, the parent, lets go

    def speak(self, text: str) -> None:
        """Child: say why it failed, in one piece; when the pipe is full, enough has been said."""
        os.set_blocking(self._speak, False)
        with contextlib.suppress(BlockingIOError):
            os.write(self._speak, text.encode()[: select.PIPE_BUF])

    def open_for(self, children: int) -> None:
        """Parent: wait until all children stand at the gate, then let them go."""
        for fd in (self._is_ready, self._speak, self._go):
            self._close(fd)
        waiting = children
        while waiting:
            arrived = len(os.read(self._ready, waiting))
            if not arrived:
                raise LoadError("a process of the load died before the start")
            waiting -= arrived
        self._close(self._hold)

    def wait_for_all(self, deadline_s: float, progress: Callable[[], None] | None) -> str:
        """Parent: return when every child has ended or the deadline is over; return what went wrong, "" if nothing."""
        end = time.monotonic() + deadline_s
        words = b""
        poller = select.poll()
        poller.register(self._words, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            if not poller.poll(min(left, 10.0) * 1000):
                if progress is not None:
                    progress()
                continue
            chunk = os.read(self._words, 1 << 16)
            if not chunk:
                return words.decode(errors="replace").partition(";")[0][:400]  # the first to fail speaks for all
            words += chunk
        return f"not finished after {deadline_s:.0f} s"

    def close(self) -> None:
        """Close what is still open in this process."""
        for fd in list(self._mine):
            self._close(fd)

    def _close(self, fd: int) -> None:
        os.close(fd)
        self._mine.remove(fd)


def _run_child(index: int, slot: Slot, gate: _Gate, work: Work) -> None:
    """Do the work and end the process; never returns."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})
        gate.pass_through()
        slot.start()
        work(index, slot)
        code = 0
    except BaseException as error:  # noqa: BLE001  an edge: whatever it is, the parent must hear of it
        gate.speak(f"process {index}: {''.join(traceback.format_exception_only(error)).strip()}; ")
    finally:
        os._exit(code)


def _reap(pids: set[int]) -> int:
    """Wait for every process and return how many failed."""
    failed = 0
    while pids:
        pid = next(iter(pids))
        failed += os.waitpid(pid, 0)[1] != 0
        pids.discard(pid)
    return failed


def _kill(pids: set[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _reap(pids)


def _operations(slots: Sequence[Slot]) -> int:
    return sum(slot.read()[2] for slot in slots)


def _outcome(slots: Sequence[Slot]) -> Outcome:
    starts, ends, operations, sizes = zip(*(slot.read() for slot in slots), strict=True)
    took = Latencies.merged(slot.latencies() for slot in slots)
    return Outcome((max(ends) - min(starts)) / 1e9, sum(operations), sum(sizes), took)


# --- what a process does ---------------------------------------------------------------------------------------


def hot_opens(path: bytes, total: int, processes: int) -> Work:
    """Open, pread 64 bytes of and close one file, `total` times altogether."""

    def work(index: int, slot: Slot) -> None:
        opens = total // processes + (index < total % processes)
        open_, pread, close, size = os.open, os.pread, os.close, _HOT_PREAD_BYTES
        done = 0
        while done < opens:
            step = min(_OPENS_PER_STEP, opens - done)
            for _ in repeat(None, step):
                fd = open_(path, _READ)
                pread(fd, size, 0)
                close(fd)
            done += step
            slot.count(done, done * size)

    return work


def cold_opens(path: bytes, digests: Sequence[int], processes: int, overlap: int) -> Work:
    """Read one cold file so that all of it is wanted at once, by several processes each, and check every byte.

    Each process opens the file, preads its first 64 KiB (all the same), closes; then, for every chunk of its share,
    opens, preads 1 MiB, closes.  Its share is its own part of the file and those of the next overlap - 1 processes.
    digests: xxh3-64 of every MiB of the file.
    """

    def work(index: int, slot: Slot) -> None:
        chunks = len(digests)
        first, end = index * chunks // processes, (index + 1) * chunks // processes
        own = max(1, end - first)
        opens = read = 0
        fd = os.open(path, _READ)
        read += len(os.pread(fd, 64 * KIB, 0))
        os.close(fd)
        for number in range(first, first + own * overlap):
            chunk = number % chunks
            fd = os.open(path, _READ)
            data = _pread_all(fd, MIB, chunk * MIB)
            os.close(fd)
            if xxhash.xxh3_64_intdigest(data) != digests[chunk]:
                raise LoadError(f"{os.fsdecode(path)}: wrong bytes in MiB {chunk} ({len(data)} bytes read)")
            opens += 1
            read += len(data)
        slot.count(opens + 1, read)

    return work


def _pread_all(fd: int, size: int, offset: int) -> bytes:
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def sequential_read(path: bytes) -> Work:
    """Read one file from beginning to end in reads of 1 MiB into one buffer."""

    def work(_index: int, slot: Slot) -> None:
        buffer = [bytearray(SEQUENTIAL_READ_BYTES)]
        preadv = os.preadv
        fd = os.open(path, _READ)
        offset = 0
        while count := preadv(fd, buffer, offset):
            offset += count
        os.close(fd)
        slot.count(1, offset)

    return work


def small_reads(paths: Sequence[bytes], size: int, processes: int) -> Work:
    """Open, read and close every file once; process i takes paths i, i + processes, ...

    size: of every file; a short read is an error, a cheap sign that the file system really answered.
    """

    def work(index: int, slot: Slot) -> None:
        open_, pread, close = os.open, os.pread, os.close
        mine = paths[index::processes]
        for path in mine:
            fd = open_(path, _READ)
            if len(pread(fd, size + 1, 0)) != size:
                raise LoadError(f"{os.fsdecode(path)}: not {size} bytes")
            close(fd)
        slot.count(len(mine), len(mine) * size)

    return work


def chunk_digests(path: Path) -> Iterator[int]:
    """Yield xxh3-64 of every MiB of a file, for cold_opens."""
    with path.open("rb") as file:
        while data := file.read(MIB):
            yield xxhash.xxh3_64_intdigest(data)
