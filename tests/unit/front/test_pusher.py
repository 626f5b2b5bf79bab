"""The pusher's loop over a real store, with a socket in the kernel's place."""

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fanoutfs.cache.segments import FOLDER
from fanoutfs.cache.small import SmallEnvironment, SmallReader
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.front.pressure import MemoryGauge
from fanoutfs.front.pusher import Mover, Pusher
from fanoutfs.front.pushpolicy import PushPolicy
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import BUSY, PUSHER_ROW, SharedState
from fanoutfs.records import KIB, MIB
from fanoutfs.wire.hints import PACKET_BYTES, HintKind, decode_hints, encode_hints
from fanoutfs.wire.kernel import Notify
from tests.support.mounts import wait_until

LIMIT = 64 * MIB
SHARE_BYTES = 256 * MIB
FIRST = 1000


class FakeKernel:
    """The other end of what the pusher takes for /dev/fuse: messages keep their borders."""

    def __init__(self) -> None:
        self._end, self.pusher_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.stored: list[tuple[int, bytes]] = []

    def take(self) -> None:
        while True:
            try:
                message = self._end.recv(MIB, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            length, code, unique, nodeid, offset, size, zero = struct.unpack_from("<IiQQQII", message)
            assert (length, code, unique, offset, zero) == (len(message), Notify.STORE, 0, 0, 0)
            body = message[40:]
            assert len(body) == size
            self.stored.append((nodeid, body))

    def hang_up(self) -> None:
        self._end.close()

    def close(self) -> None:
        self._end.close()
        self.pusher_end.close()


class Rig:
    def __init__(self, volume: Path) -> None:
        self.kernel = FakeKernel()
        self.core, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = channel
        self.row = SharedState().row(PUSHER_ROW)
        policy = PushPolicy(LIMIT, random.Random(1))
        mover = Mover(
            SmallReader(SmallEnvironment(volume, writable=False)), self.kernel.pusher_end.fileno(), policy, self.row
        )
        self.pusher = Pusher(channel, policy, MemoryGauge(LIMIT, lambda _name: ""), mover, self.row)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with contextlib.suppress(ConnectionError):  # the core's end is closed and has not read everything
            self.pusher.run()

    def tell(self, kind: HintKind, *items: tuple[int, int]) -> None:
        self.core.send(encode_hints(kind, items))

    def wait_until_seen(self, files: int) -> None:
        """Wait until so many contents were pushed or left out."""

        def seen() -> bool:
            self.kernel.take()
            return bool(self.row[Count.BLOCKS_VERIFIED] == files)

        wait_until(seen, f"{files} files were looked at")

    def wait_for(self, files: int) -> list[tuple[int, bytes]]:
        def arrived() -> bool:
            self.kernel.take()
            return len(self.kernel.stored) >= files

        wait_until(arrived, f"{files} files were pushed")
        return self.kernel.stored

    def end(self) -> None:
        self.core.close()
        self.kernel.hang_up()  # it may hold a store that does not fit
        self.thread.join(10)
        assert not self.thread.is_alive()
        self.channel.close()
        self.kernel.close()


@pytest.fixture
def bodies(tmp_path: Path) -> dict[int, bytes]:
    """Contents in a store; the numbers between them are not there."""
    found = {FIRST + 2 * number: os.urandom(random.Random(number).randint(1, 100 * KIB)) for number in range(40)}

    async def fill() -> None:
        store = SmallStore(tmp_path, SHARE_BYTES, trio.lowlevel.checkpoint)
        for ino, body in found.items():
            assert await store.put(ino, memoryview(body))
        store.close()

    trio.run(fill)
    return found


@pytest.fixture
def rig(tmp_path: Path, bodies: dict[int, bytes]) -> Iterator[Rig]:
    running = Rig(tmp_path)
    running.thread.start()
    yield running
    running.end()


def test_listed_files_are_pushed_whole_and_sentinels_left_out(rig: Rig, bodies: dict[int, bytes]) -> None:
    rig.tell(HintKind.LISTED, (FIRST, 100))
    rig.wait_until_seen(len(bodies))
    stored = rig.wait_for(rig.row[Count.PUSHED_FILES])
    assert len(bodies) // 2 < len(stored) < len(bodies)
    assert [ino for ino, _body in stored] == sorted({ino for ino, _body in stored})
    assert all(body == bodies[ino] for ino, body in stored)
    assert rig.row[Count.PUSHED_BYTES] == sum(len(body) for _ino, body in stored)
    assert rig.row[BUSY] % 2 == 0
    # The first sentinel is read: it vouches for those before it.
    sentinel = next(ino for ino in bodies if ino not in dict(stored))
    rig.tell(HintKind.SMALL_READ, (sentinel, 0))
    wait_until(lambda: rig.row[Count.SENTINELS_READ] == 1, "the sentinel is counted")


def test_file_that_was_read_already_is_not_pushed(rig: Rig, bodies: dict[int, bytes]) -> None:
    read = list(bodies)[:5]
    rig.core.send(encode_hints(HintKind.LISTED, [(FIRST, 100)]))
    rig.core.send(encode_hints(HintKind.SMALL_READ, [(ino, 0) for ino in read]))
    rig.wait_until_seen(len(bodies) - len(read))
    assert not set(read) & {ino for ino, _body in rig.wait_for(rig.row[Count.PUSHED_FILES])}


def test_announced_files_are_pushed_in_their_order(rig: Rig, bodies: dict[int, bytes]) -> None:
    order = [FIRST + 20, FIRST + 4, FIRST + 30, FIRST + 5]
    rig.core.send(encode_hints(HintKind.LISTED, [(FIRST, 31)]))
    rig.tell(HintKind.PUSH_AHEAD, *((ino, 0) for ino in order))
    assert rig.wait_for(3)[:3] == [(ino, bodies[ino]) for ino in order[:3]]


def test_file_to_be_left_out_is_not_pushed_with_its_directory(rig: Rig, bodies: dict[int, bytes]) -> None:
    left_out = FIRST + 20
    rig.core.send(encode_hints(HintKind.LEAVE_OUT, [(left_out, 0)]))
    rig.tell(HintKind.LISTED, (FIRST, 100))
    rig.wait_until_seen(len(bodies) - 1)
    rig.tell(HintKind.PUSH_AHEAD, (left_out, 0))
    rig.wait_until_seen(len(bodies))
    stored = rig.wait_for(rig.row[Count.PUSHED_FILES])
    assert left_out not in [ino for ino, _body in stored[:-1]]


def test_core_is_told_what_was_pushed(rig: Rig, bodies: dict[int, bytes]) -> None:
    rig.tell(HintKind.LISTED, (FIRST, 100))
    rig.wait_until_seen(len(bodies))
    pushed = rig.wait_for(rig.row[Count.PUSHED_FILES])
    told: list[int] = []
    while len(told) < rig.row[Count.PUSHED_FILES]:
        for hint in decode_hints(rig.core.recv(PACKET_BYTES)):
            assert hint.kind is HintKind.PUSHED
            told += range(hint.ino, hint.ino + hint.part)
    assert told == [ino for ino, _body in pushed]


def test_damaged_content_is_never_pushed(tmp_path: Path, bodies: dict[int, bytes]) -> None:
    (path,) = (tmp_path / FOLDER).iterdir()
    damaged = FIRST + 6
    at = path.read_bytes().index(bodies[damaged][:32])
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(b"\0" * 8)
    rig = Rig(tmp_path)
    rig.thread.start()
    rig.tell(HintKind.LISTED, (FIRST, damaged + 1 - FIRST))
    try:
        rig.wait_until_seen(3)
        assert rig.wait_for(3) == [(ino, bodies[ino]) for ino in range(FIRST, damaged, 2)]
        assert rig.row[Count.PUSHES_REFUSED] == 0
    finally:
        rig.end()


def test_kernel_that_refuses_is_counted_and_the_push_goes_on(rig: Rig) -> None:
    rig.kernel.hang_up()  # EPIPE instead of ENOENT
    rig.tell(HintKind.LISTED, (FIRST, 100))
    # Each is tried again, in case the kernel has not entered the listing yet.
    wait_until(lambda: rig.row[Count.PUSHES_REFUSED] > 3 * 30, "pushes were refused")
    assert rig.row[Count.PUSHED_FILES] == 0
