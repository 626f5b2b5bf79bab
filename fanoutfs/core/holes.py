"""Give up parts of large files, so that no reader sees a hole.

  1. commit the block map without the part     3. punch the hole
  2. wait until every front has been idle once

Core, trio thread only; `space` decides what goes, and when.  A fill of a part that is being given up waits until the
hole is punched.  What cannot be punched is remembered: until then it occupies the disk.
"""

import contextlib
import logging
import mmap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

import trio

from fanoutfs.cache.files import CacheFiles, punch_blocks
from fanoutfs.core.disks import Disks
from fanoutfs.core.grace import Grace
from fanoutfs.index.format import INO_KEY
from fanoutfs.index.operations import DropBlocks, FreeOrphans, blocks_bytes
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.victims import PartId, disk_of_part, held_parts, parts_on, present_blocks
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import PART_BLOCKS, PART_BYTES

log = logging.getLogger(__name__)

_ALL: Final = (1 << PART_BLOCKS) - 1


class Holes:
    """What was given up and is not on the disk any more, or soon."""

    def __init__(
        self,
        *,
        environment: IndexEnvironment,
        writer: GroupWriter[IndexTransaction],
        files: CacheFiles,
        disks: Disks,
        grace: Grace,
        is_in_use: Callable[[PartId], bool],
        is_file_in_use: Callable[[int, int], bool],
    ) -> None:
        """Take the parts.

        is_in_use: whether a part is written, or its file handed over.  is_file_in_use: whether the file is handed over,
        or any part of it is written to this disk.
        """
        self._environment = environment
        self._writer = writer
        self._files = files
        self._disks = disks
        self._grace = grace
        self._is_in_use = is_in_use
        self._is_file_in_use = is_file_in_use
        self._unpunched: dict[PartId, tuple[int, int]] = {}
        """Parts that the index has given up and the disk not yet, with the bytes they held, and on which disk."""
        self._leaving: dict[int, dict[PartId, tuple[int, int]]] = {}
        """The same of orphans that a commit under way removes: given up once the index has no such inode."""
        self._evicting: dict[PartId, trio.Event] = {}

    @property
    def unpunched_bytes(self) -> int:
        """Return what the index has given up and the disks have not yet."""
        return sum(size_bytes for size_bytes, _disk in self._given_up())

    def unpunched_on(self, disk: int) -> int:
        """Return the same of one disk."""
        return sum(size_bytes for size_bytes, on_disk in self._given_up() if on_disk == disk)

    def _given_up(self) -> Iterator[tuple[int, int]]:
        """Yield how much is still there, each with its disk."""
        yield from self._unpunched.values()
        if self._leaving:
            with self._environment.env.begin() as txn:
                gone = [ino for ino in self._leaving if txn.get(INO_KEY.pack(ino), db=self._environment.inodes) is None]
            for ino in gone:
                yield from self._leaving[ino].values()

    async def wait_for(self, part: PartId) -> None:
        """Return when a part is not being given up.  Checkpoint, if it is."""
        while part in self._evicting:
            await self._evicting[part].wait()

    async def wait_for_file(self, ino: int) -> None:
        """Return when no part of a file is; what could not be punched of it is forgotten.  Checkpoint, if one is."""
        while waiting := [event for part, event in self._evicting.items() if part[0] == ino]:
            await waiting[0].wait()
        self._forget_unpunched(ino)

    async def give_up(self, victims: dict[PartId, int]) -> int:
        """Carry an eviction out; return how much it freed.  victims: with the bytes each holds.

        Checkpoint.  Raises OSError (of disk 0), DatabaseError.
        """
        freed = 0
        victims = {part: size for part, size in victims.items() if part not in self._evicting}  # (cleared just now)
        dropped: dict[PartId, int] = {}
        with self._kept_away(victims):
            for part, size_bytes in victims.items():
                # Others see the commit before it is told here: for that moment the part counts twice, never not at all.
                earlier = self._unpunched.get(part)
                self._unpunched[part] = size_bytes, disk_of_part(self._environment, part) or 0
                mask, dropped_bytes, disk = await self._writer.run(DropBlocks(*part, -1).apply)
                if mask:
                    dropped[part] = disk
                elif earlier is None:  # it went with its disk, or with its file
                    self._unpunched.pop(part, None)
                elif part in self._unpunched:
                    self._unpunched[part] = earlier
                freed += dropped_bytes
            await self._grace.wait()
            for part, disk in dropped.items():
                await self._punch(part, -1, disk)
        for ino, disk in {(part[0], disk) for part, disk in dropped.items()}:
            self._remove_empty(ino, disk)
        return freed

    async def free(self, inos: tuple[int, ...]) -> list[int]:
        """Remove orphans from the index, then their cache files; return which were there.  Checkpoint.

        Their bytes count until the disks have them back; those of a file that cannot be removed are punched by and by.
        Raises DatabaseError.
        """
        held = {ino: parts for ino in inos if (parts := held_parts(self._environment, ino))}
        self._leaving |= held
        try:
            gone = await self._writer.run(FreeOrphans(inos).apply)
        finally:
            for ino in held:
                del self._leaving[ino]
        for ino in gone:
            self._unpunched |= held.get(ino, {})
        await self._grace.wait()
        for ino in gone:
            try:
                self._files.remove(ino)
            except OSError as error:
                log.warning("cannot remove a cache file ino=%d: %s", ino, error)
            else:
                self._forget_unpunched(ino)
        return gone

    async def retry(self) -> None:
        """Punch what an earlier eviction could not, but nothing that was filled again since.  Checkpoint."""
        for part, (_size_bytes, disk) in list(self._unpunched.items()):
            if part not in self._unpunched or part in self._evicting or self._is_in_use(part):
                continue
            try:
                with self._kept_away([part]):
                    await self._punch(part, ~present_blocks(self._environment, part, disk), disk)
            except OSError as error:
                log.warning("cannot free evicted bytes ino=%d part=%d: %s", *part, error)
                return

    async def settle(self, ino: int) -> None:
        """Give back what the disks hold of a file that became clean and the index does not have there.  Checkpoint.

        What an earlier version left: blocks that were changed, cut off, or not brought here for want of room.
        """
        disks = [disk for disk in self._disks.in_service() if self._note_left(ino, disk)]
        if not disks:
            return
        await self.retry()
        for disk in disks:
            try:
                self._remove_empty(ino, disk)
            except OSError as error:
                log.warning("cannot remove a cache file of which nothing is left ino=%d: %s", ino, error)

    def _note_left(self, ino: int, disk: int) -> bool:
        """Remember what a disk holds of a file beyond what the index has there; tell whether there is any."""
        try:
            found = self._files.occupied(ino, disk)
        except OSError as error:
            self._disks.note_error(disk, error)
            return False
        if found is None:
            return False
        length, occupied_bytes = found
        known = parts_on(self._environment, ino, disk)
        left_bytes = occupied_bytes - sum(blocks_bytes(length, part, mask) for part, mask in known.items())
        if left_bytes < mmap.PAGESIZE:  # (the last block may be short, its page is not)
            return False
        for part in range(-(-length // PART_BYTES)):
            if blocks_bytes(length, part, _ALL & ~known.get(part, 0)) > 0:
                self._unpunched.setdefault((ino, part), (left_bytes, disk))
                left_bytes = 0  # (told once, wherever it is)
        return True

    async def reclaim(self, part: PartId, absent: int, disk: int) -> None:
        """Give back what a disk holds of blocks that the index does not have there.  Checkpoint.  Raises OSError."""
        if part in self._evicting or self._is_in_use(part):
            return
        with self._kept_away([part]):
            await self._punch(part, absent, disk)

    async def clear(self, part: PartId, disk: int) -> None:
        """Give back what writes that a further disk refused have left there of a part.  Checkpoint, if in service."""
        if disk and self._disks.is_in_service(disk):
            await self.reclaim(part, ~present_blocks(self._environment, part, disk), disk)
            self._remove_empty(part[0], disk)

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

    async def _punch(self, part: PartId, mask: int, disk: int) -> None:
        """Punch holes for the blocks of a part in `mask`.  One descriptor at a time, whatever the eviction's size.

        A further disk that refuses goes out of service, with all that it holds.
        """
        try:
            fd = self._files.duplicate(part[0], disk)
            await trio.to_thread.run_sync(partial(punch_blocks, fd, part[1], mask))
        except OSError as error:
            if not disk:
                raise
            self._disks.note_error(disk, error)
        self._unpunched.pop(part, None)

    def _remove_empty(self, ino: int, disk: int) -> None:
        """Remove a cache file of which nothing is left: it takes one of the disk's inodes.  No checkpoint.

        Whoever writes to it holds its part; a front that has it open looks again under its name.
        """
        is_in_use = self._is_file_in_use(ino, disk) or any(part[0] == ino for part in self._evicting)
        if is_in_use or parts_on(self._environment, ino, disk):
            return
        self._forget_unpunched(ino, disk)
        try:
            self._files.remove_from(disk, ino)
        except OSError as error:
            if not disk:
                raise
            self._disks.note_error(disk, error)

    def _forget_unpunched(self, ino: int, disk: int = -1) -> None:
        for part in [part for part, (_size, on) in self._unpunched.items() if part[0] == ino and disk in (-1, on)]:
            del self._unpunched[part]
