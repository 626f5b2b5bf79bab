"""What each front may write to staging files without asking: so much that the cap holds whatever they write.

Core, trio thread only.  A front compares its own count of bytes written with a limit in its row (`shared.WRITE_LIMIT`,
written here), so that fronts cannot race each other beyond it.  What is granted and not written yet counts as about to
be written (`outstanding`), in the accounts of `space`.  A write for which a front asked goes through beyond the limit;
its bytes are outstanding for as long as a front may take to write them.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import WRITE_LIMIT

_ASKED_S: Final = 0.1
"""A front writes within a millisecond after the answer; what it has not written by then it never will."""


class Grants:
    """The limits of all fronts."""

    def __init__(self, rows: Sequence[memoryview]) -> None:
        """rows: of the fronts.  An earlier core's grants are void."""
        self._rows = rows
        self._asked: deque[tuple[float, int, int]] = deque()
        """(when it is over at the latest, count of all bytes written at which it is, size)."""
        self.asked = trio.Event()
        """Set when a front had to ask: it wants more than it was granted."""
        self.grant(0)

    @property
    def fronts(self) -> int:
        """Return how many fronts there are."""
        return len(self._rows)

    @property
    def outstanding(self) -> int:
        """Return how many bytes may be written that are in no file yet."""
        now, written = trio.current_time(), self._written()
        while self._asked and (self._asked[0][0] <= now or self._asked[0][1] <= written):
            self._asked.popleft()
        granted = sum(max(0, int(row[WRITE_LIMIT]) - int(row[Count.WRITER_BYTES])) for row in self._rows)
        return granted + sum(size for _until, _count, size in self._asked)

    def grant(self, size_bytes: int) -> None:
        """Let the fronts write so much in all from now on, shared out evenly; less than before takes some back.

        What a front writes in this very moment it may have been allowed to before: it is in its count right after.
        """
        share = size_bytes // max(1, len(self._rows))
        for row in self._rows:
            row[WRITE_LIMIT] = int(row[Count.WRITER_BYTES]) + share

    def note_asked(self, size_bytes: int) -> None:
        """Note that a write is let through which a front has asked for."""
        if size_bytes:
            at = max(self._written(), self._asked[-1][1] if self._asked else 0) + size_bytes
            self._asked.append((trio.current_time() + _ASKED_S, at, size_bytes))
        self.asked.set()

    def _written(self) -> int:
        return sum(int(row[Count.WRITER_BYTES]) for row in self._rows)
