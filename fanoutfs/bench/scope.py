"""Everything a benchmark starts, it ends: scratch directories, processes and mounts, also after Ctrl-C or SIGTERM.

Only processes started here are ever signalled, by their handle.  They run in sessions of their own, so that Ctrl-C in a
terminal reaches the benchmark alone, which then unmounts before the servers go.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import ClassVar, Final

from fanoutfs.errors import FanoutError

STOP_TIMEOUT_S: Final = 10.0
MOUNT_TIMEOUT_S: Final = 30.0
_UNMOUNT_TRIES: Final = 20
_THROWN_AGAIN_AFTER_S: Final = 0.01
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class PeerError(FanoutError):
    """A peer cannot be measured: its program is missing, or it did not mount.  The message is the reason."""


class Interrupted(BaseException):
    """SIGTERM or SIGHUP: unwinds like KeyboardInterrupt, so that every scope is left."""


class _PutOff:
    """Signals that wait for the end of a `without_interrupts`."""

    depth = 0
    waiting: ClassVar[list[int]] = []


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into Interrupted, Ctrl-C into KeyboardInterrupt while the block runs.  Main thread only.

    Python drops what a handler raises within a destructor, a weak reference's callback or a hook of `fork`.  What is
    dropped there is thrown again a moment later, so that no signal is lost.
    """

    def unwind(number: int, _frame: FrameType | None) -> None:
        if _PutOff.depth:
            _PutOff.waiting.append(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise Interrupted(signal.Signals(number).name)

    def throw_again(dropped: "sys.UnraisableHookArgs") -> None:
        if isinstance(dropped.exc_value, Interrupted | KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _THROWN_AGAIN_AFTER_S)
        else:
            hook_before(dropped)

    hook_before, sys.unraisablehook = sys.unraisablehook, throw_again
    before = {number: signal.signal(number, unwind) for number in _SIGNALS}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook_before


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Put off Ctrl-C, SIGTERM and SIGHUP: cleaning up is not interrupted by an impatient second Ctrl-C.

    The signal mask alone is not enough: the kernel gives a signal that this thread blocks to another one (a client's),
    and Python runs the handler in this one all the same.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _PutOff.depth += 1
    try:
        yield
    finally:
        _PutOff.depth -= 1
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if not _PutOff.depth and _PutOff.waiting:
            number, _PutOff.waiting[:] = _PutOff.waiting[0], ()
            signal.raise_signal(number)


@contextlib.contextmanager
def scratch_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a directory below `parent` and remove it with everything in it."""
    parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)).resolve()
    try:
        yield directory
    finally:
        with without_interrupts():
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def temporary_files_in(directory: Path) -> Iterator[None]:
    """Let everything that asks `tempfile` for room get it on the disk that is measured (servers, peers)."""
    before, tempfile.tempdir = tempfile.tempdir, str(directory)
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextlib.contextmanager
def running(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program with its output in `log`; end it with SIGTERM, then SIGKILL."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    try:
        yield process
    finally:
        with without_interrupts():
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End one process of ours, reap it, and kill what it left in its session's first group (a daemon's workers)."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # start_new_session: the group holds nobody else's processes
    process.wait(STOP_TIMEOUT_S)


@contextlib.contextmanager
def mounting(
    arguments: Sequence[str], mountpoint: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """Run a file system in the foreground, yield its mountpoint when it is mounted, unmount and end it.

    Raises PeerError with the end of its log.
    """
    mountpoint.mkdir(parents=True, exist_ok=True)
    with running(arguments, log, environment) as process:
        try:
            wait_until_mounted(mountpoint, process, log)
            yield mountpoint
        finally:
            with without_interrupts():
                if is_mounted(mountpoint):
                    unmount(mountpoint)
                    # The daemon ends by itself after an unmount; give it the time to, it may have a cache to write.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(STOP_TIMEOUT_S)
                else:
                    process.terminate()


def wait_until_mounted(mountpoint: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the mountpoint is one and answers; raise PeerError when the process ends or takes too long."""
    deadline = time.monotonic() + MOUNT_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerError(f"ended with exit code {process.returncode}: {log_tail(log)}")
        if is_mounted(mountpoint):
            mountpoint.stat()
            return
        time.sleep(0.05)
    raise PeerError(f"not mounted after {MOUNT_TIMEOUT_S:.0f} s: {log_tail(log)}")


def is_mounted(mountpoint: Path) -> bool:
    """Say whether the mount table names this path.  Asks the file system nothing: it may be dead."""
    wanted = os.fsencode(mountpoint).replace(b" ", b"\\040")
    with Path("/proc/self/mountinfo").open("rb") as table:
        return any(line.split(b" ", 5)[4] == wanted for line in table)


def unmount(mountpoint: Path) -> None:
    """Unmount; a mount that stays busy is detached, so that none is left behind."""
    for attempt in range(_UNMOUNT_TRIES):
        if not is_mounted(mountpoint):
            return
        lazy = ["-z"] if attempt == _UNMOUNT_TRIES - 1 else []
        subprocess.run(["fusermount3", "-u", *lazy, os.fspath(mountpoint)], capture_output=True, check=False)
        if is_mounted(mountpoint):
            time.sleep(0.1)


def log_tail(log: Path) -> str:
    """Return the last line of a log that says anything."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").split("\n")
    except OSError:
        return "no log"
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")[-300:]
