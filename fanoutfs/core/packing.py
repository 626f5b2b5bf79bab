"""Files that change their place in the cache because a policy says so: into the small-file store, or out of it.

Core, trio thread only.  What is cached of a file is given up first and fetched again when it is read, so that no
content is ever in two places that count.  Readers go on meanwhile: fronts look in the index where a file is kept with
each READ.  A fill that began for the old place either ends before the index knows the new one, or what it brought is
thrown away and who waited for it asks again.
"""

from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.evicting import Evicting
from fanoutfs.core.fill import Fills
from fanoutfs.core.policybook import PolicyBook
from fanoutfs.core.warming import Warming
from fanoutfs.index.format import Inode, Ownership
from fanoutfs.index.tiering import Repack
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter


class Packing:
    """Tells which files are not where a policy wants them, and brings them there."""

    def __init__(
        self,
        *,
        writer: GroupWriter[IndexTransaction],
        small: SmallStore,
        fills: Fills,
        arena: ArenaSlots,
        evicting: Evicting,
        warming: Warming,
        book: PolicyBook,
        ownership: Ownership,
        root_prefix: str,
    ) -> None:
        self._writer = writer
        self._small = small
        self._fills = fills
        self._arena = arena
        self._evicting = evicting
        self._warming = warming
        self._book = book
        self._ownership = ownership
        self._root_prefix = root_prefix

    def is_packed(self, path: str, size_bytes: int) -> bool:
        """Tell whether the content of a file of this size at this path would be kept in the small-file store."""
        return self._ownership.is_small(self._root_prefix + path, size_bytes)

    def is_small(self, inode: Inode) -> bool:
        """Tell whether a file's content belongs to the small-file store; where no policy says, it may stay."""
        size_bytes = inode.version.size_bytes
        if self._book.is_packed(inode.key, size_bytes) is None:
            return inode.is_small
        return self._ownership.is_small(inode.key, size_bytes)

    def is_misplaced(self, inode: Inode) -> bool:
        """Tell whether a clean file's content is kept against a policy."""
        return bool(inode.size_bytes) and not inode.is_staged and self.is_small(inode) != inode.is_small

    async def repack(self, path: str, inode: Inode) -> bool:
        """Keep a file where it belongs; False: not now, it is read or written.  Checkpoint.

        Raises DatabaseError, OSError.
        """
        ino, is_small = inode.ino, self.is_small(inode)
        await self._evicting.evict_files([(path, inode)])
        now = self._warming.inode_or_none(ino)
        if now is None or now.is_staged or self._fills.is_filling(ino) or self._warming.cached_bytes(now):
            return False
        if not await self._writer.run(Repack(ino, is_small).apply):
            return False
        await self._fills.wait_idle(ino)  # who began meanwhile did so for the old place
        self._arena.withdraw_inode(ino)
        if not is_small and self._small.has(ino):
            await self._small.drop(ino)
        return True
