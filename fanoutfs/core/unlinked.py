"""Files that somebody has open and that no name leads to: what they hold is brought here before their objects go.

Core, trio thread only.  As long as nothing else wants the key the object stays until the kernel has forgotten the file;
a drain, or another file that is to be put under the key, does not wait for that, which may take days.
"""

import contextlib
import stat
from collections.abc import Awaitable, Callable

from fanoutfs.core.facts import StagedContent
from fanoutfs.errors import ObjectMissingError, StaleInodeError, VersionGoneError
from fanoutfs.index.reader import IndexReader
from fanoutfs.records import PART_BYTES


class Unlinked:
    """Keeps their content."""

    def __init__(
        self, *, reader: IndexReader, staging: StagedContent, is_held: Callable[[int], Awaitable[bool]]
    ) -> None:
        """is_held: asks the kernel whether it holds an inode."""
        self._reader = reader
        self._staging = staging
        self.is_held = is_held

    async def keep(self, ino: int) -> None:
        """Bring all of a file's content into staging, as room becomes free, if somebody has it open.  Checkpoint.

        What the store does not have any more is lost already.  Raises CacheFullError, BackendError.
        """
        if not await self.is_held(ino):
            return
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
        if inode is None or not stat.S_ISREG(inode.mode):
            return
        with contextlib.suppress(ObjectMissingError, VersionGoneError, StaleInodeError):
            for start in range(0, inode.size_bytes, PART_BYTES):
                await self._staging.wait_for_room(min(PART_BYTES, inode.size_bytes - start))
                await self._staging.stage(ino, 0, 0)
                await self._staging.localise(ino, start, PART_BYTES)
