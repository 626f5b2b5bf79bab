"""What announced orders say of files: who is still to come to them.  No I/O."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Turns:
    """Of the files of announced orders, by inode.

    due: how many files are read before its turn.  over: its turn is over, and so many files are read before somebody
    comes to it again, if ever.
    """

    due: Mapping[int, int] = field(default_factory=dict)
    over: Mapping[int, int] = field(default_factory=dict)


class Orders(Protocol):
    """Who knows announced orders.  Worker threads ask it as well.

    revision: another one since an order was begun, or was complete.
    """

    @property
    def revision(self) -> int:
        """Return it."""
        ...

    def find_turns(self, inos: Collection[int]) -> Turns:
        """Return when these files are read."""
        ...

    def files_left_after(self, ino: int) -> int | None:
        """Return how many files are to be read in an order that came through this one lately; None: none did."""
        ...


class NoOrders:
    """Nothing was announced."""

    revision: Final = 0

    def find_turns(self, inos: Collection[int]) -> Turns:  # noqa: ARG002
        """Return nothing."""
        return Turns()

    def files_left_after(self, ino: int) -> int | None:  # noqa: ARG002
        """Return None."""
        return None
