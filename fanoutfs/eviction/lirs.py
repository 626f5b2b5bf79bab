"""LIRS: what was read again after little else stays (Jiang, Zhang: LIRS, SIGMETRICS 2002)."""

from collections import OrderedDict
from typing import ClassVar, Final

from fanoutfs.eviction.base import Policy

_RESIDENT_SHARE: Final = 0.01
"""Of the cache, for keys of high inter-reference recency: as in the paper."""
_MOST_GHOSTS: Final = 8
"""Times as many keys as are cached, on the stack: without a bound a long scan would fill memory."""


class LIRS(Policy):
    """A stack of keys by recency, and a queue of resident ones that are not read often enough to stay; in bytes."""

    name: ClassVar[str] = "LIRS"

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self._stack: OrderedDict[int, None] = OrderedDict()
        """Least recent first.  Keys that stay, resident ones that do not, and ghosts."""
        self._queue: OrderedDict[int, None] = OrderedDict()
        """Resident keys that do not stay."""
        self._staying: set[int] = set()
        self._staying_bytes = 0
        self._limit_bytes = cap_bytes * (1 - _RESIDENT_SHARE)
        self._was_ghost = False

    def admits(self, key: int, size_bytes: int) -> bool:
        self._was_ghost = key in self._stack
        return True

    def choose_victim(self) -> int:
        if not self._queue:
            self._demote()
        return next(iter(self._queue))

    def note_hit(self, key: int) -> None:
        if key in self._staying:
            self._stack.move_to_end(key)
            self._prune()
        elif key in self._stack:
            self._stack.move_to_end(key)
            del self._queue[key]
            self._stay(key)
        else:
            self._stack[key] = None
            self._queue.move_to_end(key)

    def note_admitted(self, key: int) -> None:
        self._stack[key] = None
        self._stack.move_to_end(key)
        if self._was_ghost or self._staying_bytes + self.sizes[key] <= self._limit_bytes:
            self._stay(key)
        else:
            self._queue[key] = None
        while len(self._stack) > _MOST_GHOSTS * max(16, len(self.sizes)):
            oldest = next(each for each in self._stack if each not in self._staying)
            del self._stack[oldest]

    def note_evicted(self, key: int) -> None:
        self._queue.pop(key, None)

    def _stay(self, key: int) -> None:
        self._staying.add(key)
        self._staying_bytes += self.sizes[key]
        while self._staying_bytes > self._limit_bytes and len(self._staying) > 1:
            self._demote()
        self._prune()

    def _demote(self) -> None:
        """Let the least recent of those that stay stay no longer."""
        key = next(each for each in self._stack if each in self._staying)
        self._staying.discard(key)
        self._staying_bytes -= self.sizes[key]
        del self._stack[key]
        self._queue[key] = None
        self._prune()

    def _prune(self) -> None:
        """Keep one that stays at the bottom of the stack."""
        while self._stack:
            key = next(iter(self._stack))
            if key in self._staying:
                return
            del self._stack[key]
