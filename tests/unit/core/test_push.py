"""The core's end of the pusher's channel: never waits, keeps the order, is bounded."""

import socket
from collections.abc import Iterator

import pytest

from fanoutfs.core.push import Push
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import CORE_ROW, SharedState
from fanoutfs.wire.hints import PACKET_BYTES, Hint, HintKind, decode_hints


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    core, pusher = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with core, pusher:
        yield core, pusher


def received(pusher: socket.socket) -> list[Hint]:
    hints: list[Hint] = []
    while True:
        try:
            hints += decode_hints(pusher.recv(PACKET_BYTES, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return hints


def test_hints_arrive_in_order(channel: tuple[socket.socket, socket.socket]) -> None:
    push = Push(channel[0], SharedState().row(CORE_ROW))
    push.note_listed([(100, 7)])
    push.note_reads(range(100, 300))
    push.leave_out([7])
    push.push_ahead([9, 8])
    assert received(channel[1]) == [
        Hint(HintKind.LISTED, 100, 7),
        *(Hint(HintKind.SMALL_READ, ino) for ino in range(100, 300)),
        Hint(HintKind.LEAVE_OUT, 7),
        Hint(HintKind.PUSH_AHEAD, 9),
        Hint(HintKind.PUSH_AHEAD, 8),
    ]


def test_full_channel_is_not_waited_for_and_what_waits_is_sent_later(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    row = SharedState().row(CORE_ROW)
    push = Push(channel[0], row)
    for first in range(0, 50_000, 10):
        push.note_reads(range(first, first + 10))
    assert row[Count.HINTS_DROPPED] == 0
    hints = received(channel[1])
    assert 0 < len(hints) < 50_000
    while len(hints) < 50_001:
        push.note_reads([50_000])
        hints += received(channel[1])
    assert [hint.ino for hint in hints[:50_000]] == list(range(50_000))


def test_what_waits_is_bounded_and_the_rest_is_counted(channel: tuple[socket.socket, socket.socket]) -> None:
    row = SharedState().row(CORE_ROW)
    push = Push(channel[0], row)
    for _time in range(20):
        push.note_reads(range(10_000))
    assert row[Count.HINTS_DROPPED] > 0


def test_dead_pusher_is_no_error(channel: tuple[socket.socket, socket.socket]) -> None:
    channel[1].close()
    Push(channel[0], SharedState().row(CORE_ROW)).note_reads([1])


def test_without_a_pusher_nothing_is_kept() -> None:
    row = SharedState().row(CORE_ROW)
    push = Push(None, row)
    for _time in range(100):
        push.note_reads(range(10_000))
    assert row[Count.HINTS_DROPPED] == 0
