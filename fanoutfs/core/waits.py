"""What a request waited for in the core: the store, its turn, or the disk.

A fill goes through three phases, and whoever waits for it waits for those that lie behind his arrival:

    begun ── queue ──> fetching ── backend ──> fetched ── disk ──> the end

`queue`: for the budget of memory and requests, for room in the cache, for a thread.  `backend`: the GET, with retries
and pauses between them.  `disk`: writing, checksums, the commit.  Times are of the monotonic clock in ns; 0: not yet.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Protocol

from fanoutfs.records import NO_WAITS, Waits

_KNOWN: Final = 1 << 16


class Phased(Protocol):
    """A fill, of whatever kind."""

    begun_ns: int
    fetching_ns: int
    fetched_ns: int
    is_again: bool


def waits_of(fills: Iterable[Phased], came_ns: int, left_ns: int) -> Waits:
    """Return what somebody waited for who came and left at these times: the phases of the fill that took longest."""
    longest = max(fills, key=_fetched_at, default=None)
    if longest is None:
        return NO_WAITS
    fetching_ns = longest.fetching_ns or left_ns
    fetched_ns = longest.fetched_ns or left_ns
    return Waits(
        backend_ns=_overlap(fetching_ns, fetched_ns, came_ns, left_ns),
        queue_ns=_overlap(longest.begun_ns, fetching_ns, came_ns, left_ns),
        disk_ns=_overlap(fetched_ns, left_ns, came_ns, left_ns),
        is_again=longest.is_again,
    )


def _fetched_at(fill: Phased) -> float:
    return fill.fetched_ns or float("inf")


def _overlap(start_ns: int, end_ns: int, came_ns: int, left_ns: int) -> int:
    return max(0, min(end_ns, left_ns) - max(start_ns, came_ns))


class Fetched:
    """Which parts and small files were fetched already, as far back as memory reaches.

    What is fetched once more had been in the cache and is not any longer: evicted, or damaged.  Core, trio thread only.
    """

    def __init__(self) -> None:
        self._masks: OrderedDict[tuple[int, int], int] = OrderedDict()

    def note(self, ino: int, part: int, mask: int) -> bool:
        """Note that these blocks of a part are being fetched; tell whether one of them had been before."""
        key = (ino, part)
        before = self._masks.pop(key, 0)
        self._masks[key] = before | mask
        if len(self._masks) > _KNOWN:
            self._masks.popitem(last=False)
        return bool(before & mask)

    def forget(self, ino: int, part: int, mask: int) -> None:
        """Note that fetching them failed."""
        if before := self._masks.get((ino, part), 0):
            self._masks[ino, part] = before & ~mask
