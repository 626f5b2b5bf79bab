"""The small-file store: whole contents in LMDB, so that one lookup answers a READ.

small.lmdb, LMDB 0.9, one unnamed database: inode u64 big-endian → xxh3-64 of the content u64 little-endian, content.

Written by the core in groups without syncing (MDB_NOSYNC): content can be fetched again, and a sync per group would
cost more than the fetch.  After a power cut such a file may be torn in ways LMDB does not notice, so `boot` names the
kernel boot under which the file is in use; found under another boot, the file is deleted.  A daemon killed with -9
loses nothing: the pages are in the kernel's cache.

Its space is bounded by LMDB's map size (`small_cache_share` of the cap).  Evicted contents leave free pages that the
next ones use; the file does not shrink.
"""

import contextlib
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import lmdb
import xxhash

from fanoutfs.index.format import INO_KEY
from fanoutfs.index.store import LMDB_ENGINE, MAX_READERS
from fanoutfs.index.writer import GroupWriter

FILE_NAME: Final = "small.lmdb"
_BOOT_FILE: Final = "boot"
_CHECKSUM: Final = struct.Struct("<Q")
_EVICT_SHARE: Final = 16
"""A full store gives up one sixteenth at a time, so that a commit serves many evictions."""
_MIN_MAP_BYTES: Final = 1 << 20


def prepare(volume: Path) -> None:
    """Delete a store that a power cut may have torn, and mark it in use.  Once, before any process opens it."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    mark = volume / _BOOT_FILE
    if mark.exists() and mark.read_text(encoding="ascii").strip() != boot_id:
        remove(volume)
    mark.write_text(boot_id + "\n", encoding="ascii")


def remove(volume: Path) -> None:
    """Delete the store's files.  No process may have them open."""
    for suffix in ("", "-lock"):
        (volume / (FILE_NAME + suffix)).unlink(missing_ok=True)


def mark_closed(volume: Path) -> None:
    """Note that the store was synced and closed: it may be used under any boot."""
    (volume / _BOOT_FILE).unlink(missing_ok=True)


def _open(volume: Path, map_bytes: int, *, writable: bool) -> lmdb.Environment:
    return lmdb.open(
        os.fspath(volume / FILE_NAME),
        map_size=max(_MIN_MAP_BYTES, map_bytes),
        subdir=False,
        readonly=not writable,
        sync=False,
        metasync=False,
        readahead=False,
        meminit=False,
        max_readers=MAX_READERS,
        lib_version=LMDB_ENGINE,
    )


class SmallMismatchError(Exception):
    """A stored content does not have its checksum."""


class SmallReader:
    """Verified reads.  Owned by one front."""

    def __init__(self, volume: Path, map_bytes: int) -> None:
        self._env = _open(volume, map_bytes, writable=False)

    def begin(self) -> lmdb.Transaction:
        """Begin the transaction within which `get` results are valid."""
        return self._env.begin(buffers=True)

    @staticmethod
    def get(txn: lmdb.Transaction, ino: int) -> memoryview | None:
        """Return a file's whole content, in the map, or None when it is not stored.  Raises SmallMismatchError."""
        value = txn.get(INO_KEY.pack(ino))
        if value is None:
            return None
        content = memoryview(value)[_CHECKSUM.size :]
        if xxhash.xxh3_64_intdigest(content) != _CHECKSUM.unpack_from(value)[0]:
            raise SmallMismatchError
        return content


class SmallStore:
    """The core's side: admits, drops and evicts contents."""

    def __init__(self, volume: Path, map_bytes: int) -> None:
        self._env = _open(volume, map_bytes, writable=True)
        # LMDB needs free pages to delete, and reuses the pages of deleted values one commit later.
        self._soft_bytes = max(_MIN_MAP_BYTES, map_bytes) // 8 * 7
        self.evicted = 0
        """Contents evicted so far.  Written by the writer thread only."""
        self._writer: GroupWriter[lmdb.Transaction] = GroupWriter("small-writer", self._transaction)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        with self._env.begin(write=True) as txn:
            yield txn

    def has(self, ino: int) -> bool:
        """Tell whether a content is stored (its checksum is not looked at)."""
        with self._env.begin(buffers=True) as txn:
            return txn.get(INO_KEY.pack(ino)) is not None

    def is_intact(self, ino: int) -> bool:
        """Tell whether a content is stored and has its checksum."""
        with self._env.begin(buffers=True) as txn:
            try:
                return SmallReader.get(txn, ino) is not None
            except SmallMismatchError:
                return False

    async def put(self, ino: int, content: memoryview) -> bool:
        """Store a content; False when there is no room even after evicting."""
        value = _CHECKSUM.pack(xxhash.xxh3_64_intdigest(content)) + content
        try:
            return await self._writer.run(lambda txn: self._put(txn, ino, value))
        except lmdb.MapFullError:
            return False

    def _put(self, txn: lmdb.Transaction, ino: int, value: bytes) -> bool:
        if len(value) > self._soft_bytes // _EVICT_SHARE:
            return False
        stat = txn.stat()
        pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        if pages * stat["psize"] + len(value) > self._soft_bytes:
            self.evicted += _evict_some(txn)
        return bool(txn.put(INO_KEY.pack(ino), value))

    async def drop(self, ino: int) -> None:
        """Remove a content."""
        await self._writer.run(lambda txn: txn.delete(INO_KEY.pack(ino)))

    def file_bytes(self) -> int:
        """Return what the file occupies on disk."""
        return os.stat(self._env.path()).st_blocks * 512

    def close(self) -> None:
        """Commit, sync and close.  Blocks."""
        self._writer.stop()
        self._env.sync(True)
        self._env.close()


def _evict_some(txn: lmdb.Transaction) -> int:
    """Delete contents from random places and return how many.

    Random choice is the simplest policy that survives scans: repeated passes over more than fits keep a share.
    """
    entries = txn.stat()["entries"]
    wanted = max(1, entries // _EVICT_SHARE)
    deleted = 0
    with txn.cursor() as cursor:
        while deleted < wanted and cursor.first():
            low = INO_KEY.unpack(bytes(cursor.key()))[0]
            cursor.last()
            high = INO_KEY.unpack(bytes(cursor.key()))[0]
            if not cursor.set_range(INO_KEY.pack(random.randint(low, high))):  # noqa: S311 - not a secret
                cursor.first()
            for _step in range(min(16, wanted - deleted)):
                if not cursor.delete():
                    break
                deleted += 1
                if not cursor.key():
                    break
    return deleted
