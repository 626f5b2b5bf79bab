"""Where an inode is, which key its object shall have, and whose an object is: read from one snapshot of the index.

Any process; nothing is kept between snapshots.

`names` says where directories, new, renamed and linked inodes are.  Every other inode is where its key says, save that
a directory above it may have moved since: the objects below an old prefix belong to the directory that `departed`
names, the longest such prefix decides.
"""

from collections.abc import Callable
from typing import Final

import lmdb

from fanoutfs.index.changed import ChangedRecords
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import ROOT_INO

_DEPTH_MAX: Final = 4096
"""Longer than any path; a circle of names would be a damaged index, not an endless loop."""


class Places:
    """Questions about one snapshot.  root_prefix: what all keys of the mount begin with, "" or ending with "/"."""

    def __init__(
        self,
        root_prefix: str,
        records: ChangedRecords,
        inode: Callable[[int], Inode | None],
        child: Callable[[int, bytes], int | None],
    ) -> None:
        self._root_prefix = root_prefix
        self.records = records
        self.inode = inode
        self.child = child

    @classmethod
    def of_reader(cls, reader: IndexReader, txn: lmdb.Transaction, root_prefix: str) -> "Places":
        """Look through a read transaction."""
        return cls(
            root_prefix,
            reader.changed(txn),
            lambda ino: reader.inode(txn, ino),
            lambda parent, name: reader.child(txn, parent, name),
        )

    @classmethod
    def of_transaction(cls, txn: IndexTransaction, root_prefix: str) -> "Places":
        """Look through the writer's transaction."""

        def child(parent: int, name: bytes) -> int | None:
            found = txn.entry(parent, name)
            return None if found is None else found[0]

        return cls(root_prefix, txn.changed, txn.inode, child)

    def place(self, ino: int) -> tuple[int, bytes] | None:
        """Return (parent, name) of an inode, or of a further hard link by its cookie; None: no name leads there."""
        known = self.records.name(ino)
        if known is not None:
            return known
        inode = self.inode(ino)
        if inode is None or not inode.key or inode.is_dir:
            return None
        parent, name = self._above(inode.key)
        return (parent, name) if parent is not None and self.child(parent, name) == ino else None

    def key(self, ino: int) -> str | None:
        """Return the key that belongs to an inode's place (a directory's ends with "/"); None: no name leads there."""
        parts: list[bytes] = []
        at = ino
        while at != ROOT_INO:
            place = self.place(at)
            if place is None or len(parts) > _DEPTH_MAX:
                return None
            at, name = place
            parts.append(name)
        path = b"/".join(reversed(parts)).decode("utf-8", "surrogateescape")
        inode = self.inode(ino)
        slash = "/" if path and inode is not None and inode.is_dir else ""
        return f"{self._root_prefix}{path}{slash}"

    def at(self, key: str) -> int | None:
        """Return the inode at the place that a key names, whatever object it has."""
        return self._walk(ROOT_INO, key.removeprefix(self._root_prefix))

    def holder(self, key: str) -> int | None:
        """Return the inode whose object a departed key is: it moved away from there and its object did not yet."""
        departed = self.records.departed(key)
        if departed is not None:
            found: int | None = departed.ino
        else:
            moved = self.moved_prefix(key)
            found = None if moved is None else self._walk(moved[1], key.removeprefix(moved[0]))
        inode = None if not found else self.inode(found)
        return found if inode is not None and inode.key == key and not inode.is_dir else None

    def moved_prefix(self, key: str) -> tuple[str, int] | None:
        """Return (prefix, directory): the longest prefix above a key whose objects belong to a directory by now."""
        end = key.rstrip("/").rfind("/")
        while end > 0 and end + 1 > len(self._root_prefix):
            prefix = key[: end + 1]
            departed = self.records.departed(prefix)
            if departed is not None and departed.ino:
                return prefix, departed.ino
            end = key.rfind("/", 0, end)
        return None

    def _above(self, key: str) -> tuple[int | None, bytes]:
        """Return the directory in which an object's inode is, unless it was renamed, and its name there."""
        moved = self.moved_prefix(key)
        prefix, start = (self._root_prefix, ROOT_INO) if moved is None else moved
        directory, _, name = key.removeprefix(prefix).rpartition("/")
        return self._walk(start, directory), name.encode("utf-8", "surrogateescape")

    def _walk(self, start: int, path: str) -> int | None:
        at: int | None = start
        for part in path.split("/"):
            if part and at is not None:
                at = self.child(at, part.encode("utf-8", "surrogateescape"))
        return at
