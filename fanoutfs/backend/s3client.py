"""One S3 request over HTTP/1.1: signed, sent with its body, answered.  What it means is up to s3list and s3write.

Why our own beside obstore: obstore cannot copy a part, turns multipart off for conditional puts, has no conditional
copy, completion or delete, hides user metadata of a HEAD and the Retry-After header.  Why not botocore: 25 MB, and
several times the CPU for a listing (s3list.py).

A body out of a file goes from the page cache to the socket by sendfile(2) (over TLS in pieces of 256 KiB), so that a
part costs no memory and no GIL.  Any thread may ask; connections are kept in a small pool under a lock.
"""

import errno
import http.client
import os
import select
import socket
import ssl
import threading
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlsplit

from fanoutfs.backend.base import Landing
from fanoutfs.backend.credentials import CredentialSource
from fanoutfs.backend.s3body import receive_body
from fanoutfs.backend.sigv4 import EMPTY_SHA256, body_sha256, canonical_query, read_into, signed_headers
from fanoutfs.backend.translate import error_from_status, retry_after
from fanoutfs.backend.writing import Body, FileRange
from fanoutfs.errors import BackendError, TransientError

ANSWER_BYTES: Final = 16 << 20
"""A page of 1000 keys of 1024 bytes, percent-encoded, is 3.5 MB; beyond this it is no answer to us."""
_ERROR_BYTES: Final = 1 << 16
_SEND_BYTES: Final = 256 << 10
_SENDFILE_BYTES: Final = 8 << 20
"""One sendfile at most: the time without progress is measured between two of them."""


@dataclass(frozen=True, slots=True)
class S3Place:
    """Where a bucket is asked for.  endpoint_url: scheme, host, port and perhaps a path, no bucket."""

    endpoint_url: str
    bucket: str
    region: str


@dataclass(frozen=True, slots=True)
class S3Answer:
    """What came back.  headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The store's error code in the body, "" without one."""
        return error_code(self.body)

    def error(self, what: str, *, is_write: bool = False) -> BackendError:
        """Return the error that this answer means."""
        return error_from_status(
            self.status,
            self.code,
            what,
            retry_after_s=retry_after(self.headers.get("retry-after")),
            region=self.headers.get("x-amz-bucket-region", "") if self.status in (301, 307, 400) else "",
            is_write=is_write,
        )


class S3Client:
    """Sends requests to one bucket."""

    def __init__(
        self,
        place: S3Place,
        credentials: CredentialSource | None,
        timeout_s: float,
        idle: int = 16,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """credentials: None for unsigned requests.  timeout_s: for each wait on the socket.  idle: connections kept."""
        url = urlsplit(place.endpoint_url)
        self.bucket: Final = place.bucket
        self._region = place.region
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._utc_now = utc_now
        self._is_tls = url.scheme == "https"
        self._host = url.netloc
        self._path = f"{url.path.rstrip('/')}/{quote(place.bucket, safe='-_.~')}"
        self._proxy = proxy_for(url.scheme, url.hostname or "")
        self._tls = ssl.create_default_context() if self._is_tls else None
        self._idle: list[http.client.HTTPConnection] = []
        self._most_idle = idle
        self._lock = threading.Lock()

    def request(
        self,
        method: str,
        key: str,
        what: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        patience_s: float = 0.0,
    ) -> S3Answer:
        """Return the answer, whatever its status.  key: "" for the bucket.

        patience_s: wait so long for the answer, where it is more than timeout_s.
        Raises TransientError (connection), BackendError (body that cannot be read), as the credentials do.
        """
        target, sent = self._head(method, key, params or {}, headers or {}, body)
        with self._connected(what) as connection:
            response = self._exchange(connection, method, target, sent, body, patience_s)
            content = response.read(ANSWER_BYTES)
        self._keep(connection, response)
        return _answer(response, content)

    def receive(
        self,
        key: str,
        what: str,
        headers: Mapping[str, str],
        check: Callable[[S3Answer], None],
        into: Landing,
        patience_s: float,
    ) -> S3Answer:
        """Get a range into memory; return the answer: without its body, which fills the memory, when it is a 206.

        check: called with a 206 before its body is read; raises what is wrong with it.  patience_s: for all of it.
        Raises as `request`; what had arrived stays.
        """
        deadline_s = time.monotonic() + patience_s
        target, sent = self._head("GET", key, {}, headers, b"")
        content = b""
        with self._connected(what) as connection:
            response = self._exchange(connection, "GET", target, sent, b"", 0.0)
            if response.status == http.client.PARTIAL_CONTENT:
                check(_answer(response, b""))
                receive_body(response, connection.sock, into, deadline_s)
            else:
                content = response.read(_ERROR_BYTES)
        self._keep(connection, response)
        return _answer(response, content)

    @contextmanager
    def _connected(self, what: str) -> Iterator[http.client.HTTPConnection]:
        """Take a connection for one exchange, after which the caller keeps it; close it when anything goes wrong.

        Raises TransientError.
        """
        connection = self._take()
        try:
            yield connection
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            where = f"{connection.host}:{connection.port}"
            is_unsent = isinstance(error, ConnectionRefusedError | socket.gaierror)
            raise TransientError(f"{what} at {where}: {type(error).__name__}: {error}", is_settled=is_unsent) from None
        except BaseException:
            connection.close()
            raise

    def _head(
        self, method: str, key: str, params: Mapping[str, str], headers: Mapping[str, str], body: Body
    ) -> tuple[str, dict[str, str]]:
        """Return the target and the headers of a request, signed."""
        query = canonical_query(params)
        path = f"{self._path}/{quote(key, safe='/-_.~')}" if key else self._path
        sent = {"host": self._host, **headers}
        if self._credentials is not None:
            content_sha256 = body_sha256(body) if len(body) else EMPTY_SHA256
            sent = signed_headers(
                method, self._host, path, query, headers, self._utc_now(), self._region, self._credentials(),
                content_sha256,
            )  # fmt: skip
        if len(body) or method in ("PUT", "POST"):
            sent["content-length"] = str(len(body))
        target = f"{path}?{query}" if query else path
        return f"http://{self._host}{target}" if self._proxy and not self._is_tls else target, sent

    def _keep(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        """Keep a connection if it can be used again."""
        if response.will_close or not response.isclosed():
            connection.close()
        else:
            self._put(connection)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        patience_s: float,
    ) -> http.client.HTTPResponse:
        """Send, and return the answer's head."""
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        cut: OSError | None = None
        if len(body):
            try:
                self._send(connection.sock, body)
            except (BrokenPipeError, ConnectionResetError) as error:
                # A server that refuses (503, 412, 403) may answer and close before it has read everything.
                cut = error
        connection.sock.settimeout(max(self._timeout_s, patience_s))
        try:
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            raise cut or TimeoutError("no answer") from None
        if cut is not None:
            response.will_close = True
        elif connection.sock is not None:  # None: the answer said it is the last of this connection
            connection.sock.settimeout(self._timeout_s)
        return response

    def _send(self, sock: socket.socket, body: Body) -> None:
        if not isinstance(body, FileRange):
            with memoryview(body) as view:
                _send_all(sock, view)
            return
        at = body.start
        if not self._is_tls:
            at = _send_file(sock, body, self._timeout_s)
        buffer = memoryview(bytearray(_SEND_BYTES)) if at < body.end else memoryview(b"")
        while at < body.end:
            got = read_into(body, at, buffer)
            _send_all(sock, buffer[:got])
            at += got

    def _take(self) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            # Readable while idle: the server has closed it (nothing else may come unasked).
            if connection.sock is not None and not _is_readable(connection.sock):
                return connection
            connection.close()
        return self._connect()

    def _put(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < self._most_idle:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        address = self._proxy or self._host
        if self._tls is None:
            return http.client.HTTPConnection(address, timeout=self._timeout_s)
        connection = http.client.HTTPSConnection(address, timeout=self._timeout_s, context=self._tls)
        if self._proxy:
            connection.set_tunnel(self._host)
        return connection


def _answer(response: http.client.HTTPResponse, content: bytes) -> S3Answer:
    return S3Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, content)


def error_code(body: bytes) -> str:
    """Return the text of the first <Code>, "" when the body is no such XML."""
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat >= 2.4.1 bounds entity expansion
    except ET.ParseError:
        return ""
    for element in root.iter():
        if element.tag.rpartition("}")[2] == "Code":
            return element.text or ""
    return ""


def _send_all(sock: socket.socket, view: memoryview) -> None:
    # Not sendall(): its timeout is for everything, and a slow line is no dead one.
    done = 0
    while done < len(view):
        done += sock.send(view[done : done + _SEND_BYTES])


def _send_file(sock: socket.socket, body: FileRange, timeout_s: float) -> int:
    """Send by sendfile(2); return how far it went: body.start when the file's kind does not know it."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    at = body.start
    while at < body.end:
        try:
            got = os.sendfile(sock.fileno(), body.fd, at, min(_SENDFILE_BYTES, body.end - at))
        except BlockingIOError:  # a socket with a timeout is non-blocking underneath
            if not poll.poll(timeout_s * 1000):
                raise TimeoutError("timed out") from None
            continue
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOSYS) and at == body.start:
                return at
            raise
        if got == 0:
            raise BackendError(f"the body ends at {at} instead of {body.end}")
        at += got
    return at


def proxy_for(scheme: str, host: str) -> str:
    """Return host:port of the proxy the environment names for this host, "" without one (as obstore does)."""
    if urllib.request.proxy_bypass(host):
        return ""
    return urlsplit(urllib.request.getproxies().get(scheme, "")).netloc


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
