"""The simple ones: chance, recency, and refusing newcomers."""

import random
from collections import OrderedDict
from typing import ClassVar, Final

from fanoutfs.eviction.base import KeyRing, Policy

_SEED: Final = 5


class RandomChoice(Policy):
    """Evict any.  Survives scans, but each miss costs something that would have been read."""

    name: ClassVar[str] = "random"

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self.chance = random.Random(_SEED)
        self.keys = KeyRing()

    def choose_victim(self) -> int:
        return self.keys[self.chance.randrange(len(self.keys))]

    def note_admitted(self, key: int) -> None:
        self.keys.add(key)

    def note_evicted(self, key: int) -> None:
        self.keys.remove(key)


class TwoRandom(RandomChoice):
    """Of two at random the one read longer ago: JuiceFS's default for its disk cache (`--cache-eviction 2-random`)."""

    name: ClassVar[str] = "2-random"

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self._now = 0
        self._read: dict[int, int] = {}

    def choose_victim(self) -> int:
        return min(super().choose_victim(), super().choose_victim(), key=self._read.__getitem__)

    def note_hit(self, key: int) -> None:
        self._now += 1
        self._read[key] = self._now

    def note_admitted(self, key: int) -> None:
        super().note_admitted(key)
        self.note_hit(key)

    def note_evicted(self, key: int) -> None:
        super().note_evicted(key)
        del self._read[key]


class Keep(RandomChoice):
    """Keep what is there and refuse newcomers: random admission without replacement.

    The best there is for passes over one data set (each pass hits exactly what is kept), and useless after a change.
    """

    name: ClassVar[str] = "keep"

    def admits(self, key: int, size_bytes: int) -> bool:
        return self.has_room(size_bytes)


class RandomAdmission(RandomChoice):
    """Admit one miss in 32 once the cache is full, in place of any: what is kept changes, slowly."""

    name: ClassVar[str] = "random admission 1/32"

    def admits(self, key: int, size_bytes: int) -> bool:
        return self.has_room(size_bytes) or self.chance.random() < 1 / 32


class LRU(Policy):
    """Evict what was read longest ago.  Of a repeated pass over more than fits that is what is read next."""

    name: ClassVar[str] = "LRU"

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self.order: OrderedDict[int, None] = OrderedDict()

    def choose_victim(self) -> int:
        return next(iter(self.order))

    def note_hit(self, key: int) -> None:
        self.order.move_to_end(key)

    def note_admitted(self, key: int) -> None:
        self.order[key] = None

    def note_evicted(self, key: int) -> None:
        del self.order[key]


class MRU(LRU):
    """Evict what was read last: the best for passes, the worst for anything that is read again soon."""

    name: ClassVar[str] = "MRU"

    def choose_victim(self) -> int:
        return next(reversed(self.order))


class Clock(Policy):
    """A ring and a bit for each key that a hit sets and the hand clears (Corbató, A paging experiment, 1968)."""

    name: ClassVar[str] = "CLOCK"

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self._ring: OrderedDict[int, bool] = OrderedDict()

    def choose_victim(self) -> int:
        while True:
            key, is_used = next(iter(self._ring.items()))
            if not is_used:
                return key
            self._ring[key] = False
            self._ring.move_to_end(key)

    def note_hit(self, key: int) -> None:
        self._ring[key] = True

    def note_admitted(self, key: int) -> None:
        self._ring[key] = False

    def note_evicted(self, key: int) -> None:
        del self._ring[key]
