"""Who may talk to the backend now: one budget of bytes and requests, demand before prefetch.

Core, trio thread only.  Every acquire is released by the same fill; nothing else holds budget, so waiting always ends.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

_PREFETCH_SHARE: Final = 0.75
"""Prefetch leaves a quarter of the requests and bytes to a reader who comes now."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the queue, then a share of the budget."""

    size_bytes: int
    is_demand: bool
    on_admitted: Callable[[], None] | None = None
    """Called when the ticket is admitted, for owners that have no task of their own.  Must not call Admission."""
    admitted: trio.Event = field(default_factory=trio.Event)


class Admission:
    """Bounds bytes in memory and requests in flight."""

    def __init__(self, memory_bytes: int, requests: int) -> None:
        self._memory_bytes = memory_bytes
        self._requests = requests
        self._bytes_used = 0
        self._requests_used = 0
        self._demand: deque[Ticket] = deque()
        self._prefetch: deque[Ticket] = deque()

    @property
    def bytes_used(self) -> int:
        """Return the bytes admitted now."""
        return self._bytes_used

    def enqueue(self, size_bytes: int, *, is_demand: bool, on_admitted: Callable[[], None] | None = None) -> Ticket:
        """Take a place in the queue; wait for `ticket.admitted`, then `release` it in every case.

        on_admitted may be called before this returns.
        """
        ticket = Ticket(size_bytes, is_demand, on_admitted)
        (self._demand if is_demand else self._prefetch).append(ticket)
        self._admit()
        return ticket

    def promote(self, ticket: Ticket) -> None:
        """Let a reader who came for prefetched bytes pull them forward."""
        if ticket.is_demand or ticket.admitted.is_set():
            return
        self._prefetch.remove(ticket)
        ticket.is_demand = True
        self._demand.append(ticket)
        self._admit()

    def release(self, ticket: Ticket) -> None:
        """Give the share back, or leave the queue."""
        if ticket.admitted.is_set():
            self._bytes_used -= ticket.size_bytes
            self._requests_used -= 1
        else:
            (self._demand if ticket.is_demand else self._prefetch).remove(ticket)
        self._admit()

    def _admit(self) -> None:
        while self._demand and self._fits(self._demand[0], 1.0):
            self._take(self._demand.popleft())
        if self._demand:
            return
        while self._prefetch and self._fits(self._prefetch[0], _PREFETCH_SHARE):
            self._take(self._prefetch.popleft())

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
        ticket.admitted.set()
        if ticket.on_admitted is not None:
            ticket.on_admitted()
