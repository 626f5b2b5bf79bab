"""Give back what the disk holds and the index does not know: what a process left behind that was killed at work.

Runs once, in the background, when a mount begins: bytes of fills that were never published, of parts that were
unpublished and not yet punched, and files of inodes that were freed.  Core, trio thread only.
"""

import logging
from functools import partial
from typing import Final

import trio

from fanoutfs.cache.files import CacheFiles
from fanoutfs.core.space import Space
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import present_blocks
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES

log = logging.getLogger(__name__)

ALL_BLOCKS: Final = (1 << PART_BLOCKS) - 1


async def collect_strays(files: CacheFiles, environment: IndexEnvironment, reader: IndexReader, space: Space) -> None:
    """Remove files without an inode and punch blocks without a record, then bring the cache under its cap."""
    for disk in files.disks:
        try:
            await _collect(disk, files, environment, reader, space)
        except OSError as error:
            if not disk:
                raise
            space.disks.note_error(disk, error)
    await space.make_room()


async def _collect(
    disk: int, files: CacheFiles, environment: IndexEnvironment, reader: IndexReader, space: Space
) -> None:
    removed = reclaimed = 0
    for folder in files.folders(disk):
        for ino, disk_bytes in await trio.to_thread.run_sync(partial(files.folder_contents, folder, disk)):
            with reader.begin() as txn:
                inode = reader.inode(txn, ino)
            if inode is None or inode.is_whole:
                # Of a file that is wholly in staging nothing is cached.  What is here may be that very file: a core
                # died while it became clean.  A hole must not be punched into it.
                files.remove_from(disk, ino)
                removed += 1
                continue
            known_blocks, incomplete = await trio.to_thread.run_sync(
                partial(_block_maps, environment, ino, inode.size_bytes, disk)
            )
            if disk_bytes > known_blocks * BLOCK_BYTES:
                for part in incomplete:
                    # Looked at again, with no checkpoint before the fills are kept away.
                    absent = ~present_blocks(environment, (ino, part), disk) & ALL_BLOCKS
                    await space.holes.reclaim((ino, part), absent, disk)
                reclaimed += 1
    if removed or reclaimed:
        log.info("strays collected disk=%d files_removed=%d files_reclaimed=%d", disk, removed, reclaimed)


def _block_maps(environment: IndexEnvironment, ino: int, size_bytes: int, disk: int) -> tuple[int, list[int]]:
    """Return how many blocks of a file are on a disk, and which parts lack some there.

    Blocking: a large file has many.
    """
    known, incomplete = 0, []
    for part in range(-(-size_bytes // PART_BYTES)):
        present = present_blocks(environment, (ino, part), disk)
        known += present.bit_count()
        if present != ALL_BLOCKS:
            incomplete.append(part)
    return known, incomplete
