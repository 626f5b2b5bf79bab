"""When to start the next core, how the last starts went, and how long requests wait for one.  Keeper only; pure.

A core that cannot start leaves everybody waiting who needs one, and nobody can kill who waits.  A moment is worth it;
after `_PATIENCE_S` of failures requests are refused (EIO) instead, while the starts go on, ever more slowly.
"""

from typing import Any, Final

BACKOFF_S: Final = (0.0, 0.0, 0.1, 0.2, 0.5, 1.0)
"""A start costs some 50 ms of one processor, a pause keeps everybody waiting who needs the core."""
CORE_START_S: Final = 120.0
"""A core that opens its index and asks the backend one question; the backend's own deadline is shorter."""
_CALM_S: Final = 30.0
"""A core that lived this long, or was killed from outside after it was ready, starts the backoff anew."""
_PATIENCE_S: Final = 10.0
_LEAST_FAILURES: Final = 3
_REFUSING_BACKOFF_S: Final = 5.0
"""Nobody waits any more; each start opens the cache anew, on a disk that may be what fails."""


class Starts:
    """The starts of a mount's cores.  Times are monotonic seconds."""

    def __init__(self) -> None:
        """Begin with none planned."""
        self.due_at = 0.0
        """When to start one; 0: one lives."""
        self.give_up_at = 0.0
        """Until when the one that is starting must be ready; 0: none is."""
        self.failures = 0
        """Starts that failed since the last that did not."""
        self.error = ""
        """What the last of them said."""
        self._began_at = 0.0
        self._failing_since = 0.0
        self._in_a_row = 0
        self._refuses = False

    @property
    def refuses(self) -> bool:
        """Tell whether requests get an error instead of waiting any longer."""
        return self._refuses

    def plan(self, now: float) -> None:
        """Have the next core started soon."""
        pause_s = _REFUSING_BACKOFF_S if self._refuses else BACKOFF_S[min(self._in_a_row, len(BACKOFF_S) - 1)]
        self.due_at = now + pause_s

    def begin(self, now: float) -> None:
        """Note that a core is starting."""
        self.due_at = 0.0
        self.give_up_at = now + CORE_START_S
        self._began_at = now
        self._in_a_row += 1

    def succeed(self, now: float) -> float:
        """Note that it is ready; return how long that took."""
        self.give_up_at = self._failing_since = 0.0
        self.failures, self.error, self._refuses = 0, "", False
        return now - self._began_at

    def fail(self, error: str, now: float) -> bool:
        """Note why it could not start; tell whether that is news."""
        is_news = error != self.error or not self._refuses
        self.give_up_at = 0.0
        if not self.failures:
            self._failing_since = self._began_at
        self.failures += 1
        self.error = error
        self._refuses = self.failures >= _LEAST_FAILURES and now - self._failing_since >= _PATIENCE_S
        return is_news

    def note_death(self, now: float, *, was_killed: bool) -> None:
        """Note that a core which served died."""
        if was_killed or now - self._began_at > _CALM_S:
            self._in_a_row = 0

    def describe(self, now: float) -> dict[str, Any]:
        """Return what others are told, ready for JSON.  core: `serving`, `starting` or `failing`."""
        is_waited_for = bool(self.due_at or self.give_up_at)
        return {
            "core": "failing" if self.failures else "starting" if is_waited_for else "serving",
            "failures": self.failures,
            "failing_s": round(now - self._failing_since, 1) if self.failures else 0.0,
            "error": self.error,
            "refuses": self._refuses,
        }
