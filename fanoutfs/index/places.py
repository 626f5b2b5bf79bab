"""Where an inode is, which key its object shall have, and whose an object is: read from one snapshot of the index.

Any process; nothing is kept between snapshots.

`names` says where directories, new, renamed and linked inodes are.  Every other inode is where its key says, save that
a directory above it may have moved since: the objects below an old prefix belong to the directory that `departed`
names, the longest such prefix decides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import lmdb

from fanoutfs.index.changed import ChangedRecords
from fanoutfs.index.format import Departed, Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.tiers import StoredAs
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import ROOT_INO

_DEPTH_MAX: Final = 4096
"""Longer than any path; a circle of names would be a damaged index, not an endless loop."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in the way under a key.  ino: whose it is; 0: nobody's, it is to be deleted."""

    ino: int
    key: str


class Places:
    """Questions about one snapshot.  root_prefix: what all keys of the mount begin with, "" or ending with "/"."""

    def __init__(
        self,
        root_prefix: str,
        records: ChangedRecords,
        inode: Callable[[int], Inode | None],
        child: Callable[[int, bytes], int | None],
        is_orphan: Callable[[int], bool],
        stored_as: Callable[[int], StoredAs],
    ) -> None:
        self._root_prefix = root_prefix
        self.records = records
        self.inode = inode
        self.child = child
        self.is_orphan = is_orphan
        self.stored_as = stored_as

    @classmethod
    def of_reader(cls, reader: IndexReader, txn: lmdb.Transaction, root_prefix: str) -> "Places":
        """Look through a read transaction."""
        return cls(
            root_prefix,
            reader.changed(txn),
            lambda ino: reader.inode(txn, ino),
            lambda parent, name: reader.child(txn, parent, name),
            lambda ino: reader.is_orphan(txn, ino),
            reader.tiers(txn).stored_as,
        )

    @classmethod
    def of_transaction(cls, txn: IndexTransaction, root_prefix: str) -> "Places":
        """Look through the writer's transaction."""

        def child(parent: int, name: bytes) -> int | None:
            found = txn.entry(parent, name)
            return None if found is None else found[0]

        return cls(root_prefix, txn.changed, txn.inode, child, txn.is_orphan, txn.tiers.stored_as)

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
        prefix = self.prefix(ino)
        if prefix is None or ino == ROOT_INO:
            return prefix
        inode = self.inode(ino)
        return prefix if inode is not None and inode.is_dir else prefix[:-1]

    def prefix(self, ino: int) -> str | None:
        """Return what the keys of all that is in a directory begin with; None: no name leads to it."""
        parts: list[bytes] = []
        at = ino
        while at != ROOT_INO:
            place = self.place(at)
            if place is None or len(parts) > _DEPTH_MAX:
                return None
            at, name = place
            parts.append(name + b"/")
        return self._root_prefix + b"".join(reversed(parts)).decode("utf-8", "surrogateescape")

    def ways(self, ino: int) -> set[str]:
        """Return where else than under its key an object may be: where the directories above come from or go to.

        Of a directory, or of a further name by its cookie.  A move of a directory above that was broken off has brought
        some objects there, and has not noted which; nor does anything say which key a further name's object has.
        """
        below: dict[int, str] = {}
        inode = self.inode(ino)
        path, at, end = "", ino, "/" if inode is not None and inode.is_dir else ""
        for _depth in range(_DEPTH_MAX):
            place = None if at == ROOT_INO else self.place(at)
            if place is None:
                break
            at, path, end = place[0], f"{place[1].decode('utf-8', 'surrogateescape')}{end}{path}", "/"
            directory = self.inode(at)
            if directory is not None and directory.is_held:
                below[at] = path
        if not below:
            return set()
        departed = self.records.all_departed()
        return {key + below[record.ino] for key, record in departed if key.endswith("/") and record.ino in below}

    def at(self, key: str) -> int | None:
        """Return the inode at the place that a key names, whatever object it has."""
        return self._walk(ROOT_INO, key.removeprefix(self._root_prefix))

    def obstacle(self, key: str, ino: int) -> Obstacle | None:
        """Return what has to leave the store before an inode's object (or a directory's marker) can be put at a key.

        Stores that are file systems inside have no file `a` beside `a/b`, so that neither may be put before the other
        has gone; elsewhere it costs nothing to keep to that.
        """
        found = self.leaving(key, ino) or self.file_in_way(key, ino)
        return found if found is not None or key.endswith("/") else self._below(f"{key}/")

    def file_in_way(self, key: str, ino: int) -> Obstacle | None:
        """Return the file's object that has to leave before an inode's can be put: at the key itself, or above it."""
        place = key.removesuffix("/")
        for each in (*self._files_above(place), place):
            found = self._occupant(each)
            if found is not None and not (found.key == key and self._may_go(found.ino, ino, key)):
                return found
        return None

    def leaving(self, key: str, ino: int) -> Obstacle | None:
        """Return another directory whose objects are still where a key is: at the prefix itself, or at one above.

        Whatever is below a prefix belongs to one directory at a time.  Else the next rename of the directory that is
        there by now would have to look for those of its files that are in the store already, and what their keys say
        of their places would be wrong.
        """
        end = len(key)
        while end > len(self._root_prefix):
            prefix = key[:end]
            departed = self.records.departed(prefix) if prefix.endswith("/") else None
            if departed is not None and departed.ino not in (0, ino) and self.key(departed.ino) != prefix:
                return Obstacle(departed.ino, prefix)
            end = key.rfind("/", 0, end - 1) + 1
        return None

    def _below(self, prefix: str) -> Obstacle | None:
        """Return what has to leave from below a prefix: a file if there is one, a directory goes after its files."""
        found: Obstacle | None = None
        for key, departed in self.records.all_departed(prefix):
            if not self.is_target(key, departed):
                found = Obstacle(departed.ino, key)
                if departed.ino and not key.endswith("/"):
                    return found
        return found

    def _may_go(self, owner: int, ino: int, key: str) -> bool:
        """Tell whether the object at a key may be replaced by the one of `ino`: nobody here needs it."""
        inode = self.inode(owner) if owner else None
        # Who has an unlinked file open reads what is cached of it.
        return inode is None or owner == ino or inode.key != key or inode.is_whole or self.is_orphan(owner)

    def is_target(self, key: str, departed: Departed) -> bool:
        """Tell whether a departed prefix is where its directory is: objects come to it, none has to leave."""
        return bool(departed.ino) and key.endswith("/") and self.key(departed.ino) == key

    def _files_above(self, key: str) -> Iterator[str]:
        end = key.find("/", len(self._root_prefix))
        while end > 0:
            yield key[:end]
            end = key.find("/", end + 1)

    def _occupant(self, key: str) -> Obstacle | None:
        """Return whose object is at a key without belonging there; ino 0: nobody's, it is to be deleted."""
        departed = self.records.departed(key)
        return self.left_below(key) if departed is None else Obstacle(departed.ino, key)

    def left_below(self, key: str) -> Obstacle | None:
        """Return whose object is at a key because a directory above has moved; None: nobody's, as far as that goes."""
        moved = self.moved_prefix(key)
        if moved is None or self.key(moved[1]) == moved[0]:
            return None
        prefix, at = moved
        for part in key.removeprefix(prefix).split("/"):
            directory = self.inode(at)
            child = self.child(at, part.encode("utf-8", "surrogateescape"))
            if child is None:
                is_known = directory is not None and (directory.is_listed or directory.is_local)
                return None if is_known else Obstacle(moved[1], prefix)
            prefix, at = f"{prefix}{part}/", child
            inode = self.inode(child)
            if inode is None or not inode.is_dir:
                is_there = inode is not None and inode.key == prefix.removesuffix("/")
                return Obstacle(child, prefix.removesuffix("/")) if is_there else None
            if inode.key != prefix:
                return None
        return Obstacle(at, prefix)

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
