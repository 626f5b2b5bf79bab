"""The keeper has the kernel deliver again when no front serves a request."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.cache.arena import Arena
from fanoutfs.config.schema import MountConfig
from fanoutfs.keeper.generation import Estate, Generation, Mounted
from fanoutfs.observe.shared import BUSY, FIRST_FRONT_ROW, RESENDS, SharedState
from fanoutfs.wire.kernel import InitFlag
from fanoutfs.wire.messages import KernelOffer, encode_resend
from tests.support.mounts import wait_until

Kernel = tuple[socket.socket, socket.socket]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    """What stands for /dev/fuse: the keeper's end, the kernel's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def shared() -> SharedState:
    return SharedState()


@pytest.fixture
def generation(tmp_path: Path, shared: SharedState) -> Iterator[Generation]:
    """A generation with the fronts 0 and 1, of which number 1 died and is not replaced yet."""
    with socket.socket(socket.AF_UNIX) as control:
        config = MountConfig("memory://", tmp_path)
        estate = Estate(config, "", "", tmp_path, 0, shared, Arena(1), control, None, lambda _name: None)
        generation = Generation(estate, 1)
        generation.front_pids[12345] = 0
        shared.row(FIRST_FRONT_ROW + 1)[BUSY] = 7
        yield generation
        generation.front_pids.clear()
        generation.end()


def mounted(kernel: Kernel, flags: int = InitFlag.HAS_RESEND) -> Mounted:
    return Mounted(kernel[0].fileno(), b"", KernelOffer(7, 45, 0, flags))


def received(kernel: Kernel) -> bytes:
    try:
        return kernel[1].recv(100)
    except BlockingIOError:
        return b""


def test_idle_fronts_are_not_waited_for(generation: Generation, shared: SharedState, kernel: Kernel) -> None:
    generation.resend(mounted(kernel))
    assert received(kernel) == encode_resend()
    assert shared.flags[RESENDS] == 2


def test_busy_front_is_waited_for(generation: Generation, shared: SharedState, kernel: Kernel) -> None:
    row = shared.row(FIRST_FRONT_ROW)
    row[BUSY] = 3
    thread = threading.Thread(target=generation.resend, args=(mounted(kernel),))
    thread.start()
    try:
        wait_until(lambda: shared.flags[RESENDS] & 1, "fronts are told to take no requests")
        assert received(kernel) == b""
    finally:
        row[BUSY] = 4
        thread.join(30)
    assert received(kernel) == encode_resend()
    assert shared.flags[RESENDS] == 2


def test_kernel_that_cannot_deliver_again_is_not_asked(
    generation: Generation, shared: SharedState, kernel: Kernel
) -> None:
    generation.resend(mounted(kernel, 0))
    assert received(kernel) == b""
    assert shared.flags[RESENDS] == 0


def test_mount_that_is_gone_leaves_fronts_going_on(generation: Generation, shared: SharedState) -> None:
    reader, writer = os.pipe()
    os.close(writer)
    try:
        generation.resend(Mounted(reader, b"", KernelOffer(7, 45, 0, InitFlag.HAS_RESEND)))
    finally:
        os.close(reader)
    assert shared.flags[RESENDS] == 2
