"""Merge what a store lists into a directory's entries: page by page, exact, in bounded memory and transactions.

A listing comes in order, and entries are sorted by name, so whatever the index has between the last page's end and
this one's, and the page did not show, is gone.  Nothing but the place reached is remembered between two pages.

Two orders are met, which differ only where a directory `a` has siblings such as `a-1` or `a.txt`, because the bytes
from space to "." sort before "/":

* key order (S3's own: a directory counts as `a/`):     a-1  a.txt  a/  a0
* tree order (SeaweedFS 4.48 and other gateways to file systems, by name):   a/  a-1  a.txt  a0

Which one a store follows need not be known: the place reached is kept in both (`Frontier`), and a name is gone only
when it was passed in both.  Passed by name but not yet as `name/` can only be a directory whose name is a beginning
of the name reached, a handful at most; they are looked at again with the next page.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from fanoutfs.index import removal
from fanoutfs.index.format import DT_DIR, FLAG_LISTED, Inode, Ownership
from fanoutfs.index.keeping import is_complete, is_kept, takes_no_names
from fanoutfs.index.operations import (
    Change,
    ChangeKind,
    Child,
    add_child,
    learn,
    mark_changed,
    meet_file,
    present_children,
)
from fanoutfs.index.transaction import IndexTransaction

_LOW: Final = ord("/")
_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Frontier:
    """How far a listing of one directory has come.

    name: the greatest name so far; key: the greatest in key order, where a directory has "/" behind its name.
    """

    name: bytes = b""
    key: bytes = b""

    def has_passed(self, child: Child) -> bool:
        """Tell whether this child should have come earlier, in either order."""
        return child.name < self.name and _key(child) < self.key

    def advanced(self, children: Iterable[Child]) -> "Frontier":
        """Return the place reached after these."""
        name, key = self.name, self.key
        for child in children:
            name, key = max(name, child.name), max(key, _key(child))
        return Frontier(name, key)


BEGIN: Final = Frontier()
END: Final = Frontier(b"\xff" * 256, b"\xff" * 256)
"""Behind every name: none has more than 255 bytes."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What one application of MergeNames did.

    deferred: files that meet a directory of their name which may still come; hand them on to the next page.
    is_done: False when there was too much to remove for one transaction: apply the same operation again.
    """

    changes: list[Change]
    hidden: int
    deferred: tuple[Child, ...]
    is_done: bool


@dataclass(frozen=True, slots=True)
class MergeNames:
    """Enter one page of a directory's listing and take away what it should have shown and did not.

    before, after: the place reached with the page before this one and with this one; `after=END` with the last.
    now_ns: becomes the directory's mtime when this changes what is in it (but a first listing does not move it: who saw
    the directory before must not find it changed by being looked at).
    listed_at_ns: not None to make the listing complete; the store may have answered the first page this long ago.
    kept: a directory that is not taken away although it was not shown (part of it belongs to another scan).
    key: what the directory was asked for under; nothing is entered when its objects have another place by now.
    settled: names that became visible or vanished in the store by our own doing since it was asked: they stay as they
    are here.  What else was changed here stays as well (see `keeping`); a directory that was moved before it was ever
    listed learns the names that it does not know yet, and nothing else.
    """

    parent: int
    children: tuple[Child, ...]
    before: Frontier
    after: Frontier
    ownership: Ownership
    now_ns: int
    deferred: tuple[Child, ...] = ()
    listed_at_ns: int | None = None
    kept: bytes = b""
    key: str | None = None
    settled: frozenset[bytes] = frozenset()

    def apply(self, txn: IndexTransaction) -> MergeResult:
        """Carry it out; applying it again changes nothing more."""
        directory = txn.inode(self.parent)
        changes: list[Change] = []
        if directory is None or not directory.is_dir or txn.is_orphan(self.parent):
            return MergeResult(changes, 0, (), True)  # nothing below it can be reached or counted any more
        if self.key not in (None, directory.key) or is_complete(txn.inode, txn.changed, directory):
            return MergeResult(changes, 0, (), True)
        hidden, deferred, is_done = 0, self.deferred, True
        children = present_children(txn, self.children)
        shown_dirs = {child.name for child in children if child.version is None} | {self.kept}
        if takes_no_names(txn.inode, txn.changed, directory):
            unsettled = [child for child in children if child.name not in self.settled]
            changes += learn(txn, directory, unsettled, self.ownership, self.now_ns)
        else:
            is_done = self._sweep(txn, directory, {child.name for child in children}, shown_dirs, changes)
            if is_done:
                hidden, deferred = self._enter(txn, directory, children, shown_dirs, changes)
        if changes:
            mark_changed(txn, self.parent, self.now_ns)
        if is_done and self.listed_at_ns is not None:
            mark_listed(txn, self.parent, self.listed_at_ns)
        return MergeResult(changes, hidden, deferred, is_done)

    # --- what is gone ------------------------------------------------------------------------------------------

    def _sweep(
        self, txn: IndexTransaction, directory: Inode, shown: set[bytes], shown_dirs: set[bytes], changes: list[Change]
    ) -> bool:
        waiting = {child.name for child in self.deferred}
        for name in _doubtful(self.before.name):
            if name in shown_dirs or name + b"/" >= self.after.key or name >= self.after.name:
                continue
            # The name reached itself: as a directory it was not shown only if a file waits for it.
            if name in waiting if name == self.before.name else name + b"/" > self.before.key:
                known = txn.entry(self.parent, name)
                if (
                    known is not None
                    and known[1] == DT_DIR
                    and not self._remove(txn, directory, name, known[0], changes)
                ):
                    return False
        reached = self.before.name
        while True:
            # By batches: what stays is passed over, however much it is, and nothing may be removed below a cursor.
            batch = list(islice(txn.entries_between(self.parent, reached, self.after.name), _BATCH))
            for name, ino, dtype in batch:
                is_there = name in shown_dirs or name + b"/" >= self.after.key if dtype == DT_DIR else name in shown
                if not is_there and not self._remove(txn, directory, name, ino, changes):
                    return False
            if len(batch) < _BATCH:
                return True
            reached = batch[-1][0]

    def _remove(self, txn: IndexTransaction, directory: Inode, name: bytes, ino: int, changes: list[Change]) -> bool:
        if name in self.settled:
            return True
        return removal.remove_some(txn, directory, name, ino, self.now_ns, changes)

    # --- what is there -----------------------------------------------------------------------------------------

    def _enter(
        self,
        txn: IndexTransaction,
        directory: Inode,
        children: tuple[Child, ...],
        shown_dirs: set[bytes],
        changes: list[Change],
    ) -> tuple[int, tuple[Child, ...]]:
        """Return how many files stay hidden behind a directory, and those of which that is not known yet."""
        hidden = 0
        deferred = []
        for child in sorted((*children, *self.deferred), key=lambda child: child.version is not None):
            if child.name in self.settled:
                continue
            known = txn.entry(self.parent, child.name)
            if known is None:
                ino = add_child(txn, self.parent, child, self.ownership, self.now_ns)
                changes.append(Change(ChangeKind.ADDED, self.parent, child.name, ino))
            elif known[1] != DT_DIR:
                if is_kept(txn, directory, child.name, known[0]):
                    continue
                # A page before this one showed the file that gives way now.
                hidden += child.version is None and child.name <= self.before.name
                if change := meet_file(txn, self.parent, child, known[0], self.ownership, self.now_ns):
                    changes.append(change)
            elif child.version is not None:
                if child.name in shown_dirs or self.after == END:
                    hidden += 1
                else:  # in both orders the file comes first: the directory was neither shown nor passed yet
                    deferred.append(child)
        return hidden, tuple(deferred)


@dataclass(frozen=True, slots=True)
class NoteComplete:
    """Let the listing of a directory count as fresh whose names are known here without asking."""

    ino: int
    now_ns: int

    def apply(self, txn: IndexTransaction) -> None:
        """Carry it out."""
        directory = txn.inode(self.ino)
        if directory is not None and directory.is_dir and is_complete(txn.inode, txn.changed, directory):
            mark_listed(txn, self.ino, self.now_ns)


def mark_listed(txn: IndexTransaction, ino: int, listed_at_ns: int) -> None:
    """Note that a directory's listing is complete, as of then."""
    directory = txn.inode(ino)
    if directory is not None:
        txn.put_inode(replace(directory, listed_at_ns=listed_at_ns, flags=directory.flags | FLAG_LISTED))


def _key(child: Child) -> bytes:
    return child.name + b"/" if child.version is None else child.name


def _doubtful(name: bytes) -> Iterator[bytes]:
    """Yield the names that may be passed as a file and not yet as a directory: `a` when `a-1` was reached."""
    for end in range(1, len(name) + 1):
        if end == len(name) or name[end] < _LOW:
            yield name[:end]
