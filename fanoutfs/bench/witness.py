"""What the object store sent, from the log of the proxy in front of it: the witness for "each byte once"."""

import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Request(Protocol):
    """One line of the log."""

    @property
    def method(self) -> str:
        """GET, HEAD, ..."""
        ...

    @property
    def path(self) -> str:
        """Path and query as sent: /bucket/key."""
        ...

    @property
    def range(self) -> str:
        """The Range header, "" without one."""
        ...

    @property
    def status(self) -> int:
        """HTTP status of the answer."""
        ...

    @property
    def body_bytes(self) -> int:
        """Bytes of the answer's body sent to the client."""
        ...

    @property
    def seconds(self) -> float:
        """From the request's head to the last byte of the answer."""
        ...


class Proxy(Protocol):
    """A running proxy that logs: tests.support.proxy_client.Proxy."""

    endpoint: str
    pid: int
    """Of its process, for its CPU time."""

    def set_latency(self, ms: float) -> None:
        """Delay the first byte of every answer from now on."""
        ...

    def requests(self) -> Sequence[Request]:
        """Return all requests so far, in the order of their answers."""
        ...

    def stats(self) -> dict[str, Any]:
        """Return counts, `peak` (requests at the same time) among them."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent of one object."""

    requests: int
    bytes_sent: int
    bytes_twice: int
    """Bytes of the object that were sent more than once, counted once each."""
    bytes_never: int

    @property
    def is_each_byte_once(self) -> bool:
        """Whether every byte of the object was sent, and none again."""
        return self.bytes_twice == 0 and self.bytes_never == 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests and bytes of a time span, whatever they were for."""

    requests: int
    bytes_sent: int
    by_method: dict[str, int]


def sent_of(requests: Iterable[Request], key: str, size: int) -> Sent:
    """Return what these requests sent of the object `key` (any bucket) of this size."""
    spans = []
    for request in requests:
        if request.method == "GET" and request.status in (200, 206) and object_key(request.path) == key:
            start = _range_start(request.range, size) if request.status == 206 else 0
            spans.append((start, start + request.body_bytes))
    once, twice = _coverage(spans)
    return Sent(len(spans), sum(end - start for start, end in spans), twice, size - once)


def traffic(requests: Iterable[Request]) -> Traffic:
    """Return how much was asked and sent."""
    count = sent = 0
    methods: dict[str, int] = {}
    for request in requests:
        count += 1
        sent += request.body_bytes
        methods[request.method] = methods.get(request.method, 0) + 1
    return Traffic(count, sent, methods)


def object_key(path: str) -> str:
    """Return the key of a path-style request, "" for one about a bucket (listings)."""
    _, _, key = urllib.parse.urlsplit(path).path.lstrip("/").partition("/")
    return urllib.parse.unquote(key)


def _range_start(header: str, size: int) -> int:
    """Return where a satisfied range starts: bytes=a-b, bytes=a- or bytes=-last."""
    first, _, last = header.removeprefix("bytes=").partition("-")
    return int(first) if first else max(0, size - int(last))


def _coverage(spans: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Return how many positions lie in at least one, and in at least two of the half-open spans."""
    edges = sorted(
        [(start, 1) for start, end in spans if end > start] + [(end, -1) for start, end in spans if end > start]
    )
    once = twice = depth = before = 0
    for position, step in edges:
        once += (position - before) * (depth >= 1)
        twice += (position - before) * (depth >= 2)
        depth += step
        before = position
    return once, twice
