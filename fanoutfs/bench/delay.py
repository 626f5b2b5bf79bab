"""A distance to the object store: every answer comes some milliseconds later, and all are counted.

Runs delay_server.py, which says why it exists beside the proxy of the tests: it is cheap, so that what is measured is
not the proxy.  It injects no faults.
"""

import contextlib
import json
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fanoutfs.bench.data import Bucket
from fanoutfs.bench.scope import PeerError, stop, without_interrupts
from fanoutfs.bench.witness import object_key

_SETTLE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One request that was answered; witness.Request says what the fields are."""

    method: str
    path: str
    range: str
    status: int
    body_bytes: int
    seconds: float


class Distance:
    """A running delay server.  One thread."""

    def __init__(self, process: "subprocess.Popen[bytes]", bucket: Bucket, port: int) -> None:
        """process: with pipes to its stdin and stdout; bucket: what it stands before."""
        self._process = process
        self.bucket = replace(bucket, endpoint_url=f"http://127.0.0.1:{port}")
        """The bucket, seen from here."""

    @property
    def pid(self) -> int:
        """Of the delay server, for its CPU time."""
        return self._process.pid

    def set_latency(self, ms: float) -> None:
        """Delay the first byte of every answer by so much from now on."""
        self._do("latency", ms=ms)

    def take(self) -> list[Answered]:
        """Return the requests since the last call, once none is under way.  Raises PeerError when some never end."""
        deadline = time.monotonic() + _SETTLE_S
        while self._do("under_way"):
            if time.monotonic() > deadline:
                raise PeerError(f"requests to the store are still under way after {_SETTLE_S:.0f} s")
            time.sleep(0.02)
        return [Answered(*record) for record in self._do("take")]

    def _do(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None  # noqa: S101  opened as a pipe
        assert self._process.stdout is not None  # noqa: S101  opened as a pipe
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def at_distance(bucket: Bucket, latency_ms: float) -> Iterator[Distance]:
    """Run a delay server in front of the bucket's store; end it."""
    address = urllib.parse.urlsplit(bucket.endpoint_url).netloc
    process = subprocess.Popen(
        [sys.executable, "-m", "fanoutfs.bench.delay_server", address, str(latency_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in a terminal is for the benchmark alone
    )
    try:
        assert process.stdout is not None  # noqa: S101  opened as a pipe
        hello = process.stdout.readline()
        if not hello:
            raise PeerError("the delay server did not start")
        yield Distance(process, bucket, json.loads(hello)["port"])
    finally:
        with without_interrupts():
            stop(process)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


@dataclass(frozen=True, slots=True)
class Once:
    """How far "each file once" held."""

    files: int
    gets: int
    bytes_sent: int
    bytes_wanted: int
    again: int
    """Files that were asked for more than once."""
    never: int
    others: int
    """Requests that were no GET of a wanted file: listings, HEADs, probes."""

    @property
    def is_met(self) -> bool:
        """Whether every file was sent once and in full."""
        return self.again == 0 and self.never == 0 and self.bytes_sent == self.bytes_wanted

    def __str__(self) -> str:
        return (
            f"{self.gets:,} GETs for {self.files:,} files, {self.again:,} files again, {self.never:,} never, "
            f"{self.bytes_sent:,} of {self.bytes_wanted:,} bytes, {self.others:,} other requests"
        )


def once_of(requests: Iterable[Answered], sizes: Mapping[str, int]) -> Once:
    """Return how often each wanted key was sent.  sizes: key -> bytes of every file that was read."""
    gets: Counter[str] = Counter()
    sent = others = 0
    for request in requests:
        key = object_key(request.path)
        if request.method == "GET" and key in sizes:
            gets[key] += 1
            sent += request.body_bytes
        else:
            others += 1
    again = sum(count > 1 for count in gets.values())
    return Once(len(sizes), gets.total(), sent, sum(sizes.values()), again, len(sizes) - len(gets), others)
