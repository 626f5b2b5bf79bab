"""Take names away that the backend does not have any more, a bounded number in one transaction.

Writer thread of the core.  A directory that vanished may have had millions of names below it; readers of fronts and
other writers must not wait for all of them.  What is left between two transactions can still be reached and removed,
also by a core that finds it after a crash.
"""

from dataclasses import dataclass
from typing import Final

from fanoutfs.index.format import Inode, Ownership
from fanoutfs.index.intents import intent_name
from fanoutfs.index.keeping import is_kept, takes_no_names
from fanoutfs.index.operations import Change, ChangeKind, Child, add_child, mark_changed, remove_leaf
from fanoutfs.index.places import Places
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import Version

REMOVALS_PER_APPLY: Final = 2000
"""How many names one transaction takes away at most: about 30 ms of the writer's time."""


@dataclass(frozen=True, slots=True)
class RemoveName:
    """Take one name away, with everything below it.  Returns (changes, whether that was all): else apply it again.

    settled: see `MergeNames`.
    """

    parent: int
    name: bytes
    now_ns: int
    settled: frozenset[bytes] = frozenset()

    def apply(self, txn: IndexTransaction) -> tuple[list[Change], bool]:
        known = txn.entry(self.parent, self.name)
        directory = txn.inode(self.parent)
        changes: list[Change] = []
        if known is None or directory is None or self.name in self.settled:
            return changes, True
        if takes_no_names(txn.inode, txn.changed, directory):
            return changes, True
        is_done = remove_some(txn, directory, self.name, known[0], self.now_ns, changes)
        if is_done and changes:
            mark_changed(txn, self.parent, self.now_ns)
        return changes, is_done


@dataclass(frozen=True, slots=True)
class RemoveLost:
    """Take the name of a file away whose object somebody else changed or removed, so that it has no content any more.

    key, etag: of that object, of which nothing is to be removed in the store: what is there is not ours.  foreign: what
    is there now; the name leads to that if it is its name.  A file of which anything is staged, or that has further
    names, stays.  Returns the changes, none when it stays.
    """

    ino: int
    key: str
    etag: str
    foreign: Version | None
    ownership: Ownership
    now_ns: int
    root_prefix: str

    def apply(self, txn: IndexTransaction) -> list[Change]:
        inode = txn.inode(self.ino)
        places = Places.of_transaction(txn, self.root_prefix)
        place = places.place(self.ino)
        if inode is None or place is None or txn.is_orphan(self.ino):
            return []
        if inode.is_staged or inode.links > 1 or (inode.key, inode.etag) != (self.key, self.etag):
            return []
        is_replaced = self.foreign is not None and places.key(self.ino) == self.key
        departed = txn.changed.departed(self.key)
        if departed is not None and departed.ino == self.ino:
            txn.changed.delete_departed(self.key)
        txn.delete_settings(intent_name(self.ino))  # the copy was refused: nothing of ours came to be
        txn.changed.delete_dirty(self.ino)
        txn.changed.delete_name(self.ino)
        remove_leaf(txn, *place, self.ino, self.now_ns)
        if is_replaced:
            add_child(txn, place[0], Child(place[1], self.key, self.foreign), self.ownership, self.now_ns)
        mark_changed(txn, place[0], self.now_ns)
        return [Change(ChangeKind.REPLACED if is_replaced else ChangeKind.REMOVED, *place, self.ino)]


@dataclass(slots=True)
class _Level:
    """A name under removal.  behind: the last name in it that stays."""

    parent: Inode
    name: bytes
    inode: Inode | None
    behind: bytes = b""
    is_changed: bool = False


def remove_some(
    txn: IndexTransaction, parent: Inode, name: bytes, ino: int, now_ns: int, changes: list[Change]
) -> bool:
    """Take a name away, and for a directory everything below it, deepest first; the inodes become orphans.

    What is kept (see `keeping`) stays, with the directories that lead there.  Adds to `changes` also what is below the
    name: who holds a vanished directory open must not go on listing it from the kernel.  Returns False when `changes`
    holds REMOVALS_PER_APPLY: the rest is for the next call.
    """
    if is_kept(txn, parent, name, ino):
        return True
    path = [_Level(parent, name, txn.inode(ino))]
    while path:
        level = path[-1]
        following = None if level.inode is None else txn.first_entry(level.inode.ino, level.behind)
        if following is not None and level.inode is not None:
            if is_kept(txn, level.inode, *following):
                level.behind = following[0]
            else:
                path.append(_Level(level.inode, following[0], txn.inode(following[1])))
            continue
        if len(changes) >= REMOVALS_PER_APPLY:
            _mark_changed(txn, path, now_ns)
            return False
        path.pop()
        gone_ino = txn.entry(level.parent.ino, level.name)
        if level.behind or gone_ino is None:
            _mark_changed(txn, [level], now_ns)
            if path:
                path[-1].behind = level.name
            continue
        remove_leaf(txn, level.parent.ino, level.name, gone_ino[0], now_ns)
        changes.append(Change(ChangeKind.REMOVED, level.parent.ino, level.name, gone_ino[0]))
        if path:
            path[-1].is_changed = True
    return True


def _mark_changed(txn: IndexTransaction, path: list[_Level], now_ns: int) -> None:
    for level in path:
        if level.is_changed and level.inode is not None:
            mark_changed(txn, level.inode.ino, now_ns)
