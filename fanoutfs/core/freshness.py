"""Keep directories in use fresh, although their use is invisible.

Opens are answered inside the kernel, so a directory in use may send no message for hours.  Therefore:
* a directory counts as active from its first message on, and every active directory is listed again each
  `metadata_ttl`; what changed is pushed to the kernel;
* every EPOCH_TTLS periods all names are expired at once (NOTIFY_INC_EPOCH; on older kernels entry timeouts of that
  length do it): whoever still uses a directory sends one LOOKUP per name again, and a directory that nobody asked
  for since is no longer active.  An idle mount thus sends no LIST.
"""

import logging
from typing import Final

import trio

from fanoutfs.core.listing import Listings
from fanoutfs.core.notify import Notifier
from fanoutfs.errors import FanoutError, StaleInodeError
from fanoutfs.index.reader import IndexReader

log = logging.getLogger(__name__)

EPOCH_TTLS: Final = 10
_MIN_EPOCH_S: Final = 30.0
_PARALLEL: Final = 8
_MIN_TICK_S: Final = 0.05
_MAX_TICK_S: Final = 5.0


def epoch_s(metadata_ttl_s: float) -> float:
    """Return how long the kernel may use a name without asking; inf when the source never changes."""
    return max(_MIN_EPOCH_S, EPOCH_TTLS * metadata_ttl_s)


class Freshness:
    """The set of active directories and the task that lists them again."""

    def __init__(self, *, listings: Listings, reader: IndexReader, notifier: Notifier, metadata_ttl_s: float) -> None:
        self._listings = listings
        self._reader = reader
        self._notifier = notifier
        self._ttl_s = metadata_ttl_s
        self._active: set[int] = set()
        self._used: set[int] = set()
        self._refreshing: set[int] = set()
        self._failed_until: dict[int, float] = {}

    @property
    def active(self) -> int:
        """Return how many directories are active."""
        return len(self._active)

    def note_used(self, ino: int) -> None:
        """A message showed that somebody uses this directory."""
        self._active.add(ino)
        self._used.add(ino)

    async def run(self) -> None:
        """List active directories again for ever; returns at once when the source never changes."""
        if self._ttl_s == float("inf"):
            return
        tick_s = min(max(self._ttl_s / 4, _MIN_TICK_S), _MAX_TICK_S)
        next_epoch = trio.current_time() + epoch_s(self._ttl_s)
        limiter = trio.CapacityLimiter(_PARALLEL)
        self._refreshing.clear()
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(tick_s)
                if trio.current_time() >= next_epoch:
                    next_epoch = trio.current_time() + epoch_s(self._ttl_s)
                    nursery.start_soon(self._begin_epoch)
                for ino in self._due():
                    self._refreshing.add(ino)
                    nursery.start_soon(self._refresh, ino, limiter)

    async def _begin_epoch(self) -> None:
        self._active &= self._used
        self._used.clear()
        self._failed_until.clear()
        if self._notifier.has_epoch:
            await self._notifier.expire_all_names()

    def _due(self) -> list[int]:
        now = trio.current_time()
        due = []
        with self._reader.begin() as txn:
            for ino in self._active - self._refreshing:
                directory = self._reader.inode(txn, ino)
                if directory is None:
                    self._active.discard(ino)
                    continue
                age_ns = self._listings.age_ns(directory)
                is_old = age_ns is None or age_ns > self._ttl_s * 1e9
                if directory.is_listed and is_old and now >= self._failed_until.get(ino, 0.0):
                    due.append(ino)
        return due

    async def _refresh(self, ino: int, limiter: trio.CapacityLimiter) -> None:
        try:
            async with limiter:
                await self._listings.refresh(ino)
        except StaleInodeError:
            self._active.discard(ino)  # the directory is gone
        except FanoutError as error:
            log.warning("background listing failed ino=%d: %s", ino, error)
            self._failed_until[ino] = trio.current_time() + max(self._ttl_s, 1.0)
        finally:
            self._refreshing.discard(ino)
