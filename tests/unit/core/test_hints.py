"""What fronts and the pusher tell reaches who wants to know, each kind its own listener."""

import contextlib
import socket
from functools import partial
from typing import Any

import pytest
import trio

from fanoutfs.core.hints import HintListeners, take_hints
from fanoutfs.front.hints import HintSender
from fanoutfs.observe.shared import FIRST_FRONT_ROW, SharedState
from fanoutfs.wire.hints import HINTS_PER_PACKET, HintKind, encode_hints
from tests.unit.core.sender import until


async def test_each_kind_reaches_its_listener_alone() -> None:
    told: list[tuple[str, Any]] = []

    def tell(kind: str, *what: Any) -> None:
        told.append((kind, what))

    listeners = HintListeners(
        directory_used=partial(tell, "directory"),
        part_reads=(partial(tell, "part"),),
        small_reads=(partial(tell, "small"),),
        listed=partial(tell, "listed"),
        pushed=(partial(tell, "pushed"),),
        access=partial(tell, "access"),
        written=partial(tell, "written"),
        made=partial(tell, "made"),
    )
    expected = [
        ("directory", (1,)),
        ("part", (2, 3)),
        ("access", (2, 5)),
        ("made", ()),
        ("listed", ([(4, 2)],)),
        ("small", ([6],)),
        ("pushed", ([(7, 8)],)),
        *(("written", (ino,)) for ino in range(100, 100 + HINTS_PER_PACKET)),
    ]
    core, front = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with core, front:
        sender = HintSender(front, SharedState().row(FIRST_FRONT_ROW), 60.0, has_pusher=True)
        sender.note_directory(1)
        for is_start in (False, False, True):  # (within a second)
            sender.note_part(2, 3, is_start=is_start)
        sender.note_access(2, 5)
        sender.note_made(left=0)
        sender.note_listed([4, 5])
        for ino in range(100, 100 + HINTS_PER_PACKET):
            sender.note_written(ino)
        sender.note_small_read(6)
        sender.flush()
        front.send(encode_hints(HintKind.PUSHED, [(7, 8)]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_hints, core, listeners)
            await until(lambda: len(told) >= len(expected), lambda: f"told: {told}")
            nursery.cancel_scope.cancel()
    assert sorted(told) == sorted(expected)


def test_part_that_is_begun_again_is_told_of_once_a_second_and_else_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Passes through an announced order may be seconds apart; a reader in the midst of a part is no news."""
    now_s = 1000.0
    monkeypatch.setattr("fanoutfs.front.hints.time.monotonic", lambda: now_s)
    core, front = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with core, front:
        sender = HintSender(front, SharedState().row(FIRST_FRONT_ROW), 60.0, has_pusher=False)
        told = []
        for after_s, is_start in (
            (0, True),
            (0.5, True),
            (1.5, False),
            (3, True),
            (3.5, False),
            (62, False),
            (64, False),
        ):
            now_s = 1000.0 + after_s
            sender.note_part(2, 3, is_start=is_start)
            with contextlib.suppress(BlockingIOError):
                core.recv(4096, socket.MSG_DONTWAIT)
                told.append(after_s)
    assert told == [0, 3, 64]
