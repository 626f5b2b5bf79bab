"""What `moves` has in hand: a directory on its way, and when a departed key is looked at again.

Core, trio thread only; no I/O.
"""

from dataclasses import dataclass, field

from fanoutfs.errors import FanoutError
from fanoutfs.index.format import Departed


@dataclass(slots=True)
class Delay:
    """When to look at a departed key again, as long as its record stays the same."""

    departed: Departed
    at: float
    failures: int = 0


@dataclass(slots=True)
class Move:
    """A directory on its way.  old: prefixes that its objects may be below; target: where they belong."""

    ino: int
    old: tuple[str, ...]
    target: str
    is_aside: bool = False
    left: int = 0
    error: FanoutError | None = None
    directories: list[tuple[int, str, str]] = field(default_factory=list)
