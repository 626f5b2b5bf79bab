"""How long requests had to wait for the core, as the kernel's pressure stall information counts it.

`some`: time in which at least one request was in the core's hands, exact.  `full`: time in which requests were, and no
front answered any other one: nobody who used the mount got on, as far as can be seen.  Sampled, only while somebody
waits; an idle mount wakes nobody.

Core, trio thread only.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

import trio

from fanoutfs.clock import Clock
from fanoutfs.observe.catalog import ANSWERED_BASE, RELAYED_BASE, Count
from fanoutfs.observe.shared import FIRST_FRONT_ROW, SharedState, bump

_SAMPLE_S: Final = 0.05


class Stalls:
    """Counts the time."""

    def __init__(self, shared: SharedState, fronts: int, row: memoryview, clock: Clock) -> None:
        self._fronts = [shared.row(FIRST_FRONT_ROW + front) for front in range(fronts)]
        self._row = row
        self._clock = clock
        self._waiting = 0
        self._since_ns = 0
        self._stretch = 0
        """Number of the stretch of time, without a gap, in which somebody waits."""
        self._begun = trio.Event()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a request as waiting inside this block."""
        if not self._waiting:
            self._since_ns = self._clock.monotonic_ns()
            self._stretch += 1
            self._begun.set()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._account(self._clock.monotonic_ns())

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            if not self._waiting:
                self._begun = trio.Event()
                await self._begun.wait()
            began_ns, stretch, answered = self._clock.monotonic_ns(), self._stretch, self._answered()
            await trio.sleep(_SAMPLE_S)
            now_ns = self._clock.monotonic_ns()
            if self._waiting and stretch == self._stretch:
                self._account(now_ns)  # what is shown must not wait for a stall's end
                if answered == self._answered():
                    bump(self._row, Count.STALL_FULL_NS, now_ns - began_ns)

    def _account(self, now_ns: int) -> None:
        bump(self._row, Count.STALL_SOME_NS, now_ns - self._since_ns)
        self._since_ns = now_ns

    def _answered(self) -> int:
        return sum(sum(row[ANSWERED_BASE:RELAYED_BASE]) for row in self._fronts)
