"""What took long, and who waited for what: memory that fronts write and the core reads.

    rings       one per front: the last RING_RECORDS requests that took RECORD_NS or longer
    processes   one table per front: what each process asked for, and what it waited for

A front writes only its own ring and table, so there are no locks.  A record's number is set to 0 before it is written
and to its place in the sequence after it: a reader that finds another number afterwards throws away what it read.  A
process's entry may be given to another one while it is read; numbers of one look at `top` may then be wrong.

Process numbers are those of the FUSE header: the thread that asked, 0 for what the kernel does on its own (writeback).
"""

import mmap
from dataclasses import dataclass
from typing import Final

from fanoutfs.records import Waits

RECORD_NS: Final = 10_000_000
RING_RECORDS: Final = 256
_RECORD_WORDS: Final = 12
# Words of a record.
_NUMBER: Final = 0
_STARTED: Final = 1
_ELAPSED: Final = 2
_PID: Final = 3
_KIND: Final = 4  # flags << 32 | errno << 16 | opcode
_NODEID: Final = 5
_OFFSET: Final = 6
_SIZE: Final = 7
_BACKEND: Final = 8
_QUEUE: Final = 9
_DISK: Final = 10
_FLAG_AGAIN: Final = 1 << 32
_FLAG_CORE: Final = 1 << 33
_RING_WORDS: Final = 1 + RING_RECORDS * _RECORD_WORDS  # how many were ever written, then the records

PROCESSES: Final = 1024
_PROCESS_WORDS: Final = 10
# Words of a process's entry.
_P_PID: Final = 0
_P_REQUESTS: Final = 1
_P_READ: Final = 2
_P_WRITTEN: Final = 3
_P_BACKEND: Final = 4
_P_QUEUE: Final = 5
_P_DISK: Final = 6
_P_DAEMON: Final = 7
_P_SEEN: Final = 8
_TABLE_WORDS: Final = PROCESSES * _PROCESS_WORDS
_FRONT_WORDS: Final = _RING_WORDS + _TABLE_WORDS


@dataclass(frozen=True, slots=True)
class SlowRequest:
    """One request that took long.  error: errno or 0.  asked_core: a front could not answer it alone.

    waits: what is known of the time in the core; `daemon_ns` is the rest.  What a front does by itself is reading and
    writing files: it counts as disk.  A LOOKUP that the core answered waited for a listing or a HEAD: backend.
    """

    started_ns: int
    elapsed_ns: int
    pid: int
    opcode: int
    nodeid: int
    offset: int
    size: int
    error: int
    asked_core: bool
    waits: Waits

    @property
    def daemon_ns(self) -> int:
        """Return the time that nothing explains but our own processes."""
        return daemon_ns(self.elapsed_ns, self.waits)


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What one process (thread) asked of the mount so far."""

    pid: int
    requests: int
    read_bytes: int
    written_bytes: int
    backend_ns: int
    queue_ns: int
    disk_ns: int
    daemon_ns: int
    seen_ns: int


def daemon_ns(elapsed_ns: int, waits: Waits) -> int:
    """Return what is left of a time after the waits."""
    return max(0, elapsed_ns - waits.backend_ns - waits.queue_ns - waits.disk_ns)


class SlowMemory:
    """The memory of all fronts.  Created by the keeper; children inherit it by fork."""

    def __init__(self, fronts: int) -> None:
        self._words = memoryview(mmap.mmap(-1, fronts * _FRONT_WORDS * 8)).cast("Q")
        self._read = [0] * fronts
        self._live = fronts

    def writer(self, front: int) -> "SlowWriter":
        """Return the front's own part, to write."""
        return SlowWriter(self._words[front * _FRONT_WORDS : (front + 1) * _FRONT_WORDS])

    def limit(self, fronts: int) -> None:
        """Note that a mount has no more fronts than this: no others are looked at by this process."""
        self._live = fronts

    def news(self) -> list[SlowRequest]:
        """Return what was recorded since the last call in this process, as far as it is still there, oldest first."""
        found: list[SlowRequest] = []
        for front in range(self._live):
            at = front * _FRONT_WORDS
            written = self._words[at]
            for number in range(max(self._read[front], written - RING_RECORDS), written):
                start = at + 1 + number % RING_RECORDS * _RECORD_WORDS
                record = self._words[start : start + _RECORD_WORDS].tolist()
                if record[_NUMBER] == number + 1 and self._words[start] == number + 1:
                    found.append(_decode(record))
            self._read[front] = written
        return sorted(found, key=_started)

    def processes(self) -> list[ProcessUse]:
        """Return every process that the fronts know, summed over the fronts."""
        sums: dict[int, list[int]] = {}
        for front in range(self._live):
            at = front * _FRONT_WORDS + _RING_WORDS
            table = self._words[at : at + _TABLE_WORDS].tolist()
            for start in range(0, _TABLE_WORDS, _PROCESS_WORDS):
                pid, *values = table[start : start + _P_SEEN + 1]
                if not values[-1]:
                    continue
                known = sums.setdefault(pid, [0] * len(values))
                seen = max(known[-1], values[-1])
                known[:] = [one + other for one, other in zip(known, values, strict=True)]
                known[-1] = seen
        return [ProcessUse(pid, *values) for pid, values in sums.items()]


class SlowWriter:
    """One front's ring and table."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        # A predecessor that died left its own here: they go on counting.
        self._at: dict[int, int] = {}
        self._free: list[int] = []
        for at in range(_FRONT_WORDS - _PROCESS_WORDS, _RING_WORDS - 1, -_PROCESS_WORDS):
            if words[at + _P_SEEN]:
                self._at[words[at + _P_PID]] = at
            else:
                self._free.append(at)
        self._hand = 0

    def record(self, request: SlowRequest) -> None:
        """Note a request that took long."""
        words = self._words
        written = words[0]
        at = 1 + written % RING_RECORDS * _RECORD_WORDS
        words[at + _NUMBER] = 0
        flags = (_FLAG_AGAIN if request.waits.is_again else 0) | (_FLAG_CORE if request.asked_core else 0)
        words[at + _STARTED] = request.started_ns
        words[at + _ELAPSED] = request.elapsed_ns
        words[at + _PID] = request.pid
        words[at + _KIND] = flags | request.error << 16 | request.opcode
        words[at + _NODEID] = request.nodeid
        words[at + _OFFSET] = request.offset
        words[at + _SIZE] = request.size
        words[at + _BACKEND] = request.waits.backend_ns
        words[at + _QUEUE] = request.waits.queue_ns
        words[at + _DISK] = request.waits.disk_ns
        words[at + _NUMBER] = written + 1
        words[0] = written + 1

    def add(self, pid: int, requests: int, read_bytes: int, written_bytes: int, now_ns: int) -> None:
        """Note what a process asked for."""
        at = self._at.get(pid) or self._adopt(pid)
        words = self._words
        words[at + _P_REQUESTS] += requests
        words[at + _P_READ] += read_bytes
        words[at + _P_WRITTEN] += written_bytes
        words[at + _P_SEEN] = now_ns

    def add_waits(self, pid: int, elapsed_ns: int, waits: Waits) -> None:
        """Note what a process waited for; after `add`."""
        at = self._at.get(pid) or self._adopt(pid)
        words = self._words
        words[at + _P_BACKEND] += waits.backend_ns
        words[at + _P_QUEUE] += waits.queue_ns
        words[at + _P_DISK] += waits.disk_ns
        words[at + _P_DAEMON] += daemon_ns(elapsed_ns, waits)

    def _adopt(self, pid: int) -> int:
        """Return an entry for a new process.

        When all are taken they are given away in turn: to look for the quietest would cost more than most requests,
        for each of them where thousands of threads read.
        """
        words = self._words
        if self._free:
            at = self._free.pop()
        else:
            at = _RING_WORDS + self._hand * _PROCESS_WORDS
            self._hand = (self._hand + 1) % PROCESSES
            self._at.pop(words[at + _P_PID], None)
        words[at + _P_SEEN] = 0
        for word in range(_P_SEEN):
            words[at + word] = 0
        words[at + _P_PID] = pid
        self._at[pid] = at
        return at


def _decode(record: list[int]) -> SlowRequest:
    kind = record[_KIND]
    waits = Waits(record[_BACKEND], record[_QUEUE], record[_DISK], is_again=bool(kind & _FLAG_AGAIN))
    return SlowRequest(
        started_ns=record[_STARTED],
        elapsed_ns=record[_ELAPSED],
        pid=record[_PID],
        opcode=kind & 0xFFFF,
        nodeid=record[_NODEID],
        offset=record[_OFFSET],
        size=record[_SIZE],
        error=kind >> 16 & 0xFFFF,
        asked_core=bool(kind & _FLAG_CORE),
        waits=waits,
    )


def _started(request: SlowRequest) -> int:
    return request.started_ns
