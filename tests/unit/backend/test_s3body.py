"""Bodies received over a real connection: whatever the line does to them, the bytes are right or there is an error."""

import contextlib
import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from fanoutfs.backend.base import Landing
from fanoutfs.backend.s3body import receive_body

BODY = os.urandom((3 << 20) + 12_345)  # (received in collected and in single pieces)
Send = Callable[[socket.socket], None]


@contextlib.contextmanager
def answer(send: Send, timeout_s: float = 30.0) -> Iterator[tuple[http.client.HTTPResponse, socket.socket]]:
    """Yield an answer whose head has been read, and the socket it comes from."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=timeout_s)
        server, _ = listener.accept()

    def serve() -> None:
        with server, contextlib.suppress(ConnectionError):  # who has all that he wants may hang up
            send(server)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client, http.client.HTTPResponse(client, method="GET") as response:
            response.begin()
            yield response, client
    finally:
        thread.join(30)


def head(*fields: str) -> bytes:
    lines = ["HTTP/1.1 206 Partial Content", *(fields or (f"Content-Length: {len(BODY)}",)), "", ""]
    return "\r\n".join(lines).encode()


def landing(on_arrival: Callable[[int], None] | None = None) -> Landing:
    return Landing(memoryview(bytearray(len(BODY))), on_arrival)


def receive(send: Send, timeout_s: float = 30.0, on_arrival: Callable[[int], None] | None = None) -> Landing:
    into = landing(on_arrival)
    with answer(send, timeout_s) as (response, sock):
        receive_body(response, sock, into, time.monotonic() + 30)
        assert response.isclosed(), "the connection can be used again"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1, "the next head is short"
        assert sock.gettimeout() == timeout_s
    return into


@pytest.mark.parametrize("ahead", [0, 1, 5000, len(BODY)])
def test_body_arrives_whole_however_much_came_with_the_head(ahead: int) -> None:
    def send(server: socket.socket) -> None:
        server.sendall(head() + BODY[:ahead])
        server.sendall(BODY[ahead:])

    assert receive(send).memory == BODY


def test_body_is_told_of_as_it_arrives_and_in_order() -> None:
    told: list[int] = []

    def send(server: socket.socket) -> None:
        server.sendall(head() + BODY)

    receive(send, on_arrival=told.append)
    assert told == sorted(set(told))
    assert told[-1] == len(BODY)


def test_body_of_a_slow_line_arrives_although_no_wait_brings_much() -> None:
    arrived = threading.Semaphore(0)
    steps = [0, 1, 17, 4000, 4001, len(BODY)]

    def send(server: socket.socket) -> None:
        server.sendall(head())
        for start, end in pairwise(steps):
            server.sendall(BODY[start:end])
            assert arrived.acquire(timeout=30), "what was sent never arrived"

    assert receive(send, 0.05, lambda _count: arrived.release()).memory == BODY


def test_silence_is_an_error_and_what_came_before_stays() -> None:
    is_over = threading.Event()

    def send(server: socket.socket) -> None:
        server.sendall(head() + BODY[:100_000])
        is_over.wait(30)

    into = landing()
    with answer(send, 0.05) as (response, sock):
        with pytest.raises(TimeoutError):
            receive_body(response, sock, into, time.monotonic() + 30)
        is_over.set()
    assert into.arrived == 100_000
    assert into.memory[: into.arrived] == BODY[: into.arrived]


def test_body_that_ends_too_early_is_an_error() -> None:
    into = landing()
    with (
        answer(lambda server: server.sendall(head() + BODY[:70_000])) as (response, sock),
        pytest.raises(ConnectionError, match=f"70000 bytes of {len(BODY)}"),
    ):
        receive_body(response, sock, into, time.monotonic() + 30)
    assert into.memory[: into.arrived] == BODY[:70_000]


def test_body_that_takes_longer_than_all_of_it_may_is_an_error() -> None:
    def send(server: socket.socket) -> None:
        server.sendall(head() + BODY[:70_000])

    with answer(send) as (response, sock), pytest.raises(TimeoutError, match="came in time"):
        receive_body(response, sock, landing(), time.monotonic())


def test_chunked_body_is_decoded() -> None:
    def send(server: socket.socket) -> None:
        server.sendall(head("Transfer-Encoding: chunked"))
        for start in range(0, len(BODY), 300_000):
            piece = BODY[start : start + 300_000]
            server.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        server.sendall(b"0\r\n\r\n")

    into = landing()
    with answer(send) as (response, sock):
        receive_body(response, sock, into, time.monotonic() + 30)
    assert into.memory == BODY


def test_body_goes_on_behind_what_has_arrived() -> None:
    into = landing()
    into.put(memoryview(BODY)[:300_000])
    rest = BODY[300_000:]
    with answer(lambda server: server.sendall(head(f"Content-Length: {len(rest)}") + rest)) as (response, sock):
        receive_body(response, sock, into, time.monotonic() + 30)
    assert into.memory == BODY
