"""Make what was committed survive a power cut: one sync for all who wait, and one now and then.

Core, trio thread only.  Commits wait for no disk (`index.store`): a power cut throws the index back to its last sync.
Whoever needs what is committed to stay waits here: a sync that begins after the call covers it.  While one runs, the
next one collects.  What nobody waits for is synced within a second, which bounds what a power cut may take.

Until then LMDB may not reuse the pages that commits replace, 28 KiB each time, and the index grows instead, for good:
its file never shrinks.  A second of them is little beside a large cache, but a quarter of one of 32 MiB, where nothing
else would be cached for it.  So the smaller the cache, the fewer commits are waited for; and where the disk is so slow
that several times as many come while one sync runs, what is to be cached waits for it, for a moment.
"""

import logging
from typing import Final

import trio

from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import MIB

log = logging.getLogger(__name__)

_PERIOD_S: Final = 0.5
_CACHE_PER_COMMIT: Final = 4 * MIB
"""Of which one commit leaves a 146th in pages that wait for a sync; twice that while the sync runs."""
_LEAST_COMMITS: Final = 8
_FAR_BEHIND: Final = 4
"""So many times what is waited for: a 36th of the cache.  Rather few commits to a sync than few syncs behind: where one
takes a second, three quarters of these can be committed meanwhile."""
_PATIENCE_S: Final = 1.0
"""A reader waits no longer than this for a sync that is not his."""


class Durable:
    """Syncs of the index."""

    def __init__(self, environment: IndexEnvironment, cache_bytes: int) -> None:
        self._environment = environment
        self._most_commits = max(_LEAST_COMMITS, cache_bytes // _CACHE_PER_COMMIT)
        self._is_due = trio.Event()
        self._has_synced = trio.Event()
        self._has_failed = False
        self._lock = trio.Lock()
        self._wanted = 0
        self._done = 0

    async def sync(self) -> None:
        """Return when everything committed before the call is on disk.  Checkpoint.  Raises OSError.

        After a failure all further calls fail (see `IndexEnvironment.sync`).
        """
        self._wanted += 1
        mine = self._wanted
        async with self._lock:
            if self._done >= mine:
                return
            covered = self._wanted
            try:
                await trio.to_thread.run_sync(self._environment.sync)
            except OSError:
                self._has_failed = True
                raise
            finally:
                self._has_synced.set()
                self._has_synced = trio.Event()
            self._done = covered

    def note_committed(self) -> None:
        """Have `run` sync now if as much was committed as may wait.  No checkpoint."""
        if self._environment.unsynced_commits >= self._most_commits:
            self._is_due.set()

    @property
    def is_behind(self) -> bool:
        """Tell whether far more was committed than should wait for a sync, and one can be had."""
        return not self._has_failed and self._environment.unsynced_commits >= _FAR_BEHIND * self._most_commits

    async def catch_up(self) -> None:
        """Return when no more than that waits for a sync, or after a moment.  Checkpoint, while it does."""
        with trio.move_on_after(_PATIENCE_S):
            while self.is_behind:
                self._is_due.set()
                await self._has_synced.wait()

    async def run(self) -> None:
        """Sync what was committed, for as long as that works."""
        was_synced = True
        while True:
            with trio.move_on_after(_PERIOD_S):
                await self._is_due.wait()
            is_due = self._is_due.is_set()
            if is_due:
                self._is_due = trio.Event()
            is_synced = self._environment.is_synced
            try:
                if not is_synced and (is_due or not was_synced):
                    await self.sync()
                    is_synced = True
            except OSError as error:
                log.error("the index cannot be synced any more: %s", error)
                return
            was_synced = is_synced
