"""Grace periods: publish that bytes are gone, wait until nobody can still be reading them, then reclaim.

A front's busy word is odd while it serves a request, the pusher's while it copies contents (and never while it
writes to the kernel, which may wait for a request).  A process whose word was even once, or changed, since the change
was committed has begun what it does now after the commit and cannot see what was removed.
"""

import time
from typing import Final

import trio

from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import CORE_ROW, SharedState, bump

_POLL_S: Final = 0.0005


class Grace:
    """Waits for fronts and the pusher.  Core only."""

    def __init__(self, shared: SharedState, fronts: int) -> None:
        self._shared = shared
        self._fronts = fronts
        self._row = shared.row(CORE_ROW)

    async def wait(self) -> None:
        """Return once every front, and the pusher, has been idle since the call.  Checkpoint.

        Bounded by the time of one request of a front, which never blocks on the backend; a process that dies has its
        word cleared by the keeper.
        """
        await trio.lowlevel.checkpoint()
        began_ns = time.monotonic_ns()
        busy = {front: mark for front, mark in enumerate(self._shared.busy_marks(self._fronts)) if mark & 1}
        while busy:
            await trio.sleep(_POLL_S)
            marks = self._shared.busy_marks(self._fronts)
            busy = {front: mark for front, mark in busy.items() if marks[front] == mark}
        bump(self._row, Count.GRACE_PERIODS)
        bump(self._row, Count.GRACE_NS, time.monotonic_ns() - began_ns)
