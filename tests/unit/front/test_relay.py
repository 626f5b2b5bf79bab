"""A front's way to the core and back, over a real socketpair."""

import errno
import socket
from collections.abc import Iterator

import pytest

from fanoutfs.front.relay import Relay, with_unique
from fanoutfs.observe.catalog import RELAYED_BASE
from fanoutfs.observe.shared import (
    CORE_ROW,
    FIRST_FRONT_ROW,
    SLOTS_PER_FRONT,
    STARTED_NS,
    SUSPICION_CRASH,
    SharedState,
)
from fanoutfs.wire.kernel import IN_HEADER, IN_HEADER_SIZE, OUT_HEADER, READ_IN, UNIQUE_RESEND, Opcode
from fanoutfs.wire.messages import encode_error, encode_request
from fanoutfs.wire.relay import DONE, UNIQUE_INIT, Outcome, Verb, split_intent, split_unique

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    front, core = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    front.setblocking(False)
    core.setblocking(False)
    with front, core:
        yield front, core


@pytest.fixture
def shared() -> SharedState:
    return SharedState()


def make_relay(pair: Pair, shared: SharedState, front: int = 0) -> Relay:
    return Relay(pair[0], shared, front, shared.row(FIRST_FRONT_ROW + front))


@pytest.fixture
def relay(pair: Pair, shared: SharedState) -> Relay:
    return make_relay(pair, shared)


def received(core: socket.socket) -> tuple[int, int, bytes]:
    """Return (opcode, relay unique, body) of what the core gets."""
    packet = core.recv(65536)
    _length, opcode, unique, *_rest = IN_HEADER.unpack_from(packet)
    return opcode, unique, packet[IN_HEADER_SIZE:]


def ask(relay: Relay, unique: int) -> None:
    relay.ask(Verb.FILL, Opcode.READ, unique, 16, 4096, 1000, 2)


def done(unique: int) -> bytes:
    body = DONE.pack(Outcome.READY, 0, 0, 0)
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def test_intent_reaches_the_core_as_a_read_and_its_answer_finds_the_request(
    pair: Pair, relay: Relay, shared: SharedState
) -> None:
    ask(relay, 5)
    opcode, unique, body = received(pair[1])
    fh, offset, size, *_rest = READ_IN.unpack(body)
    assert (opcode, split_intent(fh), offset, size) == (Opcode.READ, (Verb.FILL, 16), 4096, 1000)
    assert [request.unique for request in shared.in_flight()] == [5]
    assert shared.row(FIRST_FRONT_ROW)[RELAYED_BASE + Opcode.READ] == 1

    pair[1].send(done(unique))
    answer = relay.receive()
    assert answer is not None
    request = answer.request
    assert (request.unique, request.nodeid, request.offset, request.size, request.tries) == (5, 16, 4096, 1000, 2)
    assert answer.error == 0
    assert shared.in_flight() == []
    assert relay.receive() is None


def test_lookup_is_forwarded_as_it_is_but_for_its_unique(pair: Pair, relay: Relay) -> None:
    relay.forward(Opcode.LOOKUP, 5, 1, encode_request(Opcode.LOOKUP, 0, 1, b"name\0"))
    opcode, unique, body = received(pair[1])
    assert (opcode, body) == (Opcode.LOOKUP, b"name\0")
    pair[1].send(encode_error(unique, errno.ENOENT))
    answer = relay.receive()
    assert answer is not None
    assert (answer.error, answer.request.unique, answer.request.opcode) == (errno.ENOENT, 5, Opcode.LOOKUP)
    assert with_unique(answer.packet, 5) == encode_error(5, errno.ENOENT)


def test_answer_comes_through_any_front(pair: Pair, relay: Relay, shared: SharedState) -> None:
    ask(relay, 5)
    pair[1].send(done(received(pair[1])[1]))
    answer = make_relay(pair, shared, front=3).receive()
    assert answer is not None
    assert answer.request.unique == 5
    assert shared.in_flight() == []


def test_fronts_use_slots_of_their_own(pair: Pair, shared: SharedState) -> None:
    for front in (0, 1, 15):
        ask(make_relay(pair, shared, front), 100 + front)
        slot, _sequence = split_unique(received(pair[1])[1])
        assert slot // SLOTS_PER_FRONT == front


def test_answer_to_an_earlier_use_of_a_slot_is_dropped(pair: Pair, relay: Relay, shared: SharedState) -> None:
    ask(relay, 5)
    unique = received(pair[1])[1]
    slot, sequence = split_unique(unique)
    for stale in (unique - (1 << 16), (sequence + 1) << 16 | slot):
        pair[1].send(done(stale))
    assert relay.receive() is None
    assert [request.unique for request in shared.in_flight()] == [5]
    pair[1].send(done(unique))
    pair[1].send(done(unique))
    assert relay.receive() is not None
    assert relay.receive() is None


def test_answer_to_init_and_notifications_are_swallowed(pair: Pair, relay: Relay) -> None:
    ask(relay, 5)
    unique = received(pair[1])[1]
    pair[1].send(done(UNIQUE_INIT))
    pair[1].send(done(0))
    pair[1].send(done(unique))
    answer = relay.receive()
    assert answer is not None
    assert answer.request.unique == 5


def test_full_socket_makes_a_backlog_that_goes_out_in_order(pair: Pair, relay: Relay, shared: SharedState) -> None:
    sent = 0
    while not relay.has_backlog:
        sent += 1
        ask(relay, sent)
    assert sent > 1
    assert len(shared.in_flight()) == sent - 1
    ask(relay, sent + 1)
    assert relay.is_waiting
    uniques = []
    for _n in range(sent + 1):
        uniques.append(received(pair[1])[1])
        relay.flush()
    assert not relay.is_waiting
    order = {request.slot: request.unique for request in shared.in_flight()}
    assert [order[split_unique(unique)[0]] for unique in uniques] == list(range(1, sent + 2))


def test_no_free_slot_makes_a_backlog(pair: Pair, relay: Relay, shared: SharedState) -> None:
    taken = []
    for n in range(SLOTS_PER_FRONT):
        ask(relay, n + 1)
        taken.append(received(pair[1])[1])
    assert not relay.has_backlog
    ask(relay, 5000)
    assert relay.has_backlog
    pair[1].send(done(taken[7]))
    assert relay.receive() is not None
    relay.flush()
    assert not relay.has_backlog
    assert split_unique(received(pair[1])[1])[0] == split_unique(taken[7])[0]


def test_suspects_go_to_the_core_one_at_a_time_the_strongest_first(
    pair: Pair, relay: Relay, shared: SharedState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fanoutfs.observe.shared.TRIAL_NS", 1 << 62)  # no trial ends by itself here
    for unique, times in ((6, 1), (8, 2)):
        for _n in range(times):
            shared.suspect(unique, SUSPICION_CRASH)
        ask(relay, UNIQUE_RESEND | unique)
    ask(relay, UNIQUE_RESEND | 10)  # resent, but not suspected
    received(pair[1])
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)  # the core is still starting: suspects wait
    shared.row(CORE_ROW)[STARTED_NS] = 1
    relay.flush()
    first = received(pair[1])[1]
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)
    assert relay.is_waiting
    assert not relay.has_backlog
    assert shared.suspect_in_core == UNIQUE_RESEND | 8
    pair[1].send(done(first))
    assert relay.receive() is not None
    relay.flush()
    assert shared.suspect_in_core == UNIQUE_RESEND | 6
    received(pair[1])
    assert not relay.is_waiting


def test_core_that_died_leaves_the_request_to_the_keeper(pair: Pair, relay: Relay, shared: SharedState) -> None:
    pair[1].close()
    ask(relay, 5)
    assert [request.unique for request in shared.in_flight()] == [5]
    assert not relay.has_backlog
    assert relay.receive() is None
