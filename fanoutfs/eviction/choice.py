"""Which of many to evict next: a pool of what was worth least at the last look, and newcomers.  Pure.

Looking at all that is cached for every victim would cost too much.  So one look chooses a pool, the 16th that is worth
least; who was read since is passed over when his turn comes.  Newcomers are tried by themselves, in the order in which
they came, once their first use is over (as the small queue of S3-FIFO): where nothing is read again soon they must go,
and not what the last look found.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from fanoutfs.eviction.reuse import SAME_USE_TICKS

Key = TypeVar("Key")
POOL_SHARE: Final = 16
NEWCOMER_TICKS: Final = 8 * SAME_USE_TICKS
"""Who came longer ago is no newcomer: what the cache held before anything had to go would be tried oldest first."""
_NEWCOMERS: Final = 1 << 16


class Chooser(Generic[Key]):
    """Chooses among keys.  What it returns may be gone since: the caller looks, and asks for the next."""

    def __init__(self, judge: Callable[[Key], tuple[int, float]], seed: int | None = None) -> None:
        """judge: returns the tick of a key's last use and what it is worth now."""
        self._judge = judge
        self._chance = random.Random(seed)
        self._pool: list[tuple[Key, int]] = []
        """With the tick of the last use when it was chosen; best victim last."""
        self._newcomers: deque[tuple[Key, int]] = deque(maxlen=_NEWCOMERS)
        """With the tick at which they came, oldest first."""

    def note_new(self, key: Key, now: int) -> None:
        """Learn of a key that is cached from now on.  Any thread."""
        self._newcomers.append((key, now))

    def fill(self, keys: Iterable[Key], now: int, share: int = POOL_SHARE) -> None:
        """Look at all that is cached and choose anew; share: one key in so many."""
        ranked = []
        for key in keys:
            tick, worth = self._judge(key)
            # What is in use counts for nothing yet, and goes only when there is nothing else.  Chance decides ties.
            ranked.append((now - tick <= SAME_USE_TICKS, worth, self._chance.random(), key, tick))
        chosen = heapq.nsmallest(max(1, len(ranked) // share), ranked, key=lambda each: each[:3])
        self._pool = [(key, tick) for *_rank, key, tick in reversed(chosen)]

    def next(self, now: int) -> Key | None:
        """Return what is to go next; None: `fill` first."""
        while self._pool:
            key, chosen_tick = self._pool[-1]
            tick, worth = self._judge(key)
            if tick == chosen_tick:
                break
            self._pool.pop()
        else:
            return None
        while self._newcomers:
            newcomer, came = self._newcomers[0]
            tick, its_worth = self._judge(newcomer)
            if now - came <= NEWCOMER_TICKS and now - tick <= SAME_USE_TICKS:
                break  # still in its first use
            self._newcomers.popleft()
            # (Who came long ago is no newcomer any more: the next look will find it.)
            if now - came <= NEWCOMER_TICKS and its_worth <= worth:
                return newcomer
        self._pool.pop()
        return key
