"""What fronts and the pusher tell reaches who wants to know, each kind its own listener."""

import socket
from functools import partial
from typing import Any

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
        sender.note_part(2, 3)
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
