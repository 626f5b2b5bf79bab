"""The delay server: what passes through it is unchanged, late, and counted."""

import http.client
import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fanoutfs.bench.data import Bucket
from fanoutfs.bench.delay import Answered, Distance, at_distance, once_of

LARGE = bytes(range(256)) * 40_000  # more than any buffer on the way holds


class Handler(http.server.BaseHTTPRequestHandler):
    """A store: /data/NUMBER is that many bytes, the head sent on its own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = int(self.path.rsplit("/", 1)[1])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(LARGE[:size])

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "77")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Takes as many connections at once as a test opens: a SYN that is dropped comes again after a second."""

    request_queue_size = 128


@pytest.fixture
def store() -> Iterator[Bucket]:
    """Run the store."""
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Bucket(f"http://127.0.0.1:{server.server_address[1]}", "data", "r", "a", "s")
        server.shutdown()
        thread.join()


@pytest.fixture
def distance(store: Bucket) -> Iterator[Distance]:
    """Put it at a distance."""
    with at_distance(store, 30.0) as distance:
        yield distance


def _connect(distance: Distance) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(distance.bucket.endpoint_url.removeprefix("http://"), timeout=20)


def _get(connection: http.client.HTTPConnection, size: int, **headers: str) -> bytes:
    connection.request("GET", f"/data/{size}", headers=headers)
    return connection.getresponse().read()


def test_bodies_of_all_sizes_arrive_unchanged_and_are_counted(distance: Distance) -> None:
    sizes = [0, 1, 16_384, 1_000_000, len(LARGE), 5]
    connection = _connect(distance)
    for size in sizes:
        assert _get(connection, size) == LARGE[:size]
    connection.close()
    assert [(each.method, each.path, each.status, each.body_bytes) for each in distance.take()] == [
        ("GET", f"/data/{size}", 200, size) for size in sizes
    ]
    assert distance.take() == []


def test_answers_are_never_early(distance: Distance) -> None:
    connection = _connect(distance)
    _get(connection, 10)
    distance.set_latency(60.0)
    _get(connection, 10)
    connection.close()
    first, second = distance.take()
    assert first.seconds >= 0.030
    assert second.seconds >= 0.060


def test_many_connections_wait_at_the_same_time(distance: Distance) -> None:
    with ExitStack() as scope:
        connections = [_connect(distance) for _ in range(60)]
        for number, connection in enumerate(connections):
            scope.callback(connection.close)
            connection.request("GET", f"/data/{number}")
        for number, connection in enumerate(connections):
            assert connection.getresponse().read() == LARGE[:number]
        assert once_of(distance.take(), {str(number): number for number in range(60)}).is_met


def test_slow_client_gets_everything_and_holds_up_nobody(distance: Distance) -> None:
    slow = socket.create_connection(("127.0.0.1", int(distance.bucket.endpoint_url.rsplit(":", 1)[1])), timeout=20)
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
    slow.sendall(f"GET /data/{len(LARGE)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    other = _connect(distance)
    assert _get(other, 100) == LARGE[:100]
    other.close()
    received = bytearray()
    while data := slow.recv(1 << 16):
        received += data
    slow.close()
    assert received.partition(b"\r\n\r\n")[2] == LARGE
    assert sorted(each.body_bytes for each in distance.take()) == [100, len(LARGE)]


def test_range_and_head_are_recorded_as_they_were(distance: Distance) -> None:
    connection = _connect(distance)
    _get(connection, 7, Range="bytes=0-6")
    connection.request("HEAD", "/data/x")
    connection.getresponse().read()
    connection.close()
    ranged, head = distance.take()
    assert (ranged.range, ranged.status) == ("bytes=0-6", 206)
    assert (head.method, head.status, head.body_bytes) == ("HEAD", 404, 0)


def test_client_that_hangs_up_leaves_nothing_under_way(distance: Distance) -> None:
    connection = _connect(distance)
    connection.request("GET", "/data/1000000")
    connection.close()
    assert distance.take() == []  # would fail after a deadline if it were still counted


def _answer(key: str, size: int, method: str = "GET") -> Answered:
    return Answered(method, f"/data/{key}", "", 200, size, 0.0)


def test_once_says_what_came_again_and_what_never() -> None:
    sizes = {"a": 10, "b": 20, "c": 30}
    good = once_of([_answer(key, size) for key, size in sizes.items()] + [_answer("?list-type=2", 999)], sizes)
    assert good.is_met
    assert good.others == 1
    bad = once_of([_answer("a", 10), _answer("a", 10), _answer("b", 20), _answer("c", 30, "HEAD")], sizes)
    assert not bad.is_met
    assert (bad.again, bad.never, bad.gets, bad.bytes_sent) == (1, 1, 3, 40)
    short = once_of([_answer("a", 9), _answer("b", 20), _answer("c", 30)], sizes)
    assert not short.is_met
