"""The writing side of the small-file store: admit, drop, evict.  Core only; see `small` for the format and the readers.

Contents are appended to segment files of up to 64 MiB and their places kept in LMDB.  Measured against contents as LMDB
values, both with checksums and without syncing, on 2 cores shared with other work (ext4, Linux 6.18, medians of 3 runs;
scripts/bench-smallstore --runs 3 --reads 20000 --peers lmdb,fanoutfs --sizes 4:500000,16:500000,110:50000; contents
vary by a quarter around their size, batches of 512, one thread):

    files per second                       4 KiB x 500,000     16 KiB x 500,000    110 KiB x 50,000
                                           LMDB      segments  LMDB      segments  LMDB      segments
    fill, synced at the end                148,000   122,000   37,000    29,600    7,780     7,980
    read warm, in the order of the fill    387,000   286,000   197,000   215,000   152,000   80,800
    read warm, random                      306,000   197,000   125,000   104,000   122,000   72,800
    read cold, in the order of the fill    10,100    86,300    2,990     76,300    659       19,000
    read cold, random                      9,230     11,100    2,610     7,700     696       5,240
    occupied / stored, filled              1.52      1.01      1.13      1.00      1.02      1.00
      30 % dropped at random               2.17      1.10      1.61      1.08      1.46      1.06
      and as much filled anew              1.57      1.07      1.14      1.05      1.03      1.05
    drop and fill anew                     46,900    17,700    18,900    5,280     11,100    2,270

Cold reads decide, 9 to 29 times as fast in order: the kernel reads ahead in a file and not in a map of scattered pages,
and LMDB's file never shrinks.  What it costs: a copy where LMDB gave a view (12 us instead of 7 us for 110 KiB; a map
of segments would be SIGBUS when one is cut), about 2 us more for each content filled, and segments written anew where
contents are dropped one here, one there.  Fill and churn remain above what a backend delivers in single GETs.
Page-aligned contents whose pages are punched out when dropped (`aligned` of the benchmark, one run) waste half a page
each, 1.51 and 1.13 occupied / stored at 4 and 16 KiB, and churn at less than half the rate of segments written anew.

Space is accounted by segment.  Eviction gives up whole segments: the one, of those looked at, whose contents are worth
least on average (`eviction.reuse`, from a sample of them).  One with more than a quarter of dead bytes (dropped or
stored anew) goes first, or is written anew without them when nobody is in need (core.tidying).  The order, so that no
reader misses what it was promised:
  1. commit that the segment's contents are gone    3. cut the file to nothing and unlink it
  2. wait until every front has been idle once
A kill before 3 leaves a file without a record, which the next start removes.

The store keeps to its share of the cap, or takes what is free beyond it: what its files occupy and what has been
promised to contents under way.  The writer thread changes, the trio thread decides when; what both touch is
`smallgroup.Table`.
"""

import contextlib
import logging
import random
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import lmdb
import trio

from fanoutfs.cache.segments import SegmentDescriptors, SegmentFiles
from fanoutfs.cache.small import MAX_CONTENT_BYTES, PLACE, ROSTER_KEY, SmallEnvironment, SmallMismatchError, SmallReader
from fanoutfs.cache.smallgroup import MAX_SEGMENT_BYTES, SmallGroup, load_table
from fanoutfs.errors import DatabaseError, StoreBrokenError
from fanoutfs.index.format import INO_KEY
from fanoutfs.index.store import BROKEN
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import KIB, MIB

log = logging.getLogger(__name__)

Item = tuple[int, memoryview]

_MIN_SHARE_BYTES: Final = MIB
_SEGMENTS: Final = 64
_LEAST_SEGMENTS: Final = 16
_FEW_SEGMENTS_BYTES: Final = 256 * KIB
"""A share holds so many segments: what is evicted at once, and what was just read and waits for it, is a small part of
it (new shuffles over twice the cache: 0.40 of the reads hit where it holds 21 segments, 0.43 with 64).  It has fewer
where they would be shorter than this.  A content longer than a segment has one of its own."""
_TRIED: Final = 64
_NEWEST: Final = 4
"""Segments looked at to find the one to give up: some at random, and the last ones, which hold what was just read."""
_SAMPLES: Final = 32
"""Contents of a segment that are looked at.  Nearly all of a short one: with 6 of its 9, new shuffles over four times
the cache hit 0.226, with all of them 0.232 (the simulator, with segments)."""
_SAMPLE_FILES: Final = 4
"""Of one roster: contents that came together are read together."""
_BATCHES: Final = 8
"""A batch is at most one eighth of the share, so that room for it can be made."""
_GROWTH_SHARE: Final = 64
_MAX_GROWTH_BYTES: Final = 16 * MIB
_MOVE_BYTES: Final = 4 * MIB
_KEPT_SHARE: Final = 0.5
"""A segment of which more than this is pinned stays: giving it up would cost more copying than it frees."""
_CLEAR: Final = 1024
"""Written anew, or dropped, in one transaction: others wait for it a few milliseconds, and LMDB, which writes a changed
page elsewhere, needs no more than a few MiB for contents whose places lie scattered."""


class Judge(Protocol):
    """Tells of inodes what it is worth to keep their files."""

    def __call__(self, inos: Collection[int], *, stored: int, mean_bytes: int) -> Mapping[int, float]:
        """stored: how many contents there are; mean_bytes: their mean length."""


def _know_nothing(inos: Collection[int], *, stored: int, mean_bytes: int) -> Mapping[int, float]:  # noqa: ARG001
    """Nothing is worth more than anything else."""
    return dict.fromkeys(inos, 0.0)


def _nothing_beyond() -> int:
    """Nothing is free beyond the share."""
    return 0


class SmallStore:
    """The core's side.  Opening raises lmdb.Error, OSError, SmallFormatError, struct.error.

    wait_for_readers: returns once every reader that had begun before the call is done (core.grace).
    """

    def __init__(self, volume: Path, share_bytes: int, wait_for_readers: Callable[[], Awaitable[None]]) -> None:
        share_bytes = max(_MIN_SHARE_BYTES, share_bytes)
        self._growth_bytes = min(_MAX_GROWTH_BYTES, share_bytes // _GROWTH_SHARE)
        self._share_bytes = share_bytes - self._growth_bytes
        self.find_limit: Callable[[], int] = _nothing_beyond
        """Returns how much the store may take while nobody else wants it; its share is its own in any case."""
        least_bytes = min(_FEW_SEGMENTS_BYTES, share_bytes // _LEAST_SEGMENTS)
        self._segment_bytes = min(MAX_SEGMENT_BYTES, max(least_bytes, share_bytes // _SEGMENTS))
        self._index_limit_bytes = share_bytes // 4
        self._wait_for_readers = wait_for_readers
        self.broken = threading.Event()
        """Set when the store turned out to be damaged inside; then every call raises StoreBrokenError."""
        self.evicted = 0
        """Contents evicted so far."""
        self.is_kept: Callable[[int], bool] | None = None
        """Tells of an inode, in any thread, whether its content is to stay (it is pinned); None: none is."""
        self._kept_segments: dict[int, bool] = {}
        """Segments looked at since `is_kept` changed: whether so much of one is kept that giving it up frees little."""
        self.judge: Judge = _know_nothing
        """Tells what it is worth to keep files.  A worker thread calls it, under `_making_way`."""
        self._promised_bytes = 0
        self._making_way = trio.Lock()
        self._environment = SmallEnvironment(volume, writable=True)
        try:
            self._files = SegmentFiles(volume)
            self._table = load_table(self._environment, self._files, self._segment_bytes)
        except (OSError, lmdb.Error, struct.error):
            self._environment.close()
            raise
        self._source = SegmentDescriptors(volume)
        self.reader = SmallReader(self._environment)
        """For the trio thread."""
        self._writer: GroupWriter[SmallGroup] = GroupWriter("small-writer", self._transaction)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[SmallGroup]:
        try:
            with self._environment.env.begin(write=True) as txn:
                group = SmallGroup(self._environment, txn, self._files, self._source, self._table, self._segment_bytes)
                yield group
                group.finish()
            group.committed()
        except (*BROKEN, struct.error) as error:  # (a record that has not the length it should have)
            self.broken.set()
            raise self._broken(error) from error
        except (lmdb.Error, OSError) as error:
            raise DatabaseError(f"the small-file store refused a change: {error}") from error

    def _broken(self, error: Exception) -> StoreBrokenError:
        return StoreBrokenError(f"the small-file store is damaged: {error}")

    # --- what is stored ----------------------------------------------------------------------------------------

    def has(self, ino: int) -> bool:
        """Tell whether a content is stored (its checksum is not looked at).  Raises StoreBrokenError."""
        try:
            with self._environment.env.begin(buffers=True) as txn:
                return txn.get(INO_KEY.pack(ino), db=self._environment.places) is not None
        except BROKEN as error:
            self.broken.set()
            raise self._broken(error) from error

    def is_intact(self, ino: int) -> bool:
        """Tell whether a content is stored and has its checksum."""
        with self.reader.begin() as txn:
            try:
                return self.reader.get(txn, ino) is not None
            except SmallMismatchError:
                self._table.is_suspect = True
                return False

    async def put(self, ino: int, content: memoryview) -> bool:
        """Store a content; False when there is no room even after evicting.  Checkpoint.  Raises DatabaseError."""
        return (await self.put_many([(ino, content)]))[0]

    async def put_if_room(self, ino: int, content: memoryview) -> bool:
        """Store a content if nothing has to be evicted for it.  Checkpoint.  Raises DatabaseError."""
        if not self._fits(len(content)):
            await trio.lowlevel.checkpoint()
            return False
        return await self.put(ino, content)

    async def put_many(self, items: Sequence[Item]) -> list[bool]:
        """Store contents, in one append and one commit; tell for each whether there was room.  Checkpoint.

        More than an eighth of the share goes in several batches.  Raises DatabaseError; what was told is stored then.
        """
        stored = [False] * len(items)
        batch: list[int] = []
        batch_bytes = 0
        for index, (_ino, content) in enumerate(items):
            if len(content) > min(self._share_bytes // _BATCHES, MAX_CONTENT_BYTES):
                continue
            if batch_bytes + len(content) > self._share_bytes // _BATCHES:
                await self._put_batch(items, batch, batch_bytes, stored)
                batch, batch_bytes = [], 0
            batch.append(index)
            batch_bytes += len(content)
        await self._put_batch(items, batch, batch_bytes, stored)
        return stored

    async def _put_batch(self, items: Sequence[Item], batch: list[int], batch_bytes: int, stored: list[bool]) -> None:
        # GETs end out of order; inodes are numbered as directories list them, and so will they be read.  With 128 in
        # flight, cold reads of 110 KiB in listing order are 2.4 times as fast for it in batches of 512; in batches of
        # 64 it makes no difference (bench-smallstore --jitter 128 --peers packed,fanoutfs --sizes 110:10000).
        def add(group: SmallGroup) -> None:
            for index in sorted(batch, key=lambda index: items[index][0]):
                group.add(*items[index])

        async with self._room_for(batch_bytes) as has_room:
            if has_room and batch:
                await self._writer.run(add)
                for index in batch:
                    stored[index] = True

    async def drop(self, ino: int) -> None:
        """Remove a content.  Checkpoint.  Raises DatabaseError."""
        await self.drop_many([ino])

    async def drop_many(self, inos: Sequence[int]) -> None:
        """Remove contents in one commit.  Checkpoint.  Raises DatabaseError."""

        def drop(group: SmallGroup) -> None:
            for ino in inos:
                group.drop(ino)

        await self._writer.run(drop)

    # --- room --------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _room_for(self, size_bytes: int) -> AsyncIterator[bool]:
        """Hold room within the share; the value tells whether there is any."""
        self._promised_bytes += size_bytes
        try:
            yield self._has_room or await self._make_way()
        finally:
            self._promised_bytes -= size_bytes

    def note_kept_changed(self, is_kept: Callable[[int], bool] | None) -> None:
        """Have other contents stay from now on."""
        self.is_kept = is_kept
        self._kept_segments.clear()

    @property
    def share_bytes(self) -> int:
        """Return what the store need not give up for others."""
        return self._share_bytes

    @property
    def growth_bytes(self) -> int:
        """Return what the files may grow by unasked: by LMDB before a commit, by contents that are moved."""
        return self._growth_bytes + self._moving_bytes

    @property
    def _moving_bytes(self) -> int:
        """Return what is kept of a segment that is given up: for a moment it is there twice."""
        return int(self._segment_bytes * _KEPT_SHARE) if self.is_kept is not None else 0

    @property
    def _has_room(self) -> bool:
        if self._table.index_bytes > self._index_limit_bytes:
            return False  # contents so tiny that their places would push them out: LMDB's file never shrinks
        return self._fits(0)

    def _fits(self, size_bytes: int) -> bool:
        """Tell whether so much more than what is promised may be taken."""
        taken_bytes = self.file_bytes() + self._promised_bytes + self._moving_bytes + size_bytes
        return taken_bytes <= self._share_bytes or taken_bytes <= self.find_limit()

    async def _make_way(self) -> bool:
        async with self._making_way:
            while not self._has_room:
                if not await self._evict_segment():
                    return False
        return True

    async def give_back(self, wanted_bytes: int) -> int:
        """Evict until this much is free on disk, or nothing is left; return how much.  Checkpoint.

        Raises DatabaseError.
        """
        async with self._making_way:
            before = self.file_bytes()
            while before - self.file_bytes() < wanted_bytes and await self._evict_segment():
                pass
            return max(0, before - self.file_bytes())

    async def _evict_segment(self) -> bool:
        """Give up a segment; tell whether there was one.  Under `_making_way`."""
        await self._remove_retired()
        victim = await self._choose_victim()
        if victim is None:
            return False
        self._kept_segments.pop(victim, None)
        self.evicted += await self._clear(victim, self.is_kept)
        return True

    async def _choose_victim(self) -> int | None:
        """Return the segment to give up; None: there is none of which enough may go."""
        while True:
            spared = {number for number, is_spared in self._kept_segments.items() if is_spared}
            found = self._table.find_victims(spared)
            if not found:
                return None
            victim = found[0] if len(found) == 1 else await trio.to_thread.run_sync(self._find_least_worth, found)
            if self.is_kept is None:
                return victim
            if victim not in self._kept_segments:
                kept_bytes = await self._writer.run(partial(SmallGroup.kept_bytes, number=victim, is_kept=self.is_kept))
                segment = self._table.segments.get(victim)
                self._kept_segments[victim] = segment is None or kept_bytes > segment.end * _KEPT_SHARE
            if not self._kept_segments[victim]:
                return victim

    def _find_least_worth(self, numbers: Sequence[int]) -> int:
        """Return that of these segments whose contents are worth least to keep.  Blocking: some 4 ms."""
        newest = sorted(numbers)[-_NEWEST:]
        tried = {*newest, *random.sample(numbers, min(_TRIED, len(numbers)))}
        segments = dict(self._table.segments)
        try:
            with self._environment.env.begin() as txn:
                samples = {number: self._sample(txn, number, segments[number].count) for number in tried}
        except (*BROKEN, struct.error) as error:
            self.broken.set()
            raise self._broken(error) from error
        stored = max(1, sum(segment.count for segment in segments.values()))
        mean_bytes = sum(segment.end for segment in segments.values()) // stored
        judged = self.judge(
            {ino for sample in samples.values() for ino in sample}, stored=stored, mean_bytes=mean_bytes
        )

        def worth(number: int) -> tuple[float, float]:
            lengths = samples[number]
            total = sum(length * judged[ino] for ino, length in lengths.items())
            # Chance decides between equals: where nothing is known, any segment will do.
            return total / max(1, sum(lengths.values())), random.random()

        return min(tried, key=worth)

    def _sample(self, txn: lmdb.Transaction, number: int, count: int) -> dict[int, int]:
        """Return some of the files in a segment, with their lengths."""
        found = {}
        with txn.cursor(db=self._environment.rosters) as cursor:
            for _n in range(_SAMPLES):
                key = ROSTER_KEY.pack(number, random.randrange(max(1, count)))
                # Where no roster begins at or after it, it lies in the last one of all.
                if not (cursor.set_range(key) or cursor.last()):
                    break
                if ROSTER_KEY.unpack(cursor.key())[0] != number and not cursor.prev():
                    break
                inos = cursor.value()
                for _m in range(_SAMPLE_FILES):
                    at = random.randrange(len(inos) // 8) * 8
                    ino = int.from_bytes(inos[at : at + 8], "little")
                    value = txn.get(INO_KEY.pack(ino), db=self._environment.places) or b""
                    if len(value) == PLACE.size and PLACE.unpack(value)[1] == number:
                        found[ino] = PLACE.unpack(value)[3]
                if len(found) >= _SAMPLES:
                    break
        return found

    async def _clear(self, number: int, is_kept: Callable[[int], bool] | None = None) -> int:
        """Drop what a segment holds, but what is kept, then remove it; return how many contents were dropped."""
        after = cleared = 0
        while after >= 0:
            clear = partial(SmallGroup.clear, number=number, after=after, most=_CLEAR, is_kept=is_kept)
            after, dropped = await self._writer.run(clear)
            cleared += dropped
        await self._writer.run(lambda group: group.retire(number))
        await self._remove_retired()
        return cleared

    async def _remove_retired(self) -> None:
        """Remove the files that LMDB has given up, also those that a cancelled task left behind."""
        retired = list(self._table.retired)
        if not retired:
            return
        await self._wait_for_readers()
        for number in retired:
            try:
                await trio.to_thread.run_sync(self._files.remove, number)
            except OSError as error:
                raise DatabaseError(f"cannot remove a segment of the small-file store: {error}") from error
            self._table.retired.discard(number)

    async def leave_sparse(self) -> None:
        """Let also the segment that is appended to be written anew, if it holds little.  Checkpoint.

        Raises DatabaseError.
        """
        await self._writer.run(SmallGroup.leave_sparse)

    def find_sparse(self) -> tuple[int, int] | None:
        """Return (segment, live bytes) of one with so many dead bytes that `write_anew` pays."""
        return self._table.find_sparse()

    async def write_anew(self, number: int) -> None:
        """Move what is live out of a segment, then remove it.  Checkpoint.  Raises DatabaseError.

        For a while the store takes as much more as is live; the caller holds room for that.
        """
        async with self._making_way:
            after = 0
            while after >= 0:
                move = partial(SmallGroup.move, number=number, after=after, most_bytes=_MOVE_BYTES)
                after = await self._writer.run(move)
            await self._clear(number)

    # --- the rest ----------------------------------------------------------------------------------------------

    def release_dead_readers(self) -> None:
        """Free the reader slots of processes that were killed."""
        self._environment.env.reader_check()

    def file_bytes(self) -> int:
        """Return what the files occupy on disk, at most two pages for each segment away from the truth."""
        return self._files.disk_bytes() + self._environment.file_bytes()

    def close(self) -> None:
        """Commit, sync LMDB and close.  Blocks.  Contents are left to the kernel to write back: see `small`."""
        self._writer.stop()
        self._files.close()
        self._source.close()
        self.reader.close()
        self._environment.env.sync(True)
        self._environment.close()
