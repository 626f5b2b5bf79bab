"""The other way to small objects: what it hands over, and what it leaves to get_range."""

import contextlib
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from fanoutfs.backend.base import Got, WholeGets
from fanoutfs.backend.credentials import AwsCredentials
from fanoutfs.backend.measure import MeasuringBackend
from fanoutfs.backend.retry import RetryingBackend, RetryPolicy
from fanoutfs.backend.s3client import S3Place
from fanoutfs.backend.s3gets import S3Gets, open_gets
from fanoutfs.backend.sigv4 import GetSigner, signed_headers
from fanoutfs.backend.store import StoreBackend
from fanoutfs.records import Version
from tests.unit.backend.server import Server, serving

KEYS = AwsCredentials("AK", "SK", "token")
Start = Callable[["Store"], S3Gets]
DEADLINE_S = 20.0


class Store:
    """Answers GETs with its bodies, or with the raw answer scripted for a key.  A key counts from behind the bucket."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.raw: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.clients: set[object] = set()
        self.hold = threading.Event()
        self.hold.set()

    def put(self, key: str, body: bytes) -> Version:
        self.bodies[key] = body
        return Version("e-" + key, "", len(body), 0)


class Handler(BaseHTTPRequestHandler):
    """One connection to a Store."""

    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        key = self.path.removeprefix("/bucket/")
        self.store.asked.append(key)
        self.store.clients.add(self.client_address)
        assert self.store.hold.wait(DEADLINE_S)
        if key in self.store.raw:
            self.wfile.write(self.store.raw[key])
            self.close_connection = True
            return
        size = len(self.store.bodies[key])
        assert self.headers["range"] == f"bytes=0-{size - 1}"
        self.send_response(206)
        self.send_header("Content-Length", str(size))
        self.send_header("Content-Range", f"bytes 0-{size - 1}/{size}")
        self.send_header("ETag", f'"e-{key}"')
        self.end_headers()
        self.wfile.write(self.store.bodies[key])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(params=["http", "https"])
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Return a function that serves a store and returns the way to it."""
    with contextlib.ExitStack() as stack:

        def run(store: Store) -> S3Gets:
            handler = type("Bound", (Handler,), {"store": store})
            endpoint = stack.enter_context(serving(handler, request.param, tmp_path, monkeypatch))
            gets = S3Gets(S3Place(endpoint, "bucket", "us-east-1"), lambda: KEYS, DEADLINE_S, 8)
            gets.refresh()
            return stack.enter_context(contextlib.closing(gets))

        yield run


def finish(gets: WholeGets) -> dict[object, bytes | None]:
    """Go on until nothing is under way; return what came of each."""
    over: list[Got] = []
    while gets.under_way:
        assert select.select([gets], [], [], DEADLINE_S)[0], "the way is stuck"
        over += gets.step()
    return {got.tag: None if got.body is None else bytes(got.body) for got in over}


def test_bodies_arrive_whole_over_connections_that_are_used_again(start: Start) -> None:
    store = Store()
    gets = start(store)
    for turn in range(5):
        keys = [f"{turn}/{number}" for number in range(8)]
        bodies = {key: key.encode() * (1 + 4000 * number) for number, key in enumerate(keys)}
        for key in keys:
            assert gets.ask(key, store.put(key, bodies[key]), key)
        assert finish(gets) == bodies
    assert len(store.asked) == 40
    assert len(store.clients) == 8


def test_more_than_there_are_connections_is_refused(start: Start) -> None:
    store = Store()
    gets = start(store)
    store.hold.clear()
    assert [gets.ask(str(number), store.put(str(number), b"x"), number) for number in range(9)] == [True] * 8 + [False]
    store.hold.set()
    assert finish(gets) == dict.fromkeys(range(8), b"x")


OK = b'HTTP/1.1 206 Partial Content\r\nETag: "e-a"\r\nContent-Range: bytes 0-2/3\r\nContent-Length: 3\r\n\r\n'


@pytest.mark.parametrize(
    ("raw", "is_about_object"),
    [
        (OK.replace(b"e-a", b"e-b") + b"abc", True),
        (OK.replace(b"e-a", b"e-b").replace(b"Length: 3", b"Length: 2").replace(b"2/3", b"1/2") + b"ab", True),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", True),
        (OK.replace(b'ETag: "e-a"\r\n', b"") + b"abc", False),
        (OK.replace(b"Length: 3", b"Length: 2") + b"ab", False),
        (OK.replace(b"Length: 3", b"Length: 4") + b"abcd", False),
        (OK.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n", False),
        (OK.replace(b"0-2/3", b"1-3/4") + b"abc", False),
        (OK.replace(b"0-2/3", b"0-2/*") + b"abc", False),
        (OK.replace(b"Content-Range: bytes 0-2/3\r\n", b"") + b"abc", False),
        (OK + b"abcd", False),
        (OK + b"ab", False),
        (OK.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n") + b"abc", False),
        (OK.replace(b"\r\n\r\n", b"\r\nx: " + b"y" * 5000 + b"\r\n\r\n") + b"abc", False),
        (OK.replace(b"206 Partial Content", b"200 OK") + b"abc", False),
        (OK.replace(b"HTTP/1.1", b"HTTP/1.0") + b"abc", False),
        (b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", False),
        (b"not even HTTP", False),
        (b"", False),
    ],
)
def test_what_is_not_as_expected_is_left_to_get_range(start: Start, raw: bytes, is_about_object: bool) -> None:
    store = Store()
    gets = start(store)
    version = store.put("a", b"abc")
    store.raw["a"] = raw
    assert gets.ask("a", version, 1)
    assert finish(gets) == {1: None}
    del store.raw["a"]
    assert gets.ask("a", version, 2) == is_about_object, "a cause that is not the object closes the way for a while"
    assert finish(gets) == ({2: b"abc"} if is_about_object else {})


def test_answer_that_closes_its_connection_is_taken_and_the_next_one_opens_another(start: Start) -> None:
    store = Store()
    gets = start(store)
    version = store.put("a", b"abc")
    store.raw["a"] = OK.replace(b"\r\n\r\n", b"\r\nConnection: Close\r\n\r\n") + b"abc"
    for turn in range(3):
        assert gets.ask("a", version, turn)
        assert finish(gets) == {turn: b"abc"}
    assert len(store.clients) == 3


def test_request_that_meets_a_connection_closed_while_idle_goes_over_another(start: Start) -> None:
    store = Store()
    gets = start(store)
    version = store.put("a", b"abc")
    store.raw["a"] = OK + b"abc"  # and closes without a word about it
    for turn in range(3):
        assert gets.ask("a", version, turn)
        assert finish(gets) == {turn: b"abc"}
    assert set(store.asked) == {"a"}


def test_way_that_failed_is_open_again_after_a_rest_that_grows() -> None:
    now_s = 100.0
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    place = S3Place(f"http://127.0.0.1:{port}", "bucket", "us-east-1")
    gets = S3Gets(place, None, DEADLINE_S, 8, monotonic=lambda: now_s)
    gets.refresh()
    version = Version("e", "", 3, 0)
    for rest_s in (1.0, 2.0, 4.0):
        assert not gets.ask("a", version, 0) or finish(gets) == {0: None}
        now_s += rest_s - 0.01
        assert not gets.ask("a", version, 0)
        assert not gets.under_way
        now_s += 0.02
    gets.close()


def test_silent_store_is_given_up() -> None:
    now_s = 100.0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = S3Place(f"http://127.0.0.1:{silent.getsockname()[1]}", "bucket", "us-east-1")
        gets = S3Gets(place, None, DEADLINE_S, 8, monotonic=lambda: now_s)
        gets.refresh()
        assert gets.ask("a", Version("e", "", 3, 0), 7)
        now_s += DEADLINE_S - 1
        assert gets.step() == []
        now_s += 2
        assert [(got.tag, got.body) for got in gets.step()] == [(7, None)]
        gets.close()


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_version_without_a_strong_etag_is_not_asked_for(start: Start, etag: str) -> None:
    gets = start(Store())
    assert not gets.ask("a", Version(etag, "", 3, 0), 0)


@pytest.mark.parametrize("key", ["", "a//b", "../a", "a\nb", "dir/"])
def test_key_that_cannot_be_addressed_is_not_asked_for(start: Start, key: str) -> None:
    gets = start(Store())
    assert not gets.ask(key, Version("e", "", 3, 0), 0)


def test_store_that_cannot_be_found_is_looked_for_again() -> None:
    now_s = 100.0
    gets = S3Gets(S3Place("http://no.such.host.invalid", "b", "r"), None, DEADLINE_S, 8, monotonic=lambda: now_s)
    gets.refresh()
    assert not gets.ask("a", Version("e", "", 3, 0), 0)
    assert not gets.needs_refresh
    now_s += 3
    assert gets.needs_refresh
    gets.close()


def test_what_was_found_out_long_ago_is_not_used_until_it_was_found_out_anew() -> None:
    now_s = 100.0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = S3Place(f"http://127.0.0.1:{silent.getsockname()[1]}", "bucket", "us-east-1")
        gets = S3Gets(place, lambda: KEYS, DEADLINE_S, 8, monotonic=lambda: now_s)
        gets.refresh()
        version = Version("e", "", 3, 0)
        assert gets.ask("a", version, 0)
        now_s += 100
        assert gets.needs_refresh
        assert not gets.ask("b", version, 1)
        gets.refresh()
        assert gets.ask("b", version, 1)
        gets.close()


def test_connection_that_was_idle_for_long_is_not_trusted() -> None:
    now_s = 100.0
    store = Store()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    gets = S3Gets(
        S3Place(f"http://127.0.0.1:{server.server_address[1]}", "bucket", "us-east-1"),
        lambda: KEYS,
        DEADLINE_S,
        8,
        monotonic=lambda: now_s,
    )
    for later_s, clients in ((0, 1), (10, 1), (40, 2)):
        now_s += later_s
        gets.refresh()
        assert gets.ask("a", store.put("a", b"abc"), 0)
        assert finish(gets) == {0: b"abc"}
        assert len(store.clients) == clients
    gets.close()
    server.shutdown()
    server.server_close()


def test_address_that_nobody_answers_at_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    port = server.server_address[1]
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1", "127.0.0.3")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: found)
    gets = S3Gets(S3Place(f"http://store:{port}", "bucket", "us-east-1"), None, DEADLINE_S, 8)
    gets.refresh()
    for turn in range(3):
        for number in range(8):
            assert gets.ask(str(number), store.put(str(number), b"abc"), number), turn
        assert finish(gets) == dict.fromkeys(range(8), b"abc")
    gets.close()
    server.shutdown()
    server.server_close()


def test_what_goes_this_way_is_counted_like_every_other_get() -> None:
    store = Store()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    place = S3Place(f"http://127.0.0.1:{server.server_address[1]}", "bucket", "us-east-1")
    inner = StoreBackend(MemoryStore(), open_gets=lambda: open_gets(place, None, DEADLINE_S, 8))
    counted: Counter[str] = Counter()
    measured = MeasuringBackend(inner, lambda name, value: counted.update({name: value}))
    gets = RetryingBackend(measured, RetryPolicy(deadline_s=1)).whole_gets()
    assert gets is not None
    gets.refresh()
    store.put("a", b"abc")
    for number, key in enumerate("aab"):
        assert gets.ask("a", Version("e-" + key, "", 3, 0), number)
    assert finish(gets) == {0: b"abc", 1: b"abc", 2: None}
    assert counted.pop("backend_get_ns") > 0
    assert counted == {"backend_gets": 3, "backend_bytes": 6, "backend_errors": 1, "backend_retries": 1}
    gets.close()
    server.shutdown()
    server.server_close()


def test_unforeseen_failure_costs_its_connection_only(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    gets = start(store)

    def fail(_connection: object) -> bool:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(gets, "_take_answer", fail)
    version = store.put("a", b"abc")
    assert gets.ask("a", version, 0)
    assert gets.ask("a", version, 1)
    assert sorted(finish(gets).values(), key=str) == [None, b"abc"]
    assert "ZeroDivisionError" in caplog.text


def test_proxy_in_between_leaves_everything_to_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert open_gets(S3Place("http://bucket.invalid", "b", "r"), None, 1.0, 8) is None


@pytest.mark.parametrize("token", ["", "session"])
def test_heads_are_signed_as_all_requests_are(token: str) -> None:
    moment = datetime(2026, 3, 1, 12, 0, 0, 5000, tzinfo=UTC)
    credentials = AwsCredentials("AK", "SK", token)
    signer = GetSigner("host:80", "eu-1", lambda: moment)
    for path in ("/b/a%20b", "/b/c"):
        head = signer.head(path, 9, credentials).decode()
        lines = head.split("\r\n")
        assert lines[0] == f"GET {path} HTTP/1.1"
        assert lines[-2:] == ["", ""]
        sent = {name: value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
        assert (sent.pop("user-agent"), sent.pop("range")) == ("fanoutfs", "bytes=0-8")
        assert sent == signed_headers("GET", "host:80", path, "", {}, moment, "eu-1", credentials)
        moment = moment.replace(day=2)
    assert b"authorization" not in signer.head("/b/a", 9, None)
