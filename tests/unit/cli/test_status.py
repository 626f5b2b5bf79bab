"""`status` and the client against a control server that says what the test wants."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanoutfs.cli import client, main
from fanoutfs.cli.progress import ask
from fanoutfs.cli.status import describe
from fanoutfs.config import directories
from fanoutfs.errors import DaemonDiedError, FanoutError
from fanoutfs.observe.derived import fan_out

RESULT = {
    "source": "s3://bucket/x",
    "mountpoint": "/mnt/x",
    "keeper_pid": 10,
    "core_pid": 11,
    "front_pids": [12, 13],
    "generation": 2,
    "uptime_s": 3725.4,
    "kernel": {"protocol": "7.45", "max_write_bytes": 1048576},
    "cache": {
        "used_bytes": 1 << 30,
        "cap_bytes": 20 << 30,
        "large_bytes": 1 << 29,
        "small_bytes": 1 << 20,
        "index_bytes": 4096,
    },
    "counters": {
        "messages_lookup_answered": 1234567,
        "backend_bytes": 1 << 30,
        "reader_bytes": 8 << 30,
        "fills_joined": 3,
    },
    "something_new": 42,
    "known": {"files": 7, "bytes": 2048},
}

Start = Callable[..., list[bytes]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Give a function that starts a server with one fixed answer and returns the list of requests it got.

    place: which socket of the mount it listens on.
    """
    monkeypatch.setattr(directories, "runtime_dir", lambda: tmp_path / "run")
    listener = socket.socket(socket.AF_UNIX)

    def start(answer: bytes, place: Callable[[Path], Path] = directories.control_socket) -> list[bytes]:
        path = place(tmp_path)
        path.parent.mkdir(exist_ok=True)
        listener.bind(os.fspath(path))
        listener.listen()
        requests: list[bytes] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                # The client may hang up as soon as it has what it wants.
                with connection, contextlib.suppress(ConnectionError):
                    requests.append(connection.makefile("rb").readline())
                    connection.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return requests

    threads: list[threading.Thread] = []
    yield start
    if threads:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept; close alone does not
        threads[0].join()
    listener.close()


def _ok(result: object) -> bytes:
    return json.dumps({"ok": True, "result": result}).encode() + b"\n"


def test_call_sends_one_line_and_returns_the_result(server: Start, tmp_path: Path) -> None:
    requests = server(_ok({"a": 1}))
    assert client.call(tmp_path, "stat", deep=True) == {"a": 1}
    assert json.loads(requests[0]) == {"op": "stat", "deep": True}
    assert client.peer_pid(tmp_path) == os.getpid()


def test_error_of_the_daemon_is_passed_on(server: Start, tmp_path: Path) -> None:
    server(b'{"ok": false, "error": "no such op"}\n')
    with pytest.raises(FanoutError, match="no such op"):
        client.call(tmp_path, "bogus")


@pytest.mark.parametrize("answer", [b"", b'{"ok": tr', b"[]\n", b"{}\n", b"\xff\n"])
def test_broken_answer_is_a_dead_daemon(server: Start, tmp_path: Path, answer: bytes) -> None:
    server(answer)
    with pytest.raises(DaemonDiedError, match="broke off"):
        client.call(tmp_path, "status")


Listen = Callable[[Path], socket.socket]


@pytest.fixture
def listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """Give a function that listens at the path of a socket and says nothing."""
    monkeypatch.setattr(directories, "runtime_dir", lambda: tmp_path / "run")
    (tmp_path / "run").mkdir()
    listeners: list[socket.socket] = []

    def start(path: Path) -> socket.socket:
        listeners.append(socket.socket(socket.AF_UNIX))
        listeners[-1].bind(os.fspath(path))
        listeners[-1].listen()
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


def heard(listener: socket.socket) -> list[str]:
    """Return which commands were sent to one that answered none."""
    listener.setblocking(False)
    commands = []
    with contextlib.suppress(BlockingIOError):
        while True:
            with listener.accept()[0] as connection:
                commands.append(json.loads(connection.recv(4096))["op"])
    return commands


def test_silent_daemon_is_asked_for_a_sign_of_life_and_the_command_is_not_sent_again(
    listen: Listen, tmp_path: Path
) -> None:
    core = listen(directories.control_socket(tmp_path))
    with pytest.raises(client.SilentDaemonError, match="no sign of life") as raised:
        ask(tmp_path, "drain", timeout_s=0.2)
    assert not raised.value.is_starting
    assert heard(core) == ["drain", "ping"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"core": "serving", "keeper_pid": 7}, "its core hangs; .* kill -USR1 7 "),
        (
            {"core": "failing", "failures": 9, "failing_s": 61, "error": "disk", "refuses": True},
            "cannot start .9 times in 1m 1s, tried again all the time; what needs it gets EIO.: disk",
        ),
    ],
)
def test_keeper_says_why_the_core_is_silent(server: Start, tmp_path: Path, state: dict[str, object], said: str) -> None:
    server(_ok(state), directories.keeper_socket)
    with socket.socket(socket.AF_UNIX) as core:
        core.bind(os.fspath(directories.control_socket(tmp_path)))
        core.listen()
        with pytest.raises(client.SilentDaemonError, match=said):
            client.call(tmp_path, "status", timeout_s=2)


def test_core_that_is_being_started_is_waited_for(
    server: Start, listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SILENCE_S", 0.05)
    server(_ok({"core": "starting"}), directories.keeper_socket)
    core = listen(directories.control_socket(tmp_path))
    state, is_asked = client._state, threading.Event()

    def noted(mountpoint: Path, timeout_s: float) -> dict[str, object] | None:
        is_asked.set()
        return state(mountpoint, timeout_s)

    monkeypatch.setattr(client, "_state", noted)

    def start() -> None:
        is_asked.wait()
        with core.accept()[0] as command:
            command.recv(4096)
            command.sendall(_ok({"files": []}))

    worker = threading.Thread(target=start)
    worker.start()
    assert client.call(tmp_path, "status") == {"files": []}
    worker.join()


def test_core_whose_start_takes_long_is_asked_again(
    server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_STARTING_S", 0.1)
    asked = server(_ok({"core": "starting"}), directories.keeper_socket)
    with socket.socket(socket.AF_UNIX) as core:
        core.bind(os.fspath(directories.control_socket(tmp_path)))
        core.listen()

        def start() -> None:
            command = core.accept()[0]
            with command, core.accept()[0] as again:
                again.recv(4096)  # a socket that is closed with something unread resets the connection
                again.sendall(_ok({"files": []}))

        worker = threading.Thread(target=start)
        worker.start()
        assert ask(tmp_path, "info") == {"files": []}
        worker.join()
    assert asked[0] == b'{"op": "state"}\n'


def test_command_that_is_being_worked_on_is_waited_for(
    listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SILENCE_S", 0.05)
    core = listen(directories.control_socket(tmp_path))

    def work() -> None:
        command = core.accept()[0]
        for _sign_of_life in range(3):
            with core.accept()[0] as ping:
                ping.recv(4096)
                ping.sendall(b'{"ok": false, "error": "unknown request"}\n')
        with command:
            command.recv(4096)
            command.sendall(_ok({"files": 3}))

    worker = threading.Thread(target=work)
    worker.start()
    assert client.call(tmp_path, "drain") == {"files": 3}
    worker.join()


def test_all_are_asked_and_who_is_silent_or_gone_is_named(server: Start, tmp_path: Path) -> None:
    server(_ok({"a": 1}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(directories.control_socket(tmp_path / "hangs")))
        listener.listen()
        asked = [tmp_path / "hangs", tmp_path, tmp_path / "gone", tmp_path]
        hangs, *answer, gone, again = client.call_all(asked, "status", timeout_s=0.5)
    assert answer == [again] == [{"a": 1}]
    assert isinstance(hangs, DaemonDiedError)
    assert str(tmp_path / "hangs") in str(hangs)
    assert isinstance(gone, DaemonDiedError)
    assert "cannot be reached" in str(gone)


def test_no_daemon_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "runtime_dir", lambda: tmp_path)
    with pytest.raises(DaemonDiedError, match="cannot be reached"):
        client.call(tmp_path, "status")
    assert client.peer_pid(tmp_path) is None


def test_status_prints_json_as_the_daemon_said_it(
    server: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server(_ok(RESULT))
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == RESULT


def test_status_shows_ratio_sizes_and_what_it_does_not_know(
    server: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server(_ok(RESULT))
    assert main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "/mnt/x  from  s3://bucket/x",
        "for 1h 2m, generation 2",
        "keeper 10, core 11, fronts 12 13",
        "1GiB of 20GiB (5%)",
        "large 512MiB, small 1MiB, index 4KiB",
        "8GiB handed out, 1GiB fetched: fan-out 8.00",
        "page cache are invisible to the daemon",
        "1,234,567",
        "max_write_bytes 1MiB",
        "something_new 42",
        "known      files 7, bytes 2KiB",
    ):
        assert text in shown, shown


def test_status_of_a_daemon_that_says_little_is_still_shown() -> None:
    assert any("0B handed out" in line for line in describe({}))
    assert fan_out({}) is None


def test_status_shows_how_further_directories_stand() -> None:
    common = {"limit_bytes": 0, "large_bytes": 3 << 30}
    disks = [
        {"directory": "/a", "state": "ok", **common, "limit_bytes": 4 << 30},
        {"directory": "/b", "state": "full", **common},
        {"directory": "/c", "state": "out", **common, "reason": "[Errno 5] Input/output error", "retry_in_s": 5.0},
    ]
    text = "\n".join(describe({"cache": {"used_bytes": 1, "cap_bytes": 2, "disks": disks}}))
    assert "further directory /a: ok, 3GiB of 4GiB" in text
    assert "further directory /b: full, 3GiB" in text
    assert "further directory /c: out of service, next try in 5s: [Errno 5] Input/output error" in text
