"""A limit of the cache's disk that `statvfs` does not tell of: a quota.  Learnt when the disk refuses a write.

Core, trio thread only.  A file system that copies on write needs some room to give room back, so the limit is taken to
be somewhat below what was refused.  A quota may be raised, or somebody else may have used it up: after a while the
limit is forgotten, and learnt again if it still holds.
"""

import logging
from typing import Final

import trio

from fanoutfs.config.units import show_size
from fanoutfs.errors import NO_ROOM
from fanoutfs.records import PART_BYTES

log = logging.getLogger(__name__)

_FREE_BYTES: Final = 4 * PART_BYTES
"""With more free space than this beyond the floor it was not the disk itself that was full."""
_BELOW_SHARE: Final = 16
_HELD_S: Final = 600.0


class HiddenLimit:
    """What the cache may occupy, as far as refusals tell."""

    def __init__(self) -> None:
        self._bytes = 0
        self._until = float("-inf")

    @property
    def bytes(self) -> float:
        """Return the limit; infinity: none is known."""
        return self._bytes if trio.current_time() < self._until else float("inf")

    def learn(self, error: Exception, used_bytes: int, free_bytes: int) -> None:
        """Take note of an error.  free_bytes: what `statvfs` says beyond the floor.  No checkpoint."""
        if not isinstance(error, OSError) or error.errno not in NO_ROOM or free_bytes < _FREE_BYTES:
            return
        if used_bytes <= self.bytes < float("inf"):
            return  # it is below the limit, and was refused for something else, inodes say
        is_news = self.bytes == float("inf")
        self._bytes = max(0, used_bytes - max(PART_BYTES, used_bytes // _BELOW_SHARE))
        self._until = trio.current_time() + _HELD_S
        if is_news:
            log.warning(
                "the cache disk has %s free but takes no more: a quota? the cache keeps below %s for now",
                show_size(free_bytes), show_size(self._bytes),
            )  # fmt: skip
