"""Changes of the index that follow the object store: what was uploaded, moved, deleted, or found in conflict.

Pure `apply`, as `operations`.  The writer thread of the core runs them; `core.publishing` and `core.moves` make them,
always after the store has done its part: a crash in between finds the object by its token (see `core.tokens`).
"""

import json
from dataclasses import dataclass, replace
from typing import Final

from fanoutfs.index.changed import no_version
from fanoutfs.index.format import (
    FLAG_ATTRS,
    FLAG_HELD,
    FLAG_LOCAL,
    Departed,
    Dirty,
    DirtyRecord,
    Inode,
    Ownership,
    attr_with,
)
from fanoutfs.index.operations import Change, ChangeKind, Child, DropBlocks, add_child, mark_changed
from fanoutfs.index.places import Places
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES, ROOT_INO, ObjectInfo, Version

UPLOADS: Final = b"upload/"
INTENTS: Final = b"intent/"
CONFLICTS: Final = b"conflict/"
VOLUME_TAG: Final = b"volume_tag"
_CONFLICTS_KEPT: Final = 100
SETTLED: Final = Dirty.CONTENT | Dirty.META
NOTHING: Final = Dirty(0)
_NO_VERSION: Final = no_version()


@dataclass(frozen=True, slots=True)
class TagVolume:
    """Give the volume the tag by which its uploads are told from others', once.  Returns the one that counts."""

    tag: str

    def apply(self, txn: IndexTransaction) -> str:
        known = txn.setting(VOLUME_TAG)
        if known is None:
            txn.set_setting(VOLUME_TAG, self.tag.encode())
            return self.tag
        return known.decode()


@dataclass(frozen=True, slots=True)
class BeginUpload:
    """Remember a multipart upload before its first part: a core after this one aborts it."""

    key: str
    upload_id: str
    name: str

    def apply(self, txn: IndexTransaction) -> None:
        txn.set_setting(UPLOADS + self.name.encode(), json.dumps([self.key, self.upload_id]).encode())


@dataclass(frozen=True, slots=True)
class EndUpload:
    """Forget a multipart upload: it was completed or aborted."""

    name: str

    def apply(self, txn: IndexTransaction) -> None:
        txn.delete_settings(UPLOADS + self.name.encode())


@dataclass(frozen=True, slots=True)
class NoteIntent:
    """Remember under which key an object of an inode is about to be, before the store is asked.

    Whoever finds it later, without knowing what came of it, looks (ResolveIntent): else an object that arrived
    unnoticed and whose file was then removed or renamed would come back as a file.
    """

    ino: int
    key: str
    etag: str = ""
    """Of the object, if it is a plain copy, which is not known by a token."""

    def apply(self, txn: IndexTransaction) -> None:
        txn.set_setting(intent_name(self.ino), json.dumps([self.key, self.etag]).encode())


@dataclass(frozen=True, slots=True)
class ResolveIntent:
    """Note what came of an intent.  version: of the object there, if it is ours; None: there is none of ours."""

    ino: int
    key: str
    version: Version | None

    def apply(self, txn: IndexTransaction) -> None:
        txn.delete_settings(intent_name(self.ino))
        version = self.version
        inode = txn.inode(self.ino)
        if version is None or (inode is not None and (inode.key, inode.etag) == (self.key, version.etag)):
            return
        known = txn.changed.departed(self.key)
        if inode is not None and not inode.is_dir and inode.key == self.key:
            _take_version(txn, inode, version)
            if known is not None and known.ino == self.ino:
                txn.changed.put_departed(self.key, Departed(self.ino, version))
            return
        if known is None or known.ino in (0, self.ino):
            txn.changed.put_departed(self.key, Departed(0, version))


@dataclass(frozen=True, slots=True)
class MakePublished:
    """Note that an inode's object is at `key` in `version` now.  Returns whether nothing of the inode is dirty now.

    settled: what of `seen` the object holds; NOTHING for a copy that only moved it.  seen: the dirty record when the
    metadata were read; what was changed since stays dirty.
    The object of before becomes departed, for deletion, where it has another key.  If the inode lost its name or was
    renamed while the store worked, it is the new object that is departed.
    """

    ino: int
    key: str
    version: Version
    settled: Dirty
    seen: DirtyRecord | None
    root_prefix: str

    def apply(self, txn: IndexTransaction) -> bool:
        records = txn.changed
        inode = txn.inode(self.ino)
        txn.delete_settings(intent_name(self.ino))
        if inode is None or txn.is_orphan(self.ino):
            records.put_departed(self.key, Departed(0, self.version))
            return True
        self._leave_old(txn, inode)
        place = Places.of_transaction(txn, self.root_prefix).key(self.ino)
        is_there = place == self.key
        flags = inode.flags | FLAG_ATTRS
        if is_there:
            records.delete_departed(self.key)
            flags &= ~FLAG_LOCAL
            _show_parents(txn, self.ino)
        else:
            records.put_departed(self.key, Departed(self.ino, self.version))
        etag, version_id, attr = self.version.etag, self.version.version_id, inode.attr
        if inode.is_staged:
            _change_base(txn, inode, self.version)
            attr = attr_with(attr, size_bytes=self.version.size_bytes)
        txn.put_inode(replace(inode, attr=attr, key=self.key, etag=etag, version_id=version_id, flags=flags))
        return self._settle(txn, is_there=is_there, is_staged=inode.is_staged)

    def _leave_old(self, txn: IndexTransaction, inode: Inode) -> None:
        """Have the object under the old key deleted, if it is still this inode's."""
        if inode.key in ("", self.key) or inode.is_dir or not inode.etag:
            return
        known = txn.changed.departed(inode.key)
        if known is None:
            moved = Places.of_transaction(txn, self.root_prefix).moved_prefix(inode.key)
            if moved is not None:
                txn.changed.put_departed(inode.key, Departed(0, inode.version))
        elif known.ino == self.ino:
            txn.changed.put_departed(inode.key, Departed(0, known.version))

    def _settle(self, txn: IndexTransaction, *, is_there: bool, is_staged: bool) -> bool:
        dirty = txn.changed.dirty(self.ino)
        if dirty is None:
            return True
        settled = self.settled
        if self.seen is None or dirty.changed_ns != self.seen.changed_ns:
            settled &= ~Dirty.META  # changed while the store worked
        if is_staged:
            settled &= ~Dirty.CONTENT
        left = dirty.what & ~settled & ~(Dirty.NEVER | Dirty.CONFLICT)
        if is_there and not left:
            txn.changed.delete_dirty(self.ino)
            if not _is_needed_name(txn, self.ino):
                txn.changed.delete_name(self.ino)
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
        if Places.of_transaction(txn, self.root_prefix).key(self.cookie) != self.key:
            txn.changed.put_departed(self.key, Departed(0, self.version))
            return txn.changed.dirty(self.cookie) is None
        txn.changed.delete_departed(self.key)
        if txn.changed.dirty(self.cookie) == self.seen:
            txn.changed.delete_dirty(self.cookie)
            return True
        return False


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
            if self.is_marked:
                _leave_marker(txn, self.key)
            return True
        if Places.of_transaction(txn, self.root_prefix).key(self.ino) != self.key:
            if self.is_marked and txn.changed.departed(self.key) is None:
                txn.changed.put_departed(self.key, Departed(self.ino, _NO_VERSION))
            return False
        known = txn.changed.departed(self.key)
        if known is not None and known.ino == 0:
            txn.changed.delete_departed(self.key)
        flags = inode.flags | FLAG_ATTRS
        if self.is_marked:
            flags &= ~FLAG_LOCAL
            _show_parents(txn, self.ino)
        is_moving = bool(inode.flags & FLAG_HELD) and inode.key not in ("", self.key)
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
            ino = Places.of_transaction(txn, self.root_prefix).at(self.key)
            inode = None if ino is None else txn.inode(ino)
            if inode is not None and inode.is_held and inode.key in ("", self.key):
                txn.put_inode(replace(inode, flags=inode.flags & ~FLAG_HELD))


@dataclass(frozen=True, slots=True)
class BeginMove:
    """Note that objects of a directory are put below `prefix` from now on, wherever it is later.

    Returns False when objects of another directory are there.
    """

    ino: int
    prefix: str

    def apply(self, txn: IndexTransaction) -> bool:
        known = txn.changed.departed(self.prefix)
        if known is not None and known.ino not in (0, self.ino):
            return False
        txn.changed.put_departed(self.prefix, Departed(self.ino, _NO_VERSION))
        return True


@dataclass(frozen=True, slots=True)
class MoveDirectory:
    """Note under which prefix the objects of one directory below a moving one are: all known ones have moved."""

    ino: int
    key: str

    def apply(self, txn: IndexTransaction) -> None:
        inode = txn.inode(self.ino)
        if inode is not None:
            txn.put_inode(replace(inode, key=self.key))


@dataclass(frozen=True, slots=True)
class LeavePrefix:
    """Have the prefixes of a directory that no name leads to any more deleted."""

    ino: int

    def apply(self, txn: IndexTransaction) -> None:
        for key in txn.changed.prefixes_of(self.ino):
            txn.changed.put_departed(key, Departed(0, _NO_VERSION))


@dataclass(frozen=True, slots=True)
class ParkDirectory:
    """Note that all objects of a directory were moved aside: its old prefixes are free for another directory."""

    ino: int
    aside: str
    old: tuple[str, ...]

    def apply(self, txn: IndexTransaction) -> None:
        inode = txn.inode(self.ino)
        if inode is None:
            return
        txn.put_inode(replace(inode, key=self.aside))
        for key in self.old:
            known = txn.changed.departed(key)
            if key != self.aside and known is not None and known.ino == self.ino:
                txn.changed.put_departed(key, Departed(0, _NO_VERSION))


@dataclass(frozen=True, slots=True)
class FinishMove:
    """Note that all objects of a directory are below `prefix`.  Returns False when it has another place by now."""

    ino: int
    prefix: str
    root_prefix: str

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
            txn.changed.delete_departed(key)
        return True


def intent_name(ino: int) -> bytes:
    """Return the name of the setting that holds the intent of an inode (or of a further name, by its cookie)."""
    return INTENTS + b"%x." % ino


def _take_version(txn: IndexTransaction, inode: Inode, version: Version) -> None:
    """Let an inode's object be another version under the same key: one that we put and did not hear of."""
    attr = inode.attr
    if inode.is_staged:
        _change_base(txn, inode, version)
        attr = attr_with(attr, size_bytes=version.size_bytes)
    txn.put_inode(replace(inode, attr=attr, etag=version.etag, version_id=version.version_id))


def _change_base(txn: IndexTransaction, inode: Inode, version: Version) -> None:
    """Let a staged file's object be another version: what is not local is the same in both, up to the base size."""
    txn.add_totals(0, version.size_bytes - inode.size_bytes)
    base_size = txn.changed.base_size(inode.ino) or 0
    for part in txn.parts(inode.ino):
        whole = max(0, base_size - part * PART_BYTES) // BLOCK_BYTES
        DropBlocks(inode.ino, part, -1 << min(whole, PART_BLOCKS)).apply(txn)


def _show_parents(txn: IndexTransaction, ino: int) -> None:
    """Note that the directories above an object are in the store now, also without markers."""
    place = txn.changed.name(ino)
    above = None if place is None else txn.inode(place[0])
    while above is not None and above.is_local and above.ino != ROOT_INO:
        txn.put_inode(replace(above, flags=above.flags & ~FLAG_LOCAL))
        place = txn.changed.name(above.ino)
        above = None if place is None else txn.inode(place[0])


def _is_needed_name(txn: IndexTransaction, ino: int) -> bool:
    """Tell whether a published inode's place must stay recorded: its further names are found by it."""
    inode = txn.inode(ino)
    return inode is None or inode.is_dir or inode.links > 1 or inode.is_staged


def _leave_marker(txn: IndexTransaction, key: str) -> None:
    """Have a directory's marker deleted that was put while the directory was removed."""
    if txn.changed.departed(key) is None:
        txn.changed.put_departed(key, Departed(0, _NO_VERSION))
