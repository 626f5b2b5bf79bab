"""The part of systemd that a Type=notify service meets: notifications, watchdog, and the descriptor store."""

import array
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounts import COMMAND

_LAUNCH: Final = (
    "import os, sys\n"
    "numbers = [int(word) for word in sys.argv[1].split(':') if word]\n"
    "high = [os.dup2(number, 200 + index) for index, number in enumerate(numbers)]\n"
    "for index, number in enumerate(high):\n"
    "    os.dup2(number, 3 + index, inheritable=True)\n"
    "    os.close(number)\n"
    "os.environ['LISTEN_PID'] = os.environ['WATCHDOG_PID'] = str(os.getpid())\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)
"""Puts the descriptors at 3 and above and becomes the service, as systemd does after its fork."""
_UCRED: Final = struct.Struct("iII")
_DEADLINE_S: Final = 60.0


class Manager:
    """Starts one service again and again, keeps what it stores, and notes what it says."""

    def __init__(self, directory: Path, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._command = command
        self._environment = dict(environment or {})
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(directory / "notify"))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.stored: dict[str, int] = {}
        self.messages: list[str] = []
        self.strangers: list[str] = []
        """Messages of other processes than the main one, which systemd ignores (NotifyAccess=main)."""
        self.service: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The main process of the service."""
        assert self.service is not None
        return self.service.pid

    @property
    def log(self) -> str:
        """What the service has printed, over all its starts."""
        return (self._directory / "journal").read_text(encoding="utf-8", errors="replace")

    def start(self, *prefix: str) -> None:
        """Start the service with what it has stored, and return when it says READY=1."""
        self.launch(*prefix)
        self.wait_for("READY=1")

    def launch(self, *prefix: str) -> None:
        """Start the service with what it has stored.  prefix: a command that runs it."""
        self.messages.clear()
        names, numbers = list(self.stored), list(self.stored.values())
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self._directory / "notify"),
            "FDSTORE": "8",
            "WATCHDOG_USEC": "300000",
            **self._environment,
        }
        if names:
            environment |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        launcher = [sys.executable, "-c", _LAUNCH, ":".join(str(number) for number in numbers)]
        with (self._directory / "journal").open("ab") as journal:
            self.service = subprocess.Popen(
                [*launcher, *prefix, *COMMAND, *self._command], pass_fds=numbers, stderr=journal, env=environment
            )

    def wait_for(self, line: str) -> None:
        """Return when a message has held this line; fail the test when the service ends instead."""
        deadline = time.monotonic() + _DEADLINE_S
        while not any(line in message.split("\n") for message in self.messages):
            assert self.service is not None
            if self.service.poll() is not None:
                self.receive_all()
                pytest.fail(f"the service ended with {self.service.returncode} before {line}:\n{self.log}")
            if time.monotonic() > deadline:
                pytest.fail(f"no {line} from the service:\n{self.log}")
            time.sleep(0.01)

    def receive_all(self) -> None:
        """Take all messages that are there."""
        with self._lock:
            while select.select([self._socket], [], [], 0)[0]:
                self._receive()

    def _run(self) -> None:
        # All the time, as systemd does: the kernel queues ten messages, and the next sender waits.
        while not self._is_closed:
            select.select([self._socket], [], [], 0.05)
            self.receive_all()

    def _receive(self) -> None:
        space = socket.CMSG_SPACE(64) + socket.CMSG_SPACE(_UCRED.size)
        data, controls, _flags, _address = self._socket.recvmsg(65536, space, socket.MSG_CMSG_CLOEXEC)
        descriptors, sender = array.array("i"), 0
        for level, kind, content in controls:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content)
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                sender = _UCRED.unpack(content)[0]
        message = data.decode()
        if sender != self.pid:
            self.strangers.append(message)
        self.messages.append(message)
        words = dict(line.split("=", 1) for line in message.split("\n"))
        name = words.get("FDNAME", "")
        if "FDSTORE" in words:
            if name in self.stored:  # systemd sees that it has this one
                os.close(self.stored.pop(name))
            (self.stored[name],) = descriptors
            return
        if "FDSTOREREMOVE" in words and name in self.stored:
            os.close(self.stored.pop(name))
        for descriptor in descriptors:  # BARRIER=1: closing it is the answer
            os.close(descriptor)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the service a signal; return its exit code."""
        assert self.service is not None
        self.service.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code of the service."""
        assert self.service is not None
        code = self.service.wait(_DEADLINE_S)
        self.receive_all()
        return code

    def close(self) -> None:
        """End the service and let go of everything."""
        if self.service is not None and self.service.poll() is None:
            self.service.kill()
            self.service.wait()
        self._is_closed = True
        self._thread.join()
        self._socket.close()
        for descriptor in self.stored.values():
            os.close(descriptor)
        self.stored.clear()


@contextlib.contextmanager
def managed(*command: str, environment: Mapping[str, str] | None = None) -> Iterator[Manager]:
    """Yield a manager of the service `fanoutfs COMMAND...`."""
    with tempfile.TemporaryDirectory(prefix="fanoutfs-manager-") as directory:
        manager = Manager(Path(directory), *command, environment=environment)
        try:
            yield manager
        finally:
            manager.close()
