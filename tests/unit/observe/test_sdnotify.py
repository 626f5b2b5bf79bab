"""Talking to a service manager that is a socket of the test."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.observe.sdnotify import ServiceManager, take_descriptors


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(os.fspath(tmp_path / "notify"))
        receiver.settimeout(5)
        yield receiver


def _environment(receiver: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(receiver.getsockname()), **more}


def test_without_a_manager_nothing_happens() -> None:
    nobody = ServiceManager.from_environment({"FDSTORE": "8", "WATCHDOG_USEC": "1000000"})
    nobody.tell("READY=1")
    nobody.store("fuse", 0)
    nobody.await_received()
    assert (nobody.is_there, nobody.keeps_descriptors, nobody.keep_alive()) == (False, False, None)


def test_abstract_addresses_begin_with_an_at_sign() -> None:
    name = f"fanoutfs-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        ServiceManager(f"@{name}").tell("READY=1", "STATUS=well")
        assert receiver.recv(100) == b"READY=1\nSTATUS=well"


def test_a_descriptor_is_sent_with_its_name(manager: socket.socket) -> None:
    ServiceManager.from_environment(_environment(manager, FDSTORE="1")).store("fuse", 1)
    data, descriptors, _flags, _address = socket.recv_fds(manager, 100, 4)
    assert data == b"FDSTORE=1\nFDNAME=fuse\nFDPOLL=0"
    (descriptor,) = descriptors
    assert os.path.sameopenfile(descriptor, 1)
    os.close(descriptor)


def test_descriptors_are_not_offered_to_a_manager_that_keeps_none(manager: socket.socket) -> None:
    for environment in (_environment(manager), _environment(manager, FDSTORE="0")):
        service = ServiceManager.from_environment(environment)
        service.store("fuse", 1)
        service.tell("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_watchdog_is_told_three_times_within_its_patience(manager: socket.socket) -> None:
    service = ServiceManager.from_environment(_environment(manager, WATCHDOG_USEC="30000000"))
    pause_s = service.keep_alive()
    assert pause_s is not None
    assert 9 < pause_s <= 10
    assert manager.recv(100) == b"WATCHDOG=1"
    again_s = service.keep_alive()  # not due yet
    assert again_s is not None
    assert again_s <= pause_s
    service.tell("STATUS=x")
    assert manager.recv(100) == b"STATUS=x"


def test_a_watchdog_of_another_process_is_not_ours(manager: socket.socket) -> None:
    service = ServiceManager.from_environment(_environment(manager, WATCHDOG_USEC="30000000", WATCHDOG_PID="1"))
    assert service.keep_alive() is None


def test_a_manager_that_is_gone_is_logged_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager(str(tmp_path / "none")).tell("READY=1")
    assert "cannot be told: READY=1" in caplog.text


def test_kept_descriptors_are_for_the_named_process_only() -> None:
    environment = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "fuse:state", "LISTEN_PID": "1", "PATH": "/bin"}
    assert take_descriptors(environment) == {}
    assert environment == {"PATH": "/bin"}
    assert take_descriptors({}) == {}
    assert take_descriptors({"LISTEN_FDS": "many", "LISTEN_PID": str(os.getpid())}) == {}
