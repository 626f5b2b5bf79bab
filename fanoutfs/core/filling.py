"""Files filled one after the other, several at a time, within a rate: what `warm` and policies do.

Core, trio thread only.  Everything is asked for as background (`admission`): readers go first, a quarter of the budgets
stays free.  `bytes_per_s` bounds what is asked of the store: each small file and each part of a large one (8 MiB) is
paid for before its GET may begin, so in any stretch of time at most the rate, half a second of it, and one part are
asked for.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import trio

from fanoutfs.core.admission import Urgency
from fanoutfs.core.fill import Fills
from fanoutfs.core.rate import Rate
from fanoutfs.errors import FanoutError, StaleInodeError
from fanoutfs.index.format import Inode
from fanoutfs.index.operations import blocks_bytes
from fanoutfs.index.reader import IndexReader
from fanoutfs.records import PART_BYTES

_WINDOW: Final = 512
"""Files under way: enough to keep every request slot busy with small ones."""
_PARTS: Final = 128
"""Parts of one file under way: as many as there are requests at most, by default."""


class _UnderWay(Protocol):
    """A fill that is waited for."""

    @property
    def done(self) -> trio.Event:
        """Set at the end."""
        ...

    @property
    def error(self) -> FanoutError | None:
        """Why it failed, once done."""
        ...


class Filling:
    """Fills files in the order in which they are added."""

    def __init__(
        self,
        reader: IndexReader,
        fills: Fills,
        rate: Rate,
        on_end: Callable[[str, Inode, FanoutError | None], None],
    ) -> None:
        """on_end: called for each file, in order, when all of it is cached or it failed."""
        self._reader = reader
        self._fills = fills
        self._rate = rate
        self._on_end = on_end
        self._window: deque[tuple[str, Inode, list[_UnderWay]]] = deque()

    async def add(self, path: str, inode: Inode) -> None:
        """Have what a file lacks fetched; returns before it is there.  Checkpoint."""
        try:
            if inode.is_small:
                await self._rate.take(inode.size_bytes)
                fills: list[_UnderWay] = list(self._fills.fetch_ahead(inode.ino))
            else:
                fills = await self._large(inode)
        except StaleInodeError:
            return  # it went or changed since it was found
        self._window.append((path, inode, fills))
        while len(self._window) >= _WINDOW:
            await self._settle_one()

    async def finish(self) -> None:
        """Return when all that were added are over.  Checkpoint."""
        while self._window:
            await self._settle_one()

    async def _large(self, inode: Inode) -> list[_UnderWay]:
        """Start fetching the parts of a file, in order; return what may be under way still, or failed.  Checkpoint."""
        fills: deque[_UnderWay] = deque()
        for part in range(-(-inode.size_bytes // PART_BYTES)):
            missing = self._missing_bytes(inode, part)
            if not missing:
                continue
            await self._rate.take(missing)
            fills += self._fills.fetch_part_ahead(inode, part, Urgency.BACKGROUND)
            while len(fills) > _PARTS:
                await fills[0].done.wait()
                if fills[0].error is not None:
                    return list(fills)
                fills.popleft()
        return list(fills)

    def _missing_bytes(self, inode: Inode, part: int) -> int:
        with self._reader.begin() as txn:
            value = self._reader.part_value(txn, inode.ino, part)
        cached = 0 if value is None else blocks_bytes(inode.size_bytes, part, int.from_bytes(value[:4], "little"))
        return min(PART_BYTES, inode.size_bytes - part * PART_BYTES) - cached

    async def _settle_one(self) -> None:
        """Wait for the file that has been under way for the longest time.  Checkpoint."""
        path, inode, fills = self._window.popleft()
        for fill in fills:
            await fill.done.wait()
        self._on_end(path, inode, next((fill.error for fill in fills if fill.error is not None), None))
