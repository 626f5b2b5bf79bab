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
from fanoutfs.cli.status import describe, fan_out
from fanoutfs.config import schema
from fanoutfs.errors import DaemonDiedError, FanoutError

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

Start = Callable[[bytes], list[bytes]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Give a function that starts a server with one fixed answer and returns the list of requests it got."""
    monkeypatch.setattr(schema, "runtime_dir", lambda: tmp_path / "run")
    listener = socket.socket(socket.AF_UNIX)

    def start(answer: bytes) -> list[bytes]:
        path = schema.control_socket(tmp_path)
        path.parent.mkdir()
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


def test_silent_daemon_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "runtime_dir", lambda: tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(schema.control_socket(tmp_path)))
        listener.listen()
        with pytest.raises(DaemonDiedError, match="timed out"):
            client.call(tmp_path, "status", timeout_s=0.05)


def test_no_daemon_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "runtime_dir", lambda: tmp_path)
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
