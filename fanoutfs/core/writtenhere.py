"""Large files that were written here, uploaded, and not read since: what goes before anything that readers have.

So does what is fetched of a file that is written to again: for its upload, or to be written over.
Core, trio thread only.  Forgotten with the core: after a restart they are as any other file.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection

from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import PartId, cached_parts


class WrittenHere:
    """Which they are, the oldest first."""

    def __init__(self, environment: IndexEnvironment, is_coming: Callable[[int], bool]) -> None:
        """is_coming: whether parts of an inode are being written to the cache."""
        self._environment = environment
        self._is_coming = is_coming
        self._inos: OrderedDict[int, None] = OrderedDict()

    def note_written(self, ino: int) -> None:
        """Note that what is cached of a file from now on comes of its being written here.  No checkpoint."""
        self._inos[ino] = None
        self._inos.move_to_end(ino)

    def note_read(self, ino: int) -> None:
        """Note that a file is read: it counts as the readers' from now on.  No checkpoint."""
        self._inos.pop(ino, None)

    def choose(self, wanted_bytes: int, is_spared: Callable[[PartId], bool]) -> dict[PartId, int]:
        """Return parts that together hold so much, or all that are not spared, with the bytes each holds."""
        chosen: dict[PartId, int] = {}
        found_bytes = 0
        for ino in list(self._inos):
            if found_bytes >= wanted_bytes:
                break
            parts = cached_parts(self._environment, ino)
            if not parts and not self._is_coming(ino):
                del self._inos[ino]
            for part, held in parts.items():
                if found_bytes < wanted_bytes and not is_spared(part):
                    chosen[part] = held
                    found_bytes += held
        return chosen

    def cached_bytes(self, others: Collection[int]) -> int:
        """Return what is cached of them and of these others, spared or not."""
        inos = self._inos.keys() | others
        return sum(sum(cached_parts(self._environment, ino).values()) for ino in inos)
