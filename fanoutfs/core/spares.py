"""Staging files ahead of need: making one costs more than all else that is to be done for a new file.

Core, trio thread only, but for the making itself.  A spare is an empty file under the name that its number will have; a
kill leaves spares that no record knows, which a start removes.  None are made before the first new file; then as many
as were taken since the last time, within bounds.

Most are for the fronts, which make new files by themselves (`observe.spares`): each has its own, and what it did with
them is seen here when a hint says so, or when somebody has to know now (`catch_up`).
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.numbers import Numbers
from fanoutfs.observe.spares import RING, SpareRings

log = logging.getLogger(__name__)

_FEW: Final = 8
_MANY: Final = 128
_SOON_S: Final = 1.0
_IDLE_S: Final = 0.5
_IDLE_POLL_S: Final = 0.001


class _Stock:
    """How many spares one taker shall have: ever more as long as they do not last for a second."""

    __slots__ = ("count", "filled_at")

    def __init__(self) -> None:
        self.count = _FEW
        self.filled_at = float("-inf")

    def fill(self, left: int) -> int:
        """Return how many are to be made: none as long as half of them are left."""
        if left > self.count // 2:
            return 0
        now = trio.current_time()
        self.count = min(_MANY, 2 * self.count) if now - self.filled_at < _SOON_S else self.count
        self.filled_at = now
        return self.count - left


class _Ring:
    """What the core knows of one front's ring.  seen: how many of the used numbers were told."""

    __slots__ = ("seen", "stock")

    def __init__(self) -> None:
        self.seen = 0
        self.stock = _Stock()


class Spares:
    """Numbers that have a staging file already."""

    def __init__(
        self,
        staging: StagingFiles,
        numbers: Numbers,
        rings: SpareRings | None = None,
        busy_marks: Callable[[], Sequence[int]] = list,
        fronts: int = 0,
    ) -> None:
        """rings: of so many fronts.  busy_marks: odd where a front serves a request."""
        self._staging = staging
        self._numbers = numbers
        self._rings = rings
        self._busy_marks = busy_marks
        self._fronts = [_Ring() for _front in range(fronts)]
        self._ready: deque[tuple[int, int]] = deque()
        """(number, descriptor): the core's own."""
        self._stock = _Stock()
        self._is_wanted = trio.Event()
        self._is_begun = False
        self.note_given: Callable[[int], None] = _ignore
        """Called with a number before a front may use it.  No checkpoint."""
        self.note_made: Callable[[int], None] = _ignore
        """Called with an inode that a front has made; its record may be gone again.  No checkpoint."""

    @property
    def given(self) -> list[int]:
        """Return how many numbers each front has left."""
        if self._rings is None:
            return []
        return self._rings.left(len(self._fronts))

    async def take(self) -> int:
        """Return a number whose empty staging file, of the same life, is made just now.

        Checkpoint only if there is no number left.  Raises OSError.
        """
        self._is_begun = True
        self.catch_up()
        if not self._ready:
            ino = await self._numbers.take()
            self._staging.create(ino, ino)
            return ino
        ino, fd = self._ready.popleft()
        os.utime(fd)
        self._staging.adopt(ino, ino, fd)
        return ino

    def catch_up(self) -> None:
        """See what fronts have made.  No checkpoint."""
        is_short = self._is_begun and len(self._ready) <= self._stock.count // 2
        for front, ring in enumerate(self._fronts):
            assert self._rings is not None  # noqa: S101 - else there are no fronts
            given, used = self._rings.counts(front)
            if ring.seen < used:
                self._is_begun = True
                made = self._rings.numbers(front, ring.seen, used)
                ring.seen = used
                for ino in made:
                    self.note_made(ino)
            is_short = is_short or (self._is_begun and given - used <= ring.stock.count // 2)
        if is_short:
            self._is_wanted.set()

    async def run(self) -> None:
        """Make spares whenever half of them were taken; removes those that are left when it is cancelled."""
        if self._rings is not None:
            self._rings.is_open = True
        try:
            while True:
                await self._is_wanted.wait()
                self._is_wanted = trio.Event()
                try:
                    await self._fill()
                except OSError as error:  # who needs one will be told
                    log.debug("no staging files can be made ahead of need: %s", error)
                    continue
                self.catch_up()  # they may have been taken as fast as they were made
        finally:
            self._take_back()
            while self._ready:
                ino, fd = self._ready.pop()
                self._staging.adopt(ino, ino, fd)
                self._staging.remove(ino, ino)

    async def _fill(self) -> None:
        """Make what is short.  Checkpoint.  Raises OSError."""
        for front, ring in enumerate(self._fronts):
            assert self._rings is not None  # noqa: S101 - else there are no fronts
            given, used = self._rings.counts(front)
            count = min(ring.stock.fill(given - used), RING - (given - ring.seen))
            for ino, fd in await self._make(count):
                os.close(fd)
                self.note_given(ino)
                self._rings.give(front, ino)
        self._ready += await self._make(self._stock.fill(len(self._ready)))

    async def _make(self, count: int) -> list[tuple[int, int]]:
        numbers = [await self._numbers.take() for _each in range(count)]
        made: list[tuple[int, int]] = []

        def make() -> None:
            for ino in numbers:
                made.append((ino, self._staging.make(ino, ino)))

        if numbers:
            try:
                await trio.to_thread.run_sync(make)  # (which is not cancelled)
            except BaseException:
                for ino, fd in made:
                    os.close(fd)
                    self._staging.remove(ino, ino)
                raise
        return made

    def _take_back(self) -> None:
        """Close the rings and remove what is left in them, unless a front does not end its request.  Blocks for it.

        No checkpoint: the core ends.
        """
        if self._rings is None:
            return
        self._rings.is_open = False
        time.sleep(_IDLE_POLL_S)  # until all processors see it
        busy = {front: mark for front, mark in enumerate(self._busy_marks()) if mark & 1}
        deadline = time.monotonic() + _IDLE_S
        while busy:
            if time.monotonic() > deadline:
                return  # the next start removes them
            time.sleep(_IDLE_POLL_S)
            marks = self._busy_marks()
            busy = {front: mark for front, mark in busy.items() if marks[front] == mark}
        self.catch_up()
        for front in range(len(self._fronts)):
            for ino in self._rings.take_back(front):
                self._staging.remove(ino, ino)


def _ignore(_ino: int) -> None:
    """Tell nobody."""
