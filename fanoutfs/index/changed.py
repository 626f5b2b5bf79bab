"""Records of what was changed here and is not all in the object store: see the second half of `format`.

`ChangedRecords` reads and, in the writer's transactions, writes them; it keeps nothing between calls.
"""

import hashlib
from collections.abc import Iterator, Set
from typing import Any, Final

import lmdb

from fanoutfs.index.format import (
    APPLIED,
    DEPARTED,
    INO_KEY,
    LINK_KEY,
    MASK,
    PART_KEY,
    TOKEN_KEY,
    U64,
    Departed,
    DirtyRecord,
    unpack_departed,
    unpack_dirty,
)
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import Version

_APPLIED_KEPT: Final = 4096
"""More than requests can be in flight."""
_KEY_MAX_BYTES: Final = 511
"""LMDB's limit of keys.  S3 allows 1,024 bytes: longer ones are stored by head and digest."""
_DIGEST_BYTES: Final = 32
_HEAD_BYTES: Final = _KEY_MAX_BYTES - _DIGEST_BYTES


class ChangedRecords:
    """The databases names, targets, xattrs, dirty, staged, local, departed and applied, inside one transaction."""

    def __init__(self, environment: IndexEnvironment, txn: lmdb.Transaction) -> None:
        self._db = environment
        self._txn = txn

    # --- names -------------------------------------------------------------------------------------------------

    def name(self, cookie: int) -> tuple[int, bytes] | None:
        """Return (parent, name) of an entry whose place is recorded."""
        value = self._txn.get(INO_KEY.pack(cookie), db=self._db.names)
        return None if value is None else (int.from_bytes(value[:8], "little"), bytes(value[8:]))

    def put_name(self, cookie: int, parent: int, name: bytes) -> None:
        """Record an entry's place."""
        self._txn.put(INO_KEY.pack(cookie), U64.pack(parent) + name, db=self._db.names)

    def delete_name(self, cookie: int) -> None:
        """Forget an entry's place."""
        self._txn.delete(INO_KEY.pack(cookie), db=self._db.names)

    def links(self, ino: int) -> list[int]:
        """Return the cookies of an inode's further hard links."""
        keys = [key for key, _value in self._below(INO_KEY.pack(ino), self._db.names)]
        return [LINK_KEY.unpack(key)[1] for key in keys if len(key) == LINK_KEY.size]

    def put_link(self, ino: int, cookie: int) -> None:
        """Record a further hard link; its place is recorded under the cookie."""
        self._txn.put(LINK_KEY.pack(ino, cookie), b"", db=self._db.names)

    def delete_link(self, ino: int, cookie: int) -> None:
        """Forget a further hard link and its place."""
        self._txn.delete(LINK_KEY.pack(ino, cookie), db=self._db.names)
        self.delete_name(cookie)

    # --- symbolic links and extended attributes ----------------------------------------------------------------

    def target(self, ino: int) -> bytes | None:
        """Return what a symbolic link points to."""
        value = self._txn.get(INO_KEY.pack(ino), db=self._db.targets)
        return None if value is None else bytes(value)

    def put_target(self, ino: int, target: bytes) -> None:
        """Record what a symbolic link points to."""
        self._txn.put(INO_KEY.pack(ino), target, db=self._db.targets)

    def delete_target(self, ino: int) -> None:
        """Forget a symbolic link's target."""
        self._txn.delete(INO_KEY.pack(ino), db=self._db.targets)

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """Return an extended attribute."""
        value = self._txn.get(INO_KEY.pack(ino) + name, db=self._db.xattrs)
        return None if value is None else bytes(value)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """Return all extended attributes of an inode."""
        return {key[INO_KEY.size :]: value for key, value in self._below(INO_KEY.pack(ino), self._db.xattrs)}

    def put_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute."""
        self._txn.put(INO_KEY.pack(ino) + name, value, db=self._db.xattrs)

    def delete_xattr(self, ino: int, name: bytes) -> bool:
        """Remove an extended attribute; False: there was none."""
        return bool(self._txn.delete(INO_KEY.pack(ino) + name, db=self._db.xattrs))

    # --- dirty -------------------------------------------------------------------------------------------------

    def dirty(self, ino: int) -> DirtyRecord | None:
        """Return what of an inode is not in the store; None: it is clean."""
        value = self._txn.get(INO_KEY.pack(ino), db=self._db.dirty)
        return None if value is None else unpack_dirty(value)

    def put_dirty(self, ino: int, record: DirtyRecord) -> None:
        """Record what of an inode is not in the store."""
        self._txn.put(INO_KEY.pack(ino), record.pack(), db=self._db.dirty)

    def delete_dirty(self, ino: int) -> None:
        """Record that the store has all of an inode."""
        self._txn.delete(INO_KEY.pack(ino), db=self._db.dirty)

    def all_dirty(self) -> Iterator[tuple[int, DirtyRecord]]:
        """Yield (inode, record) in order of inode numbers; nothing may be changed meanwhile."""
        for key, value in self._below(b"", self._db.dirty):
            yield INO_KEY.unpack(key)[0], unpack_dirty(value)

    # --- staged content ----------------------------------------------------------------------------------------

    def base_size(self, ino: int) -> int | None:
        """Return up to where a staged file may need blocks of its object; None: not an overlay."""
        value = self._txn.get(INO_KEY.pack(ino), db=self._db.staged)
        return None if value is None else int.from_bytes(value, "little")

    def put_base_size(self, ino: int, size_bytes: int) -> None:
        """Record up to where a staged file may need blocks of its object."""
        self._txn.put(INO_KEY.pack(ino), U64.pack(size_bytes), db=self._db.staged)

    def local_blocks(self, ino: int, part: int) -> int:
        """Return the blocks of a part that are in the staging file, as bits."""
        value = self._txn.get(PART_KEY.pack(ino, part), db=self._db.local)
        return 0 if value is None else int.from_bytes(value, "little")

    def put_local_blocks(self, ino: int, part: int, mask: int) -> None:
        """Record the blocks of a part that are in the staging file."""
        self._txn.put(PART_KEY.pack(ino, part), MASK.pack(mask), db=self._db.local)

    def local_parts(self, ino: int) -> dict[int, int]:
        """Return {part: bits} of what of an overlay is in the staging file."""
        found = self._below(INO_KEY.pack(ino), self._db.local)
        return {PART_KEY.unpack(key)[1]: int.from_bytes(value, "little") for key, value in found}

    def delete_staged(self, ino: int) -> None:
        """Forget what the staging file of an inode lacks."""
        self._txn.delete(INO_KEY.pack(ino), db=self._db.staged)
        for part in self.local_parts(ino):
            self._txn.delete(PART_KEY.pack(ino, part), db=self._db.local)

    def forget(self, ino: int) -> None:
        """Remove everything that is recorded of an inode: it was freed."""
        for cookie in self.links(ino):
            self.delete_link(ino, cookie)
        self.delete_name(ino)
        self.delete_target(ino)
        for name in self.xattrs(ino):
            self.delete_xattr(ino, name)
        self.delete_dirty(ino)
        self.delete_staged(ino)

    # --- departed objects --------------------------------------------------------------------------------------

    def departed(self, key: str) -> Departed | None:
        """Return what became of an object (or a prefix, ending with "/") that is in the store but not here."""
        stored = _stored(_encode(key))
        value = self._txn.get(stored, db=self._db.departed)
        return None if value is None else _departed(stored, bytes(value))[1]

    @property
    def has_departed(self) -> bool:
        """Tell whether any object is in the store but not at its place here."""
        return bool(self._txn.stat(self._db.departed)["entries"])

    def put_departed(self, key: str, record: Departed) -> None:
        """Record that an object is in the store but not at its place here."""
        encoded = _encode(key)
        stored = _stored(encoded)
        rest = b"" if stored == encoded else b"\0" + encoded
        self._txn.put(stored, record.pack() + rest, db=self._db.departed)

    def delete_departed(self, key: str) -> None:
        """Record that nothing is left in the store under this key that should not be."""
        self._txn.delete(_stored(_encode(key)), db=self._db.departed)

    def all_departed(self, prefix: str = "") -> Iterator[tuple[str, Departed]]:
        """Yield (key, record), a prefix before what is below it save among long keys; nothing may change meanwhile."""
        for stored, value in self._below(_encode(prefix)[:_HEAD_BYTES], self._db.departed):
            key, record = _departed(stored, value)
            if key.startswith(prefix):
                yield key, record

    @property
    def departed_count(self) -> int:
        """Return how many keys are in the store but not at their place here."""
        return int(self._txn.stat(self._db.departed)["entries"])

    def is_departed_below(self, prefix: str, but: Set[str] = frozenset()) -> bool:
        """Tell whether a key below a prefix is departed, save those in `but`."""
        return any(key != prefix and key not in but for key, _departed in self.all_departed(prefix))

    def prefixes_of(self, ino: int) -> list[str]:
        """Return the departed prefixes whose objects belong to a directory."""
        return [key for key, departed in self.all_departed() if departed.ino == ino and key.endswith("/")]

    def departed_behind(self, after: str, limit: int) -> list[tuple[str, Departed]]:
        """Return the first (key, record) behind a key ("": all), in the order in which they are stored."""
        found: list[tuple[str, Departed]] = []
        start = _stored(_encode(after)) if after else b""
        with self._txn.cursor(db=self._db.departed) as cursor:
            more = cursor.set_range(start) if start else cursor.first()
            if more and bytes(cursor.key()) == start:
                more = cursor.next()
            while more and len(found) < limit:
                found.append(_departed(bytes(cursor.key()), bytes(cursor.value())))
                more = cursor.next()
        return found

    # --- changes that were applied -----------------------------------------------------------------------------

    def applied(self, token: int) -> tuple[int, int] | None:
        """Return (opcode, inode) of a change that was carried out under this token."""
        value = self._txn.get(TOKEN_KEY.pack(token), db=self._db.applied)
        return None if value is None else APPLIED.unpack(value)[:2]

    def put_applied(self, token: int, opcode: int, ino: int, sequence: int) -> None:
        """Remember a change; those that are far behind `sequence` are forgotten now and then."""
        self._txn.put(TOKEN_KEY.pack(token), APPLIED.pack(opcode, ino, sequence), db=self._db.applied)
        if sequence % _APPLIED_KEPT == 0:
            with self._txn.cursor(db=self._db.applied) as cursor:
                more = cursor.first()
                while more:
                    is_old = APPLIED.unpack(cursor.value())[2] + _APPLIED_KEPT <= sequence
                    more = cursor.delete() if is_old else cursor.next()

    @property
    def applied_count(self) -> int:
        """Return how many changes are remembered."""
        return int(self._txn.stat(self._db.applied)["entries"])

    def forget_applied(self) -> None:
        """Forget all of them: a new mount counts its requests from the beginning."""
        with self._txn.cursor(db=self._db.applied) as cursor:
            more = cursor.first()
            while more:
                more = cursor.delete()

    def _below(self, prefix: bytes, database: Any) -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(db=database) as cursor:
            more = cursor.set_range(prefix) if prefix else cursor.first()
            while more:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    return
                yield key, bytes(cursor.value())
                more = cursor.next()


def _encode(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _stored(encoded: bytes) -> bytes:
    """Return under what LMDB has an object's key."""
    if len(encoded) <= _KEY_MAX_BYTES:
        return encoded
    return encoded[:_HEAD_BYTES] + hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()


def _departed(stored: bytes, value: bytes) -> tuple[str, Departed]:
    """Decode (key, record).  A long key stands behind the record's text, which has no NUL in it."""
    text, _nul, long_key = value[DEPARTED.size :].partition(b"\0")
    return (long_key or stored).decode("utf-8", "surrogateescape"), unpack_departed(value[: DEPARTED.size] + text)


def no_version() -> Version:
    """Return the version of an object of which nothing is known but its key."""
    return Version("", "", 0, 0)
