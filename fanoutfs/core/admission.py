"""Who may talk to the backend now: one budget of bytes and requests, demand before prefetch before background moves.

Core, trio thread only.  Every acquire is released by the same fill; nothing else holds budget, so waiting always ends.

While a reader waits for budget nothing that is less urgent begins, neither here nor elsewhere (`let_readers_first`:
uploads and changes of class have budgets of their own, and begin later then).  While none waits, background moves go
on beside readers: stopping them altogether would leave a store idle that a few readers cannot keep busy.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import trio

_PREFETCH_SHARE: Final = 0.75
"""Prefetch and background leave a quarter of the requests and bytes to a reader who comes now."""


class Urgency(IntEnum):
    """Who goes first."""

    DEMAND = 0
    """A reader waits for it."""
    PREFETCH = 1
    """A reader is about to come: read-ahead, announced orders."""
    BACKGROUND = 2
    """Nobody in particular: `warm`, pins, policies."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the queue, then a share of the budget."""

    size_bytes: int
    urgency: Urgency
    on_admitted: Callable[[], None] | None = None
    """Called when the ticket is admitted, for owners that have no task of their own.  Must not call Admission."""
    is_admitted: bool = False
    _admitted: trio.Event | None = None

    @property
    def admitted(self) -> trio.Event:
        """Return the event that is set then; made for those who wait only, which small files do not."""
        if self._admitted is None:
            self._admitted = trio.Event()
            if self.is_admitted:
                self._admitted.set()
        return self._admitted

    def admit(self) -> None:
        """Tell whoever waits."""
        self.is_admitted = True
        if self._admitted is not None:
            self._admitted.set()
        if self.on_admitted is not None:
            self.on_admitted()


class Admission:
    """Bounds bytes in memory and requests in flight."""

    def __init__(self, memory_bytes: int, requests: int) -> None:
        self._memory_bytes = memory_bytes
        self._requests = requests
        self._bytes_used = 0
        self._requests_used = 0
        self._waiting: dict[Urgency, deque[Ticket]] = {urgency: deque() for urgency in Urgency}
        self._no_reader_waits = trio.Event()
        self._no_reader_waits.set()

    @property
    def bytes_used(self) -> int:
        """Return the bytes admitted now."""
        return self._bytes_used

    @property
    def has_reader_waiting(self) -> bool:
        """Tell whether a reader waits for budget."""
        return bool(self._waiting[Urgency.DEMAND])

    async def let_readers_first(self, at_most_s: float) -> None:
        """Return when no reader waits for budget, or after so long: others must get on some day.  Checkpoint."""
        with trio.move_on_after(at_most_s):
            await self._no_reader_waits.wait()

    def enqueue(self, size_bytes: int, urgency: Urgency, *, on_admitted: Callable[[], None] | None = None) -> Ticket:
        """Take a place in the queue; wait for `ticket.admitted`, then `release` it in every case.

        on_admitted may be called before this returns.
        """
        ticket = Ticket(size_bytes, urgency, on_admitted)
        self._waiting[urgency].append(ticket)
        self._admit()
        return ticket

    def promote(self, ticket: Ticket, urgency: Urgency) -> None:
        """Let whoever is more urgent, a reader who came for prefetched bytes say, pull them forward."""
        if ticket.is_admitted or ticket.urgency <= urgency:
            return
        self._waiting[ticket.urgency].remove(ticket)
        ticket.urgency = urgency
        self._waiting[urgency].append(ticket)
        self._admit()

    def release(self, ticket: Ticket) -> None:
        """Give the share back, or leave the queue."""
        if ticket.is_admitted:
            self._bytes_used -= ticket.size_bytes
            self._requests_used -= 1
        else:
            self._waiting[ticket.urgency].remove(ticket)
        self._admit()

    def _admit(self) -> None:
        for urgency, waiting in self._waiting.items():
            share = 1.0 if urgency is Urgency.DEMAND else _PREFETCH_SHARE
            while waiting and self._fits(waiting[0], share):
                self._take(waiting.popleft())
            if waiting:
                break
        if not self.has_reader_waiting:
            self._no_reader_waits.set()
        elif self._no_reader_waits.is_set():
            self._no_reader_waits = trio.Event()

    def _fits(self, ticket: Ticket, share: float) -> bool:
        if self._requests_used == 0:
            return True  # one always goes, however large
        return (
            self._requests_used < max(1, self._requests * share)
            and self._bytes_used + ticket.size_bytes <= self._memory_bytes * share
        )

    def _take(self, ticket: Ticket) -> None:
        self._bytes_used += ticket.size_bytes
        self._requests_used += 1
        ticket.admit()
