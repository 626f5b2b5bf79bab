"""Server processes that never outlive the tests: ended at exit, and by the kernel when the tester is killed."""

import atexit
import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class ServerError(Exception):
    """A server of the tests did not start; the message holds the end of its log."""


def free_ports(count: int, also_above: int = 0) -> list[int]:
    """Return ports of 127.0.0.1 nobody listens on now, below the ephemeral range, so that no client takes one.

    also_above: each port plus this number must be free too (SeaweedFS puts gRPC 10000 above).
    Processes that ask at the same time get different ones, but for one pair in eight, and that by chance.
    """
    found: list[int] = []
    candidates = range(20_000 - also_above + os.getpid() % 8, 32_000 - also_above, 8)
    for port in random.sample(candidates, len(candidates)):
        if all(_is_free(each) for each in {port, port + also_above}):
            found.append(port)
            if len(found) == count:
                return found
    raise ServerError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent thread dies (prctl(2)); for preexec_fn."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ServerProcess:
    """One server, its scratch directory and its log."""

    def __init__(self, name: str, env: dict[str, str] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"fanoutfs-{name}-"))
        self.log = self.directory / "server.log"
        self._name = name
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    @property
    def is_started(self) -> bool:
        """Whether there is a process: an interrupt may come before."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process id, for tests that kill or stop the server."""
        assert self._process is not None
        return self._process.pid

    def start(self, arguments: list[str], is_ready: Callable[[], bool], deadline_s: float) -> None:
        """Start, and return when is_ready() says so; it may raise OSError meanwhile.  Raises ServerError."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self._env,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl through a library loaded before the fork
            )
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(f"{self._name} ended with {self._process.returncode}: {self.log_tail()}")
            with contextlib.suppress(OSError):
                if is_ready():
                    return
            time.sleep(0.05)
        tail = self.log_tail()
        self.stop()
        raise ServerError(f"{self._name} not ready after {deadline_s} s: {tail}")

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_bytes()[-2000:].decode(errors="replace") if self.log.exists() else ""

    def stop(self) -> None:
        """End the process and remove its directory; may be called twice."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(10)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def environment(changes: dict[str, str], remove: tuple[str, ...] = ()) -> Iterator[None]:
    """Change os.environ for a block."""
    before = dict(os.environ)
    for name in remove:
        os.environ.pop(name, None)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def tool(name: str) -> str:
    """Return the path of a program of this virtual environment, or of PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServerError(f"{name} is not installed")
    return found
