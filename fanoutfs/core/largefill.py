"""One fetch of consecutive blocks of a large file: what is known of it while it is under way.

Core, trio thread only, but for the two times that a worker thread sets.  `fill` runs them.
"""

from time import monotonic_ns
from typing import Final

import trio

from fanoutfs.core.admission import Ticket, Urgency
from fanoutfs.errors import FanoutError
from fanoutfs.index.format import Inode
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS

_NOTHING: Final = 1 << 63
"""More than any file has: nobody waits."""


class Fill:
    """One fetch under way.  first, count: blocks of the file.  done: its bytes are in the cache file, or it failed.

    shown: so many bytes from its start are found by fronts; a worker thread sets it.  wanted: so many somebody waits
    for.  Each side writes its own, then looks at the other's: nobody waits for what has come.
    """

    __slots__ = (
        "_growth", "begun_ns", "checksums", "count", "done", "error", "fetched", "fetched_ns", "fetching_ns", "first",
        "inode", "is_again", "shown", "ticket", "urgency", "wanted",
    )  # fmt: skip

    def __init__(self, inode: Inode, first: int, count: int, urgency: Urgency) -> None:
        self.inode = inode
        self.first = first
        self.count = count
        self.urgency = urgency
        self.shown = 0
        self.wanted = _NOTHING
        self._growth = trio.lowlevel.ParkingLot()
        self.done = trio.Event()
        self.error: FanoutError | None = None
        self.ticket: Ticket | None = None
        # Phases, see `waits`.  A worker thread sets the last two.
        self.begun_ns = monotonic_ns()
        self.fetching_ns = self.fetched_ns = 0
        self.is_again = False
        self.checksums: dict[int, int] | None = None
        """Those of all blocks, once the bytes are in the arena."""
        self.fetched: memoryview | None = None
        """The bytes themselves, if they are not to go through the arena."""

    @property
    def is_demand(self) -> bool:
        """Tell whether a reader waits for it."""
        return self.urgency is Urgency.DEMAND

    @property
    def part(self) -> int:
        """Return the part it is of."""
        return self.first // PART_BLOCKS

    @property
    def size_bytes(self) -> int:
        """Return how many bytes it fetches."""
        return self.end - self.start

    @property
    def start(self) -> int:
        """Return the first byte's offset."""
        return self.first * BLOCK_BYTES

    @property
    def end(self) -> int:
        """Return the offset behind the last byte."""
        return min((self.first + self.count) * BLOCK_BYTES, self.inode.size_bytes)

    async def wait_readable(self, end: int) -> None:
        """Return when fronts find its bytes before `end` (of the file), or it is over.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        wanted = min(end, self.end) - self.start
        while self.shown < wanted and not self.done.is_set():
            self.wanted = min(self.wanted, wanted)
            if self.shown < wanted:  # (still: it may have grown before `wanted` was there to be seen)
                await self._growth.park()

    def wake(self) -> None:
        """Wake who waits for bytes that fronts find now."""
        self.wanted = _NOTHING  # who is not content says so again
        self._growth.unpark_all()

    def finish(self) -> None:
        """Wake everybody: it is over."""
        self.done.set()
        self._growth.unpark_all()
