"""The keeper's own socket: commands that concern all processes, and must be obeyed while the core is not there.

The same protocol as the control socket (cli.client), one request a connection: {"op": "upgrade"}.
"""

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any, Final

from fanoutfs.cache.directory import make_private
from fanoutfs.errors import CacheUnusableError

log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 1.0
"""The client writes its line at once; the keeper has nothing better to do than wait for so long, and no longer."""
_MAX_LINE_BYTES: Final = 4096


class Order:
    """One request and the way to answer it.  Must be answered or closed."""

    def __init__(self, connection: socket.socket, operation: str) -> None:
        self._connection = connection
        self.operation = operation

    def succeed(self, **result: Any) -> None:
        """Answer that it is being done."""
        self._answer({"ok": True, "result": result})

    def refuse(self, reason: str) -> None:
        """Answer why not."""
        self._answer({"ok": False, "error": reason})

    def _answer(self, answer: dict[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError as error:
            log.info("who gave the order is gone: %s", error)
        self._connection.close()


def bind(path: Path) -> socket.socket:
    """Return a listening socket that only this user can reach; one that a killed daemon left is replaced."""
    make_private(path.parent, "runtime directory")  # below /tmp somebody else may have been there first
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise CacheUnusableError(f"cannot bind the control socket {path}: {error.strerror}") from error
    return listener


def receive(listener: socket.socket) -> Order | None:
    """Return the next request; None when there is none, or none that can be understood."""
    try:
        connection, _address = listener.accept()
    except BlockingIOError:
        return None
    connection.settimeout(_TIMEOUT_S)
    try:
        request = json.loads(connection.recv(_MAX_LINE_BYTES))
        return Order(connection, str(request["op"]))
    except (OSError, ValueError, KeyError, TypeError):
        connection.close()
        return None
