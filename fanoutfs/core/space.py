"""The hard cap on the cache: room is made before bytes are written.

Core, trio thread only.  What counts against `cache_size` is what the volume occupies on disk: the blocks of large
files (exact, in the index, changed in the transaction that publishes them), the files of index and small store, what
waits in staging (`core.staged`), and what other volumes in the same cache directory occupy.  The disk's free space has
a floor of its own.  What is staged has a cap, too, at which writers wait; it is never evicted, but clean bytes are to
make room for it.

Eviction takes parts at random: the simplest choice that a repeated scan over more than fits does not defeat (LRU
would evict each part just before it is read again).  Small files have a share of the cap, within which they make way
for each other (`cache.smallstore`); the rest of the cap is large files' alone, and only when none of them is left to
go do small ones make way here: without a share one scan over many small files would drive the large ones out.
Order of an eviction, so that no reader sees a hole:
  1. commit the block map without the part     3. punch the hole
  2. wait until every front has been idle once
A fill of a part that is being evicted waits until the hole is punched.
"""

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from fanoutfs.cache.files import CacheFiles, punch_hole
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.grace import Grace
from fanoutfs.core.staged import StagedBytes
from fanoutfs.errors import CacheFullError, DatabaseError
from fanoutfs.index.operations import DropBlocks
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.victims import PartId, choose_parts, present_blocks
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import BLOCK_BYTES, MIB, PART_BLOCKS, PART_BYTES

log = logging.getLogger(__name__)

_BATCH_SHARE: Final = 64
"""An eviction frees at least one 64th of the large files, so that one grace period serves many parts."""
_RECENT_PARTS: Final = 32
"""Parts filled last are spared: read-ahead must not be evicted before its reader arrives."""
_ROUNDS: Final = 4
"""While one eviction waits for the fronts, other fills reserve room as well."""
_PAGE_BYTES: Final = 4096
_FOLDERS: Final = 256
_FIXED_BYTES: Final = 256 << 10
"""Locks, folders and marks, and the pages by which the index grows between a look at its size and the next one."""
_STAGING_POLL_S: Final = 0.5
"""Uploads wake those who wait for room in staging; other programs that free the disk do not."""
_LOOK_S: Final = 0.05
_IDLE_LOOK_S: Final = 0.5
_LOOKS_AHEAD: Final = 4
"""Room is kept for as much as came in so many looks: fronts write on while clean bytes are evicted."""
_STAGING_MARGIN: Final = 16 * MIB
_DISK_PAUSE_S: Final = 5.0
"""After the disk refused a write, read through for this long before trying again."""


class Space:
    """Accounts for the cache's bytes and evicts."""

    def __init__(
        self,
        *,
        cap_bytes: int,
        floor_bytes: int,
        other_bytes: int,
        environment: IndexEnvironment,
        writer: GroupWriter[IndexTransaction],
        files: CacheFiles,
        small: SmallStore,
        grace: Grace,
        staged: StagedBytes,
        staging_cap_bytes: int,
        row: memoryview,
    ) -> None:
        self._cap_bytes = cap_bytes
        self._staged = staged
        self._staging_cap_bytes = staging_cap_bytes
        self._floor_bytes = floor_bytes
        self._other_bytes = other_bytes
        self._environment = environment
        self._writer = writer
        self._files = files
        self._small = small
        self._grace = grace
        self._row = row
        self._reserved_bytes = 0
        self._unpunched: dict[PartId, int] = {}
        """Parts that the index has given up and the disk not yet, with the bytes they held."""
        self._evicting: dict[PartId, trio.Event] = {}
        self._recent: OrderedDict[PartId, None] = OrderedDict()
        self._writing: dict[PartId, int] = {}
        self._handed_over: dict[int, int] = {}
        self._lock = trio.Lock()
        self._no_writes_until = 0.0
        self.is_awaited: Callable[[int, int], bool] = _is_never_awaited
        """Tells of an inode and an offset whether a plan fetched it for a reader still to come."""

    @property
    def cap_bytes(self) -> int:
        """Return the cap."""
        return self._cap_bytes

    def large_bytes(self) -> int:
        """Return the bytes of large files in the cache."""
        with self._environment.env.begin() as txn:
            value = txn.get(b"cached_bytes", db=self._environment.settings)
        return int.from_bytes(value or b"", "little")

    def used_bytes(self) -> int:
        """Return what the cache occupies on disk, rather more than less: any part may end inside a page of the disk."""
        with self._environment.env.begin() as txn:
            parts = txn.stat(self._environment.blocks)["entries"]
        around_bytes = (parts + min(parts, _FOLDERS)) * _PAGE_BYTES + min(_FIXED_BYTES, self._cap_bytes // 8)
        stores_bytes = self._small.file_bytes() + self._small.growth_bytes + self._environment.file_bytes()
        return self.large_bytes() + stores_bytes + around_bytes + self._other_bytes + self._staged.total

    @property
    def staged_bytes(self) -> int:
        """Return what staging files occupy: never evicted, it goes by being uploaded."""
        return self._staged.total

    @property
    def staging_cap_bytes(self) -> int:
        """Return how much may be staged before writers wait."""
        return self._staging_cap_bytes

    def staging_room(self) -> int:
        """Return how many bytes more may be staged before writers wait; 0 while the disk has no room for any."""
        is_full = trio.current_time() < self._no_writes_until
        return 0 if is_full else max(0, self._staging_cap_bytes - self._staged.total)

    def note_staged(self, size_bytes: int) -> None:
        """Count bytes that the core wrote to a staging file (what fronts write is counted by them).  No checkpoint."""
        self._staged.add(size_bytes)

    def note_unstaged(self, size_bytes: int) -> None:
        """Count the removal of a staging file that occupied so much, and let writers go on.  No checkpoint."""
        self._staged.remove(size_bytes)

    async def wait_for_staging(self, size_bytes: int, disk_timeout_s: float) -> None:
        """Return when so many bytes may be staged; clean bytes make way first.  Checkpoint.

        At the cap it waits for uploads, however long they take.  Where it is the disk that has no room, or the rest of
        the cache cannot make way, CacheFullError after disk_timeout_s in which nothing became free.
        """
        await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + disk_timeout_s
        while True:
            staged = self._staged.total
            if staged and staged + size_bytes > self._staging_cap_bytes:
                await self._staged.measure()
                staged = self._staged.total
            # One write larger than the cap must not wait for ever.
            if not staged or staged + size_bytes <= self._staging_cap_bytes:
                try:
                    async with self.reserved(size_bytes):
                        return
                except CacheFullError:
                    if trio.current_time() >= deadline:
                        raise
                await self._staged.wait_changed(_STAGING_POLL_S)
            else:
                await self._staged.wait_changed(_STAGING_POLL_S)
                deadline = trio.current_time() + disk_timeout_s
            if self._staged.total < staged:
                deadline = trio.current_time() + disk_timeout_s

    def note_disk_error(self, error: Exception) -> None:
        """Stop writing to the cache for a while: the disk refused."""
        self._no_writes_until = trio.current_time() + _DISK_PAUSE_S
        log.warning("cache disk refused a write, reading through for %g s: %s", _DISK_PAUSE_S, error)

    @asynccontextmanager
    async def reserved(self, size_bytes: int, part: PartId | None = None) -> AsyncIterator[None]:
        """Hold room for bytes that are about to be written (to a part, or to the small store).  Checkpoint.

        Evicts if need be.  Raises CacheFullError when there is no room.
        """
        self.hold(size_bytes)
        try:
            if part is None:
                await self._make_room()
                yield
            else:
                async with self._held(part):
                    await self._make_room()
                    yield
        finally:
            self.release(size_bytes)

    def hold(self, size_bytes: int) -> None:
        """Count bytes as about to be written, without yet having room: what `reserved` does, in steps.

        For batches: `hold`, write if `has_room()`, else after `await make_room_for_held()`; `release` in every case.
        """
        self._reserved_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        """Give back what was held: it is written, and counts as used now, or it never will be."""
        self._reserved_bytes -= size_bytes

    def has_room(self) -> bool:
        """Tell whether all that is held may be written now."""
        return trio.current_time() >= self._no_writes_until and self._excess_bytes() <= 0

    async def make_room_for_held(self) -> None:
        """Evict until all that is held may be written.  Checkpoint.  Raises CacheFullError."""
        await self._make_room()

    @asynccontextmanager
    async def _held(self, part: PartId) -> AsyncIterator[None]:
        """Keep the evictor away from a part while it is written and shortly after."""
        self._writing[part] = self._writing.get(part, 0) + 1
        try:
            while part in self._evicting:
                await self._evicting[part].wait()
            yield
            self._recent[part] = None
            self._recent.move_to_end(part)
            # Of what there is, not of the cap: where the disk is the limit, all parts might be recent for ever.
            while len(self._recent) > min(_RECENT_PARTS, self.large_bytes() // PART_BYTES // 4):
                self._recent.popitem(last=False)
        finally:
            self._writing[part] -= 1
            if not self._writing[part]:
                del self._writing[part]

    @asynccontextmanager
    async def handing_over(self, ino: int) -> AsyncIterator[None]:
        """Keep the evictor away from a whole file while its staging file becomes its cache file.  Checkpoint.

        The two are one for a while, and a hole punched into the one would be a hole in what is not uploaded for sure.
        """
        self._handed_over[ino] = self._handed_over.get(ino, 0) + 1
        try:
            while waiting := [event for part, event in self._evicting.items() if part[0] == ino]:
                await waiting[0].wait()
            # What could not be punched is of the cache file before.
            for part in [part for part in self._unpunched if part[0] == ino]:
                del self._unpunched[part]
            yield
        finally:
            self._handed_over[ino] -= 1
            if not self._handed_over[ino]:
                del self._handed_over[ino]

    async def keep_staging_room(self, set_full: Callable[[bool], None]) -> None:
        """Look for ever how fast staging grows, and keep room for what fronts may write until the next look.

        Clean bytes make way first.  set_full: tells fronts to ask before they write, because there is no room.
        """
        before, is_full = self._staged.total, False
        while True:
            staged = self._staged.total
            growth, before = max(0, staged - before), staged
            margin = max(_STAGING_MARGIN, _LOOKS_AHEAD * growth) if staged else 0
            was_full, is_full = (
                is_full,
                margin > 0 and staged + min(margin, self._staging_cap_bytes // 4) > (self._staging_cap_bytes),
            )
            if growth or was_full:
                self.hold(margin)
                try:
                    await self._make_room()
                except CacheFullError:
                    is_full = True
                finally:
                    self.release(margin)
            set_full(is_full)
            await self._staged.wait_changed(_LOOK_S if growth or is_full else _IDLE_LOOK_S)

    def _excess_bytes(self) -> int:
        """Return how much must go before the reserved bytes may be written.

        What was unpublished a moment ago occupies the disk until its hole is punched.
        """
        over_cap = self.used_bytes() + sum(self._unpunched.values()) + self._reserved_bytes - self._cap_bytes
        under_floor = self._floor_bytes + self._reserved_bytes - self._files.free_bytes()
        return max(over_cap, under_floor)

    async def _make_room(self) -> None:
        if trio.current_time() < self._no_writes_until:
            raise CacheFullError("the cache disk refused a write a moment ago")
        if self._excess_bytes() <= 0:
            return
        async with self._lock:
            await self._retry_punching()
            for _round in range(_ROUNDS):
                excess = self._excess_bytes()
                if excess <= 0:
                    return
                try:
                    freed = await self._make_way(excess)
                except (OSError, DatabaseError) as error:
                    self.note_disk_error(error)
                    raise CacheFullError(f"cannot evict: {error}") from error
                if not freed:
                    break
            if self._excess_bytes() > 0:
                raise CacheFullError("no part can be evicted now")

    async def _make_way(self, excess: int) -> int:
        """Evict so much at least; return how much could be.  Raises OSError, DatabaseError.

        Small files have a share that they make way for among themselves; here they go when large ones cannot.
        """
        if excess <= self.large_bytes():
            return await self._evict(max(excess, self.large_bytes() // _BATCH_SHARE))
        if excess > self.large_bytes() + self._small.file_bytes():
            raise CacheFullError("nothing left to evict")
        freed = await self._small.give_back(excess)
        bump(self._row, Count.EVICTED_BYTES, freed)
        return freed

    async def _evict(self, wanted_bytes: int) -> int:
        """Evict random parts until this much is free, or no more can be found; return how much.

        Raises OSError, DatabaseError.
        """
        victims = choose_parts(self._environment, wanted_bytes, self._is_spared)
        freed = 0
        with self._kept_away(victims):
            for part, size_bytes in victims.items():
                self._unpunched[part] = size_bytes
                freed += (await self._writer.run(DropBlocks(*part, -1).apply))[1]
            await self._grace.wait()
            for part in victims:
                await self._punch(part, -1)
        bump(self._row, Count.EVICTED_BYTES, freed)
        return freed

    async def _retry_punching(self) -> None:
        """Punch what an earlier eviction could not, but nothing that was filled again since."""
        for part in [
            part for part in self._unpunched if part not in self._writing and part[0] not in self._handed_over
        ]:
            try:
                with self._kept_away([part]):
                    await self._punch(part, ~present_blocks(self._environment, part))
            except OSError as error:
                log.warning("cannot free evicted bytes ino=%d part=%d: %s", *part, error)
                return

    async def reclaim(self, part: PartId, absent: int) -> None:
        """Give back what the disk holds of blocks that the index does not have.  Checkpoint."""
        if part in self._writing or part in self._evicting or part[0] in self._handed_over:
            return
        with self._kept_away([part]):
            await self._punch(part, absent)

    async def make_room(self) -> None:
        """Bring the cache under its cap: it may have been lowered.  Checkpoint."""
        with contextlib.suppress(CacheFullError):
            await self._make_room()

    @contextlib.contextmanager
    def _kept_away(self, parts: Iterable[PartId]) -> Iterator[None]:
        """Let fills of these parts wait."""
        parts = list(parts)
        for part in parts:
            self._evicting[part] = trio.Event()
        try:
            yield
        finally:
            for part in parts:
                self._evicting.pop(part).set()

    async def _punch(self, part: PartId, mask: int) -> None:
        """Punch holes for the blocks of a part in `mask`.  One descriptor at a time, whatever the eviction's size."""
        fd = self._files.duplicate(part[0])
        await trio.to_thread.run_sync(partial(_punch_blocks, fd, part[1], mask))
        self._unpunched.pop(part, None)

    def _is_spared(self, part: PartId) -> bool:
        """Tell whether a part must stay: it is being written, or was a moment ago, or its reader was announced."""
        is_in_use = part in self._recent or part in self._writing or part[0] in self._handed_over
        return is_in_use or self.is_awaited(part[0], part[1] * PART_BYTES)


def _is_never_awaited(_ino: int, _offset: int) -> bool:
    """Spare nothing."""
    return False


def _punch_blocks(fd: int, part: int, mask: int) -> None:
    """Punch holes for the blocks in `mask` (-1: the whole part) and close the descriptor.  Blocking."""
    try:
        if mask == -1:
            punch_hole(fd, part * PART_BYTES, PART_BYTES)
        for block in range(PART_BLOCKS):
            if mask != -1 and mask >> block & 1:
                punch_hole(fd, part * PART_BYTES + block * BLOCK_BYTES, BLOCK_BYTES)
    finally:
        os.close(fd)
