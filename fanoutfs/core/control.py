"""The control socket: one JSON request a line, one JSON answer a line.

The keeper binds the socket (0600, in a directory of the daemon's user) and every core inherits it, so that connecting
works across a restart of the core.  Requests: {"op": "status"}, {"op": "invalidate", "path": "rel/ative"} (one
directory, listed at once).
Answers: {"ok": true, "result": …} or {"ok": false, "error": "one line", "exit_code": what a command ends with}.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio

from fanoutfs.errors import FanoutError, UsageError

log = logging.getLogger(__name__)

_MAX_LINE_BYTES: Final = 1 << 20
Command = Callable[[Mapping[str, Any]], Awaitable[Any]]


class ControlServer:
    """Answers commands on a listening socket."""

    def __init__(self, listener: trio.SocketListener, commands: Mapping[str, Command]) -> None:
        self._listener = listener
        self._commands = commands

    async def run(self) -> None:
        """Serve for ever."""
        await trio.serve_listeners(self._serve, [self._listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        buffered = b""
        try:
            async with stream:
                while chunk := await stream.receive_some(65536):
                    buffered += chunk
                    *lines, buffered = buffered.split(b"\n")
                    for line in lines:
                        await stream.send_all(await self._answer(line) + b"\n")
                    if len(buffered) > _MAX_LINE_BYTES:
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away

    async def _answer(self, line: bytes) -> bytes:
        try:
            request = json.loads(line)
            command = self._commands.get(request["op"]) if isinstance(request, dict) and "op" in request else None
            if command is None:
                raise UsageError(f"unknown request; known: {', '.join(sorted(self._commands))}")
            answer: dict[str, Any] = {"ok": True, "result": await command(request)}
        except (FanoutError, ValueError) as error:
            code = error.exit_code if isinstance(error, FanoutError) else UsageError.exit_code
            answer = {"ok": False, "error": str(error), "exit_code": code}
        except Exception as error:  # a command must not end the core
            log.exception("control request failed request=%r", line[:200])
            answer = {"ok": False, "error": f"internal error: {error!r}", "exit_code": FanoutError.exit_code}
        return json.dumps(answer).encode()
