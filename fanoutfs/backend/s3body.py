"""The body of an HTTP answer, received straight into the memory where it is wanted.  Blocking; any thread.

A body of 8 MiB comes in a hundred pieces, and to be woken for each of them costs more than to copy it: a wake-up, the
GIL, a bytecode loop.  So the kernel collects them: one recv(2) waits for a MiB (MSG_WAITALL, in a socket that is made
blocking meanwhile: else every call is preceded by a poll), and what waits in it is woken when a quarter of a MiB has
come (SO_RCVLOWAT, for TCP since Linux 4.18), when the peer closes, or when the buffer is full.
"""

import contextlib
import http.client
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from typing import Final

from fanoutfs.backend.base import Landing

_LOWAT_BYTES: Final = 1 << 18
_RECEIVE_BYTES: Final = 1 << 20
_TIMEVAL: Final = struct.Struct("@ll")


def receive_body(
    response: http.client.HTTPResponse, sock: socket.socket | None, into: Landing, deadline_s: float
) -> None:
    """Read the body of an answer whose head has been read and found right, as much as there is room for.

    sock: where it comes from; None when the answer says that it is the connection's last.
    deadline_s: of the monotonic clock.  Raises OSError (a wait that timed out, a body that ends too early among them),
    HTTPException.
    """
    if sock is None or response.chunked or response.length is None or isinstance(sock, ssl.SSLSocket):
        _read(response, into, deadline_s)
        return
    ahead = min(len(response.peek()), len(into.room))  # what came along with the head
    into.arrive(response.readinto(into.room[:ahead]))
    if into.room:
        with _blocking(sock):
            _receive(sock, into, deadline_s)
    response.close()


def _read(response: http.client.HTTPResponse, into: Landing, deadline_s: float) -> None:
    """Read a body that has to be decoded."""
    while room := into.room:
        got = response.readinto(room[:_RECEIVE_BYTES])
        _check(got, into, deadline_s)
        into.arrive(got)


@contextlib.contextmanager
def _blocking(sock: socket.socket) -> Iterator[None]:
    """Let the kernel wait for a socket, as long at a time as Python would."""
    timeout_s = sock.gettimeout()
    us = 0 if timeout_s is None else max(1, int(timeout_s * 1e6))  # 0: for ever
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(*divmod(us, 1_000_000)))
    sock.settimeout(None)
    try:
        yield
    finally:
        sock.settimeout(timeout_s)


def _receive(sock: socket.socket, into: Landing, deadline_s: float) -> None:
    """Receive a body as it is."""
    # What is copied before a wait does not count for the mark: it must stay below what is still to come, to the last.
    is_collected = len(into.room) >= _RECEIVE_BYTES + _LOWAT_BYTES
    if is_collected:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _LOWAT_BYTES)
    try:
        while room := into.room:
            if is_collected and len(room) < _RECEIVE_BYTES + _LOWAT_BYTES:
                is_collected = False
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            try:
                got = sock.recv_into(room[:_RECEIVE_BYTES], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                # A slow line does not bring so much in time, and what came is returned; only silence is an error.
                raise TimeoutError("timed out") from None
            _check(got, into, deadline_s)
            into.arrive(got)
    finally:
        if is_collected:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def _check(got: int, into: Landing, deadline_s: float) -> None:
    if not got:
        raise ConnectionError(f"the body ends after {into.arrived} bytes of {len(into.memory)}")
    if time.monotonic() > deadline_s:
        raise TimeoutError(f"{into.arrived} bytes of {len(into.memory)} came in time")
