"""Typed reads and writes inside one LMDB write transaction; the vocabulary of `operations`.

Writer thread of the core only.
"""

import stat
from collections.abc import Iterator

import lmdb

from fanoutfs.errors import DatabaseError, IndexFullError, StoreBrokenError
from fanoutfs.index.changed import ChangedRecords
from fanoutfs.index.format import (
    ENTRY_COOKIE_VALUE,
    ENTRY_VALUE,
    FIRST_INO,
    INO_KEY,
    PART_HEAD,
    PART_KEY,
    PART_VALUE,
    TOTALS,
    U64,
    Inode,
    cookie_of,
    disk_bytes_setting,
    disk_setting,
    touched,
    unpack_inode,
)
from fanoutfs.index.store import BROKEN, IndexEnvironment
from fanoutfs.index.tiers import TierRecords
from fanoutfs.records import PART_BLOCKS

PartMap = tuple[int, list[int], int]
"""(present bits, 32 checksums, number of the disk)."""


class IndexTransaction:
    """A write transaction with the operations of the format; nothing is kept between transactions."""

    def __init__(self, environment: IndexEnvironment, txn: lmdb.Transaction) -> None:
        self._db = environment
        self._txn = txn
        self._changed_settings: dict[bytes, bytes] = {}
        self.changed = ChangedRecords(environment, txn)
        self.tiers = TierRecords(environment, txn)

    # --- settings ----------------------------------------------------------------------------------------------

    def setting(self, name: bytes) -> bytes | None:
        """Return a setting's raw value."""
        if name in self._changed_settings:
            return self._changed_settings[name]
        value = self._txn.get(name, db=self._db.settings)
        return None if value is None else bytes(value)

    def set_setting(self, name: bytes, value: bytes) -> None:
        """Store a setting."""
        self._changed_settings[name] = value

    def delete_settings(self, beginning: bytes) -> None:
        """Remove all settings whose name begins so."""
        self.flush()
        with self._txn.cursor(db=self._db.settings) as cursor:
            more = cursor.set_range(beginning)
            while more and bytes(cursor.key()).startswith(beginning):
                more = cursor.delete()

    def delete_setting(self, name: bytes) -> None:
        """Remove a setting."""
        self._changed_settings.pop(name, None)
        self._txn.delete(name, db=self._db.settings)

    def settings_from(self, beginning: bytes) -> list[bytes]:
        """Return the names of the settings that begin so."""
        self.flush()
        found = []
        with self._txn.cursor(db=self._db.settings) as cursor:
            more = cursor.set_range(beginning)
            while more and bytes(cursor.key()).startswith(beginning):
                found.append(bytes(cursor.key()))
                more = cursor.next()
        return found

    def flush(self) -> None:
        """Write the changed settings: counters move with every file, and a page of a listing has a thousand."""
        for name, value in self._changed_settings.items():
            self._txn.put(name, value, db=self._db.settings)
        self._changed_settings.clear()

    def _counter(self, name: bytes, default: int = 0) -> int:
        value = self.setting(name)
        return default if value is None else int(U64.unpack(value)[0])

    def new_ino(self) -> int:
        """Return an inode number that was never used in this index."""
        return self.new_inos(1)

    def new_inos(self, count: int) -> int:
        """Return the first of so many consecutive inode numbers that were never used."""
        ino = self._counter(b"next_ino", FIRST_INO)
        self.set_setting(b"next_ino", U64.pack(ino + count))
        return ino

    def skip_inos(self, first: int) -> None:
        """Have no number below `first` handed out any more."""
        self.set_setting(b"next_ino", U64.pack(max(first, self._counter(b"next_ino", FIRST_INO))))

    def add_totals(self, files: int, size_bytes: int) -> None:
        """Change what statfs counts."""
        value = self.setting(b"totals")
        old_files, old_bytes = TOTALS.unpack(value) if value else (0, 0)
        self.set_setting(b"totals", TOTALS.pack(max(0, old_files + files), max(0, old_bytes + size_bytes)))

    @property
    def cached_bytes(self) -> int:
        """Return how many bytes of large files are in the cache."""
        return self._counter(b"cached_bytes")

    def add_cached_bytes(self, change: int, disk: int = 0) -> None:
        """Change the sum of cached bytes, and that of a further disk."""
        self.set_setting(b"cached_bytes", U64.pack(max(0, self.cached_bytes + change)))
        if disk:
            name = disk_bytes_setting(disk)
            self.set_setting(name, U64.pack(max(0, self._counter(name) + change)))

    def has_disk(self, disk: int) -> bool:
        """Tell whether a disk may get blocks."""
        return not disk or self.setting(disk_setting(disk)) is not None

    def new_disk(self) -> int:
        """Return a number that no disk of this index ever had."""
        number = self._counter(b"next_disk", 1)
        self.set_setting(b"next_disk", U64.pack(number + 1))
        return number

    # --- entries and inodes ------------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode | None:
        """Return an inode record."""
        value = self._txn.get(INO_KEY.pack(ino), db=self._db.inodes)
        return None if value is None else unpack_inode(ino, value)

    def put_inode(self, inode: Inode) -> None:
        """Store an inode record."""
        self._txn.put(INO_KEY.pack(inode.ino), inode.pack(), db=self._db.inodes)

    def touch_inode(self, ino: int, now_ns: int) -> None:
        """Move an inode's mtime and ctime on, if there is such an inode."""
        value = self._txn.get(INO_KEY.pack(ino), db=self._db.inodes)
        if value is not None:
            self._txn.put(INO_KEY.pack(ino), touched(value, now_ns), db=self._db.inodes)

    def delete_inode(self, ino: int) -> None:
        """Remove an inode record."""
        self._txn.delete(INO_KEY.pack(ino), db=self._db.inodes)

    def all_inodes(self) -> Iterator[Inode]:
        """Yield every inode record; put_inode of the yielded number is allowed meanwhile."""
        with self._txn.cursor(db=self._db.inodes) as cursor:
            for key, value in cursor:
                yield unpack_inode(INO_KEY.unpack(key)[0], value)

    def entry(self, parent: int, name: bytes) -> tuple[int, int] | None:
        """Return (inode, DT_ type) under a name."""
        value = self._txn.get(INO_KEY.pack(parent) + name, db=self._db.entries)
        return None if value is None else ENTRY_VALUE.unpack_from(value)

    def entry_cookie(self, parent: int, name: bytes) -> int | None:
        """Return the position of a name in listings: its inode's number unless it is a further hard link."""
        value = self._txn.get(INO_KEY.pack(parent) + name, db=self._db.entries)
        return None if value is None else cookie_of(value)

    def put_entry(self, parent: int, name: bytes, inode: Inode, cookie: int = 0) -> None:
        """Let a name lead to an inode.  cookie: 0 for an inode's only name."""
        dtype = stat.S_IFMT(inode.mode) >> 12
        value = ENTRY_COOKIE_VALUE.pack(inode.ino, dtype, cookie) if cookie else ENTRY_VALUE.pack(inode.ino, dtype)
        self._txn.put(INO_KEY.pack(parent) + name, value, db=self._db.entries)

    def delete_entry(self, parent: int, name: bytes) -> None:
        """Remove a name."""
        self._txn.delete(INO_KEY.pack(parent) + name, db=self._db.entries)

    def entries(self, parent: int) -> list[tuple[bytes, int, int]]:
        """Return (name, inode, DT_ type) of everything in a directory."""
        prefix = INO_KEY.pack(parent)
        found = []
        with self._txn.cursor(db=self._db.entries) as cursor:
            more = cursor.set_range(prefix)
            while more and bytes(cursor.key()).startswith(prefix):
                ino, dtype = ENTRY_VALUE.unpack_from(cursor.value())
                found.append((bytes(cursor.key())[8:], ino, dtype))
                more = cursor.next()
        return found

    def entries_between(self, parent: int, after: bytes, before: bytes) -> Iterator[tuple[bytes, int, int]]:
        """Yield (name, inode, DT_ type) of the names that sort strictly between two others.

        No entry may be changed meanwhile.
        """
        prefix = INO_KEY.pack(parent)
        end = prefix + before
        with self._txn.cursor(db=self._db.entries) as cursor:
            more = cursor.set_range(prefix + after + b"\0")
            while more:
                key = bytes(cursor.key())
                if key >= end or not key.startswith(prefix):
                    return
                ino, dtype = ENTRY_VALUE.unpack_from(cursor.value())
                yield key[8:], ino, dtype
                more = cursor.next()

    def first_entry(self, parent: int, after: bytes = b"") -> tuple[bytes, int] | None:
        """Return (name, inode) of a directory's first entry behind a name; None: there is none."""
        prefix = INO_KEY.pack(parent)
        with self._txn.cursor(db=self._db.entries) as cursor:
            if not cursor.set_range(prefix + after + b"\0" if after else prefix):
                return None
            key = bytes(cursor.key())
            if not key.startswith(prefix):
                return None
            return key[8:], ENTRY_VALUE.unpack_from(cursor.value())[0]

    # --- orphans -----------------------------------------------------------------------------------------------

    def put_orphan(self, ino: int, now_ns: int) -> None:
        """Note that no name leads to this inode any more."""
        self._txn.put(INO_KEY.pack(ino), U64.pack(now_ns), db=self._db.orphans)

    def is_orphan(self, ino: int) -> bool:
        """Tell whether no name leads to this inode any more."""
        return self._txn.get(INO_KEY.pack(ino), db=self._db.orphans) is not None

    def delete_orphan(self, ino: int) -> None:
        """Forget an orphan."""
        self._txn.delete(INO_KEY.pack(ino), db=self._db.orphans)

    # --- block maps --------------------------------------------------------------------------------------------

    def part(self, ino: int, part: int) -> PartMap:
        """Return the block map of a part; all absent when there is no record."""
        value = self._txn.get(PART_KEY.pack(ino, part), db=self._db.blocks)
        if value is None:
            return 0, [0] * PART_BLOCKS, 0
        present, disk, *checksums = PART_VALUE.unpack(value)
        return present, checksums, disk

    def put_part(self, ino: int, part: int, present: int, checksums: list[int], disk: int) -> None:
        """Store the block map of a part; one with nothing present is removed."""
        key = PART_KEY.pack(ino, part)
        if present:
            self._txn.put(key, PART_VALUE.pack(present, disk, *checksums), db=self._db.blocks)
        else:
            self._txn.delete(key, db=self._db.blocks)

    def parts(self, ino: int) -> list[int]:
        """Return the indices of the parts of a file of which something is cached."""
        prefix = INO_KEY.pack(ino)
        found = []
        with self._txn.cursor(db=self._db.blocks) as cursor:
            more = cursor.set_range(prefix)
            while more and bytes(cursor.key()).startswith(prefix):
                found.append(PART_KEY.unpack(cursor.key())[1])
                more = cursor.next()
        return found

    def parts_after(self, ino: int, part: int, count: int) -> list[tuple[int, int, int]]:
        """Return (inode, part, disk) of so many parts in order, from this one on."""
        found: list[tuple[int, int, int]] = []
        with self._txn.cursor(db=self._db.blocks) as cursor:
            more = cursor.set_range(PART_KEY.pack(ino, part))
            while more and len(found) < count:
                found_ino, found_part = PART_KEY.unpack(cursor.key())
                found.append((found_ino, found_part, PART_HEAD.unpack_from(cursor.value())[1]))
                more = cursor.next()
        return found


class write_transaction:  # noqa: N801 - used like a function; a generator would cost a tenth of a small change
    """Begin a write transaction; commit it on success, abort it on an exception.

    Raises DatabaseError, IndexFullError, StoreBrokenError.
    """

    __slots__ = ("_environment", "_transaction", "_txn")

    def __init__(self, environment: IndexEnvironment) -> None:
        self._environment = environment

    def __enter__(self) -> IndexTransaction:
        try:
            self._txn = self._environment.env.begin(write=True)
        except lmdb.Error as error:
            raise self._translated(error) from error
        self._transaction = IndexTransaction(self._environment, self._txn)
        return self._transaction

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        try:
            if kind is None:
                self._transaction.flush()
                self._txn.commit()
        except lmdb.Error as failed:
            raise self._translated(failed) from failed
        finally:
            self._txn.abort()  # of what is not committed
        if isinstance(error, lmdb.Error):
            raise self._translated(error) from error

    def _translated(self, error: lmdb.Error) -> DatabaseError:
        if isinstance(error, BROKEN):
            self._environment.broken.set()
            return StoreBrokenError(f"the index is damaged: {error}")
        if isinstance(error, lmdb.PanicError):
            self._environment.stopped.set()
            return StoreBrokenError(f"the index has to be opened anew: {error}")
        kind = IndexFullError if self._environment.is_for_want_of_room(error) else DatabaseError
        return kind(f"the index refused a change: {error}")


class pinned_transaction(write_transaction):  # noqa: N801 - as above
    """A write transaction of another process than the core: only while the core's pin of the last sync is there.

    Raises DatabaseError if it is not: see `IndexEnvironment.has_pin`; else as `write_transaction`.
    """

    __slots__ = ("_pin",)

    def __init__(self, environment: IndexEnvironment, pin: memoryview) -> None:
        super().__init__(environment)
        self._pin = pin

    def __enter__(self) -> IndexTransaction:
        transaction = super().__enter__()
        try:
            if self._environment.has_pin(self._pin):
                return transaction
        except lmdb.Error as error:
            self._txn.abort()
            raise self._translated(error) from error
        self._txn.abort()
        raise DatabaseError("the core is dead, or moves its pin")
