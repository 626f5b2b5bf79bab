"""Requests over TLS, connections that are used again, answers that come early."""

import hashlib
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest

from fanoutfs.backend.credentials import AwsCredentials
from fanoutfs.backend.s3client import S3Client, S3Place
from fanoutfs.backend.writing import FileRange
from fanoutfs.errors import TransientError
from fanoutfs.records import MIB

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


def _certificate(directory: Path) -> Path:
    """Return a file with a key and a certificate for 127.0.0.1."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture(params=["http", "https"])
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Return a function that starts a server with this handler and returns a client of it."""
    servers: list[ThreadingHTTPServer] = []
    clients: list[S3Client] = []

    def run(handler: type[BaseHTTPRequestHandler]) -> S3Client:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        if request.param == "https":
            path = _certificate(tmp_path)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            monkeypatch.setenv("SSL_CERT_FILE", str(path))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        place = S3Place(f"{request.param}://127.0.0.1:{server.server_address[1]}", "bucket", "us-east-1")
        clients.append(S3Client(place, lambda: AwsCredentials("AK", "SK"), 10.0))
        return clients[-1]

    yield run
    for client in clients:
        client.close()
    for server in servers:
        server.shutdown()
        server.server_close()


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
