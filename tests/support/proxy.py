"""A proxy between fanoutfs and an object store: adds latency, injects faults, and logs what was asked and sent.

    python -m tests.support.proxy --listen 0 --upstream 127.0.0.1:8333 --latency-ms 20 --log requests.jsonl

prints one JSON line {"port": ..., "control_port": ...} when ready.  It is steered over the control port: JSON lines,
see `Proxy.command` and proxy_client.py.  Only the standard library, so that benchmarks may use it.

How it works: a thread per client connection with one upstream connection of its own.  Heads are read and parsed in
Python, requests are passed on unchanged (Range is signed), bodies go through splice(2) from socket to socket.  Latency
delays the first byte of an answer; it neither limits throughput nor the number of requests under way.

The log has one JSON line per request, written when its answer has been sent: number, method, path, range, status,
body_bytes (of the answer, sent to the client), fault, seconds.  "settle" on the control port waits until all are there.
"""

import argparse
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

CHUNK_BYTES: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_HEAD_LIMIT: Final = 1 << 16
_REASONS: Final = {
    403: "Forbidden",
    404: "Not Found",
    412: "Precondition Failed",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

FAULT_KINDS: Final = (
    "status",  # answer `status` with error code `code` and perhaps `retry_after`; upstream is not asked
    "reset",  # RST after `after` body bytes; 0: before the answer
    "stall",  # silence after `after` body bytes (0: before the answer), until the client hangs up
    "lost",  # the request is passed on and done; RST instead of its answer
    "short",  # an orderly end after `after` body bytes, fewer than Content-Length says
    "short_length",  # the body and its Content-Length cut to `after` bytes, the rest of the head unchanged
    "header",  # replace the header `name` by `value` ("": remove it)
    "ignore_range",  # 200 and no Content-Range
    "corrupt",  # one bit of the first body chunk flipped
    "delay",  # `ms` more latency
    "hold",  # the request is taken, and passed on at the command "release", whether or not the client is still there
)


@dataclass
class Fault:
    """What happens to the next `count` requests whose path contains `match` (and whose method is `method`)."""

    kind: str
    match: str = ""
    method: str = ""
    count: int = 1
    options: dict[str, Any] = field(default_factory=dict)


class _HangUpError(Exception):
    """The connection to the client is over."""


class _Wire:
    """A socket and what was read from it too early."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ahead = b""

    def read_head(self) -> bytes:
        """Return a head with its empty line; b"" at end of file before its first byte."""
        data = self.ahead
        while b"\r\n\r\n" not in data:
            more = self.sock.recv(65536)
            if not more:
                if data:
                    raise _HangUpError
                return b""
            data += more
            if len(data) > _HEAD_LIMIT and b"\r\n\r\n" not in data:
                raise _HangUpError
        head, _, self.ahead = data.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def read_some(self, limit: int) -> bytes:
        if self.ahead:
            data, self.ahead = self.ahead[:limit], self.ahead[limit:]
            return data
        return self.sock.recv(min(limit, CHUNK_BYTES))

    def read_line(self) -> bytes:
        while b"\r\n" not in self.ahead:
            more = self.sock.recv(65536)
            if not more:
                raise _HangUpError
            self.ahead += more
        line, _, self.ahead = self.ahead.partition(b"\r\n")
        return line + b"\r\n"

    def close(self) -> None:
        self.sock.close()


class _Pipe:
    """A kernel pipe to splice through, made when first needed."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None

    def move(self, source: socket.socket, target: socket.socket, count: int) -> int:
        """Move up to `count` bytes; return how many, 0 at end of file."""
        if self._ends is None:
            self._ends = os.pipe()
            fcntl.fcntl(self._ends[1], _F_SETPIPE_SZ, CHUNK_BYTES)
        moved = os.splice(source.fileno(), self._ends[1], min(count, CHUNK_BYTES))
        left = moved
        while left:
            left -= os.splice(self._ends[0], target.fileno(), left)
        return moved

    def close(self) -> None:
        if self._ends:
            os.close(self._ends[0])
            os.close(self._ends[1])


class Proxy:
    """The state all connections share, under one lock."""

    def __init__(self, upstream: tuple[str, int], latency_s: float, log: BinaryIO | None) -> None:
        self.upstream = upstream
        self.latency_s = latency_s
        self._log = log
        self._faults: list[Fault] = []
        self._condition = threading.Condition()
        self._under_way = 0
        self._held = 0
        self._releases = 0
        self._peak = 0
        self._number = 0

    def begin(self) -> int:
        """Number a request."""
        with self._condition:
            self._number += 1
            self._under_way += 1
            self._peak = max(self._peak, self._under_way)
            return self._number

    def end(self, record: dict[str, Any]) -> None:
        """Log a request that is over."""
        with self._condition:
            if self._log is not None:
                self._log.write(json.dumps(record).encode() + b"\n")
            self._under_way -= 1
            self._condition.notify_all()

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Take the first fault that fits."""
        with self._condition:
            for fault in self._faults:
                if fault.match in path and fault.method in ("", method):
                    fault.count -= 1
                    if fault.count == 0:
                        self._faults.remove(fault)
                    return fault
        return None

    def hold(self) -> None:
        """Return when what is held is released."""
        with self._condition:
            self._held += 1
            releases = self._releases
            self._condition.wait_for(lambda: self._releases > releases)

    def command(self, order: dict[str, Any]) -> dict[str, Any]:
        """Obey one control command: fault, clear, latency, settle, release, stats."""
        name = order.pop("do")
        with self._condition:
            if name == "fault":
                kind, match = order.pop("kind"), order.pop("match", "")
                if kind not in FAULT_KINDS:
                    return {"error": f"unknown fault {kind}"}
                fault = Fault(kind, match, order.pop("method", ""), order.pop("count", 1), order)
                self._faults.append(fault)
            elif name == "clear":
                self._faults.clear()
            elif name == "latency":
                self.latency_s = order["ms"] / 1000
            elif name == "settle":
                is_settled = self._condition.wait_for(lambda: self._under_way == 0, timeout=order.get("timeout_s", 10))
                if self._log is not None:
                    self._log.flush()
                return {"settled": is_settled, "requests": self._number}
            elif name == "release":
                self._held = 0
                self._releases += 1
                self._condition.notify_all()
            elif name == "stats":
                if self._log is not None:
                    self._log.flush()
                return {
                    "held": self._held,
                    "requests": self._number,
                    "under_way": self._under_way,
                    "peak": self._peak,
                    "faults_left": len(self._faults),
                }
            else:
                return {"error": f"unknown command {name}"}
        return {}


class _Connection:
    """One client connection, in its own thread."""

    def __init__(self, proxy: Proxy, sock: socket.socket) -> None:
        self._proxy = proxy
        self._client = _Wire(sock)
        self._server: _Wire | None = None
        self._pipe = _Pipe()

    def serve(self) -> None:
        try:
            while self._serve_one():
                pass
        except (OSError, _HangUpError):
            pass
        finally:
            self._client.close()
            if self._server is not None:
                self._server.close()
            self._pipe.close()

    def _serve_one(self) -> bool:
        head = self._client.read_head()
        if not head:
            return False
        started = time.monotonic()
        line, headers = _parse(head)
        method, path, _ = line.split(" ", 2)
        record: dict[str, Any] = {
            "number": self._proxy.begin(),
            "method": method,
            "path": path,
            "range": headers.get("range", ""),
            "status": 0,
            "body_bytes": 0,
            "fault": "",
        }
        try:
            fault = self._proxy.fault_for(method, path)
            record["fault"] = fault.kind if fault else ""
            return self._answer(head, headers, method, fault, record, started)
        finally:
            record["seconds"] = round(time.monotonic() - started, 6)
            self._proxy.end(record)

    def _answer(
        self,
        head: bytes,
        headers: dict[str, str],
        method: str,
        fault: Fault | None,
        record: dict[str, Any],
        started: float,
    ) -> bool:
        options = fault.options if fault else {}
        kind = fault.kind if fault else ""
        after = int(options.get("after", 0))
        if headers.get("expect", "").lower() == "100-continue":
            self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind in ("status",) or (kind in ("reset", "stall") and after == 0):
            self._drain_request(headers)
            self._wait(started, 0.0)
            if kind == "reset":
                _reset(self._client.sock)
            if kind == "stall":
                self._stall()
            return self._send_status(options, method, record)
        if kind == "hold":
            body = self._take_body(headers)
            self._proxy.hold()
            self._client.ahead = body + self._client.ahead
        answer_head = self._ask(head, headers)
        if kind == "lost":
            _reset(self._client.sock)
            raise _HangUpError
        self._wait(started, float(options.get("ms", 0)) / 1000 if kind == "delay" else 0.0)
        return self._relay(answer_head, method, kind, options, after, record, headers)

    def _wait(self, started: float, extra_s: float) -> None:
        left = started + self._proxy.latency_s + extra_s - time.monotonic()
        if left > 0:
            time.sleep(left)

    def _ask(self, head: bytes, headers: dict[str, str]) -> bytes:
        """Send the request upstream and return the head of the answer (interim 1xx answers dropped)."""
        has_body = "content-length" in headers or "transfer-encoding" in headers
        while True:
            is_fresh = self._server is None
            if self._server is None:
                sock = socket.create_connection(self._proxy.upstream)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._server = _Wire(sock)
            try:
                self._server.sock.sendall(head)
                self._relay_body(self._client, self._server, headers)
                answer = self._server.read_head()
                while answer.startswith(b"HTTP/1.1 1"):
                    answer = self._server.read_head()
            except (ConnectionError, _HangUpError):
                answer = b""
            if answer:
                return answer
            self._server.close()
            self._server = None
            # An idle upstream connection may have been closed just now; a sent body is gone.
            if is_fresh or has_body:
                raise _HangUpError

    def _relay(
        self,
        head: bytes,
        method: str,
        kind: str,
        options: dict[str, Any],
        after: int,
        record: dict[str, Any],
        request_headers: dict[str, str],
    ) -> bool:
        assert self._server is not None
        line, headers = _parse(head)
        status = int(line.split(" ")[1])
        record["status"] = status
        has_body = method != "HEAD" and status not in (204, 304)
        length = int(headers["content-length"]) if "content-length" in headers else -1
        sent_length = length
        if kind == "header":
            head = _with_header(head, options["name"], options.get("value", ""))
        elif kind == "ignore_range":
            head = _with_header(head, "content-range", "").replace(b" 206 Partial Content", b" 200 OK", 1)
        elif kind == "short_length":
            sent_length = min(after, length)
            head = _with_header(head, "content-length", str(sent_length))
        self._client.sock.sendall(head)
        if has_body and length < 0 and headers.get("transfer-encoding", "").lower() == "chunked":
            record["body_bytes"] = self._relay_chunked(self._server, self._client)
        elif has_body and length < 0:
            while data := self._server.read_some(CHUNK_BYTES):
                self._client.sock.sendall(data)
                record["body_bytes"] += len(data)
            return False
        elif has_body:
            stop = min(after, sent_length) if kind in ("reset", "stall", "short") else sent_length
            if kind == "corrupt" and sent_length:
                first = bytearray(self._server.read_some(sent_length))
                first[len(first) // 2] ^= 1
                self._client.sock.sendall(first)
                record["body_bytes"] = len(first)
            self._relay_count(self._server, self._client, stop - record["body_bytes"], record)
            if kind == "reset":
                _reset(self._client.sock)
            if kind == "stall":
                self._stall()
            if kind in ("short", "short_length"):
                raise _HangUpError
        if headers.get("connection", "").lower() == "close":
            self._server.close()
            self._server = None
            return False
        return request_headers.get("connection", "").lower() != "close"

    def _relay_count(self, source: _Wire, target: _Wire, count: int, record: dict[str, Any] | None = None) -> None:
        left = count
        while left > 0:
            if source.ahead:
                data = source.read_some(left)
                target.sock.sendall(data)
                moved = len(data)
            else:
                moved = self._pipe.move(source.sock, target.sock, left)
            if moved == 0:
                raise _HangUpError
            left -= moved
            if record is not None:
                record["body_bytes"] += moved

    def _relay_body(self, source: _Wire, target: _Wire, headers: dict[str, str]) -> None:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self._relay_chunked(source, target)
        else:
            self._relay_count(source, target, int(headers.get("content-length", 0)))

    def _relay_chunked(self, source: _Wire, target: _Wire) -> int:
        total = 0
        while True:
            line = source.read_line()
            target.sock.sendall(line)
            size = int(line.split(b";")[0], 16)
            if size == 0:
                while (line := source.read_line()) != b"\r\n":
                    target.sock.sendall(line)
                target.sock.sendall(b"\r\n")
                return total
            self._relay_count(source, target, size + 2)
            total += size

    def _drain_request(self, headers: dict[str, str]) -> None:
        self._take_body(headers)

    def _take_body(self, headers: dict[str, str]) -> bytes:
        body = b""
        length = int(headers.get("content-length", 0))
        while len(body) < length:
            data = self._client.read_some(length - len(body))
            if not data:
                raise _HangUpError
            body += data
        return body

    def _send_status(self, options: dict[str, Any], method: str, record: dict[str, Any]) -> bool:
        status = int(options.get("status", 503))
        body = f"<?xml version='1.0'?><Error><Code>{options.get('code', 'SlowDown')}</Code></Error>".encode()
        head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Fault')}\r\n"
        head += f"Content-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        if "retry_after" in options:
            head += f"Retry-After: {options['retry_after']}\r\n"
        self._client.sock.sendall(head.encode() + b"\r\n" + (b"" if method == "HEAD" else body))
        record["status"] = status
        return True

    def _stall(self) -> None:
        # Until the client gives up; it sends nothing more on this connection.
        while self._client.sock.recv(65536):
            pass
        raise _HangUpError


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return lines[0], {name.strip().lower(): value.strip() for name, _, value in pairs}


def _with_header(head: bytes, name: str, value: str) -> bytes:
    lines = head.decode("latin-1").split("\r\n")[:-2]
    kept = [line for line in lines[1:] if line.partition(":")[0].strip().lower() != name.lower()]
    if value:
        kept.append(f"{name}: {value}")
    return "\r\n".join([lines[0], *kept, "", ""]).encode("latin-1")


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    raise _HangUpError


def _serve_control(proxy: Proxy, listener: socket.socket) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_obey, args=(proxy, sock), daemon=True).start()


def _obey(proxy: Proxy, sock: socket.socket) -> None:
    with sock, sock.makefile("rwb") as stream:
        for line in stream:
            try:
                answer = proxy.command(json.loads(line))
            except (KeyError, ValueError) as error:
                answer = {"error": str(error)}
            stream.write(json.dumps(answer).encode() + b"\n")
            stream.flush()


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--listen", type=int, default=0, help="port of 127.0.0.1; 0: any")
    parser.add_argument("--control", type=int, default=0, help="control port; 0: any")
    parser.add_argument("--upstream", required=True, help="host:port")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--log", help="file for one JSON line per request")
    parser.add_argument("--die-with-parent", action="store_true")
    options = parser.parse_args()
    if options.die_with_parent:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    host, _, port = options.upstream.rpartition(":")
    log = open(options.log, "ab") if options.log else None  # noqa: SIM115 - open for the life of the process
    proxy = Proxy((host, int(port)), options.latency_ms / 1000, log)
    listener = socket.create_server(("127.0.0.1", options.listen), backlog=1024)
    control = socket.create_server(("127.0.0.1", options.control))
    threading.Thread(target=_serve_control, args=(proxy, control), daemon=True).start()
    print(json.dumps({"port": listener.getsockname()[1], "control_port": control.getsockname()[1]}), flush=True)
    threading.stack_size(256 * 1024)
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_Connection(proxy, sock).serve, daemon=True).start()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
