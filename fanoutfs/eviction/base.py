"""What all policies of the simulator have in common: sizes, the cap, hits."""

from abc import ABC, abstractmethod
from typing import ClassVar


class Policy(ABC):
    """A cache of so many bytes.  Keys are numbers, sizes never change.

    `access` is the only way in.  A policy says what goes (`choose_victim`), and may refuse newcomers (`admits`).
    """

    name: ClassVar[str]

    def __init__(self, cap_bytes: int) -> None:
        self.cap_bytes = cap_bytes
        self.used_bytes = 0
        self.sizes: dict[int, int] = {}
        """What is cached."""

    def access(self, key: int, size_bytes: int) -> bool:
        """Read a key; tell whether it was cached.  One larger than the cache is never admitted."""
        if key in self.sizes:
            self.note_hit(key)
            return True
        if size_bytes > self.cap_bytes or not self.admits(key, size_bytes):
            return False
        while self.used_bytes + size_bytes > self.cap_bytes:
            self.evict(self.choose_victim())
        self.sizes[key] = size_bytes
        self.used_bytes += size_bytes
        self.note_admitted(key)
        return False

    def evict(self, key: int) -> None:
        """Let a key go."""
        self.used_bytes -= self.sizes.pop(key)
        self.note_evicted(key)

    def has_room(self, size_bytes: int) -> bool:
        """Tell whether so much fits without an eviction."""
        return self.used_bytes + size_bytes <= self.cap_bytes

    def admits(self, key: int, size_bytes: int) -> bool:
        """Tell whether a key that was missed is to be cached; called for each miss, also to learn from it."""
        return True

    @abstractmethod
    def choose_victim(self) -> int:
        """Return what is to go next.  Something is cached."""

    def note_hit(self, key: int) -> None:  # noqa: B027 - not all care
        """Learn of a read that was answered from the cache."""

    def note_admitted(self, key: int) -> None:  # noqa: B027 - not all care
        """Learn of a key that is cached from now on."""

    def note_evicted(self, key: int) -> None:  # noqa: B027 - not all care
        """Learn of a key that is gone."""


class KeyRing:
    """A set from which one is drawn at random, in constant time."""

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> int:
        return self._keys[index]

    def add(self, key: int) -> None:
        """Add a key that is not in it."""
        self._places[key] = len(self._keys)
        self._keys.append(key)

    def remove(self, key: int) -> None:
        """Remove a key that is in it."""
        place, last = self._places.pop(key), self._keys.pop()
        if last != key:
            self._keys[place] = last
            self._places[last] = place
