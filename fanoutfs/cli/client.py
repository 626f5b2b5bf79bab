"""The client of a daemon's control socket: one JSON line there, one JSON line back, as often as needed.

    -> {"op": "status", ...arguments}
    <- {"ok": true, "result": {...}}   or   {"ok": false, "error": "one line"}

The socket lies in a directory of the daemon's user.  The client talks only to a daemon of its own user or of root:
below /tmp anybody could have put a socket there.

A core that works on a command answers others meanwhile.  So one that is silent is soon asked for a sign of life, on a
connection of its own: without one nobody waits for it, and the keeper, which is there whatever the core does, says why.
"""

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fanoutfs.config.directories import control_socket, keeper_socket, other_runtime_dirs
from fanoutfs.config.units import show_duration
from fanoutfs.errors import DaemonDiedError, FanoutError
from fanoutfs.keeper.mountinfo import find_mount

TIMEOUT_S: Final = 30.0
"""For a command that the daemon works on."""
ALL_TIMEOUT_S: Final = 2.0
"""When several are asked: one that hangs must not keep what the others say for long."""
_SILENCE_S: Final = 1.0
"""Commands are answered in milliseconds, most of them; after so long a sign of life is asked for."""
_SIGN_OF_LIFE_S: Final = 2.0
_KEEPER_S: Final = 1.0
_STARTING_S: Final = 10.0
"""How long a core that is being started is waited for: most take 50 ms, after a pause of a second at most."""
_ALL_SHARE: Final = 0.6
"""Of the time for all: the rest is for the keepers of those that are silent."""
MAX_REPLY_BYTES: Final = 16 << 20

_UCRED: Final = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid


class SilentDaemonError(DaemonDiedError):
    """The core gives no sign of life.  is_starting: it is being started, and may answer soon."""

    def __init__(self, message: str, *, is_starting: bool = False) -> None:
        """message: one line that says what to do."""
        super().__init__(message)
        self.is_starting = is_starting


def call_keeper(mountpoint: Path, op: str, *, timeout_s: float) -> dict[str, Any]:
    """Send one command to the process that owns the mount, which obeys also when the core does not; as `call`."""
    with Connection(mountpoint, timeout_s=timeout_s, path=keeper_socket(mountpoint)) as connection:
        return connection.call(op)


class CommandFailedError(FanoutError):
    """The daemon could not do it, or not all of it: its words, and the exit code for that."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def call(mountpoint: Path, op: str, *, timeout_s: float = TIMEOUT_S, **arguments: Any) -> dict[str, Any]:
    """Send one command to the daemon of the mount at this absolute, symlink-free path and return its result.

    timeout_s: for a command that is being worked on; one that nobody works on is given up after some four seconds,
    ten while a core is being started.
    DaemonDiedError (SilentDaemonError) when nobody answers; FanoutError with the daemon's words when it failed.
    """
    with Connection(mountpoint, timeout_s=timeout_s) as connection:
        return connection.call(op, **arguments)


def call_all(
    mountpoints: Sequence[Path], op: str, *, timeout_s: float = ALL_TIMEOUT_S, **arguments: Any
) -> list[dict[str, Any] | FanoutError]:
    """Send one command to several daemons at the same time; return what each said, or why it said nothing, in order.

    timeout_s: for all together, however many there are and however slowly they talk.
    """
    answers: dict[Path, dict[str, Any] | FanoutError] = {}

    def ask(mountpoint: Path) -> None:
        try:
            answers[mountpoint] = call(mountpoint, op, timeout_s=timeout_s * _ALL_SHARE, **arguments)
        except FanoutError as error:
            answers[mountpoint] = error

    deadline = time.monotonic() + timeout_s
    threads = [threading.Thread(target=ask, args=(mountpoint,), daemon=True) for mountpoint in mountpoints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [
        answers.get(mountpoint, DaemonDiedError(f"the daemon of {mountpoint} has not answered within {timeout_s:g} s"))
        for mountpoint in mountpoints
    ]


class Connection:
    """A connection for several commands, one after the other.  One thread at a time."""

    def __init__(self, mountpoint: Path, *, timeout_s: float = TIMEOUT_S, path: Path | None = None) -> None:
        """timeout_s: for each command.  path: another socket than the core's.  Raises DaemonDiedError."""
        self._mountpoint = mountpoint
        self._timeout_s = timeout_s
        self._is_core = path is None
        self._socket = _connect(mountpoint, path or control_socket(mountpoint), min(timeout_s, _SILENCE_S))

    def __enter__(self) -> "Connection":
        """Return itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the connection."""
        self._socket.close()

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and return its result.  Raises as the function `call`."""
        request = json.dumps({"op": op, **arguments}) + "\n"
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(request.encode())
            line = self._read_line(op)
        except OSError as error:  # TimeoutError is one
            held = _held(_peer(self._socket)[0])
            reason = f"the daemon of {self._mountpoint} does not answer `{op}`: {held or _reason(error)}"
            raise DaemonDiedError(reason) from None
        try:
            reply = json.loads(line)
            if reply["ok"]:
                result: dict[str, Any] = reply["result"]
                return result
            refusal = CommandFailedError(
                f"{self._mountpoint}: {reply['error']}", reply.get("exit_code", FanoutError.exit_code)
            )
        except (ValueError, KeyError, TypeError):
            raise DaemonDiedError(f"the daemon of {self._mountpoint} broke off its answer to `{op}`") from None
        raise refusal

    def _read_line(self, op: str) -> bytes:
        """Return the answer.  Raises TimeoutError, SilentDaemonError."""
        began = time.monotonic()
        deadline = began + self._timeout_s
        data = bytearray()
        while not data.endswith(b"\n") and len(data) < MAX_REPLY_BYTES:
            left_s = max(1e-3, deadline - time.monotonic())
            self._socket.settimeout(min(left_s, _SILENCE_S, self._timeout_s / 2) if self._is_core else left_s)
            try:
                chunk = self._socket.recv(1 << 16)
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise
                state = _state(self._mountpoint, min(_KEEPER_S, self._timeout_s / 4))
                if state is not None and state.get("core") == "starting" and time.monotonic() - began < _STARTING_S:
                    continue
                may_live = state is None or state.get("core", "serving") == "serving"
                if may_live and _lives(self._mountpoint, min(_SIGN_OF_LIFE_S, self._timeout_s / 4)):
                    continue
                raise _silent(self._mountpoint, op, state, _peer(self._socket)[0]) from None
            if not chunk:
                break
            data += chunk
        return bytes(data)


def _lives(mountpoint: Path, timeout_s: float) -> bool:
    """Tell whether the core answers anything at all: it does not know this command, and says so."""
    try:
        with _connect(mountpoint, control_socket(mountpoint), timeout_s) as connection:
            connection.sendall(b'{"op": "ping"}\n')
            return bool(connection.recv(1))
    except (DaemonDiedError, OSError):
        return False


def _state(mountpoint: Path, timeout_s: float) -> dict[str, Any] | None:
    """Return what the keeper says of the core (keeper.starts); {}: one of an earlier version; None: it is silent."""
    try:
        return call_keeper(mountpoint, "state", timeout_s=timeout_s)
    except DaemonDiedError:
        return None
    except FanoutError:
        return {}


def _held(pid: int) -> str:
    """Return which process waits for a disk, and which one, of the daemon that listens at a socket; "": none."""
    from fanoutfs.keeper.held import explain  # noqa: PLC0415 - commands that are answered do without

    return explain(pid)


def _silent(mountpoint: Path, op: str, state: Mapping[str, Any] | None, pid: int) -> SilentDaemonError:
    """Return why there is no answer, as far as the keeper and /proc know, and what to do.  pid: who should answer."""
    begin = f"the daemon of {mountpoint} does not answer `{op}`: "
    if held := _held(pid):
        return SilentDaemonError(begin + held)
    if state is None:
        silent = "it gives no sign of life: look for a stopped process, or end it with fanoutfs umount --lazy"
        return SilentDaemonError(begin + silent)
    if state.get("core") == "failing":
        since = f"{state['failures']} times in {show_duration(state['failing_s'])}, tried again all the time"
        waits = "what needs it gets EIO" if state["refuses"] else "what needs it waits"
        return SilentDaemonError(f"{begin}its core cannot start ({since}; {waits}): {state['error']}")
    if state.get("core") == "starting":
        return SilentDaemonError(f"{begin}its core is being started; try again in a moment", is_starting=True)
    advice = f"(--hang-timeout); kill -USR1 {state.get('keeper_pid', 'KEEPER')} has it log what it does"
    return SilentDaemonError(f"{begin}its core hangs; try again when it has been replaced {advice}")


def peer_pid(mountpoint: Path, timeout_s: float = _KEEPER_S) -> int | None:
    """Return the process that listens on the control socket, as the kernel knows it; None without one."""
    try:
        with _connect(mountpoint, control_socket(mountpoint), timeout_s) as connection:
            return _peer(connection)[0] or None
    except DaemonDiedError:
        return None


def has_keeper(mountpoint: Path) -> bool:
    """Tell whether the process that owns the mount is there, whatever the core does."""
    try:
        _connect(mountpoint, keeper_socket(mountpoint), _KEEPER_S).close()
    except DaemonDiedError:
        return False
    return True


def _connect(mountpoint: Path, path: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(timeout_s)
    try:
        path = _connect_to(connection, path, *(place / path.name for place in other_runtime_dirs()))
    except OSError as error:
        connection.close()
        info = find_mount(mountpoint)
        if info is not None and info.owner_uid not in (None, os.geteuid()):
            asks = f"it was mounted by user {info.owner_uid}, ask as that one: sudo -u '#{info.owner_uid}' fanoutfs …"
            raise DaemonDiedError(f"the daemon of {mountpoint} answers its own user: {asks}") from None
        raise DaemonDiedError(f"the daemon of {mountpoint} cannot be reached at {path}: {_reason(error)}") from None
    owner = _peer(connection)[1]
    if owner not in (0, os.geteuid()):
        connection.close()
        raise DaemonDiedError(f"the socket {path} belongs to user {owner}, not to a daemon of ours")
    return connection


def _connect_to(connection: socket.socket, *paths: Path) -> Path:
    """Connect to the first of these that is there; return it.  Raises OSError, of the first."""
    failure: OSError | None = None
    for path in paths:
        try:
            connection.connect(os.fspath(path))
        except FileNotFoundError as error:
            failure = failure or error
        else:
            return path
    raise failure or FileNotFoundError


def _peer(connection: socket.socket) -> tuple[int, int]:
    pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def _reason(error: OSError) -> str:
    return "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error))
