"""ARC: recency and frequency, balanced by what was evicted too early (Megiddo, Modha: ARC, FAST 2003)."""

from collections import OrderedDict
from typing import ClassVar

from fanoutfs.eviction.base import Policy


class _Queue:
    """Keys in order, and their bytes."""

    def __init__(self) -> None:
        self.keys: OrderedDict[int, int] = OrderedDict()
        self.total_bytes = 0

    def __contains__(self, key: int) -> bool:
        return key in self.keys

    def push(self, key: int, size_bytes: int) -> None:
        self.keys[key] = size_bytes
        self.total_bytes += size_bytes

    def remove(self, key: int) -> int:
        size_bytes = self.keys.pop(key)
        self.total_bytes -= size_bytes
        return size_bytes

    def shrink(self, most_bytes: float) -> None:
        while self.keys and self.total_bytes > most_bytes:
            self.total_bytes -= self.keys.popitem(last=False)[1]


class ARC(Policy):
    """Two LRU lists, read once and read again, each with ghosts; in bytes instead of pages."""

    name: ClassVar[str] = "ARC"

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self._once, self._again = _Queue(), _Queue()
        self._once_ghosts, self._again_ghosts = _Queue(), _Queue()
        self._target_bytes = 0.0
        self._is_known = self._was_again = False

    def admits(self, key: int, size_bytes: int) -> bool:
        self._was_again = key in self._again_ghosts
        self._is_known = self._was_again or key in self._once_ghosts
        once, again = self._once_ghosts.total_bytes, self._again_ghosts.total_bytes
        if self._was_again:
            step = size_bytes * max(1.0, once / again)
            self._target_bytes = max(0.0, self._target_bytes - step)
            self._again_ghosts.remove(key)
        elif self._is_known:
            step = size_bytes * max(1.0, again / once)
            self._target_bytes = min(float(self.cap_bytes), self._target_bytes + step)
            self._once_ghosts.remove(key)
        return True

    def choose_victim(self) -> int:
        held = self._once.total_bytes
        is_over = held > self._target_bytes or (self._was_again and held == self._target_bytes)
        queue = self._once if self._once.keys and (is_over or not self._again.keys) else self._again
        return next(iter(queue.keys))

    def note_hit(self, key: int) -> None:
        queue = self._once if key in self._once else self._again
        self._again.push(key, queue.remove(key))

    def note_admitted(self, key: int) -> None:
        (self._again if self._is_known else self._once).push(key, self.sizes[key])
        self._once_ghosts.shrink(max(0, self.cap_bytes - self._once.total_bytes))
        self._again_ghosts.shrink(
            max(0, 2 * self.cap_bytes - self.used_bytes - self._once_ghosts.total_bytes),
        )

    def note_evicted(self, key: int) -> None:
        if key in self._once:
            self._once_ghosts.push(key, self._once.remove(key))
        else:
            self._again_ghosts.push(key, self._again.remove(key))
