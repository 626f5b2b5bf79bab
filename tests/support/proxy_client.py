"""Runs proxy.py as a process of its own and steers it."""

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import ServerProcess

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the proxy's log."""

    number: int
    method: str
    path: str
    range: str
    """The Range header, "" without."""
    status: int
    body_bytes: int
    fault: str
    seconds: float


class Proxy:
    """A running proxy.  One thread at a time."""

    def __init__(self, port: int, control_port: int, log: Path, pid: int) -> None:
        self.pid = pid
        self.endpoint = f"http://127.0.0.1:{port}"
        self._log = log
        self._control = socket.create_connection(("127.0.0.1", control_port), timeout=60)
        self._stream = self._control.makefile("rwb")

    def fault(self, kind: str, match: str = "", count: int = 1, **options: Any) -> None:
        """Inject a fault (proxy.FAULT_KINDS) into the next `count` requests whose path contains `match`."""
        self._do("fault", kind=kind, match=match, count=count, **options)

    def clear(self) -> None:
        """Forget the faults not yet used."""
        self._do("clear")

    def set_latency(self, ms: float) -> None:
        """Delay the first byte of every answer from now on."""
        self._do("latency", ms=ms)

    def release(self) -> None:
        """Pass on what is held (fault "hold")."""
        self._do("release")

    def stats(self) -> dict[str, Any]:
        """Return {"requests", "under_way", "held", "peak", "faults_left"}."""
        return self._do("stats")

    def requests(self, match: str = "", method: str = "") -> list[Request]:
        """Return the requests so far, once none is under way (a stalled one counts as under way)."""
        answer = self._do("settle")
        assert answer["settled"], "requests are still under way after 10 s"
        return self.answered(match, method)

    def answered(self, match: str = "", method: str = "") -> list[Request]:
        """Return the requests that were answered so far, whatever else is under way."""
        self._do("stats")
        lines = self._log.read_text().splitlines()
        all_requests = (Request(**json.loads(line)) for line in lines)
        return [each for each in all_requests if match in each.path and method in ("", each.method)]

    def close(self) -> None:
        """Close the control connection."""
        self._stream.close()
        self._control.close()

    def _do(self, do: str, **arguments: Any) -> dict[str, Any]:
        self._stream.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self._stream.flush()
        answer: dict[str, Any] = json.loads(self._stream.readline())
        assert "error" not in answer, answer["error"]
        return answer


@contextlib.contextmanager
def running_proxy(upstream: str, latency_ms: float = 0.0) -> Iterator[Proxy]:
    """Run a proxy in front of upstream ("host:port")."""
    process = ServerProcess("proxy", env={"PYTHONPATH": str(_ROOT)})
    log = process.directory / "requests.jsonl"
    log.touch()
    arguments = [sys.executable, "-m", "tests.support.proxy", "--upstream", upstream, "--log", str(log)]
    try:
        process.start(
            [*arguments, "--latency-ms", str(latency_ms)], lambda: b"\n" in process.log.read_bytes(), deadline_s=20
        )
        ports = json.loads(process.log.read_text().splitlines()[0])
        proxy = Proxy(ports["port"], ports["control_port"], log, process.pid)
        try:
            yield proxy
        finally:
            proxy.close()
    finally:
        process.stop()
