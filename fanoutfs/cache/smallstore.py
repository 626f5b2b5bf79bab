"""The writing side of the small-file store: admit, drop, evict.  Core only; see `small` for the format and the readers.

Apart from `small` because a front must not load trio, which the group writer needs.
"""

import contextlib
import os
import random
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import lmdb
import trio
import xxhash

from fanoutfs.cache.small import CHECKSUM, MIN_MAP_BYTES, SmallMismatchError, SmallReader, open_small
from fanoutfs.errors import DatabaseError, StoreBrokenError
from fanoutfs.index.format import INO_KEY
from fanoutfs.index.store import BROKEN
from fanoutfs.index.writer import GroupWriter

_EVICT_SHARE: Final = 16
"""A full store gives up one sixteenth at a time, so that a commit serves many evictions."""
_RUN: Final = 16
"""Neighbours evicted together: they share pages."""
_WAY_SHARES: Final = (16, 16, 8, 8, 4, 4, 2, 2)
"""A large content needs free pages in a row, which many tiny ones leave none of.  Then one long run of neighbours goes,
and longer ones until it fits.  Each twice: LMDB reuses pages two transactions after they were freed."""


class _StoreFullError(DatabaseError):
    """The map has no free page."""


class SmallStore:
    """The core's side: admits, drops and evicts contents."""

    def __init__(self, volume: Path, map_bytes: int) -> None:
        self._env = open_small(volume, map_bytes, writable=True)
        _extend(self._env)
        self.broken = threading.Event()
        """Set when the store turned out to be damaged inside; then every call raises StoreBrokenError."""
        # LMDB needs free pages to delete, and reuses the pages of deleted values one commit later.
        self._soft_bytes = max(MIN_MAP_BYTES, map_bytes) // 8 * 7
        self.evicted = 0
        """Contents evicted so far.  Written by the writer thread only."""
        self._making_way = trio.Lock()
        self._writer: GroupWriter[lmdb.Transaction] = GroupWriter("small-writer", self._transaction)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        try:
            with self._env.begin(write=True) as txn:
                yield txn
        except lmdb.MapFullError as error:
            raise _StoreFullError("the small-file store is full") from error
        except BROKEN as error:
            self.broken.set()
            raise self._broken(error) from error
        except lmdb.Error as error:
            raise DatabaseError(f"the small-file store refused a change: {error}") from error

    def _broken(self, error: lmdb.Error) -> StoreBrokenError:
        return StoreBrokenError(f"the small-file store is damaged: {error}")

    def has(self, ino: int) -> bool:
        """Tell whether a content is stored (its checksum is not looked at).  Raises StoreBrokenError."""
        try:
            with self._env.begin(buffers=True) as txn:
                return txn.get(INO_KEY.pack(ino)) is not None
        except BROKEN as error:
            self.broken.set()
            raise self._broken(error) from error

    def is_intact(self, ino: int) -> bool:
        """Tell whether a content is stored and has its checksum."""
        with self._env.begin(buffers=True) as txn:
            try:
                return SmallReader.get(txn, ino) is not None
            except SmallMismatchError:
                return False

    async def put(self, ino: int, content: memoryview) -> bool:
        """Store a content; False when there is no room even after evicting.  Checkpoint.  Raises DatabaseError."""
        value = CHECKSUM.pack(xxhash.xxh3_64_intdigest(content, ino)) + content
        put = partial(self._put, ino=ino, value=value)
        with contextlib.suppress(_StoreFullError):
            return await self._writer.run(put)
        async with self._making_way:
            for share in _WAY_SHARES:
                # In a transaction of its own: what aborts with the put would leave the store full for ever.
                with contextlib.suppress(_StoreFullError):
                    await self._writer.run(partial(self._make_way, share=share))
                    return await self._writer.run(put)
        return False

    async def put_many(self, items: Sequence[tuple[int, memoryview]]) -> list[bool]:
        """Store contents (inode, content) in one transaction; False for each that found no room.  Checkpoint.

        Raises DatabaseError.
        """

        def put_all(txn: lmdb.Transaction) -> list[bool]:
            return [
                self._put(txn, ino, CHECKSUM.pack(xxhash.xxh3_64_intdigest(content, ino)) + content)
                for ino, content in items
            ]

        try:
            return await self._writer.run(put_all)
        except _StoreFullError:  # room is made for each by itself
            return [await self.put(ino, content) for ino, content in items]

    def _put(self, txn: lmdb.Transaction, ino: int, value: bytes) -> bool:
        if len(value) > self._soft_bytes // _EVICT_SHARE:
            return False
        stat = txn.stat()
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        if pages * stat["psize"] + len(value) > self._soft_bytes:
            self.evicted += _evict(txn, _EVICT_SHARE, _RUN)
        return bool(txn.put(INO_KEY.pack(ino), value))

    def _make_way(self, txn: lmdb.Transaction, share: int) -> None:
        self.evicted += _evict(txn, share, 1 << 30)

    async def drop(self, ino: int) -> None:
        """Remove a content.  Checkpoint.  Raises DatabaseError."""
        await self._writer.run(lambda txn: txn.delete(INO_KEY.pack(ino)))

    def release_dead_readers(self) -> None:
        """Free the reader slots of processes that were killed."""
        self._env.reader_check()

    def file_bytes(self) -> int:
        """Return what the file occupies on disk."""
        return os.stat(self._env.path()).st_blocks * 512

    def close(self) -> None:
        """Commit, sync and close.  Blocks."""
        self._writer.stop()
        self._env.sync(True)
        self._env.close()


def _extend(env: lmdb.Environment) -> None:
    """Make the file as long as its header says it is: touching a page behind its end kills the process (SIGBUS).

    The zeros that are there instead are no valid page, or fail a content's checksum.
    """
    wanted = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if os.stat(env.path()).st_size < wanted:
        os.truncate(env.path(), wanted)


def _evict(txn: lmdb.Transaction, share: int, run: int) -> int:
    """Delete one `share`-th of the contents, in runs of neighbours from random places, and return how many.

    Random choice is the simplest policy that survives scans: repeated passes over more than fits keep a share.
    """
    wanted = max(1, txn.stat()["entries"] // share)
    deleted = 0
    with txn.cursor() as cursor:
        while deleted < wanted and cursor.first():
            low = INO_KEY.unpack(bytes(cursor.key()))[0]
            cursor.last()
            high = INO_KEY.unpack(bytes(cursor.key()))[0]
            if not cursor.set_range(INO_KEY.pack(random.randint(low, high))):
                cursor.first()
            for _step in range(min(run, wanted - deleted)):
                if not cursor.delete():
                    break
                deleted += 1
                if not cursor.key():
                    break
    return deleted
