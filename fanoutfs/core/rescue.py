"""Rescue: a file was renamed and its object cannot be copied to the new name; what is cached is uploaded instead.

Core, trio thread only.  The object is gone, changed by somebody else, or archived: then its bytes can be had from the
cache only, as long as it was not asked for a restore.  Where not all of them are, a file of the first two kinds goes.
"""

import logging
from collections.abc import Callable

from fanoutfs.core.conflicts import Conflicts
from fanoutfs.core.facts import Facts, StagedContent
from fanoutfs.errors import ArchivedError, BackendError, FanoutError
from fanoutfs.index.format import Dirty, Inode
from fanoutfs.index.publishing import NoteState
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter

log = logging.getLogger(__name__)


class Rescue:
    """Turns cached content into content that is to be uploaded."""

    def __init__(self, staging: StagedContent, conflicts: Conflicts, writer: GroupWriter[IndexTransaction]) -> None:
        self._staging = staging
        self._conflicts = conflicts
        self._writer = writer
        self.is_all_cached: Callable[[Inode], bool] = _is_not
        """Tells whether all of a file's content is here.  No checkpoint."""

    async def rescue(self, facts: Facts, error: FanoutError) -> None:
        """Have what is cached of a file uploaded.  Checkpoint.

        error: why its object cannot be copied.  Raises it, or BackendError, when not all of the file is here.
        """
        if not self.is_all_cached(facts.inode):
            if isinstance(error, ArchivedError):
                raise error  # (it can be restored: nothing of it is given up)
            source = facts.source
            may_be_kept = bool(facts.inode.version_id)  # as an earlier version, in a bucket that has such
            if source is not None and not may_be_kept and await self._conflicts.remove_lost(facts.ino, source):
                return
        log.warning("object of a renamed file cannot follow, uploading from the cache ino=%d: %s", facts.ino, error)
        try:
            await self._staging.stage(facts.ino, 0, 0)
            await self._staging.localise(facts.ino, 0, facts.inode.size_bytes)
        except FanoutError as failure:
            raise BackendError(f"its object was changed or deleted by somebody else: {failure}") from error
        await self._writer.run(NoteState(facts.ino, add=Dirty.CONTENT).apply)


def _is_not(_inode: Inode) -> bool:
    return False
