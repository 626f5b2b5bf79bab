"""What other caches do, for a live mount to be compared with: choices by the time of the last read alone.  Pure.

Each takes the place of `choice.Chooser` and knows what that knows, the tick of a key's last read, which is a 256th of
the cache: among what was read in one tick chance decides.
"""

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

from fanoutfs.eviction import CHOICE_NAMES
from fanoutfs.eviction.choice import POOL_SHARE, Chooser
from fanoutfs.eviction.reuse import SAME_USE_TICKS

Key = TypeVar("Key")
Judge = Callable[[Key], tuple[int, float]]


class Choice(Protocol[Key]):
    """What `core.victims` asks."""

    def note_new(self, key: Key, now: int) -> None:
        """Learn of a key that is cached from now on.  Any thread."""
        ...

    def fill(self, keys: Iterable[Key], now: int, share: int = POOL_SHARE) -> None:
        """Look at all that is cached, to choose one in `share` of them."""
        ...

    def next(self, now: int) -> Key | None:
        """Return what is to go next, which may be gone since; None: `fill` first."""
        ...


class LRUChoice(Generic[Key]):
    """What was read longest ago."""

    def __init__(self, judge: Judge[Key]) -> None:
        self._judge = judge
        self._pool: list[tuple[Key, int]] = []

    def note_new(self, key: Key, now: int) -> None:
        """Nothing: the next look finds it."""

    def fill(self, keys: Iterable[Key], now: int, share: int = POOL_SHARE) -> None:
        ranked = [(self._judge(key)[0], random.random(), key) for key in keys]
        chosen = heapq.nsmallest(max(1, len(ranked) // share), ranked, key=lambda each: each[:2])
        self._pool = [(key, tick) for tick, _chance, key in reversed(chosen)]

    def next(self, now: int) -> Key | None:
        while self._pool:
            key, tick = self._pool.pop()
            if self._judge(key)[0] == tick:
                return key
        return None


class TwoRandomChoice(Generic[Key]):
    """Of two at random the one read longer ago (JuiceFS's `--cache-eviction 2-random`)."""

    def __init__(self, judge: Judge[Key]) -> None:
        self._judge = judge
        self._keys: list[Key] = []
        self._left = 0

    def note_new(self, key: Key, now: int) -> None:
        """Nothing: the next look finds it."""

    def fill(self, keys: Iterable[Key], now: int, share: int = POOL_SHARE) -> None:
        self._keys = list(keys)
        self._left = max(1, len(self._keys) // share) if self._keys else 0

    def next(self, now: int) -> Key | None:
        if self._left <= 0:
            return None
        self._left -= 1
        return min(random.choices(self._keys, k=2), key=lambda key: self._judge(key)[0])


class ClockChoice(Generic[Key]):
    """A ring: the hand passes over what was read since it came by, and takes what was not."""

    def __init__(self, judge: Judge[Key]) -> None:
        self._judge = judge
        self._ring: OrderedDict[Key, int] = OrderedDict()
        """Where the hand stands first; with the tick up to which reads do not count any more."""
        self._came: deque[tuple[Key, int]] = deque()
        self._left = 0

    def note_new(self, key: Key, now: int) -> None:
        # The read that it was fetched for is no reason to keep it.
        self._came.append((key, now + SAME_USE_TICKS))

    def fill(self, keys: Iterable[Key], now: int, share: int = POOL_SHARE) -> None:
        present = dict.fromkeys(keys)
        self._take_in()
        self._ring = OrderedDict((key, tick) for key, tick in self._ring.items() if key in present)
        for key in present:
            self._ring.setdefault(key, now)
        self._left = max(1, len(self._ring) // share) if self._ring else 0

    def _take_in(self) -> None:
        while self._came:
            key, tick = self._came.popleft()
            if key not in self._ring:  # more of a part that is there already
                self._ring[key] = tick

    def next(self, now: int) -> Key | None:
        self._take_in()
        for _turn in range(2 * len(self._ring)):
            if self._left <= 0:
                break
            key, tick = next(iter(self._ring.items()))
            if self._judge(key)[0] <= tick:
                del self._ring[key]
                self._left -= 1
                return key
            self._ring[key] = now
            self._ring.move_to_end(key)
        return None


LEARNT: Final = CHOICE_NAMES[0]
CHOICES: Final[dict[str, Callable[[Callable[[tuple[int, int]], tuple[int, float]]], Choice[tuple[int, int]]]]] = {
    **dict(zip(CHOICE_NAMES, (Chooser, LRUChoice, ClockChoice, TwoRandomChoice), strict=True))
}
"""By their names in the settings."""
