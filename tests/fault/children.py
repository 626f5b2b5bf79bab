"""Reader processes for fault tests: forked, watched, never outliving the test."""

import ctypes
import errno
import hashlib
import os
import pickle
import random
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import pytest

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
DEADLINE_S: Final = 60.0


class Child:
    """A forked process that runs one function and hands its result back."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._result, end = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                os.close(self._result)
                try:
                    outcome = (True, function(*arguments))
                except BaseException:
                    outcome = (False, traceback.format_exc())
                with open(end, "wb") as stream:
                    pickle.dump(outcome, stream)
                code = 0
            finally:
                os._exit(code)
        os.close(end)
        self._pidfd = os.pidfd_open(self.pid)
        self._is_over = False

    def result(self, deadline_s: float = DEADLINE_S) -> Any:
        """Return what the function returned; fail the test with its traceback, or when the deadline passes."""
        deadline = time.monotonic() + deadline_s
        data = b""
        poller = select.poll()
        poller.register(self._result, select.POLLIN)
        while True:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                state = _stack(self.pid)
                self.kill()
                pytest.fail(f"reader {self.pid} did not end within {deadline_s:g} s\n{state}")
            chunk = os.read(self._result, 1 << 16)
            if not chunk:
                break
            data += chunk
        self.kill()
        assert data, f"reader {self.pid} ended without a result"
        succeeded, value = pickle.loads(data)
        assert succeeded, f"reader {self.pid} failed:\n{value}"
        return value

    @property
    def is_running(self) -> bool:
        """Tell whether the process has not ended."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return not poller.poll(0)

    def send(self, number: int) -> None:
        """Send a signal."""
        signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End the process, if it still runs, and reap it; may be called twice."""
        if self._is_over:
            return
        self._is_over = True
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        os.close(self._result)


class Children:
    """All children of a test."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def start(self, function: Callable[..., Any], *arguments: Any) -> Child:
        """Fork a child."""
        child = Child(function, *arguments)
        self._children.append(child)
        return child

    def results(self, children: Iterable[Child], deadline_s: float = DEADLINE_S) -> list[Any]:
        """Return the results of all."""
        return [child.result(deadline_s) for child in children]

    def end(self) -> None:
        """Kill whoever still runs."""
        for child in self._children:
            child.kill()


def content(seed: int, size_bytes: int) -> bytes:
    """Return reproducible bytes without repetition."""
    return random.Random(seed).randbytes(size_bytes)


def digest(data: bytes) -> str:
    """Return a hash for comparison."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_digest(path: Path, chunk_bytes: int = 1 << 20) -> str:
    """Read a file front to back and return its digest."""
    hasher = hashlib.blake2b(digest_size=16)
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(chunk_bytes):
            hasher.update(chunk)
    return hasher.hexdigest()


def read_errno(path: Path, offset: int = 0, length: int = 4096) -> int:
    """Open and read a range; return 0 or the errno."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        os.pread(fd, length, offset)
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        os.close(fd)
    return 0


def _stack(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stack").read_text(encoding="ascii")
    except OSError as error:
        return str(error)
