"""What the index remembers for tiering: when files were read, in which storage class objects are.

`TierRecords` reads and, in the writer's transactions, writes the databases `accessed` and `stored`; it keeps nothing
between calls.  All of it can be lost with the index without a byte being wrong: files then count as read when they
were fetched.
"""

from dataclasses import dataclass
from typing import Final

import lmdb

from fanoutfs.index.format import INO_KEY, U64
from fanoutfs.index.store import IndexEnvironment

_ARCHIVED: Final = 1


@dataclass(frozen=True, slots=True)
class StoredAs:
    """How the store keeps an object, as far as it told.  is_archived: it refused a read, or will."""

    storage_class: str = ""
    is_archived: bool = False

    def pack(self) -> bytes:
        """Return the stored form."""
        return bytes((_ARCHIVED if self.is_archived else 0,)) + self.storage_class.encode()


def unpack_stored(value: bytes) -> StoredAs:
    """Return what was packed."""
    return StoredAs(value[1:].decode(errors="replace"), bool(value[0] & _ARCHIVED))


class TierRecords:
    """`accessed` and `stored` inside one transaction."""

    def __init__(self, environment: IndexEnvironment, txn: lmdb.Transaction) -> None:
        self._db = environment
        self._txn = txn

    def accessed_ns(self, ino: int) -> int | None:
        """Return when a file was last known to be read; None: never since that is noted."""
        value = self._txn.get(INO_KEY.pack(ino), db=self._db.accessed)
        return None if value is None else int.from_bytes(value, "little")

    def stored_as(self, ino: int) -> StoredAs:
        """Return how the store keeps a file's object."""
        value = self._txn.get(INO_KEY.pack(ino), db=self._db.stored)
        if value is None:
            return StoredAs()
        return unpack_stored(bytes(value))

    def put_accessed(self, ino: int, at_ns: int) -> None:
        """Record when a file was read."""
        self._txn.put(INO_KEY.pack(ino), U64.pack(at_ns), db=self._db.accessed)

    def put_stored(self, ino: int, stored: StoredAs) -> None:
        """Record how the store keeps a file's object."""
        self._txn.put(INO_KEY.pack(ino), stored.pack(), db=self._db.stored)

    def forget(self, ino: int) -> None:
        """Remove what is recorded of an inode: it was freed, or has another content."""
        self._txn.delete(INO_KEY.pack(ino), db=self._db.accessed)
        self._txn.delete(INO_KEY.pack(ino), db=self._db.stored)
