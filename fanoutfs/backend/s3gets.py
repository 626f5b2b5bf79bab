"""GETs of whole small objects, many in flight, by one thread that never waits for any of them.

Core, trio thread (or any other one: an instance belongs to it, but for `refresh`).  Its sockets are in one epoll set,
whose descriptor the owner waits for.

A GET of 16 KiB through obstore costs a hand-over to its runtime and back, two threads woken, and a fight for the GIL:
160 to 190 us of CPU with 128 in flight; here a signature, a send, a recv and a look at the head: 35 us (a prototype of
this loop, by itself, from SeaweedFS through a proxy that answers after 20 ms).

It hands over a body only when the answer is to the letter what was expected: 206, all bytes that the version has and
no more, the version's ETag.  Everything else (another status, a coding, a connection refused, cut or silent) is "not
this way": the caller asks through `Backend.get_range`, which tells the causes apart and is tried again.  When the cause
is not the object, this way then rests for a while, longer each time, so that a store in trouble meets one stream of
requests.  No If-Match: an object that was replaced costs one small body in vain, and no store's spelling of it matters.

Above 400 lines, because connecting, asking, receiving and giving up are the states of one machine.
"""

import contextlib
import logging
import math
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

from fanoutfs.backend.base import Got
from fanoutfs.backend.credentials import AwsCredentials, CredentialSource
from fanoutfs.backend.keys import bare_etag, is_addressable, is_strong
from fanoutfs.backend.s3client import S3Place, proxy_for
from fanoutfs.backend.sigv4 import GetSigner
from fanoutfs.errors import BackendError
from fanoutfs.records import Version

log = logging.getLogger(__name__)

_HEAD_BYTES: Final = 4096
"""Room for the head of an answer: S3's have 400 to 900 bytes."""
_EVENTS: Final = 32
"""Connections looked at in one step: 2 ms of the owner's time."""
_REFRESH_S: Final = 30.0
"""How long the addresses of a host are used, and credentials before their source is asked for its current ones."""
_STALE_S: Final = 2 * _REFRESH_S
"""What was found out so long ago is not used any more, while it is found out anew: credentials may have expired."""
_RETRY_REFRESH_S: Final = 2.0
_IDLE_S: Final = 30.0
"""Idle for longer, a connection may have been forgotten on the way without a word."""
_LEAST_REST_S: Final = 1.0
_MOST_REST_S: Final = 60.0
_CHECK_S: Final = 1.0
_ABOUT_THE_OBJECT: Final = frozenset({404, 410, 412, 416})
_FIELDS: Final = re.compile(
    rb"\r\n(content-length|etag|transfer-encoding|content-range|connection):[ \t]*([^\r]*)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class _Way:
    """What a request needs to know besides its key."""

    addresses: tuple[tuple[Any, ...], ...]
    credentials: AwsCredentials | None
    found_s: float


@dataclass(slots=True)
class _Job:
    """One object asked for."""

    tag: object
    version: Version
    head: bytes
    asked_s: float
    is_second_try: bool = False


class _Connection:
    """A socket, and the one job it has, or None while it is idle."""

    __slots__ = (
        "address",
        "buffer",
        "fd",
        "filled",
        "is_last",
        "is_ready",
        "is_sending",
        "is_used",
        "job",
        "progress_s",
        "sock",
        "start",
        "unsent",
    )

    def __init__(self, sock: socket.socket, job: _Job, address: tuple[Any, ...]) -> None:
        self.sock = sock
        self.address = address  # as getaddrinfo() found it
        self.fd = sock.fileno()
        self.job: _Job | None = job
        self.is_ready = False  # connected, and past the handshake
        self.is_sending = False  # waits until there is room for the rest of a request
        self.is_used = False  # it has brought an answer
        self.unsent = job.head
        self.buffer = bytearray()
        self.filled = 0
        self.start = 0  # of the body in the buffer, once the head was found to be as expected
        self.is_last = False  # the server closes it after this answer
        self.progress_s = job.asked_s


class S3Gets:
    """See WholeGets."""

    def __init__(
        self,
        place: S3Place,
        credentials: CredentialSource | None,
        stall_s: float,
        most: int,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """credentials: None for unsigned requests.  stall_s: of silence, then a connection is given up.

        most: connections.
        """
        url = urlsplit(place.endpoint_url)
        self._hostname = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._path = f"{url.path.rstrip('/')}/{quote(place.bucket, safe='-_.~')}/"
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._signer = GetSigner(url.netloc, place.region, utc_now)
        self._credentials = credentials
        self._stall_s = stall_s
        self._most = most
        self._monotonic = monotonic
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._way: _Way | None = None
        self._refreshed_s = -_REFRESH_S
        self._turn = 0
        self._fresh: set[int] = set()
        """Descriptors opened since the last look for events: what such a look has of them was another's."""
        self._over: list[Got] = []
        self._rest_until_s = 0.0
        self._rest_s = _LEAST_REST_S
        self._next_check_s = 0.0

    def fileno(self) -> int:
        """See WholeGets.fileno."""
        return self._epoll.fileno()

    @property
    def under_way(self) -> int:
        """See WholeGets.under_way."""
        return len(self._connections) - len(self._idle) + len(self._over)

    @property
    def needs_refresh(self) -> bool:
        """See WholeGets.needs_refresh."""
        return self._monotonic() - self._refreshed_s >= (_REFRESH_S if self._way is not None else _RETRY_REFRESH_S)

    def refresh(self) -> None:
        """See WholeGets.refresh."""
        now_s = self._refreshed_s = self._monotonic()
        try:
            credentials = self._credentials() if self._credentials is not None else None
            found = socket.getaddrinfo(self._hostname, self._port, type=socket.SOCK_STREAM)
        except (BackendError, OSError, UnicodeError):
            self._way = None  # get_range will say why
            return
        self._way = _Way(tuple(found), credentials, now_s)

    def ask(self, key: str, version: Version, tag: object) -> bool:
        """See WholeGets.ask."""
        now_s = self._monotonic()
        way = self._way
        if way is None or now_s - way.found_s >= _STALE_S or now_s < self._rest_until_s:
            return False
        if not version.size_bytes or not is_strong(version.etag) or not is_addressable(key):
            return False
        head = self._signer.head(self._path + quote(key, safe="/-_.~"), version.size_bytes, way.credentials)
        return self._begin(_Job(tag, version, head, now_s), way)

    def step(self) -> list[Got]:
        """See WholeGets.step."""
        self._fresh.clear()
        for fd, _events in self._epoll.poll(0, _EVENTS):
            connection = self._connections.get(fd)
            if connection is not None and fd not in self._fresh:
                try:
                    self._go_on(connection)
                except Exception:  # one connection must not end the core; its object goes the other way
                    log.exception("connection failed unexpectedly")
                    if self._connections.get(fd) is connection:
                        self._fail(connection)
        now_s = self._monotonic()
        if now_s >= self._next_check_s:
            self._next_check_s = now_s + _CHECK_S
            for connection in list(self._connections.values()):
                limit_s = _IDLE_S if connection.job is None else self._stall_s
                if now_s - connection.progress_s >= limit_s:
                    self._fail(connection)
        over, self._over = self._over, []
        return over

    def close(self) -> None:
        """See WholeGets.close."""
        self._rest_until_s = math.inf
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()

    # --- connections -------------------------------------------------------------------------------------------

    def _begin(self, job: _Job, way: _Way) -> bool:
        connection = None if job.is_second_try else self._take_idle(job.asked_s)
        if connection is not None:
            connection.job = job
            connection.unsent = job.head
            connection.progress_s = job.asked_s
            self._prepare(connection, job)
            self._send(connection)
            return True
        if len(self._connections) >= self._most:
            return False
        self._turn += 1
        address = way.addresses[self._turn % len(way.addresses)]
        try:
            sock = socket.socket(*address[:3])
        except OSError:  # no descriptor left
            self._rest()
            return False
        with contextlib.suppress(OSError):  # found out by the next step: a socket that is not connected is ready
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect_ex(address[4])
        connection = _Connection(sock, job, address)
        try:
            self._epoll.register(connection.fd, select.EPOLLOUT)
        except OSError:  # fs.epoll.max_user_watches
            sock.close()
            self._rest()
            return False
        self._connections[connection.fd] = connection
        self._fresh.add(connection.fd)
        self._prepare(connection, job)
        return True

    def _take_idle(self, now_s: float) -> _Connection | None:
        if self._idle and now_s - self._idle[-1].progress_s < _IDLE_S:
            return self._idle.pop()
        for connection in self._idle[:]:
            self._drop(connection)  # the last one was used last: all have been idle too long
        return None

    @staticmethod
    def _prepare(connection: _Connection, job: _Job) -> None:
        connection.buffer = bytearray(_HEAD_BYTES + job.version.size_bytes)
        connection.filled = connection.start = 0

    def _go_on(self, connection: _Connection) -> None:
        if not connection.is_ready and not self._shake_hands(connection):
            return
        if connection.job is None:
            self._drop(connection)  # an idle one has nothing to say but that it is closed
        elif connection.unsent:
            self._send(connection)
        else:
            self._receive(connection)

    def _shake_hands(self, connection: _Connection) -> bool:
        """Go on with connecting; tell whether that is done."""
        try:
            if self._tls is not None:
                if not isinstance(connection.sock, ssl.SSLSocket):
                    self._check_connected(connection.sock)
                    connection.sock = self._tls.wrap_socket(
                        connection.sock, server_hostname=self._hostname, do_handshake_on_connect=False
                    )
                connection.sock.do_handshake()
            else:
                self._check_connected(connection.sock)
        except ssl.SSLWantReadError:
            self._epoll.modify(connection.fd, select.EPOLLIN)
            return False
        except ssl.SSLWantWriteError:
            self._epoll.modify(connection.fd, select.EPOLLOUT)
            return False
        except OSError:
            self._fail(connection)
            return False
        connection.is_ready = True
        self._epoll.modify(connection.fd, select.EPOLLIN)
        return True

    @staticmethod
    def _check_connected(sock: socket.socket) -> None:
        sock.getpeername()

    def _send(self, connection: _Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.sock.send(connection.unsent) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass
        except OSError:
            # Found out by the next step, which is woken by it: nobody waits for results of `ask`.
            connection.unsent = b""
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        if bool(connection.unsent) != connection.is_sending:
            connection.is_sending = bool(connection.unsent)
            self._epoll.modify(connection.fd, select.EPOLLOUT if connection.is_sending else select.EPOLLIN)

    def _receive(self, connection: _Connection) -> None:
        while True:
            with memoryview(connection.buffer) as whole:
                room = whole[connection.filled :]
                try:
                    got = connection.sock.recv_into(room)
                except (BlockingIOError, ssl.SSLWantReadError):
                    return
                except OSError:  # cut; or TLS wants what needs more than this
                    got = 0
                finally:
                    room.release()
            if not got:
                self._fail(connection)
                return
            connection.filled += got
            connection.progress_s = self._monotonic()
            if self._take_answer(connection) or self._tls is None:
                return

    # --- answers -----------------------------------------------------------------------------------------------

    def _take_answer(self, connection: _Connection) -> bool:
        """Look at what has come; tell whether the job is over."""
        job = connection.job
        assert job is not None  # noqa: S101 - who receives has a job
        if not connection.start and not self._take_head(connection, job):
            return connection.job is None or connection.fd not in self._connections
        missing = connection.start + job.version.size_bytes - connection.filled
        if missing > 0:
            return False
        if missing < 0:
            self._fail(connection)
            return True
        body = memoryview(connection.buffer).toreadonly()[connection.start : connection.filled]
        self._over.append(Got(job.tag, body, self._monotonic() - job.asked_s))
        self._rest_s = _LEAST_REST_S
        connection.job = None
        connection.is_used = True
        if connection.is_last:
            self._drop(connection)
        else:
            self._idle.append(connection)
        return True

    def _take_head(self, connection: _Connection, job: _Job) -> bool:
        """Look at the head of the answer; tell whether it is there and as expected.  What is not expected fails."""
        buffer = connection.buffer
        start = buffer.find(b"\r\n\r\n", 0, connection.filled) + 4
        if start < 4:
            if connection.filled >= _HEAD_BYTES:
                self._fail(connection)
            return False
        fields = [(name.lower(), value.strip()) for name, value in _FIELDS.findall(buffer, 0, start)]
        etags = [bare_etag(value.decode("latin-1")) for name, value in fields if name == b"etag"]
        status = bytes(buffer[:12])
        if status != b"HTTP/1.1 206":
            is_about_object = status[9:].isdigit() and int(status[9:]) in _ABOUT_THE_OBJECT
            self._fail(connection, is_about_object=is_about_object)
            return False
        if etags != [job.version.etag]:
            self._fail(connection, is_about_object=len(etags) == 1)
            return False
        size = job.version.size_bytes
        others = {name: value for name, value in fields if name not in (b"etag", b"connection")}
        expected = {b"content-length": b"%d" % size, b"content-range": b"bytes 0-%d/%d" % (size - 1, size)}
        if others != expected or len(dict(fields)) < len(fields):  # (nothing twice)
            self._fail(connection)
            return False
        connection.start = start
        connection.is_last = any(name == b"connection" and value.lower() == b"close" for name, value in fields)
        del buffer[start + size + 1 :]  # (a byte more than expected is noticed)
        return True

    # --- ends --------------------------------------------------------------------------------------------------

    def _fail(self, connection: _Connection, *, is_about_object: bool = False) -> None:
        """Close a connection that went another way than expected, and give its job up."""
        job = connection.job
        # A server may close an idle connection while a request is on its way to it: that says nothing.
        is_stale = connection.is_used and not connection.filled and job is not None and not job.is_second_try
        self._drop(connection)
        if job is None:
            return
        is_elsewhere = not connection.is_ready and self._forget(connection.address)
        if (is_stale or is_elsewhere) and self._way is not None and self._monotonic() - job.asked_s < self._stall_s:
            job.is_second_try = True
            if self._begin(job, self._way):
                return
        if not is_about_object:
            self._rest()
        self._over.append(Got(job.tag, None, self._monotonic() - job.asked_s))

    def _forget(self, address: tuple[Any, ...]) -> bool:
        """Leave an address alone that does not answer (IPv6, where it leads nowhere); tell whether others are left."""
        way = self._way
        if way is None:
            return False
        others = tuple(each for each in way.addresses if each != address)
        if others:
            self._way = replace(way, addresses=others)
        return bool(others)

    def _drop(self, connection: _Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        del self._connections[connection.fd]
        self._epoll.unregister(connection.fd)
        connection.sock.close()

    def _rest(self) -> None:
        now_s = self._monotonic()
        if now_s >= self._rest_until_s:  # (what was under way meanwhile fails for the same cause)
            self._rest_until_s = now_s + self._rest_s
            self._rest_s = min(_MOST_REST_S, 2 * self._rest_s)


def open_gets(place: S3Place, credentials: CredentialSource | None, stall_s: float, most: int) -> S3Gets | None:
    """Return the way for this bucket, None where a proxy stands in between."""
    url = urlsplit(place.endpoint_url)
    if proxy_for(url.scheme, url.hostname or ""):
        return None
    return S3Gets(place, credentials, stall_s, most)
