"""What keeper and children tell each other over a SOCK_SEQPACKET pair: one JSON object a packet.

core → keeper   {"ready": true}  or  {"failed": exit code, "message": "one line"}
keeper → core   {"go": true, "has_epoch": bool}: the mount exists
"""

import json
import socket
from dataclasses import dataclass

from fanoutfs.errors import DaemonDiedError


@dataclass(frozen=True, slots=True)
class Go:
    """The keeper has mounted.  has_epoch: all names can be expired at once."""

    has_epoch: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A core that could not start says why."""

    exit_code: int
    message: str


def send_ready(channel: socket.socket) -> None:
    """Core: tell that everything needed for a mount is there."""
    channel.send(json.dumps({"ready": True}).encode())


def send_failed(channel: socket.socket, exit_code: int, message: str) -> None:
    """Core: tell why there can be no mount."""
    channel.send(json.dumps({"failed": exit_code, "message": message}).encode())


def receive_outcome(channel: socket.socket) -> Failure | None:
    """Keeper: return None for ready, else the failure.  Blocks as long as the channel's timeout.

    Raises DaemonDiedError when the core ended without a word, TimeoutError.
    """
    packet = channel.recv(65536)
    if not packet:
        raise DaemonDiedError("the core process died before it was ready; see the log")
    message = json.loads(packet)
    return None if message.get("ready") else Failure(int(message["failed"]), str(message["message"]))


def send_go(channel: socket.socket, go: Go) -> None:
    """Keeper: tell that the mount exists."""
    channel.send(json.dumps({"go": True, "has_epoch": go.has_epoch}).encode())


def receive_go(channel: socket.socket) -> Go | None:
    """Core: wait for the mount; None when the keeper gave up."""
    packet = channel.recv(4096)
    return Go(bool(json.loads(packet)["has_epoch"])) if packet else None
