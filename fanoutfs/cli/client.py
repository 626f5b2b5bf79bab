"""The client of a daemon's control socket: one JSON line there, one JSON line back, as often as needed.

    -> {"op": "status", ...arguments}
    <- {"ok": true, "result": {...}}   or   {"ok": false, "error": "one line"}

The socket lies in a directory of the daemon's user.  The client talks only to a daemon of its own user or of root:
below /tmp anybody could have put a socket there.
"""

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final

from fanoutfs.config.schema import control_socket
from fanoutfs.errors import DaemonDiedError, FanoutError

TIMEOUT_S: Final = 5.0
MAX_REPLY_BYTES: Final = 16 << 20

_UCRED: Final = struct.Struct("iII")  # struct ucred of unix(7): pid, uid, gid


def call(mountpoint: Path, op: str, *, timeout_s: float = TIMEOUT_S, **arguments: Any) -> dict[str, Any]:
    """Send one command to the daemon of the mount at this absolute, symlink-free path and return its result.

    DaemonDiedError when nobody answers; FanoutError with the daemon's words when the command failed.
    """
    with Connection(mountpoint, timeout_s=timeout_s) as connection:
        return connection.call(op, **arguments)


class Connection:
    """A connection for several commands, one after the other.  One thread at a time."""

    def __init__(self, mountpoint: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """timeout_s: for each command.  Raises DaemonDiedError."""
        self._mountpoint = mountpoint
        self._socket = _connect(mountpoint, timeout_s)

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
            self._socket.sendall(request.encode())
            line = _read_line(self._socket)
        except OSError as error:  # TimeoutError is one
            reason = f"the daemon of {self._mountpoint} does not answer `{op}`: {_reason(error)}"
            raise DaemonDiedError(reason) from None
        try:
            reply = json.loads(line)
            if reply["ok"]:
                result: dict[str, Any] = reply["result"]
                return result
            message = str(reply["error"])
        except (ValueError, KeyError, TypeError):
            raise DaemonDiedError(f"the daemon of {self._mountpoint} broke off its answer to `{op}`") from None
        raise FanoutError(f"{self._mountpoint}: {message}")


def peer_pid(mountpoint: Path, timeout_s: float = TIMEOUT_S) -> int | None:
    """Return the process that listens on the control socket, as the kernel knows it; None without one."""
    try:
        with _connect(mountpoint, timeout_s) as connection:
            return _peer(connection)[0] or None
    except DaemonDiedError:
        return None


def _connect(mountpoint: Path, timeout_s: float) -> socket.socket:
    path = control_socket(mountpoint)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(timeout_s)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise DaemonDiedError(f"the daemon of {mountpoint} cannot be reached at {path}: {_reason(error)}") from None
    owner = _peer(connection)[1]
    if owner not in (0, os.geteuid()):
        connection.close()
        raise DaemonDiedError(f"the socket {path} belongs to user {owner}, not to a daemon of ours")
    return connection


def _peer(connection: socket.socket) -> tuple[int, int]:
    pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def _read_line(connection: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < MAX_REPLY_BYTES:
        chunk = connection.recv(1 << 16)
        if not chunk:
            break
        data += chunk
    return bytes(data)


def _reason(error: OSError) -> str:
    return "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error))
