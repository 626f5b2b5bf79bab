"""Changes of the index that follow the object store: what was uploaded, moved, deleted, or found in conflict.

Pure `apply`, as `operations`.  The writer thread of the core runs them; `core.publishing` and `core.moves` make them,
always after the store has done its part: a crash in between finds the object by its token (see `core.tokens`).
"""

import json
import stat
from dataclasses import dataclass, field, replace
from typing import Final

from fanoutfs.index.changed import no_version
from fanoutfs.index.departing import depart
from fanoutfs.index.format import (
    FLAG_ATTRS,
    FLAG_HELD,
    FLAG_LOCAL,
    FLAG_WHOLE,
    Departed,
    Dirty,
    DirtyRecord,
    Inode,
    Ownership,
    attr_with,
)
from fanoutfs.index.intents import change_base, intent_name
from fanoutfs.index.operations import Change, ChangeKind, Child, add_child, mark_changed
from fanoutfs.index.places import Places
from fanoutfs.index.tiers import StoredAs
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, ROOT_INO, ObjectInfo, Version

CONFLICTS: Final = b"conflict/"
_CONFLICTS_KEPT: Final = 100
SETTLED: Final = Dirty.CONTENT | Dirty.META
NOTHING: Final = Dirty(0)
_NO_VERSION: Final = no_version()


@dataclass(frozen=True, slots=True)
class MakePublished:
    """Note that an inode's object is at `key` in `version` now.  Returns whether nothing of the inode is dirty now.

    settled: what of `seen` the object holds; NOTHING for a copy that only moved it.  seen: the dirty record when the
    metadata were read; what was changed since stays dirty.
    stored: how the store keeps it, as far as it is not as usual.
    The object of before becomes departed, for deletion, where it has another key.  If the inode lost its name or was
    renamed while the store worked, it is the new object that is departed.
    """

    ino: int
    key: str
    version: Version
    settled: Dirty
    seen: DirtyRecord | None
    root_prefix: str
    stored: StoredAs = field(default_factory=StoredAs)

    def apply(self, txn: IndexTransaction) -> bool:
        records = txn.changed
        inode = txn.inode(self.ino)
        txn.delete_settings(intent_name(self.ino))
        if inode is None or txn.is_orphan(self.ino):
            depart(txn, self.key, Departed(0, self.version), self.root_prefix)
            return True
        places = Places.of_transaction(txn, self.root_prefix)
        place, name = places.key(self.ino), places.place(self.ino)
        is_there = place == self.key
        if not is_there and inode.etag and inode.key == place:  # renamed back meanwhile: its object is there already
            depart(txn, self.key, Departed(0, self.version), self.root_prefix)
            return records.dirty(self.ino) is None
        if self.stored.storage_class or (inode.key, inode.etag) != (self.key, self.version.etag):
            txn.tiers.put_stored(self.ino, self.stored)
        self._leave_old(txn, inode)
        flags = inode.flags | FLAG_ATTRS
        if is_there:
            records.delete_departed(self.key)
            flags &= ~FLAG_LOCAL
            _show_parents(txn, self.ino)
            _claim_places(txn, places, self.ino)
        else:
            depart(txn, self.key, Departed(self.ino, self.version), self.root_prefix)
            if name is not None:  # it is dirty from now on, if it was not
                records.put_name(self.ino, *name)
        etag, version_id, attr = self.version.etag, self.version.version_id, inode.attr
        if inode.is_staged:
            change_base(txn, inode, self.version)
            attr = attr_with(attr, size_bytes=self.version.size_bytes)
        txn.put_inode(replace(inode, attr=attr, key=self.key, etag=etag, version_id=version_id, flags=flags))
        return self._settle(txn, is_there=is_there, is_staged=inode.is_staged)

    def _leave_old(self, txn: IndexTransaction, inode: Inode) -> None:
        """Have the object under the old key deleted, if it is still this inode's."""
        if inode.key in ("", self.key) or inode.is_dir or not inode.etag:
            return
        known = txn.changed.departed(inode.key)
        if known is None:
            places = Places.of_transaction(txn, self.root_prefix)
            left = places.left_below(inode.key)
            is_replaced = left is not None and left.key == inode.key and left.ino != self.ino
            if places.moved_prefix(inode.key) is not None and not is_replaced:
                txn.changed.put_departed(inode.key, Departed(0, inode.version))
        elif known.ino == self.ino:
            txn.changed.put_departed(inode.key, Departed(0, known.version))

    def _settle(self, txn: IndexTransaction, *, is_there: bool, is_staged: bool) -> bool:
        dirty = txn.changed.dirty(self.ino)
        if dirty is None and is_there:
            return True
        dirty = dirty or DirtyRecord(0, 0, NOTHING)
        settled = self.settled
        if self.seen is None or dirty.changed_ns != self.seen.changed_ns:
            settled &= ~Dirty.META  # changed while the store worked
        if is_staged:
            settled &= ~Dirty.CONTENT
        left = dirty.what & ~settled & ~(Dirty.NEVER | Dirty.CONFLICT)
        if is_there and not left:
            txn.changed.delete_dirty(self.ino)
            if not _is_needed_name(txn, self.ino):
                places = Places.of_transaction(txn, self.root_prefix)
                place = places.place(self.ino)
                txn.changed.delete_name(self.ino)
                if place is not None and places.place(self.ino) != place:
                    txn.changed.put_name(self.ino, *place)
            return True
        txn.changed.put_dirty(self.ino, replace(dirty, what=left | dirty.what & Dirty.CONFLICT, error=""))
        return False


@dataclass(frozen=True, slots=True)
class PublishLink:
    """Note that a further name of an inode has an object of its own.  cookie: the name's."""

    cookie: int
    key: str
    version: Version
    seen: DirtyRecord | None
    root_prefix: str

    def apply(self, txn: IndexTransaction) -> bool:
        txn.delete_settings(intent_name(self.cookie))
        places = Places.of_transaction(txn, self.root_prefix)
        if places.key(self.cookie) != self.key:
            depart(txn, self.key, Departed(0, self.version), self.root_prefix)
            return txn.changed.dirty(self.cookie) is None
        txn.changed.delete_departed(self.key)
        _claim_places(txn, places, self.cookie)
        dirty = txn.changed.dirty(self.cookie)
        if dirty is not None and dirty != self.seen:
            txn.changed.put_dirty(self.cookie, replace(dirty, what=dirty.what | Dirty.STORED))
            return False
        txn.changed.delete_dirty(self.cookie)
        return True


@dataclass(frozen=True, slots=True)
class PublishDirectory:
    """Note that a directory's marker is in the store (or that the store has none).  Returns whether it is clean."""

    ino: int
    key: str
    seen: DirtyRecord | None
    root_prefix: str
    is_marked: bool

    def apply(self, txn: IndexTransaction) -> bool:
        inode = txn.inode(self.ino)
        txn.delete_settings(intent_name(self.ino))
        if inode is None or txn.is_orphan(self.ino):
            if self.is_marked and txn.changed.departed(self.key) is None:
                depart(txn, self.key, Departed(0, _NO_VERSION), self.root_prefix)
            return True
        places = Places.of_transaction(txn, self.root_prefix)
        if places.key(self.ino) != self.key:
            if self.is_marked and txn.changed.departed(self.key) is None:
                depart(txn, self.key, Departed(self.ino, _NO_VERSION), self.root_prefix)
            return False
        known = txn.changed.departed(self.key)
        if known is not None and known.ino == 0:
            txn.changed.delete_departed(self.key)
        flags = inode.flags | FLAG_ATTRS
        if self.is_marked:
            flags &= ~FLAG_LOCAL
            _show_parents(txn, self.ino)
            _claim_places(txn, places, self.ino)
        # The old key says where a marker is left, of a directory below a moving one too: the move deletes it.
        is_moving = inode.key not in ("", self.key) and (inode.is_held or places.moved_prefix(inode.key) is not None)
        txn.put_inode(replace(inode, key=inode.key if is_moving else self.key, flags=flags))
        dirty = txn.changed.dirty(self.ino)
        if dirty is not None and (self.seen is None or dirty.changed_ns == self.seen.changed_ns):
            txn.changed.delete_dirty(self.ino)
            return True
        return dirty is None


@dataclass(frozen=True, slots=True)
class Park:
    """Note that an inode's object was copied aside, to make room for another at its old key.

    with_directory: so was all that is below a directory, with which it goes on; else it is the queue's.
    """

    ino: int
    key: str
    version: Version
    now_ns: int
    root_prefix: str
    with_directory: bool

    def apply(self, txn: IndexTransaction) -> None:
        inode = txn.inode(self.ino)
        txn.delete_settings(intent_name(self.ino))
        if inode is None or txn.is_orphan(self.ino):
            txn.changed.put_departed(self.key, Departed(0, self.version))
            return
        place = Places.of_transaction(txn, self.root_prefix).place(self.ino)
        if not self.with_directory and place is not None and txn.changed.dirty(self.ino) is None:
            txn.changed.put_dirty(self.ino, DirtyRecord(self.now_ns, self.now_ns, NOTHING))
            txn.changed.put_name(self.ino, *place)
        txn.changed.put_departed(inode.key, Departed(0, inode.version))
        txn.changed.put_departed(self.key, Departed(self.ino, self.version))
        etag, version_id = self.version.etag, self.version.version_id
        txn.put_inode(replace(inode, key=self.key, etag=etag, version_id=version_id))


@dataclass(frozen=True, slots=True)
class ReleaseObject:
    """Have an object deleted that its file can do without, because its key is needed.

    That of a file whose content is all here, or of an unlinked one that somebody may have open still.
    """

    ino: int
    key: str

    def apply(self, txn: IndexTransaction) -> None:
        known = txn.changed.departed(self.key)
        inode = txn.inode(self.ino)
        if known is None or known.ino != self.ino or inode is None:
            return
        if inode.is_staged and inode.is_whole and inode.key == self.key:
            txn.put_inode(replace(inode, key="", etag="", version_id=""))
        elif not txn.is_orphan(self.ino):
            return
        txn.changed.put_departed(self.key, replace(known, ino=0))


@dataclass(frozen=True, slots=True)
class LetGo:
    """Have the object of a file deleted that needs it no more, all content being here; it may be another's by now.

    is_there: False if somebody else has changed or removed it: nothing is deleted then.  Returns whether the file does
    without one.
    """

    ino: int
    root_prefix: str
    is_there: bool = True

    def apply(self, txn: IndexTransaction) -> bool:
        inode = txn.inode(self.ino)
        if inode is None or not inode.is_staged or not inode.is_whole or not inode.key:
            return False
        known = txn.changed.departed(inode.key)
        there = Places.of_transaction(txn, self.root_prefix).at(inode.key)
        owner = None if there in (None, self.ino) else txn.inode(there or 0)
        is_anothers = owner is not None and owner.key == inode.key
        is_own = known is not None and known.ino == self.ino
        if not self.is_there:
            txn.delete_settings(intent_name(self.ino))  # the copy was refused: nothing of ours came to be
            if is_own:
                txn.changed.delete_departed(inode.key)
        elif is_own or (known is None and not is_anothers):
            txn.changed.put_departed(inode.key, Departed(0, inode.version))
        txn.put_inode(replace(inode, key="", etag="", version_id="", flags=inode.flags | FLAG_LOCAL))
        return True


@dataclass(frozen=True, slots=True)
class LeaveStore:
    """Have the object of an inode deleted whose new name is not uploaded: all of its content is here.

    key: the object's.  Returns False, and changes nothing, when that is not so (any more).
    """

    ino: int
    key: str
    root_prefix: str

    def apply(self, txn: IndexTransaction) -> bool:
        inode = txn.inode(self.ino)
        if inode is None or inode.key != self.key or txn.is_orphan(self.ino):
            return False
        if Places.of_transaction(txn, self.root_prefix).key(self.ino) in (None, self.key):
            return False
        if stat.S_ISREG(inode.mode) and not (inode.is_staged and (inode.is_whole or _is_all_local(txn, self.ino))):
            return False
        known = txn.changed.departed(self.key)
        if known is None or known.ino == self.ino:
            txn.changed.put_departed(self.key, Departed(0, inode.version))
        whole = FLAG_WHOLE if inode.is_staged else 0
        txn.put_inode(replace(inode, key="", etag="", version_id="", flags=inode.flags | FLAG_LOCAL | whole))
        txn.changed.delete_staged(self.ino)
        return True


@dataclass(frozen=True, slots=True)
class NoteState:
    """Change how an inode stands, for status; nothing if it is clean by now."""

    ino: int
    add: Dirty = NOTHING
    drop: Dirty = NOTHING
    error: str | None = None

    def apply(self, txn: IndexTransaction) -> None:
        dirty = txn.changed.dirty(self.ino)
        if dirty is not None:
            error = dirty.error if self.error is None else self.error
            what = dirty.what & ~self.drop | self.add
            txn.changed.put_dirty(self.ino, replace(dirty, what=what, error=error))


@dataclass(frozen=True, slots=True)
class DropNameless:
    """Forget that an inode is dirty if no name leads to it.  Returns whether it is not dirty now."""

    ino: int
    root_prefix: str

    def apply(self, txn: IndexTransaction) -> bool:
        if txn.changed.dirty(self.ino) is None:
            return True
        if Places.of_transaction(txn, self.root_prefix).key(self.ino) is not None and not txn.is_orphan(self.ino):
            return False  # it was staged or renamed a moment ago
        inode = txn.inode(self.ino)
        if inode is not None and inode.is_staged and not txn.is_orphan(self.ino):
            return False  # whatever its name, what it holds is nowhere else
        txn.changed.delete_dirty(self.ino)
        return True


@dataclass(frozen=True, slots=True)
class DropDirty:
    """Forget that an inode is dirty: nothing differs.  Returns whether it was as `seen`."""

    ino: int
    seen: DirtyRecord | None

    def apply(self, txn: IndexTransaction) -> bool:
        if txn.changed.dirty(self.ino) != self.seen:
            return False
        txn.changed.delete_dirty(self.ino)
        return True


@dataclass(frozen=True, slots=True)
class NoteConflict:
    """Give what was changed here a name of its own and let the old one lead to the foreign object.

    ino: the inode, or the cookie of a further name of one.  Returns the changes for the kernel; none when it is not at
    `key` any more.
    """

    ino: int
    key: str
    foreign: ObjectInfo
    name: bytes
    ownership: Ownership
    now_ns: int
    root_prefix: str

    def apply(self, txn: IndexTransaction) -> list[Change]:
        places = Places.of_transaction(txn, self.root_prefix)
        place = places.place(self.ino)
        known = None if place is None else txn.entry(*place)
        inode = None if known is None else txn.inode(known[0])
        if place is None or inode is None or places.key(self.ino) != self.key:
            return []
        parent, name = place
        is_link = inode.ino != self.ino
        txn.delete_entry(parent, name)
        txn.put_entry(parent, self.name, inode, self.ino if is_link else 0)
        txn.changed.put_name(self.ino, parent, self.name)
        if not is_link:
            txn.put_inode(replace(inode, flags=inode.flags | FLAG_LOCAL))
        txn.changed.delete_departed(self.key)
        add_child(txn, parent, Child(name, self.foreign.key, self.foreign.version), self.ownership, self.now_ns)
        dirty = txn.changed.dirty(self.ino) or DirtyRecord(self.now_ns, self.now_ns, NOTHING)
        txn.changed.put_dirty(self.ino, replace(dirty, what=dirty.what | Dirty.CONFLICT))
        mark_changed(txn, parent, self.now_ns)
        self._log(txn, name)
        return [
            Change(ChangeKind.REPLACED, parent, name, inode.ino),
            Change(ChangeKind.ADDED, parent, self.name, inode.ino),
        ]

    def _log(self, txn: IndexTransaction, name: bytes) -> None:
        number = int(txn.setting(b"conflicts") or b"0")
        path = self.key.removeprefix(self.root_prefix)
        directory = path.removesuffix(name.decode("utf-8", "surrogateescape"))
        kept = directory + self.name.decode("utf-8", "surrogateescape")
        entry = json.dumps({"path": path, "kept_as": kept, "at_ns": self.now_ns}).encode()
        txn.set_setting(CONFLICTS + b"%08d" % number, entry)
        txn.set_setting(b"conflicts", b"%d" % (number + 1))
        if number >= _CONFLICTS_KEPT:
            txn.delete_settings(CONFLICTS + b"%08d" % (number - _CONFLICTS_KEPT))


@dataclass(frozen=True, slots=True)
class FinishDeparted:
    """Note that the store has nothing under a departed key any more, unless the record has changed since `seen`.

    A directory of that name that was made here meanwhile may learn names from listings now.
    """

    key: str
    seen: Departed
    root_prefix: str

    def apply(self, txn: IndexTransaction) -> None:
        if txn.changed.departed(self.key) != self.seen:
            return
        txn.changed.delete_departed(self.key)
        if self.key.endswith("/"):
            _let_listings_in(txn, self.key, self.root_prefix)


@dataclass(frozen=True, slots=True)
class BeginMove:
    """Note that objects of a directory are put below `prefix` from now on, wherever it is later.

    is_aside: it is not its place.  Returns whose objects are there or at a prefix above, and have to leave first, or
    the directory's own number if it has another place by now; None: the move has begun.
    """

    ino: int
    prefix: str
    root_prefix: str
    is_aside: bool = False

    def apply(self, txn: IndexTransaction) -> int | None:
        places = Places.of_transaction(txn, self.root_prefix)
        if not self.is_aside and places.key(self.ino) != self.prefix:
            return self.ino  # who is there now may be at home: none of its objects would be seen to be in the way
        leaving = places.leaving(self.prefix, self.ino)
        if leaving is not None:
            return leaving.ino
        txn.changed.put_departed(self.prefix, Departed(self.ino, _NO_VERSION))
        inode = txn.inode(self.ino)
        if inode is not None:  # it may have come back to where its objects are since this was decided
            txn.put_inode(replace(inode, flags=inode.flags | FLAG_HELD))
        return None


@dataclass(frozen=True, slots=True)
class MoveDirectory:
    """Note under which prefix the objects of one directory below a moving one are: all known ones have moved.

    is_root: it is the one that moves, whose own record tells; only its marker has arrived.
    """

    ino: int
    key: str
    is_root: bool

    def apply(self, txn: IndexTransaction) -> None:
        txn.delete_settings(intent_name(self.ino))
        inode = txn.inode(self.ino)
        if inode is not None and not self.is_root:
            # It was held for another directory's objects where this one has been.
            is_free = inode.is_held and txn.changed.departed(self.key) is None
            txn.put_inode(replace(inode, key=self.key, flags=inode.flags & ~FLAG_HELD if is_free else inode.flags))


@dataclass(frozen=True, slots=True)
class LeavePrefix:
    """Have the prefixes of a directory that no name leads to any more deleted."""

    ino: int

    def apply(self, txn: IndexTransaction) -> None:
        for key in txn.changed.prefixes_of(self.ino):
            txn.changed.put_departed(key, Departed(0, _NO_VERSION))


@dataclass(frozen=True, slots=True)
class ParkDirectory:
    """Note that all objects of a directory were moved aside: its old prefixes are free for another directory.

    below: where markers of directories in it have been; to be deleted once more when the objects there are, because
    stores that are file systems inside keep a directory until then.
    """

    ino: int
    aside: str
    old: tuple[str, ...]
    below: tuple[str, ...] = ()

    def apply(self, txn: IndexTransaction) -> None:
        inode = txn.inode(self.ino)
        if inode is None:
            return
        txn.put_inode(replace(inode, key=self.aside))
        for key in self.old:
            known = txn.changed.departed(key)
            if key != self.aside and known is not None and known.ino == self.ino:
                txn.changed.put_departed(key, Departed(0, _NO_VERSION))
        for key in self.below:
            if txn.changed.departed(key) is None:
                txn.changed.put_departed(key, Departed(0, _NO_VERSION))


@dataclass(frozen=True, slots=True)
class FinishMove:
    """Note that all objects of a directory are below `prefix`.  Returns False when it has another place by now.

    shared: old prefixes below which another directory has objects still; what they leave goes after those.
    """

    ino: int
    prefix: str
    root_prefix: str
    shared: tuple[str, ...] = ()

    def apply(self, txn: IndexTransaction) -> bool:
        inode = txn.inode(self.ino)
        if inode is not None and not txn.is_orphan(self.ino):
            if Places.of_transaction(txn, self.root_prefix).key(self.ino) != self.prefix:
                return False
            flags = inode.flags & ~(FLAG_HELD | FLAG_LOCAL)
            txn.put_inode(replace(inode, key=self.prefix, flags=flags))
            dirty = txn.changed.dirty(self.ino)
            if dirty is not None and not dirty.what & SETTLED:
                txn.changed.delete_dirty(self.ino)
        for key in txn.changed.prefixes_of(self.ino):
            if key in self.shared:
                txn.changed.put_departed(key, Departed(0, _NO_VERSION))
                continue
            txn.changed.delete_departed(key)
            _let_listings_in(txn, key, self.root_prefix)
        return True


def _let_listings_in(txn: IndexTransaction, prefix: str, root_prefix: str) -> None:
    """Let a directory that was made where another one's objects were learn names from listings: they have left."""
    ino = Places.of_transaction(txn, root_prefix).at(prefix)
    inode = None if ino is None else txn.inode(ino)
    if inode is not None and inode.is_held and inode.key in ("", prefix):
        txn.put_inode(replace(inode, flags=inode.flags & ~FLAG_HELD))


def _is_all_local(txn: IndexTransaction, ino: int) -> bool:
    """Tell whether an overlay needs nothing of its object any more."""
    blocks = -(-(txn.changed.base_size(ino) or 0) // BLOCK_BYTES)
    local = txn.changed.local_parts(ino)
    return all(local.get(block // PART_BLOCKS, 0) >> block % PART_BLOCKS & 1 for block in range(blocks))


def _show_parents(txn: IndexTransaction, ino: int) -> None:
    """Note that the directories above an object are in the store now, also without markers."""
    place = txn.changed.name(ino)
    above = None if place is None else txn.inode(place[0])
    while above is not None and above.is_local and above.ino != ROOT_INO:
        txn.put_inode(replace(above, flags=above.flags & ~FLAG_LOCAL))
        place = txn.changed.name(above.ino)
        above = None if place is None else txn.inode(place[0])


def _claim_places(txn: IndexTransaction, places: Places, ino: int) -> None:
    """Note that moving directories have something at their places, be it that only the queue has put it there so far.

    Else nobody would look for it there once a directory above them is renamed.
    """
    inode = txn.inode(ino)
    at = ino if inode is not None and inode.is_dir else None
    if at is None:
        place = places.place(ino)
        at = None if place is None else place[0]
    while at is not None and at != ROOT_INO:
        directory, prefix = txn.inode(at), places.key(at)
        if directory is not None and directory.is_held and prefix is not None and prefix != directory.key:
            known = txn.changed.departed(prefix)
            if known is None or not known.ino:
                txn.changed.put_departed(prefix, Departed(at, _NO_VERSION))
        place = txn.changed.name(at)
        at = None if place is None else place[0]


def _is_needed_name(txn: IndexTransaction, ino: int) -> bool:
    """Tell whether a published inode's place must stay recorded: its further names are found by it."""
    inode = txn.inode(ino)
    return inode is None or inode.is_dir or inode.links > 1 or inode.is_staged
