"""Blocks of an overlay: which of its object are not local yet, their content, and the way back into the cache.

Core.  `AheadOfReaders` is policy, `missing_runs` reads one snapshot of the index, `copy_local` blocks and is for worker
threads.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import trio
import xxhash

from fanoutfs.cache.blocks import disk_of, is_intact
from fanoutfs.cache.files import CacheFiles
from fanoutfs.core.fill import Fills
from fanoutfs.errors import CacheFullError
from fanoutfs.index.changed import ChangedRecords
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.records import BLOCK_BYTES, MIB, PART_BLOCKS, PART_BYTES

_TRIES: Final = 3
_AHEAD_BYTES: Final = 64 * MIB
_READERS: Final = 4096


def missing_runs(records: ChangedRecords, ino: int, start: int, end: int) -> list[tuple[int, int]]:
    """Return the runs [first byte, end) of an overlay's object in a range of the file that are not local.

    Runs are of whole blocks, of one part each, and end with the base size: what is behind it is the staging file's.
    """
    base_size = records.base_size(ino) or 0
    stop = min(end, base_size)
    runs: list[tuple[int, int]] = []
    if start >= stop:
        return runs
    for block in range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1):
        part, bit = divmod(block, PART_BLOCKS)
        if records.local_blocks(ino, part) >> bit & 1:
            continue
        low, high = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, base_size)
        if runs and runs[-1][1] == low and bit:
            runs[-1] = (runs[-1][0], high)
        else:
            runs.append((low, high))
    return runs


class AheadOfReaders:
    """How much of an overlay to make local for somebody who reads on.

    Pure policy.  The kernel reads ahead as well: several READs of one reader are under way at a time, out of order, and
    each that finds its blocks missing asks.  So what is brought at a time is large: not one of them comes in between.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}

    def window(self, ino: int, offset: int) -> int:
        """Return how many bytes behind a READ at an offset will be wanted, perhaps."""
        last_end = self._ends.get(ino)
        if last_end is not None and abs(offset - last_end) <= PART_BYTES:
            return _AHEAD_BYTES
        return 0 if offset else PART_BYTES

    def note(self, ino: int, end: int) -> None:
        """Note up to where blocks were brought for a reader."""
        if len(self._ends) >= _READERS:
            self._ends.clear()
        self._ends[ino] = end


class OverlayContent:
    """Reads content of the object below an overlay, through the cache where there is room.  Trio thread only."""

    def __init__(self, reader: IndexReader, files: CacheFiles, fills: Fills) -> None:
        self._reader = reader
        self._files = files
        self._fills = fills

    async def read(self, inode: Inode, start: int, end: int) -> bytes:
        """Return bytes [start, end) of the object; start: of a block.  One part at most.  Checkpoint.

        Raises what `Fills` raises.
        """
        for _try in range(_TRIES):
            try:
                await self._fills.store(inode, start, end)
            except CacheFullError:
                break
            with self._reader.begin() as txn:
                value = bytes(self._reader.part_value(txn, inode.ino, start // PART_BYTES) or b"")
            if value:
                with contextlib.suppress(OSError):  # of its disk: `discard_blocks` meets it, too
                    fd = self._files.duplicate(inode.ino, disk_of(value))
                    look = partial(_read_verified, fd, inode, start, end, value)
                    content = await trio.to_thread.run_sync(look)
                    if content is not None:
                        return content
                await self._fills.discard_blocks(inode, start, end)
        return bytes(await self._fills.fetch_direct(inode.ino, start, end - start))


def _read_verified(fd: int, inode: Inode, start: int, end: int, value: bytes) -> bytes | None:
    """Return cached bytes; None when a block of them is not as it was stored.  Closes the descriptor.  Blocking."""
    try:
        stop = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, inode.size_bytes)
        data = os.pread(fd, stop - start, start)
    finally:
        os.close(fd)
    if len(data) != stop - start:
        return None
    for at in range(start, stop, BLOCK_BYTES):
        block = memoryview(data)[at - start : at - start + BLOCK_BYTES]
        if not is_intact(block, inode.ino, value, at // BLOCK_BYTES % PART_BLOCKS):
            return None
    return data[: end - start]


def copy_local(
    source: int, target: Callable[[int], int], ino: int, size_bytes: int, base_size: int, local: Mapping[int, int]
) -> dict[int, int]:
    """Copy the blocks that an overlay has to its cache files; return block of the file → checksum.  Raises OSError.

    target: returns the descriptor for a part.
    """
    checksums: dict[int, int] = {}
    for block in range(-(-size_bytes // BLOCK_BYTES)):
        part, bit = divmod(block, PART_BLOCKS)
        start = block * BLOCK_BYTES
        if start < base_size and not local.get(part, 0) >> bit & 1:
            continue
        data = os.pread(source, min(BLOCK_BYTES, size_bytes - start), start)
        fd, done = target(part), 0
        while done < len(data):
            done += os.pwrite(fd, memoryview(data)[done:], start + done)
        checksums[block] = xxhash.xxh3_64_intdigest(data, ino)
    return checksums
