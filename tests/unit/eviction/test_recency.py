"""The choices that a live mount offers for comparison do as the policies of the simulator that they are named after."""

from collections.abc import Callable
from typing import ClassVar

import pytest

from fanoutfs.eviction.base import Policy
from fanoutfs.eviction.classic import LRU, Clock, TwoRandom
from fanoutfs.eviction.recency import ClockChoice, LRUChoice, TwoRandomChoice
from fanoutfs.eviction.reuse import TICKS
from fanoutfs.eviction.simulate import replay
from fanoutfs.eviction.traces import PATTERNS

FILES = 600


class Chosen(Policy):
    """A choice in the simulator, with ticks as the live mount counts them."""

    name: ClassVar[str] = "chosen"
    make: ClassVar[
        Callable[[Callable[[int], tuple[int, float]]], LRUChoice[int] | TwoRandomChoice[int] | ClockChoice[int]]
    ]

    def __init__(self, cap_bytes: int) -> None:
        super().__init__(cap_bytes)
        self.moved = 0
        self.read: dict[int, int] = {}
        self.choice = type(self).make(lambda key: (self.read[key], 0.0))

    @property
    def now(self) -> int:
        return self.moved * TICKS // self.cap_bytes

    def access(self, key: int, size_bytes: int) -> bool:
        self.moved += size_bytes
        self.read[key] = self.now
        return super().access(key, size_bytes)

    def choose_victim(self) -> int:
        while True:
            key = self.choice.next(self.now)
            if key is None:
                self.choice.fill(self.sizes, self.now)
            elif key in self.sizes:
                return key

    def note_admitted(self, key: int) -> None:
        self.choice.note_new(key, self.now)


@pytest.mark.parametrize("pattern", ["same order", "new shuffle", "hot subset"])
@pytest.mark.parametrize("share", [1.5, 3.0])
@pytest.mark.parametrize(("choice", "policy"), [(LRUChoice, LRU), (ClockChoice, Clock), (TwoRandomChoice, TwoRandom)])
def test_choice_hits_what_the_policy_of_its_name_does(
    choice: type[LRUChoice[int]], policy: type[Policy], share: float, pattern: str
) -> None:
    class Subject(Chosen):
        make = choice

    trace = [(key, 1) for key in PATTERNS[pattern](FILES, 6, 2)]
    cap = int(FILES / share)
    expected = replay(policy(cap), trace, len(trace) // 2).hit_rate
    assert replay(Subject(cap), trace, len(trace) // 2).hit_rate == pytest.approx(expected, abs=0.05)
