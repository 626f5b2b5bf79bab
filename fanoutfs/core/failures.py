"""Failures that took a whole deadline, shared for a moment with whoever comes next.

The kernel lets processes that want the same page or the same name ask one after the other, so without this a thousand
readers of an unreachable object would wait a deadline each, in turn, and keep up a stream of retries all the while.

Core, trio thread only.
"""

from typing import Final

import trio

from fanoutfs.errors import DeadlineError

_SHARED_S: Final = 1.0
"""Long enough for a queue of readers to drain (some 0.1 ms each), short enough not to be noticed at recovery."""


class RecentFailures:
    """The inodes whose backend requests ran into their deadline a moment ago."""

    def __init__(self) -> None:
        self._until: dict[int, tuple[float, DeadlineError]] = {}

    def note(self, ino: int, error: DeadlineError) -> None:
        """Remember a failure for a moment."""
        now = trio.current_time()
        self._until = {each: entry for each, entry in self._until.items() if entry[0] > now}
        self._until[ino] = (now + _SHARED_S, error)

    def check(self, ino: int) -> None:
        """Raise DeadlineError if a request for this inode failed a moment ago."""
        if ino in self._until:
            until, error = self._until[ino]
            if trio.current_time() < until:
                raise DeadlineError(str(error))
            del self._until[ino]
