"""S3-FIFO: three queues, quick demotion (Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues are all you need, SOSP 2023)."""

from collections import OrderedDict
from typing import ClassVar, Final

from fanoutfs.eviction.base import Policy

_SMALL_SHARE: Final = 0.1
_MOST_USES: Final = 3


class S3Fifo(Policy):
    """Newcomers enter a small queue (a tenth); what is read there again, or soon after it left, enters the main one.

    Sizes of queues in bytes; the ghosts stand for as many bytes as the main queue may hold.
    """

    name: ClassVar[str] = "S3-FIFO"

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self._small: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._ghosts: OrderedDict[int, int] = OrderedDict()
        self._uses: dict[int, int] = {}
        self._small_bytes = 0
        self._ghost_bytes = 0
        self._is_known = False

    def admits(self, key: int, size_bytes: int) -> bool:
        ghost = self._ghosts.pop(key, None)
        self._is_known = ghost is not None
        self._ghost_bytes -= ghost or 0
        return True

    def choose_victim(self) -> int:
        while True:
            if self._small and (self._small_bytes > self.cap_bytes * _SMALL_SHARE or not self._main):
                key = next(iter(self._small))
                if self._uses[key] <= 1:
                    return key
                del self._small[key]
                self._small_bytes -= self.sizes[key]
                self._uses[key] = 0
                self._main[key] = None
            else:
                key = next(iter(self._main))
                if not self._uses[key]:
                    return key
                self._uses[key] -= 1
                self._main.move_to_end(key)

    def evict(self, key: int) -> None:
        if key in self._small:
            size_bytes = self.sizes[key]
            self._small_bytes -= size_bytes
            self._ghosts[key] = size_bytes
            self._ghost_bytes += size_bytes
            while self._ghost_bytes > self.cap_bytes * (1 - _SMALL_SHARE):
                self._ghost_bytes -= self._ghosts.popitem(last=False)[1]
        super().evict(key)

    def note_hit(self, key: int) -> None:
        self._uses[key] = min(_MOST_USES, self._uses[key] + 1)

    def note_admitted(self, key: int) -> None:
        self._uses[key] = 0
        if self._is_known:
            self._main[key] = None
        else:
            self._small[key] = None
            self._small_bytes += self.sizes[key]

    def note_evicted(self, key: int) -> None:
        del self._uses[key]
        self._small.pop(key, None)
        self._main.pop(key, None)
