"""Withdrawal: a file got a name that is not uploaded, and what it has in the store leaves it.

Core, trio thread only.  The object may be the only copy.  Order:
  1. all of the content is in the staging file, and it and its name are synced
  2. commit: the file has no object, the old one is departed
  3. the old object is deleted as every departed one (`moves`), after a sync of the index
Until 2 the object stays under the old name.  A directory's objects move along with it instead: nothing is fetched.
"""

import stat
from typing import Final

import trio

from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.facts import Facts, StagedContent
from fanoutfs.errors import CacheFullError
from fanoutfs.index.format import Inode
from fanoutfs.index.publishing import LeaveStore
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter

_ROOM_S: Final = 10.0
"""It is uploads that make room in staging, and who waits here has the place of one."""


class Withdrawal:
    """Withdraws files."""

    def __init__(
        self,
        files: StagingFiles,
        staging: StagedContent,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        root_prefix: str,
    ) -> None:
        self._files = files
        self._staging = staging
        self._reader = reader
        self._writer = writer
        self._root_prefix = root_prefix

    async def withdraw(self, facts: Facts) -> bool:
        """Let a file do without an object elsewhere; False: it was changed meanwhile.  Checkpoint.

        Under the publisher's lock of the inode.  Raises CacheFullError, what `Fills` raises, OSError.
        """
        inode, source = facts.inode, facts.source
        if source is None or source.key == facts.key or facts.is_link or inode.is_dir:
            return True
        if stat.S_ISREG(inode.mode):
            await self._fetch(inode)
            with self._reader.begin() as txn:
                now = self._reader.inode(txn, inode.ino)
            if now is None or not now.is_staged:
                return False
            self._files.forget_base(now.ino, now.life)
            await self._staging.sync_content(now.ino, now.life)
        return await self._writer.run(LeaveStore(inode.ino, source.key, self._root_prefix).apply)

    async def _fetch(self, inode: Inode) -> None:
        if inode.is_staged and inode.is_whole:
            return
        with trio.move_on_after(_ROOM_S) as scope:
            await self._staging.wait_for_room(inode.size_bytes)
            await self._staging.stage(inode.ino, 0, 0)
        if scope.cancelled_caught:
            raise CacheFullError(f"inode {inode.ino} has a name that is not uploaded, and staging no room for it")
        await self._staging.localise(inode.ino, 0, inode.size_bytes)
