"""Time, passed to whoever needs it so that tests can turn it by hand.

Wall-clock time is only ever stored (it survives a restart); every wait and every age within one process is
measured on the monotonic clock.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where a component gets its time from."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the epoch; may jump."""
        ...

    def monotonic_ns(self) -> int:
        """Return nanoseconds since some fixed point in the past; never jumps."""
        ...


class SystemClock:
    """The kernel's clocks."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()
