"""New inodes ahead of need, in memory that core and fronts share: numbers whose empty staging files are made already.

One ring for each front.  The core puts numbers in, the front that owns the ring takes them out in that order: it gives
one to a new file, commits the record, and then counts it as used; the core sees by the count which files were made
(hints only wake it).  Each word has one writer:

    given    numbers ever put in                             the core
    used     numbers whose record is in the index            the front; its successor settles what it left undecided
    is_open  fronts may take numbers, and change the index   the core; the keeper, before a new core begins

A core that ends closes the rings, and takes back what is left when no front serves a request any more.  The keeper
empties them while there is neither a core nor a front: what was in them stays behind as staging files that no record
knows, which the next core removes at its start.
"""

import mmap
from typing import Final

RING: Final = 128
_GIVEN: Final = 0
_USED: Final = 1
_NUMBERS_AT: Final = 8  # counts of two writers do not share a cache line with the numbers
_FRONT_WORDS: Final = _NUMBERS_AT + RING


class SpareRings:
    """The rings.  Created by the keeper; children inherit them by fork."""

    def __init__(self, fronts: int) -> None:
        self.fronts = fronts
        size = (1 + fronts * _FRONT_WORDS) * 8
        self._words = memoryview(mmap.mmap(-1, size)).cast("Q")
        self._open_at = fronts * _FRONT_WORDS

    # --- the front that owns a ring ----------------------------------------------------------------------------

    def first(self, front: int) -> int:
        """Return the number that the next new file gets; 0: the core has to make it."""
        words, at = self._words, front * _FRONT_WORDS
        used = words[at + _USED]
        if used == words[at + _GIVEN] or not words[self._open_at]:
            return 0
        return words[at + _NUMBERS_AT + used % RING]

    def note_used(self, front: int) -> int:
        """Count the first number as used: its record is committed.  Returns how many are left."""
        words, at = self._words, front * _FRONT_WORDS
        words[at + _USED] += 1
        return words[at + _GIVEN] - words[at + _USED]

    def undecided(self, front: int) -> int:
        """Return the number of which a predecessor that died may have committed the record; 0: there is none."""
        words, at = self._words, front * _FRONT_WORDS
        used = words[at + _USED]
        return words[at + _NUMBERS_AT + used % RING] if used != words[at + _GIVEN] else 0

    # --- the core ----------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Tell whether fronts may use the rings."""
        return bool(self._words[self._open_at])

    @is_open.setter
    def is_open(self, is_open: bool) -> None:
        self._words[self._open_at] = is_open

    def give(self, front: int, ino: int) -> None:
        """Put a number in; its staging file is there.  At most RING may be in that were not `numbers` yet."""
        words, at = self._words, front * _FRONT_WORDS
        words[at + _NUMBERS_AT + words[at + _GIVEN] % RING] = ino
        words[at + _GIVEN] += 1

    def take_back(self, front: int) -> list[int]:
        """Take out what is left.  The rings must be closed, and no front serve a request that it began before."""
        given, used = self.counts(front)
        self._words[front * _FRONT_WORDS + _GIVEN] = used
        return self.numbers(front, used, given)

    def counts(self, front: int) -> tuple[int, int]:
        """Return (given, used)."""
        at = front * _FRONT_WORDS
        return self._words[at + _GIVEN], self._words[at + _USED]

    def left(self, fronts: int) -> list[int]:
        """Return how many numbers each of the first so many fronts has left."""
        return [given - used for given, used in map(self.counts, range(fronts))]

    def numbers(self, front: int, start: int, stop: int) -> list[int]:
        """Return what was put in as the start-th up to, without it, the stop-th number."""
        at = front * _FRONT_WORDS + _NUMBERS_AT
        return [self._words[at + index % RING] for index in range(start, stop)]

    # --- the keeper --------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Empty and close them.  There must be neither a core nor a front."""
        for at in range(len(self._words)):
            self._words[at] = 0
