"""The content of a staged file on its way into the cache, when the file becomes clean: step 3 of `staging`.

Core, trio thread only, under the inode's lock and inside `Space.handing_over`.  What does not get in, for want of room
or because a disk refuses, is fetched when it is read: nothing but speed is lost.  Nothing of the readers' quota goes
for it, unless the file is pinned.
"""

import contextlib
import os
from functools import partial

import trio

from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.overlay import copy_local
from fanoutfs.core.space import Space
from fanoutfs.errors import CacheFullError
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.records import BLOCK_BYTES, PART_BYTES


class HandOver:
    """Brings it there."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        staging: StagingFiles,
        files: CacheFiles,
        small: SmallStore,
        space: Space,
    ) -> None:
        self._reader = reader
        self._staging = staging
        self._files = files
        self._small = small
        self._space = space

    async def bring(
        self, inode: Inode, size_bytes: int, checksums: dict[int, int], *, is_small: bool
    ) -> tuple[dict[int, int], dict[int, int]]:
        """Bring the content into the cache as far as there is room.  Checkpoint.  Raises DatabaseError.

        checksums: as `Staging.make_clean`.  is_small: into the small-file store.  Return the checksums of the blocks
        that the cache files have, and the disks of parts that are not on disk 0.
        """
        ino = inode.ino
        if is_small:
            if size_bytes and inode.is_whole:
                content = os.pread(self._staging.descriptor(ino, inode.life), size_bytes, 0)
                put = self._small.put if self._space.is_pinned(ino) else self._small.put_if_room
                await put(ino, memoryview(content))
            return {}, {}
        if self._small.has(ino):
            await self._small.drop(ino)
        blocks = -(-size_bytes // BLOCK_BYTES)
        try:
            if inode.is_whole:
                if len(checksums) == blocks:
                    self._files.adopt(ino, self._staging.path(ino, inode.life))
                    return checksums, {}
                return {}, {}
            return await self._copy_local(inode, size_bytes)
        except (OSError, CacheFullError):
            return {}, {}

    async def _copy_local(self, inode: Inode, size_bytes: int) -> tuple[dict[int, int], dict[int, int]]:
        """Copy what an overlay has in its staging file to the cache files; return as `bring`.  Checkpoint."""
        ino = inode.ino
        with self._reader.begin() as txn:
            records = self._reader.changed(txn)
            base_size, local = records.base_size(ino) or 0, records.local_parts(ino)
        sizes = {part: mask.bit_count() * BLOCK_BYTES for part, mask in local.items()}
        for part in range(base_size // PART_BYTES, -(-size_bytes // PART_BYTES)):
            start = max(part * PART_BYTES, base_size)
            sizes[part] = sizes.get(part, 0) + max(0, min((part + 1) * PART_BYTES, size_bytes) - start)
        with contextlib.ExitStack() as stack:
            source = self._staging.duplicate(ino, inode.life)
            stack.callback(os.close, source)
            async with self._space.reserved_beside(ino, sizes) as disks:
                targets: dict[int, int] = {}
                for disk in set(disks.values()):
                    targets[disk] = self._files.duplicate(ino, disk)
                    stack.callback(os.close, targets[disk])
                copy = partial(copy_local, source, lambda part: targets[disks[part]], ino, size_bytes, base_size, local)
                return await trio.to_thread.run_sync(copy), disks
