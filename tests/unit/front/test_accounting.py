"""What a front notes of requests and of those who sent them."""

import socket

import pytest

from fanoutfs.front.accounting import Accounting
from fanoutfs.front.relay import Answer, Relay, Relayed
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import FIRST_FRONT_ROW, SharedState
from fanoutfs.observe.slow import RECORD_NS
from fanoutfs.records import NO_WAITS, Waits
from fanoutfs.wire.kernel import IN_HEADER, OUT_HEADER, READ_IN, Opcode
from fanoutfs.wire.messages import encode_request
from fanoutfs.wire.relay import Outcome, Verb, pack_done

NODE = 16


@pytest.fixture
def shared() -> SharedState:
    return SharedState()


@pytest.fixture
def accounting(shared: SharedState) -> Accounting:
    return Accounting(shared.row(FIRST_FRONT_ROW), shared.latencies.row(FIRST_FRONT_ROW), shared.slow.writer(0))


@pytest.fixture(autouse=True)
def now_ns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock that stands still until told."""
    now = [1_000_000_000]
    monkeypatch.setattr("fanoutfs.front.accounting.monotonic_ns", lambda: now[0])
    return now


def read_request(offset: int, size: int) -> memoryview:
    return memoryview(encode_request(Opcode.READ, 2, NODE, READ_IN.pack(0, offset, size, 0, 0, 0, 0)) + b"behind it")


def answered(
    started_ns: int, packet: bytes, opcode: int = Opcode.READ, *, error: int = 0, before: Waits = NO_WAITS
) -> Answer:
    request = Relayed(2, opcode, NODE, 4096, 512, 0, b"", started_ns, 77, before)
    return Answer(request, error, OUT_HEADER.pack(0, 0, 0) + packet)


def test_bytes_and_requests_go_to_whom_they_were_served(shared: SharedState, accounting: Accounting) -> None:
    row = shared.row(FIRST_FRONT_ROW)
    for pid, read, written in ((5, 100, 0), (6, 0, 30), (5, 7, 0), (5, 3, 0)):
        accounting.begin(pid)
        row[Count.READER_BYTES] += read
        row[Count.WRITER_BYTES] += written
        accounting.served(Opcode.READ, 1_000_000_000, read_request(0, 1))
    assert shared.slow.processes() == []
    accounting.flush()
    accounting.flush()
    uses = {use.pid: (use.requests, use.read_bytes, use.written_bytes) for use in shared.slow.processes()}
    assert uses == {5: (3, 110, 0), 6: (1, 0, 30)}


@pytest.mark.parametrize("processes", [1, 2, 900])
def test_busy_front_writes_down_without_a_pause(
    shared: SharedState, accounting: Accounting, now_ns: list[int], processes: int
) -> None:
    for number in range(3000):
        now_ns[0] += 1_000_000
        accounting.begin(1 + number % processes)
        accounting.served(Opcode.READ, now_ns[0], read_request(0, 1))
    noted = sum(use.requests for use in shared.slow.processes())
    assert noted >= 2000
    assert len(accounting._gathered) <= 512


def test_slow_request_of_a_front_is_disk(shared: SharedState, accounting: Accounting, now_ns: list[int]) -> None:
    accounting.begin(5)
    started_ns = now_ns[0]
    now_ns[0] += RECORD_NS - 1
    accounting.served(Opcode.READ, started_ns, read_request(8192, 4096))
    assert shared.slow.news() == []
    now_ns[0] += 1
    accounting.served(Opcode.READ, started_ns, read_request(8192, 4096))
    (found,) = shared.slow.news()
    assert (found.pid, found.nodeid, found.offset, found.size, found.asked_core) == (5, NODE, 8192, 4096, False)
    assert found.waits == Waits(0, 0, RECORD_NS)
    assert found.daemon_ns == 0


def test_waits_of_the_core_are_split_and_the_rest_is_the_daemons(
    shared: SharedState, accounting: Accounting, now_ns: list[int]
) -> None:
    waits = Waits(20_000_000, 5_000_000, 1_000_000, is_again=True)
    accounting.begin(77)
    started_ns = now_ns[0]
    now_ns[0] += 30_000_000
    accounting.finished(answered(started_ns, pack_done(Outcome.READY, waits)))
    (found,) = shared.slow.news()
    assert (found.waits, found.daemon_ns, found.asked_core, found.error) == (waits, 4_000_000, True, 0)
    names = ("backend", "queue", "disk", "daemon")
    totals = [shared.total(Count[f"WAIT_{name.upper()}_NS"]) // 1_000_000 for name in names]
    assert totals == [20, 5, 1, 4]
    accounting.flush()
    (use,) = shared.slow.processes()
    assert (use.backend_ns, use.daemon_ns, use.requests) == (20_000_000, 4_000_000, 1)


@pytest.mark.parametrize(
    ("opcode", "packet", "error", "expected"),
    [
        (Opcode.LOOKUP, bytes(128), 0, "backend"),
        (Opcode.FSYNC, b"", 0, "disk"),
        (Opcode.MKDIR, bytes(128), 0, "daemon"),
        (Opcode.READ, b"", 5, "backend"),
        (Opcode.WRITE, bytes(104), 0, "daemon"),  # attributes: the core took set-ID bits away first
    ],
)
def test_requests_that_say_nothing_are_filed_by_their_kind(
    shared: SharedState,
    accounting: Accounting,
    now_ns: list[int],
    opcode: Opcode,
    packet: bytes,
    error: int,
    expected: str,
) -> None:
    started_ns = now_ns[0]
    now_ns[0] += 40_000_000
    accounting.finished(answered(started_ns, packet, opcode, error=error))
    assert shared.total(Count[f"WAIT_{expected.upper()}_NS"]) == 40_000_000
    assert shared.slow.news()[0].error == error


def test_waits_of_a_request_that_asked_twice_add_up(
    shared: SharedState, accounting: Accounting, now_ns: list[int]
) -> None:
    started_ns = now_ns[0]
    now_ns[0] += 30_000_000
    before, after = Waits(8_000_000, 1, 2, is_again=True), Waits(4_000_000, 10, 20)
    accounting.finished(answered(started_ns, pack_done(Outcome.READY, after), before=before))
    assert shared.slow.news()[0].waits == Waits(12_000_000, 11, 22, is_again=True)


def test_waits_travel_through_the_slot_of_a_request() -> None:
    shared = SharedState()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        relay = Relay(ours, shared, 0, shared.row(FIRST_FRONT_ROW), fronts=1)
        waits = Waits(5, 6, 7, is_again=True)
        relay.begin(123, 77, waits)
        relay.ask(Verb.FILL, Opcode.READ, 2, NODE, 0, 4096, 1)
        unique = IN_HEADER.unpack_from(theirs.recv(4096))[2]
        theirs.send(OUT_HEADER.pack(OUT_HEADER.size, 0, unique))
        answer = relay.receive()
    assert answer is not None
    assert (answer.request.started_ns, answer.request.pid, answer.request.waits) == (123, 77, waits)
