"""What the word of the store may not touch: everything that was changed here and is not all in the store yet.

Writer thread of the core; `takes_no_names` also for readers.  Listings, lookups of single names and imports tell what
the store had when it was asked.  They ask these questions inside the transaction that enters the answer, so that a
change which was committed a moment earlier is respected:

* an inode that exists here only, or is dirty, or holds objects that are being moved, stays as it is (`is_kept`);
* an object that left its place here, but not yet the store, is not seen (`ChangedRecords.departed`);
* a directory that was made here, or whose objects are being moved, knows its names better than the store, and so does
  everything below one that is being moved (`takes_no_names`);
* what became visible or vanished in the store through ourselves while it was being asked: the names in `settled` of
  the operations, which nobody but the asker can know.
"""

from collections.abc import Callable
from typing import Final

from fanoutfs.index.changed import ChangedRecords
from fanoutfs.index.format import FLAG_HELD, FLAG_LOCAL, FLAG_STAGED, Inode
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import ROOT_INO

InodeOf = Callable[[int], Inode | None]
"""Reads inode records of the snapshot that the records of changes come from."""

_KEPT: Final = FLAG_LOCAL | FLAG_STAGED | FLAG_HELD


def is_kept(txn: IndexTransaction, parent: Inode, name: bytes, ino: int) -> bool:
    """Tell whether what a name leads to stays as it is, whatever the store shows.

    A further hard link exists here only.  An object that is somewhere else than in the listed directory is no concern
    of this listing.
    """
    inode = txn.inode(ino)
    if inode is None:
        return False
    if inode.flags & _KEPT or txn.changed.dirty(ino) is not None or txn.entry_cookie(parent.ino, name) != ino:
        return True
    key = parent.key + name.decode("utf-8", "surrogateescape")
    return not inode.is_dir and parent.ino != ROOT_INO and inode.key != key


def takes_no_names(inode_of: InodeOf, records: ChangedRecords, directory: Inode) -> bool:
    """Tell whether a directory's names are those known here: made here, or below what is being moved."""
    at: Inode | None = directory
    if directory.is_local:
        return True
    while at is not None:
        if at.is_held:
            return True
        place = records.name(at.ino)
        at = None if place is None else inode_of(place[0])
    return False


def is_complete(inode_of: InodeOf, records: ChangedRecords, directory: Inode) -> bool:
    """Tell whether all names of a directory are known without asking the store.

    One that was moved before it was ever listed is not: its names are still to be had, from where its objects are.
    """
    return (directory.is_listed or directory.is_local) and takes_no_names(inode_of, records, directory)
