"""What the keeper hands to a core at the fork."""

import socket
from dataclasses import dataclass, field
from pathlib import Path

from fanoutfs.backend.unanswered import Unanswered
from fanoutfs.cache.arena import Arena
from fanoutfs.config.schema import MountConfig
from fanoutfs.index.format import Ownership
from fanoutfs.observe.shared import SharedState


@dataclass(frozen=True, slots=True)
class CoreTask:
    """The settings, the volume's place, and the core's ends of all channels."""

    config: MountConfig
    identity: str
    root_prefix: str
    volume_path: Path
    other_volumes_bytes: int
    shared: SharedState
    arena: Arena
    supervision: socket.socket
    relay: socket.socket
    hints: socket.socket
    notify: socket.socket
    push: socket.socket | None
    control: socket.socket
    metrics: socket.socket | None
    is_first: bool
    unanswered: Unanswered = field(default_factory=Unanswered)
    """What it asked of the store, and may come late."""

    @property
    def ownership(self) -> Ownership:
        """Return what files show as owner and mode."""
        config = self.config
        return Ownership(config.uid, config.gid, config.file_mode, config.dir_mode, config.small_file_size)
