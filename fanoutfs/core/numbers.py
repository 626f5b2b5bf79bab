"""Inode numbers ahead of need: a file's number is part of its staging file's name, which is made before its record.

Core, trio thread only.  The counter in the index is beyond a number before it is handed out; what is left of a batch
when the core ends is never used.
"""

from typing import Final

import trio

from fanoutfs.index.requests import ReserveNumbers
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter

_BATCH: Final = 1024


class Numbers:
    """Hands out numbers that were never used in this index."""

    def __init__(self, writer: GroupWriter[IndexTransaction]) -> None:
        self._writer = writer
        self._reserved = iter(range(0))
        self._lock = trio.Lock()

    async def take(self) -> int:
        """Return a number: of an inode, a staging file's life, or a hard link's position.  Checkpoint now and then."""
        number = next(self._reserved, 0)
        while not number:
            async with self._lock:
                number = next(self._reserved, 0)  # somebody else may have been here before
                if not number:
                    first = await self._writer.run(ReserveNumbers(_BATCH).apply)
                    self._reserved = iter(range(first, first + _BATCH))
        return number
