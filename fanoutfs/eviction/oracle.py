"""Policies that know the future: the bounds.

Where each key occurs once in a pass, no policy that fetches on demand, not even one that knows everything, hits more
than cache ÷ data set: what it hits in a pass it held when the pass began, or was read in the same pass before.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Final

from fanoutfs.eviction.base import Policy

_NEVER: Final = 1 << 62


class Belady(Policy):
    """Evict what is read again last, and do not admit what is read again later than all that is there.

    Belady, A study of replacement algorithms, 1966; the best possible for keys of one size, near it for others.
    """

    name: ClassVar[str] = "Belady"

    def __init__(self, cap_bytes: int, future: Sequence[int]) -> None:
        """future: the keys of all accesses to come, in order."""
        super().__init__(cap_bytes)
        self._next = [_NEVER] * len(future)
        seen: dict[int, int] = {}
        for at in range(len(future) - 1, -1, -1):
            self._next[at] = seen.get(future[at], _NEVER)
            seen[future[at]] = at
        self._at = -1
        self._uses: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []

    def access(self, key: int, size_bytes: int) -> bool:
        self._at += 1
        return super().access(key, size_bytes)

    def admits(self, key: int, size_bytes: int) -> bool:
        following = self._next[self._at]
        return following != _NEVER and (self.has_room(size_bytes) or following < self._uses[self._furthest()])

    def choose_victim(self) -> int:
        return self._furthest()

    def _furthest(self) -> int:
        while True:
            following, key = self._heap[0]
            if self._uses.get(key) == -following:
                return key
            heapq.heappop(self._heap)

    def note_hit(self, key: int) -> None:
        self._uses[key] = self._next[self._at]
        heapq.heappush(self._heap, (-self._uses[key], key))

    def note_admitted(self, key: int) -> None:
        self.note_hit(key)

    def note_evicted(self, key: int) -> None:
        del self._uses[key]


class BestFixed(Policy):
    """Keep those read most often in the whole trace: what one who knows all frequencies, but not the order, can do.

    For independent draws no policy without the future does better.
    """

    name: ClassVar[str] = "most read"

    def __init__(self, cap_bytes: int, future: Sequence[tuple[int, int]]) -> None:
        """future: (key, size) of all accesses."""
        super().__init__(cap_bytes)
        sizes = dict(future)
        room = cap_bytes
        self._kept: set[int] = set()
        for key, _count in Counter(key for key, _size in future).most_common():
            if sizes[key] <= room:
                room -= sizes[key]
                self._kept.add(key)

    def admits(self, key: int, size_bytes: int) -> bool:
        return key in self._kept

    def choose_victim(self) -> int:
        raise AssertionError("what is kept fits")
