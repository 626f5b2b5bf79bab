"""A front's way to the core and back.

Slots of the in-flight table (observe.shared) are allocated by the front that owns them and freed by whichever front
receives the answer.  Sending never blocks: what the socket does not take, or has no slot, waits in a backlog, and a
front with a backlog reads no further requests from the kernel while it goes on reading answers; otherwise fronts and
libfuse, whose writes block, would wait for each other for ever.

A WRITE or FALLOCATE that waits for the core keeps its body in a side slot of shared memory (`Held`), so that whichever
front receives the answer can finish it.  When the kernel was told to deliver again, what is held is dropped: see
observe.shared, redelivery.
"""

import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from fanoutfs.observe.catalog import RELAYED_BASE
from fanoutfs.observe.shared import (
    MAX_FRONTS,
    RESENDS,
    SLOT_BACKEND,
    SLOT_DISK_AGAIN,
    SLOT_NODEID,
    SLOT_OFFSET,
    SLOT_PID,
    SLOT_QUEUE,
    SLOT_RESENDS,
    SLOT_SEQUENCE_OPCODE,
    SLOT_SIDE,
    SLOT_SIZE_TRIES,
    SLOT_STARTED_NS,
    SLOT_UNIQUE,
    SLOT_WORDS,
    SLOTS_PER_FRONT,
    SUSPICION_CRASH,
    SharedState,
)
from fanoutfs.records import NO_WAITS, Waits
from fanoutfs.wire.kernel import IN_HEADER_SIZE, OUT_HEADER, READ_IN, UNIQUE_RESEND, Opcode
from fanoutfs.wire.messages import encode_request
from fanoutfs.wire.relay import UNIQUE_INIT, Verb, make_intent, make_unique, split_unique

_MAX_PACKET: Final = 65536 + 4096
"""The largest answer: an extended attribute (64 KiB) behind its header."""
_U64: Final = struct.Struct("<Q")
_UNIQUE_AT: Final = 8  # of `unique` in request and answer headers alike


@dataclass(slots=True)
class Held:
    """A request's body that is kept until the core has answered.

    body: in the front's own memory, as long as there is no side slot for it.  resends: the shared word when the
    request was read.
    """

    resends: int
    body: bytes
    side: int | None = None


@dataclass(frozen=True, slots=True)
class Relayed:
    """A request on its way to the core: what is needed to answer it later, and the packet to send.

    started_ns: when a front took it from the kernel.  waits: in the core, as often as it was asked before.
    """

    unique: int
    opcode: int
    nodeid: int
    offset: int
    size: int
    tries: int
    packet: bytes
    started_ns: int
    pid: int
    waits: Waits
    held: Held | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The core's answer to a relayed request.  packet: as received; error: positive errno or 0."""

    request: Relayed
    error: int
    packet: bytes


class Relay:
    """Sends requests to the core and takes its answers.  Owned by one front."""

    def __init__(
        self, channel: socket.socket, shared: SharedState, front: int, row: memoryview, *, fronts: int = MAX_FRONTS
    ) -> None:
        self._channel = channel
        self._shared = shared
        self._flags = shared.flags
        self._front = front
        self._fronts = fronts
        self._slots = shared.inflight
        self._first_slot = front * SLOTS_PER_FRONT
        self._next = 0
        self._sequence = time.monotonic_ns() & 0xFFFF_FFFF  # differs from a dead predecessor's
        self._row = row
        self._backlog: deque[Relayed] = deque()
        self._suspects: list[tuple[int, Relayed]] = []  # sorted by suspicion, the strongest last
        self._started_ns = 0
        self._pid = 0
        self._waits = NO_WAITS
        self.has_taken = False
        """The request that is being served went to the core since `begin`: its answer is still to come."""

    @property
    def has_backlog(self) -> bool:
        """Tell whether requests wait for the socket or a slot: read no more from the kernel."""
        return bool(self._backlog)

    @property
    def is_waiting(self) -> bool:
        """Tell whether `flush` must be called again soon."""
        return bool(self._backlog or self._suspects)

    # --- out ---------------------------------------------------------------------------------------------------

    def begin(self, started_ns: int, pid: int, waits: Waits = NO_WAITS) -> None:
        """Note that a request of this process is being served which was taken from the kernel at this time.

        waits: in the core until now.
        """
        self._started_ns = started_ns
        self._pid = pid
        self._waits = waits
        self.has_taken = False

    def forward(
        self, opcode: int, unique: int, nodeid: int, packet: bytes, *, tries: int = 0, held: Held | None = None
    ) -> None:
        """Send a request as it is."""
        self._submit(
            Relayed(unique, opcode, nodeid, 0, 0, tries, packet, self._started_ns, self._pid, self._waits, held)
        )

    def ask(
        self,
        verb: Verb,
        opcode: int,
        unique: int,
        nodeid: int,
        offset: int,
        size: int,
        tries: int,
        held: Held | None = None,
    ) -> None:
        """Ask the core to prepare what this request needs; the answer is a wire.relay.DONE."""
        body = READ_IN.pack(make_intent(verb, nodeid), offset, size, 0, 0, 0, 0)
        packet = encode_request(Opcode.READ, 0, nodeid, body)
        self._submit(
            Relayed(unique, opcode, nodeid, offset, size, tries, packet, self._started_ns, self._pid, self._waits, held)
        )

    def release(self, held: Held, used_bytes: int) -> None:
        """Give back the side slot of a request that is finished."""
        if held.side is not None:
            self._shared.free_side(held.side, used_bytes)
            held.side = None

    def _submit(self, request: Relayed) -> None:
        self._row[RELAYED_BASE + request.opcode] += 1
        self.has_taken = True
        suspicion = self._shared.suspicion(request.unique) if request.unique & UNIQUE_RESEND else 0
        if suspicion >= SUSPICION_CRASH:
            self._suspects.append((suspicion, request))
            self._suspects.sort(key=_by_suspicion)
        elif request.held is not None and request.held.side is not None:
            self._backlog.appendleft(request)  # the first may wait for a side slot, which only such as this give back
        else:
            self._backlog.append(request)
        self.flush()

    def flush(self) -> None:
        """Send what can be sent now."""
        while self._backlog and self._send(self._backlog[0]):
            self._backlog.popleft()
        # Requests that were in flight when a core crashed go one at a time, the most suspect first, so that the next
        # crash names the one.  Two fronts may take the token at the same moment: then the next crash is less telling.
        if self._suspects and self._shared.may_try_suspect():
            request = self._suspects[-1][1]
            self._shared.suspect_in_core = request.unique
            if self._send(request):
                self._suspects.pop()
            else:
                self._shared.suspect_in_core = 0

    def _send(self, request: Relayed) -> bool:
        held = request.held
        if held is not None and held.resends != self._flags[RESENDS]:
            return True  # the kernel has delivered it again
        slot = self._free_slot()
        if slot is None or not self._has_side(held):
            return False
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        packet = bytearray(request.packet)
        _U64.pack_into(packet, _UNIQUE_AT, make_unique(slot, self._sequence))
        at = slot * SLOT_WORDS
        slots = self._slots
        slots[at + SLOT_SEQUENCE_OPCODE] = self._sequence << 32 | request.opcode
        slots[at + SLOT_NODEID] = request.nodeid
        slots[at + SLOT_OFFSET] = request.offset
        slots[at + SLOT_SIZE_TRIES] = request.tries << 32 | request.size
        slots[at + SLOT_STARTED_NS] = request.started_ns
        slots[at + SLOT_PID] = request.pid
        slots[at + SLOT_BACKEND] = request.waits.backend_ns
        slots[at + SLOT_QUEUE] = request.waits.queue_ns
        slots[at + SLOT_DISK_AGAIN] = request.waits.disk_ns << 1 | request.waits.is_again
        slots[at + SLOT_SIDE] = 0 if held is None or held.side is None else held.side + 1
        slots[at + SLOT_RESENDS] = 0 if held is None else held.resends
        slots[at + SLOT_UNIQUE] = request.unique
        try:
            self._channel.send(packet)
        except BlockingIOError:
            slots[at + SLOT_UNIQUE] = 0
            return False
        except (BrokenPipeError, ConnectionResetError):
            # The core died.  The slot stays: the keeper reads from it what was in flight, and ends this front.
            return True
        self._next = slot - self._first_slot + 1
        return True

    def _has_side(self, held: Held | None) -> bool:
        """Tell whether the body, if there is one, is in a side slot, after trying to move it there."""
        if held is None or held.side is not None:
            return True
        held.side = self._shared.take_side(self._front, self._fronts)
        if held.side is None:
            return False
        self._shared.side(held.side)[: len(held.body)] = held.body
        held.body = b""
        return True

    def _free_slot(self) -> int | None:
        for step in range(SLOTS_PER_FRONT):
            slot = self._first_slot + (self._next + step) % SLOTS_PER_FRONT
            if not self._slots[slot * SLOT_WORDS + SLOT_UNIQUE]:
                return slot
        return None

    # --- back --------------------------------------------------------------------------------------------------

    def receive(self) -> Answer | None:
        """Return the next answer, or None when none is there.  Answers that nobody waits for are dropped."""
        while True:
            try:
                packet = self._channel.recv(_MAX_PACKET)
            except (BlockingIOError, ConnectionResetError):
                return None
            if len(packet) < OUT_HEADER.size:
                return None  # the core is gone; the keeper will end this front
            _length, error, unique = OUT_HEADER.unpack_from(packet)
            if unique == 0 or unique & UNIQUE_INIT:
                continue
            request = self._take(unique)
            if request is not None:
                return Answer(request, -error, packet)

    def _take(self, relay_unique: int) -> Relayed | None:
        slot, sequence = split_unique(relay_unique)
        at = slot * SLOT_WORDS
        slots = self._slots
        unique = slots[at + SLOT_UNIQUE]
        if not unique or slots[at + SLOT_SEQUENCE_OPCODE] >> 32 != sequence:
            return None
        opcode = slots[at + SLOT_SEQUENCE_OPCODE] & 0xFFFF_FFFF
        size_tries = slots[at + SLOT_SIZE_TRIES]
        nodeid, offset = slots[at + SLOT_NODEID], slots[at + SLOT_OFFSET]
        started_ns, pid = slots[at + SLOT_STARTED_NS], slots[at + SLOT_PID]
        disk_again = slots[at + SLOT_DISK_AGAIN]
        waits = Waits(slots[at + SLOT_BACKEND], slots[at + SLOT_QUEUE], disk_again >> 1, is_again=bool(disk_again & 1))
        side = slots[at + SLOT_SIDE]
        held = Held(slots[at + SLOT_RESENDS], b"", side - 1) if side else None
        slots[at + SLOT_UNIQUE] = 0
        if self._shared.suspect_in_core == unique:
            self._shared.suspect_in_core = 0
        size, tries = size_tries & 0xFFFF_FFFF, size_tries >> 32
        return Relayed(unique, opcode, nodeid, offset, size, tries, b"", started_ns, pid, waits, held)


def _by_suspicion(suspect: tuple[int, Relayed]) -> int:
    return suspect[0]


def with_unique(packet: bytes, unique: int) -> bytearray:
    """Return an answer with the kernel's unique in place of the relay's."""
    patched = bytearray(packet)
    _U64.pack_into(patched, _UNIQUE_AT, unique)
    return patched


assert IN_HEADER_SIZE > _UNIQUE_AT + 8  # noqa: S101 - both headers hold `unique` at the same place
