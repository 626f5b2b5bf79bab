"""What a front asks the index: one read transaction per request, values in wire layout.

Owned by one front.  A transaction lives for one request only, so that a writer never finds a stale reader.
"""

from collections.abc import Iterator
from pathlib import Path

import lmdb

from fanoutfs.index.changed import ChangedRecords
from fanoutfs.index.format import (
    ENTRY_VALUE,
    INO_KEY,
    PART_HEAD,
    PART_KEY,
    TOTALS,
    Inode,
    cookie_of,
    disk_setting,
    unpack_disk,
    unpack_inode,
)
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.tiers import TierRecords
from fanoutfs.records import ROOT_INO

Transaction = lmdb.Transaction
"""One snapshot: for callers that may not know LMDB."""


class IndexReader:
    """Reads of one snapshot each.  `with reader.begin() as txn:` brackets them."""

    def __init__(self, environment: IndexEnvironment) -> None:
        self._db = environment
        self.begin = environment.env.begin

    def inode_value(self, txn: lmdb.Transaction, ino: int) -> memoryview | bytes | None:
        """Return the raw inode record (starts with the fuse_attr), valid inside the transaction."""
        return txn.get(INO_KEY.pack(ino), db=self._db.inodes)

    def inode(self, txn: lmdb.Transaction, ino: int) -> Inode | None:
        """Return the decoded inode record."""
        value = txn.get(INO_KEY.pack(ino), db=self._db.inodes)
        return None if value is None else unpack_inode(ino, value)

    def child(self, txn: lmdb.Transaction, parent: int, name: bytes) -> int | None:
        """Return the inode under this name; None: no such entry (that is exact if the parent is listed)."""
        value = txn.get(INO_KEY.pack(parent) + name, db=self._db.entries)
        return None if value is None else int.from_bytes(value[:8], "little")

    def changed(self, txn: lmdb.Transaction) -> ChangedRecords:
        """Return the records of what was changed here, for reading."""
        return ChangedRecords(self._db, txn)

    def tiers(self, txn: lmdb.Transaction) -> TierRecords:
        """Return the records of tiering, for reading."""
        return TierRecords(self._db, txn)

    def name_at(self, txn: lmdb.Transaction, cookie: int) -> bytes | None:
        """Return the name at a position of a listing; None: that inode is gone."""
        value = txn.get(INO_KEY.pack(cookie), db=self._db.names)
        if value is not None:
            return bytes(value[8:])
        inode = self.inode(txn, cookie)
        return None if inode is None else inode.name

    def path(self, txn: lmdb.Transaction, ino: int) -> str | None:
        """Return the object key that belongs to an inode's place, without the mount's root prefix.

        A directory's ends with "/"; the root's is "".  None: no name leads there that is recorded (see `format`).
        """
        parts: list[bytes] = []
        records = self.changed(txn)
        at = ino
        while at != ROOT_INO:
            found = records.name(at)
            if found is None:
                return None
            at, name = found
            parts.append(name)
        inode = self.inode(txn, ino)
        text = b"/".join(reversed(parts)).decode("utf-8", "surrogateescape")
        return text + "/" if text and inode is not None and inode.is_dir else text

    def children(self, txn: lmdb.Transaction, parent: int, after: bytes) -> Iterator[tuple[bytes, int, int, int]]:
        """Yield (name, inode, DT_ type, cookie) in name order, of names that sort behind `after` (b"": all)."""
        prefix = INO_KEY.pack(parent)
        with txn.cursor(db=self._db.entries) as cursor:
            found = cursor.set_range(prefix + after + b"\0" if after else prefix)
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                value = cursor.value()
                ino, dtype = ENTRY_VALUE.unpack_from(value)
                yield key[8:], ino, dtype, cookie_of(value)
                found = cursor.next()

    def is_orphan(self, txn: lmdb.Transaction, ino: int) -> bool:
        """Tell whether no name leads to this inode any more."""
        return txn.get(INO_KEY.pack(ino), db=self._db.orphans) is not None

    def part_value(self, txn: lmdb.Transaction, ino: int, part: int) -> memoryview | bytes | None:
        """Return the raw block map of one part of a file."""
        return txn.get(PART_KEY.pack(ino, part), db=self._db.blocks)

    def parts(self, txn: lmdb.Transaction, ino: int) -> Iterator[tuple[int, int]]:
        """Yield (part, mask of its blocks) of what is cached of a large file."""
        prefix = INO_KEY.pack(ino)
        with txn.cursor(db=self._db.blocks) as cursor:
            more = cursor.set_range(prefix)
            while more and bytes(cursor.key()).startswith(prefix):
                yield PART_KEY.unpack(cursor.key())[1], int.from_bytes(cursor.value()[:4], "little")
                more = cursor.next()

    def disks(self, txn: lmdb.Transaction, ino: int) -> dict[int, int]:
        """Return the disks that have parts of a file, and how many each."""
        found: dict[int, int] = {}
        prefix = INO_KEY.pack(ino)
        with txn.cursor(db=self._db.blocks) as cursor:
            more = cursor.set_range(prefix)
            while more and bytes(cursor.key()).startswith(prefix):
                disk = PART_HEAD.unpack_from(cursor.value())[1]
                found[disk] = found.get(disk, 0) + 1
                more = cursor.next()
        return found

    def settings(self, txn: lmdb.Transaction, beginning: bytes) -> dict[bytes, bytes]:
        """Return the settings whose name begins so."""
        found = {}
        with txn.cursor(db=self._db.settings) as cursor:
            more = cursor.set_range(beginning)
            while more and bytes(cursor.key()).startswith(beginning):
                found[bytes(cursor.key())] = bytes(cursor.value())
                more = cursor.next()
        return found

    def disk_folder(self, disk: int) -> Path | None:
        """Return the folder of a further disk that is in use; None: there is no such disk."""
        with self.begin() as txn:
            value = txn.get(disk_setting(disk), db=self._db.settings)
            return None if value is None else unpack_disk(bytes(value)).folder

    def totals(self, txn: lmdb.Transaction) -> tuple[int, int]:
        """Return (files, bytes) of all known files."""
        value = txn.get(b"totals", db=self._db.settings)
        if value is None:
            return 0, 0
        files, size_bytes = TOTALS.unpack(value)
        return files, size_bytes
