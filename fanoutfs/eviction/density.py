"""The policy of the live mount, in the simulator: what is worth least goes first (`reuse`, `choice`)."""

from typing import ClassVar, Final

from fanoutfs.eviction.base import Policy
from fanoutfs.eviction.choice import Chooser
from fanoutfs.eviction.reuse import ONCE, SAME_USE_TICKS, TICKS, ReuseModel

_SEED: Final = 5


class Density(Policy):
    """Evict what is worth least."""

    name: ClassVar[str] = "learnt reuse"

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self._model = ReuseModel()
        self._tick_bytes = max(1, cap_bytes // TICKS)
        self._moved_bytes = 0
        self._marks: dict[int, tuple[int, int]] = {}
        """Of everything ever read: (tick of the last read, kind)."""
        self._chooser = Chooser(self._judge, _SEED)

    @property
    def _now(self) -> int:
        return self._moved_bytes // self._tick_bytes

    def access(self, key: int, size_bytes: int) -> bool:
        self._moved_bytes += size_bytes
        now = self._now
        tick, kind = self._marks.get(key, (-1, ONCE))
        if tick < 0:
            self._model.note_first(ONCE)
        elif now - tick > SAME_USE_TICKS:
            kind = self._model.note_reuse(kind, now - tick)
        self._marks[key] = now, kind
        return super().access(key, size_bytes)

    def choose_victim(self) -> int:
        self._model.things = len(self.sizes)
        self._model.learn_sometimes()
        while True:
            key = self._chooser.next(self._now)
            if key is None:
                self._chooser.fill(self.sizes, self._now)
            elif key in self.sizes:
                return key

    def note_admitted(self, key: int) -> None:
        self._chooser.note_new(key, self._now)

    def _judge(self, key: int) -> tuple[int, float]:
        tick, kind = self._marks[key]
        return tick, self._model.worth(kind, self._now - tick)
