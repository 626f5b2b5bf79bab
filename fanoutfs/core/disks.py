"""The disks that hold parts of large files: which one gets a part, how full each is, and what to do about a sick one.

Core, trio thread only; what touches a further directory as a whole runs in worker threads (`cache.disks`).

Disk 0 is the volume's own folder: index, small files and staging are there and nowhere else, so that what is durable
depends on one disk.  The others hold parts, which can be fetched again.  Each has limits of its own, its size if one is
said, free space and free inodes; `cache_size` is over all of them.

A part goes where weighted rendezvous hashing puts it (Thaler and Ravishankar 1998, "Using name-based mappings to
increase hit rates"): each disk gets its share of the parts by what it can hold, one large file is read from all of
them at once, and a disk that comes or goes moves no part of the others.  Where it lies is in the part's record, so the
choice may change at any time; only while a part is being written it must not.

Out of service goes a disk that answers a read or a write with an error, has become read-only, or whose directory is not
the one that was opened.  Order, so that no reader meets an error and nothing wrong:
  1. it gets no part any more                              4. fronts close what they have open there
  2. its number goes from the index: no block gets it      5. a grace period, then the core closes it, too
  3. the records of what it held go; those parts are missing from then on, and fetched again when they are read
It is tried again after 5 s, and then ever less often, up to 5 min: a file is written, synced and read; then it is
emptied and comes back under a new number.  A disk that is merely full (ENOSPC, EDQUOT) keeps what it has and gets no
new part for as long; parts begun there: `partdisks`.  A call into the kernel that never returns is told by the keeper
(`keeper.held`), no more.
"""

import logging
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
import xxhash

from fanoutfs.cache.disks import OpenDisk, begin_anew, check_alive, note_used, open_disk, probe, trim_others
from fanoutfs.cache.files import CacheFiles
from fanoutfs.config.schema import DiskDirectory
from fanoutfs.core.grace import Grace
from fanoutfs.errors import NO_ROOM, CacheInUseError, CacheUnusableError, DatabaseError
from fanoutfs.index.disks import BYTES, CloseDisk, EnterDisk, ForgetDisk, mount_setting, number_of
from fanoutfs.index.format import KnownDisk, disk_bytes_setting
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.victims import PartId
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import DISKS, bump

log = logging.getLogger(__name__)

_WATCH_S: Final = 2.0
_FIRST_PAUSE_S: Final = 5.0
_MOST_PAUSE_S: Final = 300.0
_CALM_S: Final = 600.0
"""A disk that was well for so long is tried again after the first pause, should it fail."""
_WEIGHT_AGE_S: Final = 1.0
_INODE_FLOOR: Final = 1000
_HASHED: Final = struct.Struct("<QII")


def rank_disks(part: PartId, weights: Mapping[int, int]) -> list[int]:
    """Return the disks with a weight above 0 in the order in which a part would go to them.  Pure."""

    def score(disk: int) -> float:
        uniform = (xxhash.xxh3_64_intdigest(_HASHED.pack(*part, disk)) + 1) / (1 << 64)
        return -math.log(uniform) / weights[disk]

    return sorted((disk for disk, weight in weights.items() if weight > 0), key=score)


@dataclass(slots=True)
class Further:
    """One further directory.  number: 0 while it is out of service."""

    directory: DiskDirectory
    number: int = 0
    opened: OpenDisk | None = None
    token: str = ""
    reason: str = "not opened yet"
    """Why it is out of service."""
    other_bytes: int = 0
    """What other volumes left there."""
    pause_s: float = _FIRST_PAUSE_S / 2
    retry_at: float = 0.0
    since: float = 0.0
    closing: int = 0
    """The number it had, until nothing of it is left in the index."""
    failed: trio.Event = field(default_factory=trio.Event)


class Disks:
    """All of them."""

    def __init__(
        self,
        *,
        further: Sequence[Further],
        files: CacheFiles,
        environment: IndexEnvironment,
        writer: GroupWriter[IndexTransaction],
        grace: Grace,
        volume: Path,
        floor_bytes: int,
        inode_floor: int,
        cap_bytes: int,
        flags: memoryview,
        row: memoryview,
    ) -> None:
        """volume: the volume's folder.  floor_bytes, inode_floor: of each disk.  cap_bytes: of all together."""
        self._further = further
        self._files = files
        self._environment = environment
        self._writer = writer
        self._grace = grace
        self._volume = volume
        self._floor_bytes = floor_bytes
        self._inode_floor = inode_floor
        self._cap_bytes = cap_bytes
        self._flags = flags
        self._row = row
        self._reserved: dict[int, int] = {}
        self._full_until: dict[int, tuple[float, float]] = {}
        """Disk → (when it may get parts again, how long it was to wait for that)."""
        self._weights: dict[int, int] = {}
        self._weighed_at = -math.inf
        self.large_bytes: Callable[[], int] = int
        """What all disks together hold."""
        self.unpunched_bytes: Callable[[int], int] = int
        """What of a disk was given up and is not punched yet."""
        files.on_error = self.note_error

    # --- what fills ask ----------------------------------------------------------------------------------------

    @property
    def has_further(self) -> bool:
        """Tell whether any but 0 is in service."""
        return any(each.number for each in self._further)

    def is_in_service(self, disk: int) -> bool:
        """Tell whether a disk may get parts."""
        return not disk or any(each.number == disk for each in self._further)

    def in_service(self) -> list[int]:
        """Return all that may hold parts."""
        return [0, *(each.number for each in self._further if each.number)]

    def candidates(self, part: PartId, size_bytes: int) -> list[int]:
        """Return the disks for a part, best first: those that have room, then those that would have to make it.

        Never empty: the last resort is disk 0.  No checkpoint.
        """
        if not self.has_further:
            return [0]
        ranked = [disk for disk in rank_disks(part, self._weigh()) if not self.is_full(disk)]
        # Of inodes, too, one more than it should have: else files on it would make way for each other for ever.
        has_room = {
            disk: self.excess_bytes(disk) + size_bytes <= 0 and self.lacking_inodes(disk) < 0 for disk in ranked
        }
        return sorted(ranked, key=lambda disk: not has_room[disk]) or [0]

    def hold(self, disk: int, size_bytes: int) -> None:
        """Count bytes as about to be written to a disk."""
        self._reserved[disk] = self._reserved.get(disk, 0) + size_bytes

    def release(self, disk: int, size_bytes: int) -> None:
        """Give back what was held."""
        self._reserved[disk] -= size_bytes

    @property
    def held_elsewhere_bytes(self) -> int:
        """Return what is held on all disks but 0."""
        return sum(held for disk, held in self._reserved.items() if disk)

    def excess_bytes(self, disk: int) -> int:
        """Return how much must go from a further disk before what is held there may be written; below 0: has room."""
        coming_bytes = self._reserved.get(disk, 0)
        try:
            under_floor = self._floor_bytes + coming_bytes - self._files.free_bytes(disk)
        except OSError as error:
            self.note_error(disk, error)
            return 1 << 60
        limit_bytes = self._limit(disk)
        if not limit_bytes:
            return under_floor
        return max(under_floor, self.bytes_on(disk) + self.unpunched_bytes(disk) + coming_bytes - limit_bytes)

    def lacking_inodes(self, disk: int) -> int:
        """Return how many files more a disk should have room for; below 0: it may get new ones."""
        try:
            found = self._files.inodes(disk)
        except OSError as error:
            self.note_error(disk, error)
            return 0
        if found is None:
            return -1
        free, total = found
        return (self._inode_floor or min(_INODE_FLOOR, total // 10)) - free

    def bytes_on(self, disk: int) -> int:
        """Return the bytes of large files on a disk."""
        with self._environment.env.begin() as txn:
            if disk:
                return int.from_bytes(txn.get(disk_bytes_setting(disk), db=self._environment.settings) or b"", "little")
        return self.large_bytes() - sum(self.bytes_on(each.number) for each in self._further if each.number)

    def other_bytes(self) -> int:
        """Return what other volumes left on further disks."""
        return sum(each.other_bytes for each in self._further if each.number)

    def _weigh(self) -> dict[int, int]:
        """Return what each disk can hold of parts, as of a second ago."""
        now = trio.current_time()
        if now - self._weighed_at > _WEIGHT_AGE_S:
            self._weighed_at = now
            self._weights = {disk: self._capacity(disk) for disk in self.in_service()}
        return {disk: weight for disk, weight in self._weights.items() if self.is_in_service(disk)}

    def _capacity(self, disk: int) -> int:
        held_bytes = self.bytes_on(disk)
        try:
            capacity = held_bytes + max(0, self._files.free_bytes(disk) - self._floor_bytes)
        except OSError as error:
            self.note_error(disk, error)
            return 0
        return min(capacity, self._cap_bytes, self._limit(disk) or self._cap_bytes)

    def _limit(self, disk: int) -> int:
        """Return what a disk may hold at most by its setting; 0: as much as there is room for."""
        return next((each.directory.limit_bytes for each in self._further if disk and each.number == disk), 0)

    # --- errors ------------------------------------------------------------------------------------------------

    def is_full(self, disk: int) -> bool:
        """Tell whether a disk said a moment ago that it is full."""
        return trio.current_time() < self._full_until.get(disk, (0.0, 0.0))[0]

    def note_error(self, disk: int, error: OSError) -> None:
        """Take a further disk out of service, or give it no part for a while if it is full.  No checkpoint."""
        known = next((each for each in self._further if each.number == disk and disk), None)
        if known is None:
            return  # disk 0, or one that is out of service already
        if error.errno in NO_ROOM:
            if self.is_full(disk):
                return  # several were under way: it is one refusal
            pause_s = min(_MOST_PAUSE_S, max(_FIRST_PAUSE_S, 2 * self._full_until.get(disk, (0.0, 0.0))[1]))
            self._full_until[disk] = (trio.current_time() + pause_s, pause_s)
            log.warning("cache directory is full, no new parts for %g s path=%s", pause_s, known.directory.path)
            return
        self._take_out(known, str(error))

    def note_written(self, disk: int) -> None:
        """Note that a disk took what was written: if it was full, it is so no more.  No checkpoint."""
        if self._full_until and not self.is_full(disk):
            self._full_until.pop(disk, None)

    def _take_out(self, disk: Further, reason: str) -> None:
        now = trio.current_time()
        disk.pause_s = _FIRST_PAUSE_S if now - disk.since > _CALM_S else min(_MOST_PAUSE_S, 2 * disk.pause_s)
        disk.closing, disk.number, disk.reason = disk.number, 0, reason
        disk.retry_at, disk.since = now + disk.pause_s, now
        disk.failed.set()
        bump(self._row, Count.DISKS_FAILED)
        log.error(
            "cache directory out of service, what it held is fetched again; next try in %g s path=%s: %s",
            disk.pause_s,
            disk.directory.path,
            reason,
        )

    # --- in the background -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch the disks, take sick ones out and bring them back, for ever."""
        for number in self._left_over():
            await self._forget(number)
            self._flags[DISKS] += 1
        async with trio.open_nursery() as nursery:
            for disk in self._further:
                nursery.start_soon(self._look_after, disk)

    def _left_over(self) -> list[int]:
        """Return the disks of which records are left in the index and that are not in use."""
        with self._environment.env.begin() as txn, txn.cursor(db=self._environment.settings) as cursor:
            numbers = []
            more = cursor.set_range(BYTES)
            while more and bytes(cursor.key()).startswith(BYTES):
                numbers.append(number_of(bytes(cursor.key())))
                more = cursor.next()
        used = {each.number or each.closing for each in self._further}
        return [number for number in numbers if number not in used]

    async def _look_after(self, disk: Further) -> None:
        while True:
            if disk.number and disk.opened is not None:
                with trio.move_on_after(_WATCH_S):
                    await disk.failed.wait()
                if disk.number:
                    await self._watch(disk, disk.opened)
            if disk.closing:
                try:
                    await self._close(disk)
                except DatabaseError as error:
                    log.warning("records of a cache directory that is out of service stay for now: %s", error)
                    await trio.sleep(_WATCH_S)
            elif not disk.number:
                await trio.sleep_until(disk.retry_at)
                await self._try_again(disk)

    async def _watch(self, disk: Further, opened: OpenDisk) -> None:
        number = disk.number
        try:
            await trio.to_thread.run_sync(partial(check_alive, opened, disk.token), abandon_on_cancel=True)
        except OSError as error:
            if disk.number == number:
                self._take_out(disk, str(error))

    async def _close(self, disk: Further) -> None:
        """Forget what a disk held, then close it.  Raises DatabaseError."""
        number = disk.closing
        await self._writer.run(CloseDisk(number).apply)
        await self._forget(number)
        self._flags[DISKS] += 1
        await self._grace.wait()
        self._files.detach(number)
        if disk.opened is not None:
            disk.opened.close()
            disk.opened = None
        self._full_until.pop(number, None)
        disk.closing = 0

    async def _forget(self, number: int) -> None:
        start: tuple[int, int] | None = (0, 0)
        while start is not None:
            start = await self._writer.run(ForgetDisk(number, start).apply)

    async def _try_again(self, disk: Further) -> None:
        """Take a directory into service, empty; or put the next try off."""
        path = disk.directory.path
        prepare = partial(_prepare, path, self._volume, self._mounted_on(path), self._cap_bytes // 2)
        try:
            opened, token, other_bytes = await trio.to_thread.run_sync(prepare, abandon_on_cancel=True)
        except (OSError, CacheUnusableError, CacheInUseError) as error:
            self._put_off(disk, str(error))
            return
        try:
            known = KnownDisk(opened.folder, token)
            number = await self._writer.run(EnterDisk(known, path, opened.mounted_on).apply)
            self._files.attach(number, opened.folder)
        except (OSError, DatabaseError) as error:
            opened.close()
            self._put_off(disk, str(error))
            return
        self.note_in_service(disk, number, opened, token)
        disk.other_bytes = other_bytes
        log.info("cache directory in service path=%s disk=%d", path, number)

    def note_in_service(self, disk: Further, number: int, opened: OpenDisk, token: str) -> None:
        """Let a disk get parts."""
        disk.number, disk.opened, disk.token, disk.reason = number, opened, token, ""
        disk.since = trio.current_time()
        disk.failed = trio.Event()
        self._weighed_at = -math.inf

    def _put_off(self, disk: Further, reason: str) -> None:
        if reason != disk.reason:
            log.warning("cache directory stays out of service path=%s: %s", disk.directory.path, reason)
        disk.reason = reason
        disk.pause_s = min(_MOST_PAUSE_S, 2 * disk.pause_s)
        disk.retry_at = trio.current_time() + disk.pause_s

    def _mounted_on(self, directory: Path) -> Path | None:
        with self._environment.env.begin() as txn:
            value = txn.get(mount_setting(directory), db=self._environment.settings)
        return None if value is None else Path(os.fsdecode(bytes(value)))

    # --- status ------------------------------------------------------------------------------------------------

    def describe(self) -> list[dict[str, Any]]:
        """Return how the further directories stand, ready for JSON."""
        now = trio.current_time()
        return [
            {
                "directory": str(each.directory.path),
                "state": self._state_of(each.number),
                "disk": each.number,
                "large_bytes": self.bytes_on(each.number) if each.number else 0,
                "limit_bytes": each.directory.limit_bytes,
                **(
                    {}
                    if each.number
                    else {"reason": each.reason, "retry_in_s": round(max(0.0, each.retry_at - now), 1)}
                ),
            }
            for each in self._further
        ]

    def _state_of(self, disk: int) -> str:
        if not disk:
            return "out"
        # (what others keep on it may leave it no room before it ever refuses a write)
        takes_parts = not self.is_full(disk) and self._weigh().get(disk, 0) > 0
        return "ok" if takes_parts else "full"

    def place_of(self, disk: int) -> str:
        """Return the directory that a disk is, "" of one that is out of service (and of 0)."""
        return next((str(each.directory.path) for each in self._further if disk and each.number == disk), "")


def _prepare(path: Path, volume: Path, mounted_on: Path | None, others: int) -> tuple[OpenDisk, str, int]:
    """Open a directory, try its disk, and empty it.  Blocks.  Raises OSError, CacheUnusableError, CacheInUseError."""
    opened = open_disk(path, volume.name, mounted_on)
    try:
        note_used(volume, path)
        probe(opened)
        other_bytes = trim_others(opened, others)
        return opened, begin_anew(opened), other_bytes
    except BaseException:
        opened.close()
        raise
