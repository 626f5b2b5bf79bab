"""What a front notes of each request: how long it took, who asked, and of those that took long what they waited for.

On the way of every request, so it does as little as it can: 0.4 us where requests of one process follow each other,
twice that where each is another's.  Bytes are not counted a second time: what the front's row gained since the process
changed was this process's.  Who asked for how much is gathered here and written to shared memory a few times a second.
"""

from time import monotonic_ns
from typing import Final

from fanoutfs.front.relay import Answer
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.latency import BUCKETS, CORE_BASE, FRONT_BASE, SERIES_WORDS, SHIFT, SUM, observe
from fanoutfs.observe.slow import RECORD_NS, SlowRequest, SlowWriter, daemon_ns
from fanoutfs.records import NO_WAITS, Waits
from fanoutfs.wire.kernel import IN_HEADER, IN_HEADER_SIZE, OUT_HEADER_SIZE, READ_IN, Opcode
from fanoutfs.wire.relay import unpack_waits

_RANGED: Final = (Opcode.READ, Opcode.WRITE, Opcode.READDIR, Opcode.READDIRPLUS)
"""Their bodies begin with file handle, offset and size."""
_READER_BYTES: Final = int(Count.READER_BYTES)
_WRITER_BYTES: Final = int(Count.WRITER_BYTES)
_GATHERED: Final = 512
"""After so many changes of the process all is written down, or the tables here would grow."""
_GATHER_NS: Final = 250_000_000
_SYNCED: Final = (Opcode.FSYNC, Opcode.FSYNCDIR)


class Accounting:
    """The notes of one front."""

    def __init__(self, row: memoryview, latencies: memoryview, slow: SlowWriter) -> None:
        self._row = row
        self._latencies = latencies
        self._slow = slow
        self.pid = 0
        """Whose request is being served.  Read by the worker, which calls `begin` only for another one."""
        self._requests = 0
        self._changes = 0
        self._due_ns = monotonic_ns() + _GATHER_NS
        self._read = row[Count.READER_BYTES]
        self._written = row[Count.WRITER_BYTES]
        self._gathered: dict[int, list[int]] = {}
        """Requests, bytes read, bytes written by process."""
        self._sums = self._gathered.setdefault(0, [0, 0, 0])
        """Those of the process whose request is being served."""

    def begin(self, pid: int) -> None:
        """Note whose request is being served from now on."""
        self._settle()
        self._changes += 1
        if self._changes >= _GATHERED:
            self.flush()
        self.pid = pid
        sums = self._gathered.get(pid)
        self._sums = self._gathered.setdefault(pid, [0, 0, 0]) if sums is None else sums

    @property
    def pause_s(self) -> float | None:
        """How long the front may sleep before `flush` has something to do; None: for ever."""
        return _GATHER_NS / 1e9 if self._requests or self._changes else None

    def served(self, opcode: int, started_ns: int, packet: memoryview) -> None:
        """Note a request that the front answered alone.  packet: the request, and perhaps more behind it."""
        elapsed_ns = monotonic_ns() - started_ns
        # As `observe` does; a call less on the way of every request.
        latencies = self._latencies
        at = (FRONT_BASE + opcode) * SERIES_WORDS
        bucket = (elapsed_ns >> SHIFT).bit_length()
        latencies[at + (bucket if bucket < BUCKETS else BUCKETS - 1)] += 1
        latencies[at + SUM] += elapsed_ns
        self._requests += 1
        if started_ns >= self._due_ns:
            self.flush()
        if elapsed_ns >= RECORD_NS:
            offset = size = 0
            if opcode in _RANGED:
                _fh, offset, size, *_rest = READ_IN.unpack_from(packet, IN_HEADER_SIZE)
            nodeid = IN_HEADER.unpack_from(packet)[3]
            waits = Waits(0, 0, elapsed_ns)  # what it does by itself is reading and writing files
            self._slow.record(
                SlowRequest(
                    started_ns, elapsed_ns, self.pid, opcode, nodeid, offset, size, 0, asked_core=False, waits=waits
                )
            )

    def finished(self, answer: Answer) -> None:
        """Note a request that the core helped with and that is answered now."""
        request = answer.request
        elapsed_ns = monotonic_ns() - request.started_ns
        observe(self._latencies, CORE_BASE + request.opcode, elapsed_ns)
        self._requests += 1
        waits = _waits_of(answer, elapsed_ns)
        row = self._row
        row[Count.WAIT_BACKEND_NS] += waits.backend_ns
        row[Count.WAIT_QUEUE_NS] += waits.queue_ns
        row[Count.WAIT_DISK_NS] += waits.disk_ns
        row[Count.WAIT_DAEMON_NS] += daemon_ns(elapsed_ns, waits)
        self._slow.add_waits(request.pid, elapsed_ns, waits)
        if elapsed_ns >= RECORD_NS:
            self._slow.record(
                SlowRequest(
                    request.started_ns,
                    elapsed_ns,
                    request.pid,
                    request.opcode,
                    request.nodeid,
                    request.offset,
                    request.size,
                    answer.error,
                    asked_core=True,
                    waits=waits,
                )
            )

    def flush(self) -> None:
        """Write down what was gathered."""
        self._settle()
        now_ns = monotonic_ns()
        self._due_ns = now_ns + _GATHER_NS
        for pid, (requests, read_bytes, written_bytes) in self._gathered.items():
            if requests:
                self._slow.add(pid, requests, read_bytes, written_bytes, now_ns)
        self._gathered.clear()
        self._changes = 0
        self._sums = self._gathered.setdefault(self.pid, [0, 0, 0])

    def _settle(self) -> None:
        """Add what was done since the last time to the sums of the process whose requests they were."""
        if not self._requests:
            return
        row, sums = self._row, self._sums
        read, written = row[_READER_BYTES], row[_WRITER_BYTES]
        sums[0] += self._requests
        sums[1] += read - self._read
        sums[2] += written - self._written
        self._requests, self._read, self._written = 0, read, written


def waits_until(answer: Answer) -> Waits:
    """Return what the core says a request waited for, this time and whenever it was asked before."""
    return answer.request.waits.plus(unpack_waits(answer.packet, OUT_HEADER_SIZE))


def _waits_of(answer: Answer, elapsed_ns: int) -> Waits:
    """Return what the core says a request waited for, or what a request of this kind waits for there."""
    if answer.error:
        # It ran out of time or the store refused; the core says no more than that.
        return Waits(elapsed_ns, 0, 0) if answer.request.opcode in _RANGED else NO_WAITS
    if answer.request.opcode == Opcode.LOOKUP:
        return Waits(elapsed_ns, 0, 0)  # a listing or a HEAD
    if answer.request.opcode in _SYNCED:
        return Waits(0, 0, elapsed_ns)
    return waits_until(answer)
