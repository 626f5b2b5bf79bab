"""The disk that the blocks of a part go to while they are written: all blocks of a part are on one.

Core, trio thread only.  Several fills of one part may be under way.  As long as none writes yet, the part may go to
another disk, and who looks for room next goes there, too; from then on it stays, unless its disk goes out of service.
What a disk has of a part does not bind the rest to it: where it has no room for that, it is given up once there is
room elsewhere, or the rest would be read through for as long as the disk is full.
"""

from collections.abc import Collection

from fanoutfs.core.disks import Disks
from fanoutfs.core.holes import Holes
from fanoutfs.errors import CacheFullError
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import PartId, disk_of_part, part_bytes


class PartDisks:
    """Where the parts that are being written go."""

    def __init__(self, disks: Disks, environment: IndexEnvironment, holes: Holes, handed_over: Collection[int]) -> None:
        """handed_over: the inodes of which nothing may be given up now."""
        self._disks = disks
        self._environment = environment
        self._holes = holes
        self._handed_over = handed_over
        self._placed: dict[PartId, int] = {}
        """The disk that was chosen last, while anybody holds the part."""
        self._writers: dict[PartId, int] = {}
        """How many write there: they have the room."""

    def choose(self, part: PartId, size_bytes: int, tried: Collection[int], *, is_movable: bool) -> int | None:
        """Return the disk to look for room on; None: there is no other than those tried.  No checkpoint.

        is_movable: what is cached of the part may be given up.
        """
        placed, lies_on = self._if_in_service(self._placed.get(part)), self._lies_on(part)
        if placed is not None and part in self._writers:
            disks = [placed]
        elif lies_on is not None and not is_movable:
            disks = [lies_on]
        else:
            known = [disk for disk in (placed, lies_on) if disk is not None and not self._disks.is_full(disk)]
            disks = [*known, *self._disks.candidates(part, size_bytes)]
        disk = next((disk for disk in disks if disk not in tried), None)
        if disk is not None:
            self._placed[part] = disk
        return disk

    async def begin(self, part: PartId, disk: int, *, is_movable: bool) -> int:
        """Begin to write a part to a disk that has room; return how many bytes of it were given up elsewhere for that.

        Until `end`.  Checkpoint.  Raises CacheFullError: it cannot be there; OSError (of disk 0), DatabaseError.
        """
        if self._placed[part] != disk:
            raise CacheFullError("the disk for this part changed")
        self._writers[part] = self._writers.get(part, 0) + 1  # (before the first checkpoint: now it stays)
        try:
            await self._holes.wait_for(part)  # another writer may be giving it up
            if self._lies_on(part) in (None, disk):
                return 0
            if not is_movable or part[0] in self._handed_over:
                raise CacheFullError("the disk that has the rest of this part has no room")
            return await self._holes.give_up({part: part_bytes(self._environment, part)})
        except BaseException:
            self.end(part)
            raise

    def end(self, part: PartId) -> None:
        """Note that one who began is done."""
        self._writers[part] -= 1
        if not self._writers[part]:
            del self._writers[part]

    def forget(self, part: PartId) -> None:
        """Note that nobody holds the part any more."""
        self._placed.pop(part, None)

    def may_go_to(self, part: PartId, disk: int) -> bool:
        """Tell whether a part that somebody holds is written on a disk, or where is not known yet."""
        return self._placed.get(part, disk) == disk

    def _lies_on(self, part: PartId) -> int | None:
        """Return the disk in service that has blocks of a part."""
        return self._if_in_service(disk_of_part(self._environment, part))

    def _if_in_service(self, disk: int | None) -> int | None:
        return disk if disk is not None and self._disks.is_in_service(disk) else None
