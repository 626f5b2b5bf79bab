"""Room that is given up when nothing else is left, where the index cannot be changed without any.

On file systems that copy on write even a change in place needs some room for what describes it, and so does giving room
back.  A disk or a quota that is full to the last byte would keep the index as it is for ever: nothing could be evicted
or become clean any more.  There a file of no use is kept, and deleted when a change is refused; the kernel lets files
be deleted all the same, and has their room some moments later.

Blocks.  Any thread, one at a time.
"""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Final

from fanoutfs.allocation import allocate, sync_file_system
from fanoutfs.index.lockfile import copies_on_write
from fanoutfs.records import KIB, MIB

log = logging.getLogger(__name__)

FILE_NAME: Final = "ballast"
_BYTES: Final = 4 * MIB
_PROBE: Final = bytes(64 * KIB)
_WAIT_S: Final = 8.0
_POLL_S: Final = 0.2
_AGAIN_S: Final = 30.0


class Ballast:
    """The file."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._is_wanted = copies_on_write(directory)
        self._not_before_s = 0.0

    @property
    def bytes(self) -> int:
        """Return what it occupies."""
        return _BYTES if self._is_wanted else 0

    def keep(self) -> None:
        """Make it, if it is wanted and there is room."""
        if not self._is_wanted or self._path.exists() or time.monotonic() < self._not_before_s:
            return
        self._not_before_s = time.monotonic() + _AGAIN_S
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                allocate(fd, 0, 0, _BYTES)
            finally:
                os.close(fd)
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def give_up(self) -> None:
        """Delete it and return when something can be written again, or after some seconds."""
        try:
            self._path.unlink()
        except OSError:
            return
        log.warning("no room on the cache's disk to note changes: the room kept for that is used path=%s", self._path)
        self._not_before_s = time.monotonic() + _AGAIN_S
        deadline = time.monotonic() + _WAIT_S
        while not self._can_write() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _can_write(self) -> bool:
        probe = self._path.with_name(f"{FILE_NAME}-probe")
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                sync_file_system(fd)  # the room comes with the file system's next commit
                return os.write(fd, _PROBE) == len(_PROBE)
            finally:
                os.close(fd)
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
