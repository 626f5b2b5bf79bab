"""The hard cap on the cache: room is made before bytes are written.

Core, trio thread only.  What counts against `cache_size` is what the volume occupies on disk (`occupied`), and what
other volumes in the same cache directory do.  Free space and free inodes have floors of their own, on each disk if
there are several (`disks`): for the cap parts on any disk may go, for a disk only its own.  What is staged has a cap,
too, at which writers wait (`stagingroom`); it is never evicted, but clean bytes are to make room for it.

Two quotas: staging has `staging_cap`, reading has the rest.  What was written here, uploaded, and not read since, goes
before anything else (`writtenhere`); so what readers have within their quota stays, however much is written.

Pinned files are spared.  With watermarks below 1, eviction begins at the high one in the background, and goes down to
the low one, so that fills seldom wait for it.

Which part goes is decided in `victims`.  Small files have a share of the cap: what they take beyond it was free, goes
first when others want it, and they make way for each other (`cache.smallstore`) sooner than take it from large ones.
Without a share one scan over many small files would drive the large ones out.  Within it they go only when no large
one is left to go.  How a part is given up without a reader seeing a hole: `holes`.
"""

import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import trio

from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.disks import Disks
from fanoutfs.core.durable import Durable
from fanoutfs.core.grace import Grace
from fanoutfs.core.grants import Grants
from fanoutfs.core.hiddenlimit import HiddenLimit
from fanoutfs.core.holes import Holes
from fanoutfs.core.occupied import FIXED_BYTES, Occupied
from fanoutfs.core.partdisks import PartDisks
from fanoutfs.core.reads import Reads
from fanoutfs.core.staged import StagedBytes
from fanoutfs.core.victims import Victims
from fanoutfs.core.writtenhere import WrittenHere
from fanoutfs.errors import CacheFullError, DatabaseError
from fanoutfs.eviction.recency import LEARNT
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.victims import PartId, cached_parts, choose_parts, disk_of_part
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import PART_BYTES

log = logging.getLogger(__name__)

_BATCH_SHARE: Final = 256
_BATCH_BYTES: Final = 32 * PART_BYTES
"""An eviction frees at least this share of the large files, at most so much more than is needed: one grace period
serves many parts, and what is free for it is no great part of the cache."""
_LEFT_OVER_SHARE: Final = 16
"""An eviction frees no more than a segment of the small store, a batch of parts, or a part beyond its need."""
_RECENT_PARTS: Final = 32
"""Parts filled last are spared: read-ahead must not be evicted before its reader arrives."""
_FILES_AT_ONCE: Final = 64
"""Evicted in one go when the disk lacks inodes."""
_HANDOVER_WAIT_S: Final = 0.5
_WATERMARK_LOOK_S: Final = 0.2
_ROUNDS: Final = 4
"""While one eviction waits for the fronts, other fills reserve room as well."""
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
        reads: Reads,
        staging_cap_bytes: int,
        row: memoryview,
        grants: Grants,
        disks: Disks,
        durable: Durable,
        eviction: str = LEARNT,
    ) -> None:
        """Take the parts.  eviction: one of `eviction.recency.CHOICES`."""
        self.disks = disks
        self.written_here = WrittenHere(environment, lambda ino: any(part[0] == ino for part in self._writing))
        self._set_cap_bytes = cap_bytes
        self._hidden = HiddenLimit()
        self._durable = durable
        self._staged = staged
        self.grants = grants
        self._staging_cap_bytes = staging_cap_bytes
        self._floor_bytes = floor_bytes
        self._other_bytes = other_bytes
        self._environment = environment
        self._writer = writer
        self._files = files
        self._small = small
        self._row = row
        self._reserved_bytes = 0
        self._reserved_small_bytes = 0
        """Of these, what is to go to the small store."""
        self._yielding_bytes = 0
        """And what waits for room that is not the readers': others must not take it from them for its sake."""
        small.find_limit = self._small_limit
        self.holes = Holes(
            environment=environment,
            writer=writer,
            files=files,
            disks=disks,
            grace=grace,
            is_in_use=lambda part: part in self._writing or part[0] in self._handed_over,
            is_file_in_use=self._is_file_in_use,
        )
        self.occupied = Occupied(
            environment=environment,
            files=files,
            small=small,
            staged=staged,
            reads=reads,
            fixed_bytes=min(FIXED_BYTES, cap_bytes // 8),
        )
        disks.large_bytes, disks.unpunched_bytes = self.large_bytes, self.holes.unpunched_on
        self._reads = reads
        self.victims = Victims(environment, reads, eviction)
        self._recent: OrderedDict[PartId, None] = OrderedDict()
        self._writing: dict[PartId, int] = {}
        self._handed_over: dict[int, int] = {}
        self._part_disks = PartDisks(disks, environment, self.holes, self._handed_over)
        self._handover_ended = trio.Event()
        self._lock = trio.Lock()
        self._no_writes_until = 0.0
        self.is_awaited: Callable[[int, int], bool] = _is_never_awaited
        """Tells of an inode and an offset whether a plan fetched it for a reader still to come."""
        self.is_pinned: Callable[[int], bool] = _is_never_pinned
        """Tells of an inode whether what is cached of it is to stay."""

    @property
    def cap_bytes(self) -> int:
        """Return the cap: what was set, or what the disk really takes."""
        return int(min(self._hidden.bytes, self._set_cap_bytes))

    def large_bytes(self) -> int:
        """Return the bytes of large files in the cache."""
        return self.occupied.large_bytes()

    def used_bytes(self) -> int:
        """Return what counts against the cap; see `occupied`."""
        return self.occupied.total_bytes() + self._other_bytes + self.disks.other_bytes()

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

    def note_disk_error(self, error: Exception, disk: int = 0) -> None:
        """Stop writing to a disk for a while, or for good: it refused."""
        if disk and not isinstance(error, DatabaseError):
            if isinstance(error, OSError):
                self.disks.note_error(disk, error)
            return
        self._no_writes_until = trio.current_time() + _DISK_PAUSE_S
        self._hidden.learn(error, self.used_bytes(), self._files.free_bytes() - self._floor_bytes)
        log.warning("cache disk refused a write, reading through for %g s: %s", _DISK_PAUSE_S, error)

    @asynccontextmanager
    async def reserved(self, size_bytes: int, *, takes_readers: bool = True) -> AsyncIterator[None]:
        """Hold room for bytes that are about to be written to disk 0, to no part.  Checkpoint.

        Evicts if need be; without takes_readers nothing of the readers' quota.  Raises CacheFullError: no room.
        """
        self.hold(size_bytes)
        try:
            await self._make_room_for(size_bytes, takes_readers=takes_readers)
            yield
        finally:
            self.release(size_bytes)

    @asynccontextmanager
    async def reserved_part(self, size_bytes: int, part: PartId, *, takes_readers: bool = True) -> AsyncIterator[int]:
        """Hold room for bytes of a part, on the disk that the value is.  Checkpoint.  As `reserved`.

        A pinned file takes of the readers' quota in any case.
        """
        async with self._held(part):
            disk = await self._place(part, size_bytes, takes_readers=takes_readers or self.is_pinned(part[0]))
            try:
                yield disk
            finally:
                self._part_disks.end(part)
                self._release_on(disk, size_bytes)

    @asynccontextmanager
    async def reserved_beside(self, ino: int, sizes: Mapping[int, int]) -> AsyncIterator[dict[int, int]]:
        """Hold room for more bytes of these parts of a file that is handed over; the value: the disk of each.

        Each goes where the part lies already, new ones to disk 0.  Nothing of the readers' quota goes for it, unless
        the file is pinned.  Checkpoint.  As `reserved`.
        """
        known = {part: disk_of_part(self._environment, (ino, part)) or 0 for part in sizes}
        disks = {part: disk if self.disks.is_in_service(disk) else 0 for part, disk in known.items()}
        for part, size_bytes in sizes.items():
            self._hold_on(disks[part], size_bytes)
        try:
            for disk in set(disks.values()):
                await self._make_room_for(sum(sizes.values()), takes_readers=self.is_pinned(ino), disk=disk)
            yield disks
        finally:
            for part, size_bytes in sizes.items():
                self._release_on(disks[part], size_bytes)

    async def _place(self, part: PartId, size_bytes: int, *, takes_readers: bool) -> int:
        """Choose the disk for bytes of a part, have room there and hold it.  Checkpoint.  Raises CacheFullError."""
        await self._durable.catch_up()
        refusal = CacheFullError("no disk has room")
        tried: set[int] = set()
        is_movable = takes_readers and not self.is_pinned(part[0])
        while (disk := self._part_disks.choose(part, size_bytes, tried, is_movable=is_movable)) is not None:
            tried.add(disk)
            self._hold_on(disk, size_bytes)
            try:
                await self._make_room_for(size_bytes, takes_readers=takes_readers, disk=disk)
                with self._refusing():
                    freed = await self._part_disks.begin(part, disk, is_movable=is_movable)
                bump(self._row, Count.EVICTED_BYTES, freed)
                return disk
            except BaseException as error:
                self._release_on(disk, size_bytes)
                if not isinstance(error, CacheFullError):
                    raise
                refusal = error
        raise refusal

    def _hold_on(self, disk: int, size_bytes: int) -> None:
        self.hold(size_bytes)
        self.disks.hold(disk, size_bytes)

    def _release_on(self, disk: int, size_bytes: int) -> None:
        self.release(size_bytes)
        self.disks.release(disk, size_bytes)

    def note_fetched_ahead(self, ino: int) -> None:
        """Note that a small file is stored and its reader is to come.  No checkpoint."""
        self._reads.note_filled(ino)

    def hold(self, size_bytes: int, *, is_small: bool = False) -> None:
        """Count bytes as about to be written, without yet having room: what `reserved` does, in steps.

        For batches: `hold`, write if `has_room()`, else after `await make_room_for_held()`; `release` in every case.
        is_small: they are to go to the small store.
        """
        self._reserved_bytes += size_bytes
        self._reserved_small_bytes += size_bytes * is_small

    def release(self, size_bytes: int, *, is_small: bool = False) -> None:
        """Give back what was held: it is written, and counts as used now, or it never will be."""
        self._reserved_bytes -= size_bytes
        self._reserved_small_bytes -= size_bytes * is_small

    def has_room(self) -> bool:
        """Tell whether all that is held may be written now."""
        is_full = trio.current_time() < self._no_writes_until or self._excess_bytes(0) > 0
        return not is_full and not self._durable.is_behind

    def idle_bytes(self) -> int:
        """Return how much of the cache nothing was ever put into: what an eviction left over does not count."""
        left_over_bytes = max(self.cap_bytes // _LEFT_OVER_SHARE, min(PART_BYTES, self.cap_bytes // 8))
        return max(0, -self._excess_bytes(0) - left_over_bytes)

    async def make_room_for_held(self) -> None:
        """Evict until all that is held may be written.  Checkpoint.  Raises CacheFullError."""
        await self._durable.catch_up()
        await self._make_room()

    @asynccontextmanager
    async def _held(self, part: PartId) -> AsyncIterator[None]:
        """Keep the evictor away from a part while it is written and shortly after."""
        self._writing[part] = self._writing.get(part, 0) + 1
        since = self._reads.tick  # (readers find what arrives before all of it is written)
        try:
            await self.holes.wait_for(part)
            yield
            self.victims.note_filled(part, since)
            self._recent[part] = None
            self._recent.move_to_end(part)
            # Of what there is, not of the cap: where the disk is the limit, all parts might be recent for ever.
            while len(self._recent) > min(_RECENT_PARTS, self.large_bytes() // PART_BYTES // 4):
                self.victims.note_settled(self._recent.popitem(last=False)[0])
        finally:
            self._writing[part] -= 1
            if not self._writing[part]:
                del self._writing[part]
                self._part_disks.forget(part)

    @asynccontextmanager
    async def handing_over(self, ino: int) -> AsyncIterator[None]:
        """Keep the evictor away from a whole file while its staging file becomes its cache file.  Checkpoint.

        The two are one for a while, and a hole punched into the one would be a hole in what is not uploaded for sure.
        """
        self._handed_over[ino] = self._handed_over.get(ino, 0) + 1
        try:
            await self.holes.wait_for_file(ino)  # (what could not be punched is of the cache file before)
            yield
        finally:
            self.occupied.forget_adopted(ino)
            self._handed_over[ino] -= 1
            if not self._handed_over[ino]:
                del self._handed_over[ino]
            self._handover_ended.set()
            self._handover_ended = trio.Event()

    def _over_cap_bytes(self, *, takes_readers: bool = True) -> int:
        """Return how much must go, from whatever disk, before the reserved bytes may be written.

        What was unpublished a moment ago occupies the disk until its hole is punched.
        """
        coming_bytes = self._coming_bytes(takes_readers=takes_readers)
        return self.holes.unpunched_bytes + self.used_bytes() + coming_bytes - self.cap_bytes

    def _coming_bytes(self, *, takes_readers: bool) -> int:
        """Return what is about to be written, before oneself or together with it."""
        return self._reserved_bytes + self.grants.outstanding - (self._yielding_bytes if takes_readers else 0)

    def _small_limit(self) -> int:
        """Return how much the small store may take while all else stays as it is."""
        coming_bytes = self._reserved_bytes - self._reserved_small_bytes + self.grants.outstanding
        others_bytes = self.holes.unpunched_bytes + self.used_bytes() - self._small.file_bytes()
        return self.cap_bytes - others_bytes - coming_bytes

    def _disk_excess_bytes(self, disk: int, *, takes_readers: bool = True) -> int:
        """Return how much must go from one disk."""
        if disk:
            return self.disks.excess_bytes(disk)
        coming_bytes = self._coming_bytes(takes_readers=takes_readers) - self.disks.held_elsewhere_bytes
        # The free space tells of all that is there, but not by how much index and small store grow unasked.
        growth_bytes = min(FIXED_BYTES + self._small.growth_bytes, self._floor_bytes // 8)
        return self._floor_bytes + growth_bytes + coming_bytes - self._files.free_bytes()

    def _excess_bytes(self, disk: int, *, takes_readers: bool = True) -> int:
        over_cap = self._over_cap_bytes(takes_readers=takes_readers)
        return max(over_cap, self._disk_excess_bytes(disk, takes_readers=takes_readers))

    async def _make_room(self, *, takes_readers: bool = True, disk: int = 0) -> None:
        if not disk and trio.current_time() < self._no_writes_until:
            raise CacheFullError("the cache disk refused a write a moment ago")
        if self._excess_bytes(disk, takes_readers=takes_readers) <= 0 and self.disks.lacking_inodes(disk) <= 0:
            return
        # Else what was read since the clock last ran would be of one tick: of a small cache, a sixth of all it holds.
        self._reads.advance()
        async with self._lock:
            with self._refusing():
                await self.holes.retry()
            await self._free_inodes(disk)
            for _round in range(_ROUNDS):
                if not self.disks.is_in_service(disk):
                    raise CacheFullError("the disk went out of service")
                over_cap = self._over_cap_bytes(takes_readers=takes_readers)
                excess = max(over_cap, self._disk_excess_bytes(disk, takes_readers=takes_readers))
                if excess <= 0:
                    return
                # For the cap anything may go; what a disk lacks only its own parts can give.
                only = disk if self.disks.has_further and excess > over_cap else None
                with self._refusing():
                    freed = await self._make_way(excess, takes_readers=takes_readers, only=only)
                if not freed:
                    break
            if self._excess_bytes(disk, takes_readers=takes_readers) > 0:
                raise CacheFullError("no part can be evicted now")

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Write nothing for a while after an eviction that disk 0 or the index refused.  Raises CacheFullError then."""
        try:
            yield
        except (OSError, DatabaseError) as error:
            self.note_disk_error(error)
            raise CacheFullError(f"cannot evict: {error}") from error

    async def _make_room_for(self, held_bytes: int, *, takes_readers: bool, disk: int = 0) -> None:
        """Make room for what is held already.  Checkpoint.  Raises CacheFullError."""
        yielding_bytes = 0 if takes_readers else held_bytes
        self._yielding_bytes += yielding_bytes
        try:
            await self._make_room(takes_readers=takes_readers, disk=disk)
        finally:
            self._yielding_bytes -= yielding_bytes

    async def _make_way(self, excess: int, *, takes_readers: bool = True, only: int | None = None) -> int:
        """Evict so much at least, only from one disk if one is named; return how much could be.

        Small files go first as far as they take more than their share, and within it when large ones cannot.
        Raises OSError, DatabaseError, CacheFullError.
        """
        beyond_bytes = 0 if only else self._small.file_bytes() + self._reserved_small_bytes - self._small.share_bytes
        if beyond_bytes > 0 and (freed := await self._small.give_back(min(excess, beyond_bytes))):
            bump(self._row, Count.EVICTED_BYTES, freed)
            return freed
        large_bytes = self.large_bytes() if only is None else self.disks.bytes_on(only)
        if excess <= large_bytes:
            return await self._evict(excess, max(excess, _batch_bytes(large_bytes)), takes_readers, only)
        if only or excess > large_bytes + self._small.file_bytes():
            raise CacheFullError("nothing left to evict")
        freed = await self._small.give_back(excess)
        bump(self._row, Count.EVICTED_BYTES, freed)
        return freed

    async def _evict(self, needed_bytes: int, wanted_bytes: int, takes_readers: bool, only: int | None = None) -> int:
        """Evict until so much is free, or no more can be found; return how much.

        What was written here goes first, and if that is as much as is needed, nothing else goes; then what is worth
        least, as much as is wanted, unless it is within the readers' quota and that is spared.  Raises OSError,
        DatabaseError.
        """

        def is_kept(part: PartId) -> bool:
            return self._is_spared(part, only)

        victims = self.written_here.choose(wanted_bytes, is_kept)
        if sum(victims.values()) < needed_bytes and self._handed_over:
            # What is just becoming clean may go in a moment: sooner that than what was read.
            with trio.move_on_after(_HANDOVER_WAIT_S):
                await self._handover_ended.wait()
            victims = self.written_here.choose(wanted_bytes, is_kept)
        found_bytes = sum(victims.values())
        if found_bytes < needed_bytes and (takes_readers or self._readers_bytes() > self._readers_quota_bytes):
            others = await self.victims.choose(
                wanted_bytes - found_bytes, lambda part: part in victims or is_kept(part)
            )
            # Fills and hand-overs went on meanwhile: what was chosen before may be in use by now.
            victims = self.written_here.choose(wanted_bytes, is_kept) | others
        freed = await self.holes.give_up(victims)
        bump(self._row, Count.EVICTED_BYTES, freed)
        return freed

    @property
    def _readers_quota_bytes(self) -> int:
        return self.cap_bytes - self._staging_cap_bytes

    def _readers_bytes(self) -> int:
        """Return what readers have, and all that is neither staged nor written here.

        What is written here is not theirs either while it may not go, because it is uploaded, or changed, once more.
        """
        beside_staging_bytes = self.occupied.beside_staging_bytes() + self._other_bytes + self.disks.other_bytes()
        return beside_staging_bytes - self.written_here.cached_bytes(self._handed_over.keys())

    async def _free_inodes(self, disk: int) -> None:
        """Evict whole files until a disk has as many free inodes as it should, or none can go.  Under the lock.

        Raises CacheFullError.
        """
        only = disk if self.disks.has_further else None
        while (lacking := self.disks.lacking_inodes(disk)) > 0:
            victims: dict[PartId, int] = {}
            for _file in range(min(lacking, _FILES_AT_ONCE)):
                for ino in {part[0] for part in choose_parts(self._environment, 1, lambda p: self._is_spared(p, only))}:
                    parts = cached_parts(self._environment, ino)
                    if not any(self._is_spared(part) for part in parts):
                        victims |= parts
            if not victims:
                raise CacheFullError("the disk has too few free inodes, and no file can be evicted now")
            with self._refusing():
                freed = await self.holes.give_up(victims)
            bump(self._row, Count.EVICTED_BYTES, freed)

    async def keep_below(self, high_bytes: int, low_bytes: int) -> None:
        """Evict in the background, for ever: from the high watermark down to the low one."""
        while True:
            await trio.sleep(_WATERMARK_LOOK_S)
            if self.used_bytes() > high_bytes:
                with contextlib.suppress(CacheFullError):
                    await self._lower_to(low_bytes)
                if self.used_bytes() > high_bytes:
                    await trio.sleep(_DISK_PAUSE_S)  # what is left is pinned, staged or in use

    async def _lower_to(self, low_bytes: int) -> None:
        """Evict until no more than this is used, or no more can go.  Checkpoint.  Raises CacheFullError."""
        while (excess := self.holes.unpunched_bytes + self.used_bytes() - low_bytes) > 0:
            async with self._lock:
                try:
                    # A little at a time: fills wait for the lock, too.
                    if not await self._make_way(min(excess, max(PART_BYTES, _batch_bytes(self.large_bytes())))):
                        return
                except (OSError, DatabaseError) as error:
                    self.note_disk_error(error)
                    return
            await trio.lowlevel.checkpoint()

    async def evict_file(self, ino: int) -> int:
        """Evict what is cached of a large file, save what is being written; return how many bytes.  Checkpoint.

        Raises OSError, DatabaseError.
        """
        async with self._lock:
            parts = cached_parts(self._environment, ino)
            in_use = ino in self._handed_over
            freed = await self.holes.give_up(
                {part: held for part, held in parts.items() if not in_use and part not in self._writing}
            )
            bump(self._row, Count.EVICTED_BYTES, freed)
            return freed

    async def make_room(self) -> None:
        """Bring the cache under its cap: it may have been lowered.  Checkpoint."""
        with contextlib.suppress(CacheFullError):
            await self._make_room()

    def _is_file_in_use(self, ino: int, disk: int) -> bool:
        """Tell whether a file is handed over, or any part of it is written on this disk."""
        writing = (part for part in self._writing if part[0] == ino)
        return ino in self._handed_over or any(self._part_disks.may_go_to(part, disk) for part in writing)

    def _is_spared(self, part: PartId, only: int | None = None) -> bool:
        """Tell whether a part must stay: in use, just filled, awaited, pinned, or not on the disk that needs room."""
        if only is not None and disk_of_part(self._environment, part) != only:
            return True
        is_in_use = part in self._recent or part in self._writing or part[0] in self._handed_over
        return is_in_use or self.is_awaited(part[0], part[1] * PART_BYTES) or self.is_pinned(part[0])


def _is_never_awaited(_ino: int, _offset: int) -> bool:
    """Spare nothing."""
    return False


def _is_never_pinned(_ino: int) -> bool:
    """Keep nothing."""
    return False


def _batch_bytes(large_bytes: int) -> int:
    """Return how much an eviction frees at least, of so many bytes of large files."""
    return min(_BATCH_BYTES, large_bytes // _BATCH_SHARE)
