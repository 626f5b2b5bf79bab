"""Free inodes that no name leads to once the kernel has forgotten them.

A changed object becomes a new inode; the old one keeps serving readers that have it open.  With opens answered in
the kernel nobody says when the last of them is gone, so the kernel is asked: a notification about an inode it does
not hold returns ENOENT.  Core, trio thread only.

Order, so that no front hands out what is being freed:
  1. the name is gone from the index and a grace period is over     3. the record goes, then another grace period
  2. the kernel says that it does not hold the inode                4. the bytes go, a staging file among them
Before 3 the index is synced if there are staging files: a power cut that brought the name back would find them gone.
"""

import logging
from typing import Final

import trio

from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.clock import Clock
from fanoutfs.core.grace import Grace
from fanoutfs.core.notify import Notifier
from fanoutfs.core.readahead import ReadAhead
from fanoutfs.core.space import Space
from fanoutfs.errors import DatabaseError
from fanoutfs.index.format import INO_KEY, U64, unpack_inode
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump

log = logging.getLogger(__name__)

_PERIOD_S: Final = 5.0
_MIN_AGE_NS: Final = 5_000_000_000
"""An answer with the old inode may still be on its way through a front."""
_FREED_SOON_NS: Final = 15_000_000_000
"""After so long what was unlinked is freed, or somebody has it open."""
_MAX_PAUSE_S: Final = 300.0
_BATCH: Final = 1000


class OrphanReaper:
    """The task that frees orphans."""

    def __init__(
        self,
        *,
        environment: IndexEnvironment,
        staging: StagingFiles,
        small: SmallStore,
        space: Space,
        notifier: Notifier,
        grace: Grace,
        readahead: ReadAhead,
        clock: Clock,
        row: memoryview,
    ) -> None:
        self._environment = environment
        self._staging = staging
        self._small = small
        self._space = space
        self._notifier = notifier
        self._grace = grace
        self._readahead = readahead
        self._clock = clock
        self._row = row
        self._not_before: dict[int, tuple[float, float]] = {}
        """Orphan that the kernel still held → (when to ask again, pause after that)."""

    async def run(self) -> None:
        """Free orphans for ever."""
        while True:
            try:
                await self.sweep(_MIN_AGE_NS)
            except DatabaseError as error:
                log.warning("orphans stay for now: %s", error)
            await trio.sleep(_PERIOD_S)

    def may_free_staging(self) -> bool:
        """Tell whether a staged file lost its last name a moment ago, so that its bytes may go soon.  No checkpoint."""
        now = self._clock.wall_ns()
        with self._environment.env.begin() as txn, txn.cursor(db=self._environment.orphans) as cursor:
            young = tuple(INO_KEY.unpack(key)[0] for key, at in cursor if abs(now - U64.unpack(at)[0]) < _FREED_SOON_NS)
        return bool(young and self._lives(young))

    def _lives(self, inos: tuple[int, ...]) -> dict[int, int]:
        """Return which of these inodes are staged, and their lives."""
        with self._environment.env.begin() as txn:
            values = {ino: txn.get(INO_KEY.pack(ino), db=self._environment.inodes) for ino in inos}
            inodes = [unpack_inode(ino, value) for ino, value in values.items() if value is not None]
        return {inode.ino: inode.life for inode in inodes if inode.is_staged}

    async def sweep(self, min_age_ns: int) -> int:
        """Free what can be freed now; return how many inodes were.  Checkpoint."""
        freed = 0
        after = 0
        while batch := self._candidates(after, min_age_ns):
            after = batch[-1]
            await self._grace.wait()
            forgotten = tuple([ino for ino in batch if not await self._is_held(ino)])
            if forgotten:
                lives = self._lives(forgotten)
                if lives and not await self._is_synced():
                    forgotten = tuple([ino for ino in forgotten if ino not in lives])
                gone = await self._space.holes.free(forgotten)
                for ino in gone:
                    if ino in lives:
                        self._remove_staged(ino, lives[ino])
                    self._readahead.forget(ino)
                await self._small.drop_many(gone)
                freed += len(gone)
                bump(self._row, Count.ORPHANS_FREED, len(gone))
        return freed

    async def _is_synced(self) -> bool:
        """Make what was committed survive a power cut; tell whether that worked."""
        try:
            await trio.to_thread.run_sync(self._environment.sync)
        except OSError as error:
            log.warning("orphans with staged content stay: %s", error)
            return False
        return True

    def _remove_staged(self, ino: int, life: int) -> None:
        try:
            occupied_bytes = self._staging.stat(ino, life).st_blocks * 512
        except FileNotFoundError:
            return
        self._staging.erase(ino, life)
        self._space.note_unstaged(occupied_bytes)

    async def _is_held(self, ino: int) -> bool:
        """Ask the kernel, ever less often: a file may stay open, or a name cached, for days."""
        now = trio.current_time()
        when, pause_s = self._not_before.pop(ino, (now, _PERIOD_S))
        if now < when:
            self._not_before[ino] = (when, pause_s)
            return True
        if not await self._notifier.is_held(ino):
            return False
        self._not_before[ino] = (now + pause_s, min(2 * pause_s, _MAX_PAUSE_S))
        return True

    def _candidates(self, after: int, min_age_ns: int) -> list[int]:
        now = self._clock.wall_ns()
        found: list[int] = []
        with self._environment.env.begin() as txn, txn.cursor(db=self._environment.orphans) as cursor:
            more = cursor.set_range(INO_KEY.pack(after + 1))
            while more and len(found) < _BATCH:
                if abs(now - U64.unpack(cursor.value())[0]) >= min_age_ns:
                    found.append(INO_KEY.unpack(cursor.key())[0])
                more = cursor.next()
        return found
