"""What this build of fanoutfs can do that a benchmark switches on or off: the only place that asks."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import fanoutfs

PUSH_OFF: Final = "--push-memory=0"
_TIMEOUT_S: Final = 60.0

Announce = Callable[[Sequence[str], Path], object]
"""Tells the daemon of a mount in which order these paths (absolute, below the mountpoint) will be read."""


def push_off() -> tuple[str, ...] | None:
    """Return the options of `fanoutfs mount` that switch push off; None: this build does not push."""
    command = [sys.executable, "-m", "fanoutfs", "mount", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    return (PUSH_OFF,) if PUSH_OFF.partition("=")[0] in done.stdout else None


def announcer() -> Announce | None:
    """Return the function that announces an order; None: this build knows no announced order."""
    announce: Callable[..., object] | None = getattr(fanoutfs, "announce", None)
    if announce is None:
        return None
    return lambda paths, mountpoint: announce(paths, mount=mountpoint)
