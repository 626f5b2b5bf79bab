"""Requests over TLS, connections that are used again, answers that come early."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from fanoutfs.backend.credentials import AwsCredentials
from fanoutfs.backend.s3client import S3Client, S3Place
from fanoutfs.backend.writing import FileRange
from fanoutfs.errors import TransientError
from fanoutfs.records import MIB
from tests.unit.backend.server import serving

Start = Callable[[type[BaseHTTPRequestHandler]], S3Client]


class Hashing(BaseHTTPRequestHandler):
    """Answers a PUT with the hash of the body, and whether it is the one that was signed."""

    protocol_version = "HTTP/1.1"
    connections: set[object]

    def do_PUT(self) -> None:
        self.connections.add(self.client_address)
        digest = hashlib.sha256(self.rfile.read(int(self.headers["content-length"]))).hexdigest()
        answer = f"{digest == self.headers['x-amz-content-sha256']} {digest}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Refusing(Hashing):
    """Answers before the body, of which it reads nothing, and hangs up when the client does."""

    def do_PUT(self) -> None:
        self.wfile.write(b"HTTP/1.1 503 Slow Down\r\nRetry-After: 3\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.close_connection = True


@pytest.fixture(params=["http", "https"])
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Return a function that starts a server with this handler and returns a client of it."""
    with contextlib.ExitStack() as stack:

        def run(handler: type[BaseHTTPRequestHandler]) -> S3Client:
            endpoint = stack.enter_context(serving(handler, request.param, tmp_path, monkeypatch))
            client = S3Client(S3Place(endpoint, "bucket", "us-east-1"), lambda: AwsCredentials("AK", "SK"), 10.0)
            return stack.enter_context(contextlib.closing(client))

        yield run


def test_body_out_of_a_file_arrives_as_it_was_signed(start: Start, tmp_path: Path) -> None:
    Hashing.connections = set()
    client = start(Hashing)
    content = os.urandom(5 * MIB + 3)
    (tmp_path / "staged").write_bytes(content)
    fd = os.open(tmp_path / "staged", os.O_RDONLY)
    try:
        for body, expected in ((FileRange(fd, 7, len(content)), content[7:]), (content[:99], content[:99])):
            answer = client.request("PUT", "a", "PUT a", body=body)
            assert answer.body == f"True {hashlib.sha256(expected).hexdigest()}".encode()
    finally:
        os.close(fd)
    assert len(Hashing.connections) == 1, "one connection served both"


def test_answer_before_the_body_was_read_is_the_answer_or_a_cut_connection(start: Start) -> None:
    client = start(Refusing)
    try:
        answer = client.request("PUT", "a", "PUT a", body=bytes(64 * MIB))
    except TransientError:
        return  # the reset overtook the answer
    assert (answer.status, answer.headers["retry-after"]) == (503, "3")


def test_connection_that_nobody_accepts_is_transient() -> None:
    client = S3Client(S3Place("http://127.0.0.1:9", "bucket", "us-east-1"), None, 1.0)
    with pytest.raises(TransientError):
        client.request("PUT", "a", "PUT a", body=b"x")
