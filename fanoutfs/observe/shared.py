"""Memory that all processes of one mount share: counters, busy marks, requests in flight, suspects, slots of bytes.

The keeper creates it before it forks; it outlives every other process.  There are no locks.  Each word has one
writer, or a protocol that is stated beside it; an aligned 8-byte store is atomic on every machine we run on.

    rows        one per process: 256 u64 (2 KiB): counters, then what the process does at this moment
    in flight   FRONTS * SLOTS_PER_FRONT entries of 12 u64: requests relayed to the core and not answered yet
    suspects    which requests were in flight when a process crashed, and how often
    scratch     buffers through which the core hands over bytes that cannot be cached
    side        bodies of WRITEs and FALLOCATEs that wait for the core, so that any front can finish them
    positions   where listings stand (observe.positions)
    slow        requests that took long, and who waited for what (observe.slow)
    latencies   how long requests and calls of the backend took (observe.latency)
    spares      new inodes ahead of need (observe.spares)
    words       `resends`, `refusing` (writer: keeper), `log_level`, `tick`, `tracing`, `index_busy` (writer: core)
    read marks  one u32 for each part of a large file and each small file that hashes to it: the tick of its last read.
                 Writers: all fronts; the last one wins, and a mark lost costs at most a worse choice of what to evict

Redelivery: NOTIFY_RESEND makes the kernel deliver every unanswered request again.  A copy from before must never
write to a staging file afterwards: the file may have moved on since the second copy was answered.  So `resends` is odd
while the keeper has the kernel deliver again; fronts then take no request from the kernel, and the keeper waits until
none is serving one.  Each body that waits for the core carries the value it was read under, and is dropped, unanswered,
when the value is another one: the kernel has delivered it again.
"""

import mmap
import os
import time
from dataclasses import dataclass
from typing import Final

from fanoutfs.observe.catalog import METRICS, Count, message_names
from fanoutfs.observe.latency import Latencies
from fanoutfs.observe.positions import POSITIONS_BYTES, ListingPositions
from fanoutfs.observe.slow import SlowMemory
from fanoutfs.observe.spares import SpareRings
from fanoutfs.records import KIB, MIB
from fanoutfs.wire.kernel import UNIQUE_RESEND

MAX_FRONTS: Final = 16
ROW_WORDS: Final = 256
KEEPER_ROW: Final = 0
CORE_ROW: Final = 1
FIRST_FRONT_ROW: Final = 2
PUSHER_ROW: Final = FIRST_FRONT_ROW + MAX_FRONTS
_ROWS: Final = PUSHER_ROW + 1

# Words of a front's row behind the counters (BUSY of the pusher's as well).  Writer: that process.
BUSY: Final = 240
"""Odd while the front serves a request, or the pusher copies contents.  Whoever removes bytes waits until every one
of them was seen even, or changed."""
CURRENT_UNIQUE: Final = 241
CURRENT_OPCODE: Final = 242
# Words of every row.  Writer: the keeper.
PID: Final = 243
STARTED_NS: Final = 244
"""Monotonic time; of the core's row: since when it serves, 0 while it is starting."""
GENERATION: Final = 245
WRITE_LIMIT: Final = 246
"""Of a front's row: up to this count of WRITER_BYTES it writes to staging files without asking.  Writer: the core."""
BEATS: Final = 247
"""Of the core's row: turns of its event loop, one every BEAT_S or so.  Writer: the core."""
BEAT_S: Final = 0.5
HELD: Final = 248
"""Of the keeper's row: threads that wait for a disk and hear nothing (keeper.held).  Writer: the keeper."""

SLOTS_PER_FRONT: Final = 1024
SLOT_WORDS: Final = 12
# Words of an in-flight slot.  Writer: the front that owns it sets UNIQUE last; whoever answers sets UNIQUE to 0.
SLOT_UNIQUE: Final = 0
SLOT_SEQUENCE_OPCODE: Final = 1  # sequence << 32 | opcode
SLOT_NODEID: Final = 2
SLOT_OFFSET: Final = 3
SLOT_SIZE_TRIES: Final = 4  # tries << 32 | size
SLOT_STARTED_NS: Final = 5  # when a front took the request from the kernel, however often it asks the core
SLOT_SIDE: Final = 6  # side slot + 1, or 0
SLOT_RESENDS: Final = 7  # `resends` when the request in the side slot was read
SLOT_PID: Final = 8  # who asked, as the FUSE header says
SLOT_BACKEND: Final = 9  # and what the request waited for when the core was asked for it before (records.Waits)
SLOT_QUEUE: Final = 10
SLOT_DISK_AGAIN: Final = 11  # ns << 1 | is_again

SUSPECTS: Final = 1 << 15
"""Twice what can be in flight at once: a suspect that lost its entry would look innocent and kill for ever."""
_PROBES: Final = 16
"""A request's entry is one of so many, from its number on; the weakest of them gives way to a newcomer."""
# Writer of the suspect table: the keeper, while no front runs or reads what it changes.
_TOKEN_WORD: Final = 0
"""Unique of the suspect request that is on trial in the core; 0: none.  Writer: the front that takes it, whoever
answers, the keeper when a front died (it may have been about to give it back)."""
_TOKEN_SINCE_WORD: Final = 1
"""Monotonic ns when it was taken.  Writer: the front that takes it."""
_SUSPECTS_AT: Final = 2

SUSPICION_CRASH: Final = 4
"""Weight of being in flight when a process ended by itself (a crash, an exception nobody caught)."""
SUSPICION_KILL: Final = 1
"""The same when the process was killed from outside (kill -9, out of memory): most likely no fault of the request.
Also of a suspect that had stood its trial and was still in flight when a later request crashed the core."""
SUSPICION_SHARED: Final = 2
"""Of the request on trial, when others that nobody suspected yet were in flight as well."""
TRIAL_NS: Final = 50_000_000
"""How long a suspect is alone with the core.  A request that kills does so at once as a rule; waiting for each to be
answered would keep all others back for as long as a slow store takes, one after the other."""
LONG_TRIAL_NS: Final = 500_000_000
"""The same of a suspect that is about to be found guilty: on a busy machine a core may not have come to the request
before in 50 ms, and would die of it while the next suspect, an innocent one, is on trial."""
SUSPICION_LIMIT: Final = 12
"""From here on a request is poison and gets EIO: the third crash, or the twelfth kill."""

# Words of `flags`.
RESENDS: Final = 0
"""How often the kernel was told to deliver again, doubled; odd: it is being told now.  Writer: the keeper."""
LOG_LEVEL: Final = 1
"""The level of logging by number; 0: what the settings say.  Writer: the core."""
TICK: Final = 2
"""The time in bytes that moved (core.reads), which fronts set as the mark of what they read; never 0 once a core ran.
Writer: the core."""
TRACING: Final = 3
"""Not 0: fronts tell the core of every READ that begins a part or a small file.  Writer: the core."""
DISKS: Final = 4
"""Changes when a further cache directory goes out of service: fronts close what they have open there.  Writer: the
core."""
INDEX_BUSY: Final = 5
"""Not 0: the core's writer commits a group, which may take long.  Writer: the core."""
_PIN: Final = 6
"""Two words: see `pin`."""
REFUSING: Final = 8
"""Not 0: the core has not started for too long (keeper.starts); a front that cannot open the cache answers EIO.
Writer: the keeper."""
_FLAG_WORDS: Final = 9

READ_MARKS: Final = 1 << 20
"""4 MiB, of which memory is taken as it is used.  Above a million parts and files, some share a mark."""
_PART_STRIDE: Final = 40503
"""Odd, and far from the numbers of inodes made one after the other: no two parts of a file share a mark."""

SCRATCH_SLOTS: Final = 32
SCRATCH_BYTES: Final = MIB

SIDE_SLOTS: Final = 512
"""As many as the kernel sends asynchronous WRITEs at a time (MAX_BACKGROUND).  With none free a front takes no more
requests until one is."""
SIDE_BYTES: Final = MIB + 4096
_MAP_NORESERVE: Final = 0x4000  # <asm-generic/mman.h>; Python 3.11 does not name it
_SIDE_KEEP_BYTES: Final = 64 * KIB
"""A slot that held more gives its memory back."""

_INFLIGHT_WORDS: Final = MAX_FRONTS * SLOTS_PER_FRONT * SLOT_WORDS
_SUSPECT_WORDS: Final = _SUSPECTS_AT + SUSPECTS * 2


@dataclass(frozen=True, slots=True)
class InFlight:
    """One relayed request that is not answered yet."""

    slot: int
    unique: int
    opcode: int
    nodeid: int
    age_ns: int
    pid: int
    offset: int
    size: int


class SharedState:
    """The mapping and the words in it.  Created once by the keeper; children inherit it by fork."""

    def __init__(self, positions_fd: int = -1) -> None:
        """positions_fd: from `make_positions`, which outlives the keeper; -1: memory that does not."""
        words = _ROWS * ROW_WORDS + _INFLIGHT_WORDS + _SUSPECT_WORDS + SCRATCH_SLOTS + SIDE_SLOTS + _FLAG_WORDS
        self._scratch_offset = (words * 8 + 4095) & ~4095
        self._map = mmap.mmap(-1, self._scratch_offset + SCRATCH_SLOTS * SCRATCH_BYTES)
        self._bytes = memoryview(self._map)
        self._words = self._bytes[: words * 8].cast("Q")
        at = _ROWS * ROW_WORDS
        self.inflight = self._words[at : at + _INFLIGHT_WORDS]
        at += _INFLIGHT_WORDS
        self._suspects = self._words[at : at + _SUSPECT_WORDS]
        at += _SUSPECT_WORDS
        self._scratch_marks = self._words[at : at + SCRATCH_SLOTS]
        at += SCRATCH_SLOTS
        self._side_marks = self._words[at : at + SIDE_SLOTS]
        at += SIDE_SLOTS
        self.flags = self._words[at : at + _FLAG_WORDS]
        self.pin = self.flags[_PIN : _PIN + 2]
        """What keeps the index's last sync: see IndexEnvironment.show_pin.  Writer: the core."""
        self.latencies = Latencies(_ROWS)
        self.slow = SlowMemory(MAX_FRONTS)
        self.spares = SpareRings(MAX_FRONTS)
        self.positions = ListingPositions(memoryview(mmap.mmap(positions_fd, POSITIONS_BYTES)))
        self.read_marks = memoryview(mmap.mmap(-1, READ_MARKS * 4)).cast("I")
        # Not counted against the system's memory before it is used, which few mounts ever do to the full.
        self._side_map = mmap.mmap(-1, SIDE_SLOTS * SIDE_BYTES, flags=mmap.MAP_SHARED | _MAP_NORESERVE)
        self._side_bytes = memoryview(self._side_map)

    # --- rows --------------------------------------------------------------------------------------------------

    def row(self, index: int) -> memoryview:
        """Return the 256 words of one process."""
        return self._words[index * ROW_WORDS : (index + 1) * ROW_WORDS]

    def total(self, count: int) -> int:
        """Return the sum of one counter over all processes."""
        return sum(self._words[row * ROW_WORDS + count] for row in range(_ROWS))

    def counters(self) -> dict[str, int]:
        """Return every named counter, and those of opcodes that occurred, summed over all processes."""
        result = {metric.name: self.total(metric.count) for metric in METRICS}
        for index, name in message_names().items():
            if value := self.total(index):
                result[name] = value
        return result

    def busy_marks(self, fronts: int) -> list[int]:
        """Return the busy words of the fronts and, last, of the pusher."""
        rows = [*range(FIRST_FRONT_ROW, FIRST_FRONT_ROW + fronts), PUSHER_ROW]
        return [self._words[row * ROW_WORDS + BUSY] for row in rows]

    def clear_front_activity(self, front: int) -> None:
        """Forget what a dead front was doing.  The keeper calls this before it starts the next one."""
        row = self.row(FIRST_FRONT_ROW + front)
        row[BUSY] += row[BUSY] & 1
        row[CURRENT_UNIQUE] = row[CURRENT_OPCODE] = 0

    def clear_pusher_activity(self) -> None:
        """Forget what a dead pusher was doing.  The keeper calls this before it starts the next one."""
        row = self.row(PUSHER_ROW)
        row[BUSY] += row[BUSY] & 1

    # --- requests in flight ------------------------------------------------------------------------------------

    def in_flight(self) -> list[InFlight]:
        """Return the relayed requests that are not answered yet."""
        now = time.monotonic_ns()
        found = []
        for slot in range(MAX_FRONTS * SLOTS_PER_FRONT):
            at = slot * SLOT_WORDS
            unique = self.inflight[at]
            if unique:
                opcode = self.inflight[at + SLOT_SEQUENCE_OPCODE] & 0xFFFF_FFFF
                age_ns = now - self.inflight[at + SLOT_STARTED_NS]
                found.append(
                    InFlight(
                        slot=slot,
                        unique=unique,
                        opcode=opcode,
                        nodeid=self.inflight[at + SLOT_NODEID],
                        age_ns=age_ns,
                        pid=self.inflight[at + SLOT_PID],
                        offset=self.inflight[at + SLOT_OFFSET],
                        size=self.inflight[at + SLOT_SIZE_TRIES] & 0xFFFF_FFFF,
                    )
                )
        return found

    def lost_requests(self, fronts: int) -> list[int]:
        """Return the kernel's uniques of everything that was in a process's hands.  Keeper, when no front runs."""
        current = [self.row(FIRST_FRONT_ROW + front)[CURRENT_UNIQUE] for front in range(fronts)]
        return [unique for unique in current if unique] + [request.unique for request in self.in_flight()]

    def clear_in_flight(self) -> None:
        """Forget all relayed requests.  The keeper calls this between generations, when no front runs."""
        for request in self.in_flight():
            self.inflight[request.slot * SLOT_WORDS + SLOT_UNIQUE] = 0
        self.drop_bodies()
        self.spares.reset()
        self.flags[INDEX_BUSY] = 0
        self._suspects[_TOKEN_WORD] = 0

    # --- suspects ----------------------------------------------------------------------------------------------

    def suspicion(self, unique: int) -> int:
        """Return how strongly this request is suspected of killing processes; 0: not at all."""
        unique &= ~UNIQUE_RESEND
        for index in self._places(unique):
            if self._suspects[index] == unique:
                return self._suspects[index + 1]
        return 0

    def suspect(self, unique: int, weight: int) -> int:
        """Add to the suspicion against a request and return the sum.  Keeper only."""
        unique &= ~UNIQUE_RESEND
        places = self._places(unique)
        at = next((index for index in places if self._suspects[index] == unique), 0)
        if not at:
            at = min(places, key=lambda index: self._suspects[index + 1])
            self._suspects[at] = unique
            self._suspects[at + 1] = 0
        self._suspects[at + 1] += weight
        return self._suspects[at + 1]

    @staticmethod
    def _places(unique: int) -> list[int]:
        """Return where a request's entry may be.  The kernel counts its requests in steps of 2."""
        return [_SUSPECTS_AT + ((unique >> 1) + step) % SUSPECTS * 2 for step in range(_PROBES)]

    @property
    def suspect_in_core(self) -> int:
        """Return the unique of the suspect that is on trial in the core now, or 0."""
        return self._suspects[_TOKEN_WORD]

    @suspect_in_core.setter
    def suspect_in_core(self, unique: int) -> None:
        self._suspects[_TOKEN_SINCE_WORD] = time.monotonic_ns()
        self._suspects[_TOKEN_WORD] = unique

    def may_try_suspect(self) -> bool:
        """Tell whether the next suspect may go to the core: it serves, and no other one is on trial."""
        if not self._words[CORE_ROW * ROW_WORDS + STARTED_NS]:
            return False
        on_trial = self.suspect_in_core
        if not on_trial:
            return True
        trial_ns = LONG_TRIAL_NS if self.suspicion(on_trial) >= 2 * SUSPICION_CRASH else TRIAL_NS
        return time.monotonic_ns() - self._suspects[_TOKEN_SINCE_WORD] > trial_ns

    # --- bodies that wait for the core -------------------------------------------------------------------------
    # A front takes slots of its own share only, so no two take the same.  Whoever finishes the request frees its slot;
    # while `resends` is odd, and all fronts are idle, the keeper frees them all.

    def take_side(self, front: int, fronts: int) -> int | None:
        """Return a free slot of this front's share, taken; None: there is none."""
        share = SIDE_SLOTS // fronts
        for slot in range(front * share, (front + 1) * share):
            if not self._side_marks[slot]:
                self._side_marks[slot] = 1
                return slot
        return None

    def side(self, slot: int) -> memoryview:
        """Return the bytes of one slot."""
        return self._side_bytes[slot * SIDE_BYTES : (slot + 1) * SIDE_BYTES]

    def free_side(self, slot: int, used_bytes: int) -> None:
        """Give a slot back that held so many bytes."""
        if used_bytes > _SIDE_KEEP_BYTES:
            self._side_map.madvise(mmap.MADV_REMOVE, slot * SIDE_BYTES, SIDE_BYTES)
        self._side_marks[slot] = 0

    def begin_resend(self) -> None:
        """Have fronts take no further requests.  Keeper only; `end_resend` must follow."""
        self.flags[RESENDS] |= 1

    def drop_bodies(self) -> None:
        """Forget all requests whose body waits: the kernel will deliver them again.  Keeper, when no front serves."""
        for slot in range(MAX_FRONTS * SLOTS_PER_FRONT):
            at = slot * SLOT_WORDS
            if self.inflight[at + SLOT_UNIQUE] and self.inflight[at + SLOT_SIDE]:
                self.inflight[at + SLOT_UNIQUE] = 0
        for side in range(SIDE_SLOTS):
            if self._side_marks[side]:
                self.free_side(side, SIDE_BYTES)

    def end_resend(self) -> None:
        """Let fronts go on.  Keeper only."""
        self.flags[RESENDS] += 1

    # --- scratch slots -----------------------------------------------------------------------------------------
    # The core marks a slot with the time it filled it and names slot and length to a front.  The front copies the
    # bytes and then looks at the mark: if the core took the slot back meanwhile, the copy is thrown away.

    def scratch(self, slot: int) -> memoryview:
        """Return the bytes of one slot."""
        at = self._scratch_offset + slot * SCRATCH_BYTES
        return self._bytes[at : at + SCRATCH_BYTES]

    def scratch_mark(self, slot: int) -> int:
        """Return the slot's mark; 0: free."""
        return self._scratch_marks[slot]

    def set_scratch_mark(self, slot: int, mark: int) -> None:
        """Mark the slot as filled at this monotonic time, or free (0)."""
        self._scratch_marks[slot] = mark


def make_positions(inherited_fd: int) -> int:
    """Return a memfd for listing positions: the one from the keeper before, or a new one (-1)."""
    if inherited_fd >= 0:
        if os.fstat(inherited_fd).st_size == POSITIONS_BYTES:
            return inherited_fd
        os.close(inherited_fd)
    fd = os.memfd_create("fanoutfs-positions", os.MFD_CLOEXEC)
    os.ftruncate(fd, POSITIONS_BYTES)
    return fd


def mark_of(ino: int, part: int = 0) -> int:
    """Return the index of the read mark of a part of a large file, or of a small file."""
    return (ino + part * _PART_STRIDE) & (READ_MARKS - 1)


def bump(row: memoryview, count: Count, value: int = 1) -> None:
    """Add to a counter of the calling process's own row."""
    row[count] += value
