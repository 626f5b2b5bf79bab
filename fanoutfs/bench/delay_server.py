"""Delays the first byte of every answer of an object store and counts what was sent; see delay.py for its owner.

A process of its own, one thread on epoll: `python -m fanoutfs.bench.delay_server HOST:PORT MILLISECONDS`.  It says
{"port": ...} on stdout, obeys JSON lines on stdin (`_obey`), and ends when stdin does, so that it never outlives its
owner.

It must be cheap, because it shares two cores with the store it stands before.  Measured with GETs of 16 KiB, 128 in
flight, CPU time for each: this program 60 us, the threaded proxy of the tests 170 us, SeaweedFS itself 340 us.  What
makes it so: four system calls a request, one look at each head, and no framing.

No framing: what a client sends after an answer has begun is a new request.  That holds for every client that waits for
an answer before it asks again on the same connection, which all do (nobody pipelines); uploads are not for this proxy.
A delay is never shorter than said, and up to a millisecond longer (the resolution of epoll_wait).
"""

import collections
import gc
import json
import os
import re
import select
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

_CHUNK_BYTES: Final = 1 << 18
_HELD_LIMIT_BYTES: Final = 4 << 20  # beyond it the store waits: memory, times the number of connections
_RANGE: Final = re.compile(rb"\r\n[Rr]ange: *([^\r]*)")

_IDLE: Final = 0  # the answer flows or has been sent; the next bytes of the client are a request
_WAITING: Final = 1  # for the first byte of an answer
_HELD: Final = 2  # the answer has begun, and is delayed


class _Link:
    """A client's connection and the one to the store that was opened for it."""

    __slots__ = ("client", "ending", "is_jammed", "method", "out", "path", "range", "sent", "server", "start", "state")

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.state = _IDLE
        self.out = b""  # for the client: held back, or not taken yet
        self.is_jammed = False  # the store is not read from meanwhile
        self.ending = False  # the store has closed
        self.method = self.path = self.range = ""
        self.start = 0.0
        self.sent: list[Any] | None = None  # the record of the answer under way; its body_bytes grow


class DelayServer:
    """The loop and all connections."""

    def __init__(self, upstream: tuple[str, int], latency_s: float) -> None:
        self._upstream = upstream
        self._latency_s = latency_s
        self._epoll = select.epoll()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._links: dict[int, _Link] = {}  # both descriptors of each
        self._held: collections.deque[tuple[float, _Link]] = collections.deque()  # due first come first
        self._records: list[list[Any]] = []
        self._orders = b""
        self._is_over = False
        for fd in (self._listener.fileno(), 0):
            self._epoll.register(fd, select.EPOLLIN)

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Serve until stdin ends."""
        listener, links, held = self._listener.fileno(), self._links, self._held
        while not self._is_over:
            timeout = max(0.0, held[0][0] - time.monotonic()) if held else -1
            for fd, events in self._epoll.poll(timeout):
                link = links.get(fd)
                if link is not None:
                    try:
                        self._handle(link, fd, events)
                    except OSError:
                        self._close(link)
                elif fd == listener:
                    self._accept()
                elif fd == 0:
                    self._read_orders()
            now = time.monotonic()
            while held and held[0][0] <= now:
                self._release(held.popleft()[1])

    # --- connections -------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._upstream)
        except OSError:
            client.close()
            return
        link = _Link(client, server)
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._links[sock.fileno()] = link
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _close(self, link: _Link) -> None:
        link.state = _IDLE
        link.out = b""
        for sock in (link.client, link.server):
            self._links.pop(sock.fileno(), None)
            sock.close()  # leaves the epoll set with it

    def _handle(self, link: _Link, fd: int, events: int) -> None:
        if fd != link.client.fileno():
            self._from_store(link)
        elif events & select.EPOLLOUT:
            self._send(link)
        else:
            self._from_client(link)

    def _from_client(self, link: _Link) -> None:
        data = link.client.recv(_CHUNK_BYTES)
        if not data:
            self._close(link)
            return
        if link.state == _IDLE:
            line = data[: data.find(b"\r\n")].decode("latin-1")
            link.method, link.path, _ = line.split(" ", 2)
            found = _RANGE.search(data)
            link.range = found[1].decode("latin-1") if found else ""
            link.start = time.monotonic()
            link.state = _WAITING
            link.sent = None
        link.server.sendall(data)  # a head: far below what a socket takes without waiting

    def _from_store(self, link: _Link) -> None:
        data = link.server.recv(_CHUNK_BYTES)
        if not data:
            link.ending = True
            self._epoll.modify(link.server.fileno(), 0)
            if link.state != _HELD and not link.out:
                self._close(link)
            return
        link.out += data
        if link.state == _WAITING:
            link.state = _HELD
            self._held.append((time.monotonic() + self._latency_s, link))
        elif link.state == _HELD:
            if len(link.out) > _HELD_LIMIT_BYTES:
                self._jam(link, is_jammed=True)
        else:
            if link.sent is not None:
                link.sent[4] += len(data)
            self._send(link)

    def _release(self, link: _Link) -> None:
        """Begin the answer that has been held back long enough."""
        if link.state != _HELD:
            return  # the connection is gone
        end = link.out.find(b"\r\n\r\n")
        if end < 0 and not link.ending:  # a head in pieces
            self._held.append((time.monotonic() + self._latency_s, link))
            return
        link.state = _IDLE
        status = int(link.out[9:12] or 0)
        seconds = time.monotonic() - link.start
        link.sent = [link.method, link.path, link.range, status, len(link.out) - end - 4, seconds]
        self._records.append(link.sent)
        try:
            self._jam(link, is_jammed=False)
            self._send(link)
        except OSError:
            self._close(link)

    def _send(self, link: _Link) -> None:
        """Send what there is for the client; while it does not take all, the store waits."""
        try:
            taken = link.client.send(link.out, socket.MSG_DONTWAIT)
        except BlockingIOError:
            taken = 0
        link.out = link.out[taken:]
        self._jam(link, is_jammed=bool(link.out))
        if link.ending and not link.out:
            self._close(link)

    def _jam(self, link: _Link, *, is_jammed: bool) -> None:
        if is_jammed == link.is_jammed:
            return
        link.is_jammed = is_jammed
        if not link.ending:
            self._epoll.modify(link.server.fileno(), 0 if is_jammed else select.EPOLLIN)
        is_waiting_for_client = is_jammed and link.state == _IDLE
        self._epoll.modify(link.client.fileno(), select.EPOLLIN | (select.EPOLLOUT if is_waiting_for_client else 0))

    # --- orders ------------------------------------------------------------------------------------------------

    def _read_orders(self) -> None:
        data = os.read(0, 1 << 16)
        if not data:
            self._is_over = True
            return
        *lines, self._orders = (self._orders + data).split(b"\n")
        for line in lines:
            answer = json.dumps(self._obey(json.loads(line)))
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()

    def _obey(self, order: dict[str, Any]) -> Any:
        """latency: from now on; under_way: requests not answered yet; take: the records so far, forgotten then."""
        if order["do"] == "latency":
            self._latency_s = order["ms"] / 1000
            return None
        if order["do"] == "under_way":
            links = {id(link): link for link in self._links.values()}
            return sum(link.state != _IDLE or bool(link.out) for link in links.values())
        records, self._records = self._records, []
        return records


def main(arguments: Sequence[str]) -> int:
    """Serve until stdin ends."""
    host, _, port = arguments[0].rpartition(":")
    server = DelayServer((host, int(port)), float(arguments[1]) / 1000)
    gc.disable()  # nothing here is cyclic
    sys.stdout.write(json.dumps({"port": server.port}) + "\n")
    sys.stdout.flush()
    server.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
