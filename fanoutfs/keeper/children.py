"""Fork children that die with the keeper, and tell how they ended."""

import ctypes
import faulthandler
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from fanoutfs.keeper.ending import reap_within
from fanoutfs.observe.dump import follow_dumps

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1
_KILL_S: Final = 2.0
"""A killed process ends within milliseconds unless the kernel waits for something on its behalf."""
_libc = ctypes.CDLL(None, use_errno=True)


class Closable(Protocol):
    """Something a child must not keep open."""

    def close(self) -> None:
        """Close it."""
        ...


@dataclass(frozen=True, slots=True)
class Death:
    """How a child ended."""

    pid: int
    wait_status: int

    @property
    def exit_code(self) -> int:
        """Return the exit code, or minus the signal."""
        return os.waitstatus_to_exitcode(self.wait_status)

    @property
    def was_killed(self) -> bool:
        """Tell whether somebody else ended it (kill -9, SIGTERM, out of memory)."""
        return self.exit_code in (-signal.SIGKILL, -signal.SIGTERM)

    def __str__(self) -> str:
        if self.exit_code < 0:
            return signal.Signals(-self.exit_code).name
        return f"exit code {self.exit_code}"


def fork_child(name: str, setup_log: Callable[[str], None], close: list[Closable], run: Callable[[], int]) -> int:
    """Fork a child that runs `run` and exits with what it returns; return its pid.

    close: what the child must not hold, above all the other ends of its own sockets, or nobody would see EOF.
    """
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != keeper:
            os._exit(1)  # the keeper died before it could be watched
        setup_log(name)
        follow_dumps()
        faulthandler.enable()  # stacks also of one that crashes, or that the watchdog aborts
        for item in close:
            item.close()
        code = run()
    except BaseException:  # the child's edge: nothing may unwind into the keeper's frames
        log.exception("process failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def reap() -> list[Death]:
    """Return the children that ended since the last call.  Does not block."""
    deaths: list[Death] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return deaths
        if pid == 0:
            return deaths
        deaths.append(Death(pid, status))


def end_child(pid: int, timeout_s: float) -> bool:
    """End a child with SIGTERM, after the timeout with SIGKILL, and reap it; True when it is gone.

    False: it has been killed, but the kernel does not let go of it now.
    """
    asked = ((signal.SIGTERM, timeout_s),) if timeout_s > 0 else ()
    try:
        return reap_within(pid, 0.0, *asked, (signal.SIGKILL, _KILL_S)) is not None
    except (ProcessLookupError, ChildProcessError):
        return True
