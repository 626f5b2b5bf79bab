"""How much the staging files occupy: known without asking the disk, and never less than it is for long.

Core, trio thread only.  Fronts write staging files without asking, but count the bytes (`Count.WRITER_BYTES`).  What
was measured and what was written since is at least what the files occupy, except that the disk gives whole pages, and
may be more, since bytes are written over as well.  So the directory is looked at again every so often while something
is written, and before a writer is made to wait.  After a restart or a kill the first look says it exactly.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

_PERIOD_S: Final = 1.0
_SHARE: Final = 20
"""A look takes 3 us a file (measured): with many files it is taken less often, so that it costs a 20th of the time."""


class StagedBytes:
    """The sum over staging/ of a volume."""

    def __init__(self, volume: Path, written_bytes: Callable[[], int]) -> None:
        """written_bytes: what fronts have written to staging files so far.  Blocks: looks at all files."""
        self._path = volume / "staging"
        self._written_bytes = written_bytes
        self._changed = trio.Event()
        self._measured_bytes = 0
        self._written_then = 0
        self._took_s = 0.0
        self._is_stale = False
        self._take(self._measure())

    @property
    def total(self) -> int:
        """Return what the files occupy, about."""
        return max(0, self._measured_bytes + self._written_bytes() - self._written_then)

    def add(self, size_bytes: int) -> None:
        """Note bytes that the core put into a staging file."""
        self._measured_bytes += size_bytes
        self._is_stale = True

    def remove(self, size_bytes: int) -> None:
        """Note that a staging file is gone, or is not one any more, that occupied so much."""
        self._measured_bytes -= size_bytes
        self._is_stale = True
        self._wake()

    async def wait_changed(self, timeout_s: float) -> None:
        """Return when less is staged, or after this time.  Checkpoint."""
        with trio.move_on_after(timeout_s):
            await self._changed.wait()

    async def measure(self) -> None:
        """Look at the files.  Checkpoint."""
        before = self._measured_bytes
        taken = await trio.to_thread.run_sync(self._measure)
        # What came and went during the look may be in it or not: once more, soon.
        self._is_stale = before != self._measured_bytes
        self._take((taken[0] + max(0, self._measured_bytes - before), *taken[1:]))

    async def run(self) -> None:
        """Look again now and then, for ever."""
        while True:
            await trio.sleep(max(_PERIOD_S, _SHARE * self._took_s))
            if self._is_stale or self._written_bytes() != self._written_then:
                await self.measure()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _take(self, taken: tuple[int, int, float]) -> None:
        is_less = taken[0] < self.total
        self._measured_bytes, self._written_then, self._took_s = taken
        if is_less:
            self._wake()

    def _measure(self) -> tuple[int, int, float]:
        """Return (bytes, what had been written before the look, how long it took).  Blocks."""
        started = time.monotonic()
        written_bytes = self._written_bytes()
        total = 0
        try:
            with os.scandir(self._path) as entries:
                for entry in entries:
                    try:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    except FileNotFoundError:
                        continue  # it became clean meanwhile
        except FileNotFoundError:
            total = 0  # nothing was ever staged
        return total, written_bytes, time.monotonic() - started
