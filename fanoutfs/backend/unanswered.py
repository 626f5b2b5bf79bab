"""Which keys a request that was given up may still change: the store has it, perhaps, and carries it out when it likes.

Core; thread-safe: worker threads note, the core's trio thread asks.
"""

import threading
import time
from typing import Final

LATE_S: Final = 5.0
"""A connection that was closed brings nothing new to a store; what it had brought by then has begun by now."""


class Unanswered:
    """Remembers each key for `late_s` after the connection of the last such request was closed."""

    def __init__(self, late_s: float = LATE_S) -> None:
        self._late_s = late_s
        self._lock = threading.Lock()
        self._changes: dict[str, float] = {}
        self._puts: dict[str, float] = {}

    def note(self, key: str, *, is_put: bool) -> None:
        """A request that was to change a key was given up.  is_put: it would leave an object there."""
        now = time.monotonic()
        with self._lock:
            for known in (self._changes, self._puts) if is_put else (self._changes,):
                for old in [old for old, until in known.items() if until <= now]:
                    del known[old]
                known[key] = now + self._late_s

    def put_left_s(self, key: str) -> float:
        """Return for how long yet an object may come to be under a key, or another version of it; 0.0: not any more."""
        return self._left_s(self._puts, key)

    def change_left_s(self, key: str) -> float:
        """Return for how long yet it may be replaced or deleted; 0.0: not any more."""
        return self._left_s(self._changes, key)

    def _left_s(self, known: dict[str, float], key: str) -> float:
        with self._lock:
            return max(0.0, known.get(key, 0.0) - time.monotonic())
