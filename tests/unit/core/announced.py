"""Announced orders for tests of what asks about them."""

from collections.abc import Collection

from fanoutfs.core.turns import Turns


class Announced:
    """Orders that are known; see `core.turns.Orders`."""

    def __init__(self, due: dict[int, int], over: dict[int, int] | None = None) -> None:
        self.revision = 1
        self.turns = Turns(due, over or {})
        self.lately: dict[int, int] = {}

    def find_turns(self, inos: Collection[int]) -> Turns:
        assert set(self.turns.due) <= set(inos)
        return self.turns

    def files_left_after(self, ino: int) -> int | None:
        return self.lately.get(ino)
