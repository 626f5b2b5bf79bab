"""Turning the command into a daemon, and what the two say to each other until the mount is ready.

The daemon writes one line into a pipe: `ok`, or an exit code and a message, and closes it.  A pipe that closes without
a line means it died.  Until then what it prints on stdout and stderr goes into a second pipe that only the command
holds: the caller's own descriptors never reach the daemon, so `$(fanoutfs mount ...)` and subprocess.run(...,
capture_output=True) return.  The daemon points both at its log before it says `ok` (the keeper knows which file).
"""

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final, NoReturn

from fanoutfs.config.recipe import Recipe
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import DaemonDiedError, FanoutError
from fanoutfs.keeper.ending import reap_within

if TYPE_CHECKING:
    from fanoutfs.keeper.handover import Inheritance

READY_TIMEOUT_S: Final = (
    300.0  # a cold start takes under a second; rebuilding an index after power loss may take minutes
)
END_TIMEOUT_S: Final = 2.0  # a daemon that failed to start has nothing to flush
KEPT_OUTPUT_BYTES: Final = 64 << 10
MAX_LINE_BYTES: Final = 4096  # PIPE_BUF: written in one piece, and never blocks an empty pipe


class _ReportedError(FanoutError):
    """What the daemon said before it gave up, with the exit code it chose."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_foreground(config: MountConfig, recipe: Recipe, inherited: "Inheritance | None" = None) -> int:
    """Serve the mount in this process; return the exit code, or raise what it reported instead of becoming ready."""
    from fanoutfs.keeper.main import serve  # noqa: PLC0415

    ready, ready_fd = os.pipe2(os.O_CLOEXEC)
    with open(ready, "rb") as reports:
        code = serve(config, ready_fd, recipe=recipe, inherited=inherited)
        os.set_blocking(ready, False)
        line = reports.read() or b""
    if line and not line.startswith(b"ok"):
        raise _reported(line)
    return code


def start_daemon(config: MountConfig, recipe: Recipe) -> None:
    """Fork the daemon and return when it reports that the mount is ready.

    Raises what the daemon reported, or DaemonDiedError.  Interrupted (Ctrl-C), it ends the daemon first.
    """
    ready, ready_fd = os.pipe2(os.O_CLOEXEC)
    output, output_fd = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become_daemon(config, recipe, ready_fd, output_fd)
    os.close(ready_fd)
    os.close(output_fd)
    try:
        line, printed = _await_report(ready, output, config, pid)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.close(ready)
        os.close(output)
    if line.startswith(b"ok"):
        return
    if os.environ.get("FANOUTFS_DEBUG") == "1":
        sys.stderr.write(printed.decode("utf-8", "backslashreplace"))
    # Until it has ended it holds the lock of the cache, which the next attempt will want.
    status = reap_within(pid, END_TIMEOUT_S, (signal.SIGTERM, END_TIMEOUT_S))
    raise _reported(line) if line else _died(config, status, printed)


def _await_report(ready: int, output: int, config: MountConfig, pid: int) -> tuple[bytes, bytes]:
    """Return the daemon's report ("" if it died) and the end of what it printed meanwhile."""
    line, printed = b"", b""
    deadline = time.monotonic() + READY_TIMEOUT_S
    poller = select.poll()
    poller.register(ready, select.POLLIN)
    poller.register(output, select.POLLIN)
    while not line.endswith(b"\n"):
        events = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not events:
            raise DaemonDiedError(
                f"the daemon (pid {pid}) was not ready after {READY_TIMEOUT_S:.0f} s; see {_log_name(config)}"
            )
        # Output first: when both pipes close at once, what was printed explains why.
        for fd, _ in sorted(events, key=lambda event: event[0] != output):
            chunk = os.read(fd, 1 << 16)
            if fd == output:
                printed = (printed + chunk)[-KEPT_OUTPUT_BYTES:]
                if not chunk:
                    poller.unregister(output)
            elif chunk:
                line += chunk
            else:
                return line, printed
    return line, printed


def _become_daemon(config: MountConfig, recipe: Recipe, ready_fd: int, output_fd: int) -> NoReturn:
    """Detach from everything of the caller, serve, and end.  Runs in the forked child only."""
    code = DaemonDiedError.exit_code
    try:
        os.setsid()
        os.chdir("/")  # do not keep the caller's file system busy
        os.umask(0o077)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        _close_others({0, 1, 2, ready_fd})
        code = _serve(config, recipe, ready_fd)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # no exit handlers, no finally blocks of the command: they belong to the parent


def _serve(config: MountConfig, recipe: Recipe, ready_fd: int) -> int:
    pipe_inode = os.fstat(ready_fd).st_ino
    try:
        from fanoutfs.keeper.main import serve  # noqa: PLC0415

        return serve(config, ready_fd, recipe=recipe)
    except FanoutError as error:
        _report(ready_fd, pipe_inode, error.exit_code, str(error))
        return error.exit_code
    except BaseException as error:  # noqa: BLE001 - told to the command that waits, whatever it is
        traceback.print_exc()
        _report(ready_fd, pipe_inode, DaemonDiedError.exit_code, f"the daemon failed: {type(error).__name__}: {error}")
        return DaemonDiedError.exit_code


def _report(ready_fd: int, pipe_inode: int, code: int, message: str) -> None:
    """Report a failure, unless the keeper has reported already: the number may be another file's by now."""
    with contextlib.suppress(OSError):
        if os.fstat(ready_fd).st_ino == pipe_inode:
            line = f"{code} {' '.join(message.split())}".encode("utf-8", "surrogateescape")
            os.write(ready_fd, line[: MAX_LINE_BYTES - 1] + b"\n")


def _close_others(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # the descriptor of this very listing
                os.close(int(name))


def _reported(line: bytes) -> FanoutError:
    code, _, message = line.decode("utf-8", "surrogateescape").strip().partition(" ")
    if not code.isdecimal():
        return DaemonDiedError(f"the daemon reported: {code} {message}")
    return _ReportedError(message, int(code))


def _died(config: MountConfig, status: int | None, printed: bytes) -> DaemonDiedError:
    """Say how the daemon ended and where to read on."""
    how = "" if status is None else f" (exit code {status})" if status >= 0 else f" ({signal.Signals(-status).name})"
    lines = os.fsdecode(printed).strip().splitlines()
    why = f": {lines[-1]}" if lines else ""
    return DaemonDiedError(f"the daemon ended before the mount was ready{how}{why}; see {_log_name(config)}")


def _log_name(config: MountConfig) -> str:
    return str(config.log_file) if config.log_file else f"fanoutfs.log below {config.cache_dir}"
