"""When files were last read, as far as the daemon sees it: fronts tell of what they answered.

Core, trio thread only.  What the kernel answers from its page cache nobody sees: such a file counts as read when its
pages were last fetched from us.  The newest times are in memory; they are written down when a policy goes by them
(`evict_after`), to a sixteenth of the shortest time that one asks for, so that each file is written at most once in
that time however often it is read.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Final

import trio

from fanoutfs.clock import Clock
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.tiering import NoteAccess
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter

_KEPT: Final = 1 << 18
"""Times in memory: about 30 MB."""
_BATCH: Final = 2048
"""Written in one transaction: others wait for it a few milliseconds."""
_PERIOD_S: Final = 5.0


class Accesses:
    """The times."""

    def __init__(self, reader: IndexReader, writer: GroupWriter[IndexTransaction], clock: Clock) -> None:
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._times_ns: dict[int, int] = {}
        self._unwritten: dict[int, int] = {}
        self.grain_s: float | None = None
        """How exact what is written down is to be; None: nothing is written."""

    def note(self, inos: Iterable[int]) -> None:
        """Note that files are read now.  No checkpoint."""
        now_ns = self._clock.wall_ns()
        for ino in inos:
            self._times_ns.pop(ino, None)  # to the end: the order is that of the times
            self._times_ns[ino] = now_ns
            if self.grain_s is not None:
                self._unwritten[ino] = now_ns
        if len(self._times_ns) > _KEPT:
            for ino in list(islice(self._times_ns, len(self._times_ns) - _KEPT * 3 // 4)):
                del self._times_ns[ino]

    def last_ns(self, ino: int) -> int | None:
        """Return when a file was last known to be read; None: not since that is noted."""
        found = self._times_ns.get(ino)
        if found is None:
            found = self._unwritten.get(ino)
        if found is None:
            with self._reader.begin() as txn:
                found = self._reader.tiers(txn).accessed_ns(ino)
        return found

    async def run(self) -> None:
        """Write times down, for ever."""
        while True:
            await trio.sleep(_PERIOD_S)
            await self.write_down()

    async def write_down(self) -> None:
        """Write down what was noted, where it is news.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        if self.grain_s is None:
            self._unwritten.clear()
        unwritten, self._unwritten = list(self._unwritten.items()), {}
        for at in range(0, len(unwritten), _BATCH):
            with self._reader.begin() as txn:
                records = self._reader.tiers(txn)
                grain_ns = int((self.grain_s or 0.0) * 1e9)
                news = {
                    ino: at_ns
                    for ino, at_ns in unwritten[at : at + _BATCH]
                    if at_ns - (records.accessed_ns(ino) or 0) >= grain_ns
                }
            if news:
                await self._writer.run(NoteAccess(news).apply)
            await trio.lowlevel.checkpoint()
