"""Every change of the index as a value with a pure `apply`: the same records a journal or a fleet's log would carry.

An operation reads and writes only through the transaction it is given, takes every outside fact (time, ownership,
what the backend said) as a field, and returns what followed from it.  The core's writer is the only caller.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final, Protocol, TypeVar

from fanoutfs.errors import DiskGoneError
from fanoutfs.index.format import (
    DT_DIR,
    FIRST_INO,
    FLAG_ATTRS,
    FLAG_LOCAL,
    FLAG_SMALL,
    FLAG_STAGED,
    FORMAT_VERSION,
    U64,
    Departed,
    Inode,
    Ownership,
    directory_inode,
    file_inode,
    make_attr,
    moved_attr,
    with_links,
)
from fanoutfs.index.keeping import is_complete, is_kept, takes_no_names
from fanoutfs.index.tiers import StoredAs
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import BLOCK_BYTES, PART_BYTES, ROOT_INO, Version

_OWN_ATTRIBUTES: Final = FLAG_STAGED | FLAG_LOCAL | FLAG_ATTRS

T_co = TypeVar("T_co", covariant=True)


class Operation(Protocol[T_co]):
    """A change; T_co is what apply returns."""

    def apply(self, txn: IndexTransaction) -> T_co:
        """Carry the change out inside a transaction."""
        ...


@dataclass(frozen=True, slots=True)
class Child:
    """One thing a listing found.  version None: a directory, key is its prefix and ends with "/".

    stored: how the store keeps it, as far as it is not as usual.
    """

    name: bytes
    key: str
    version: Version | None
    stored: StoredAs | None = None


class ChangeKind(Enum):
    """What happened to a name."""

    ADDED = auto()
    REPLACED = auto()
    REMOVED = auto()
    TOUCHED = auto()  # same content, other times


@dataclass(frozen=True, slots=True)
class Change:
    """One name that the kernel may know wrongly now.  ino: what the name led to before (ADDED: leads to now)."""

    kind: ChangeKind
    parent: int
    name: bytes
    ino: int


def is_same_version(known: Version, found: Version) -> bool:
    """Tell whether two observations are of the same bytes.

    An ETag decides where both have one: a store may report times of different precision in LIST and GET.
    """
    if known.etag and found.etag:
        same_id = not (known.version_id and found.version_id) or known.version_id == found.version_id
        return known.etag == found.etag and known.size_bytes == found.size_bytes and same_id
    return (known.size_bytes, known.mtime_ns) == (found.size_bytes, found.mtime_ns)


class OldFormatError(ValueError):
    """The index has the format of an earlier version, which holds nothing that the store does not have."""


@dataclass(frozen=True, slots=True)
class OpenVolume:
    """Bring a new or known index to the state that this mount's options ask for.

    Returns True when the volume was known before.  Raises ValueError when the index belongs to another volume or was
    written by a newer version, OldFormatError when by an older one.  All orphans are freed by the caller: a new mount
    holds no inode.
    """

    identity: str
    ownership: Ownership
    now_ns: int
    first_ino: int = FIRST_INO
    """Where a new index begins to number: beyond whatever an earlier one may have handed to a kernel that still
    remembers it."""

    def apply(self, txn: IndexTransaction) -> bool:
        known_format = txn.setting(b"format")
        wanted = U64.pack(FORMAT_VERSION)
        if known_format is None:
            txn.set_setting(b"format", wanted)
            txn.set_setting(b"volume", self.identity.encode())
            txn.set_setting(b"ownership", self.ownership.pack())
            txn.set_setting(b"next_ino", U64.pack(self.first_ino))
            txn.put_inode(directory_inode(ROOT_INO, "", self.now_ns, self.ownership))
            return False
        if known_format != wanted:
            number = U64.unpack(known_format)[0]
            error = OldFormatError if number < FORMAT_VERSION else ValueError
            raise error(f"index format {number}, this version writes {FORMAT_VERSION}")
        if txn.setting(b"volume") != self.identity.encode():
            raise ValueError("the index belongs to another source")
        if txn.setting(b"ownership") != self.ownership.pack():
            self._restamp(txn)
        return True

    def _restamp(self, txn: IndexTransaction) -> None:
        """Give everything the mount's owner and modes, but what has attributes of its own (see `format`)."""
        for inode in txn.all_inodes():
            version, owner = inode.version, self.ownership
            if inode.flags & _OWN_ATTRIBUTES or txn.changed.dirty(inode.ino) is not None:
                continue
            if inode.is_dir:
                fresh = directory_inode(inode.ino, inode.key, version.mtime_ns, owner)
                fresh = replace(fresh, listed_at_ns=inode.listed_at_ns, flags=inode.flags)
            else:
                # Where the content is kept does not change under an inode that may have content already.
                fresh = replace(file_inode(inode.ino, inode.key, version, owner), flags=inode.flags & FLAG_SMALL)
            txn.put_inode(with_links(fresh, inode.links))
        txn.set_setting(b"ownership", self.ownership.pack())


@dataclass(frozen=True, slots=True)
class ApplyChildren:
    """Enter what a point lookup found below a directory (what a listing found: see `merging`).

    A file does not displace a directory of its name: whoever asked for one name asked for the directory first.
    """

    parent: int
    children: tuple[Child, ...]
    ownership: Ownership
    now_ns: int
    settled: frozenset[bytes] = frozenset()
    """See `merging.MergeNames`."""

    def apply(self, txn: IndexTransaction) -> list[Change]:
        changes: list[Change] = []
        directory = txn.inode(self.parent)
        if directory is None or txn.is_orphan(self.parent):
            return changes  # freed meanwhile, or nothing below it can be reached or counted any more
        children = [child for child in present_children(txn, self.children) if child.name not in self.settled]
        if is_complete(txn.inode, txn.changed, directory):
            return changes
        if takes_no_names(txn.inode, txn.changed, directory):
            children, changes = [], learn(txn, directory, children, self.ownership, self.now_ns)
        for child in children:
            known = txn.entry(self.parent, child.name)
            if known is None:
                ino = add_child(txn, self.parent, child, self.ownership, self.now_ns)
                changes.append(Change(ChangeKind.ADDED, self.parent, child.name, ino))
            elif (
                known[1] != DT_DIR
                and not is_kept(txn, directory, child.name, known[0])
                and (change := meet_file(txn, self.parent, child, known[0], self.ownership, self.now_ns))
            ):
                changes.append(change)
        if changes:
            mark_changed(txn, self.parent, self.now_ns)
        return changes


@dataclass(frozen=True, slots=True)
class PutBlocks:
    """Note that blocks of one part are in the cache file on a disk, with their checksums.

    What the part had on another disk, one that is not used any more, is forgotten.
    Returns False when the inode was freed meanwhile, or its content belongs to the small-file store by now: the bytes
    must go.  Raises DiskGoneError when the disk was taken out of service meanwhile.
    """

    ino: int
    part: int
    checksums: dict[int, int]
    disk: int = 0

    def apply(self, txn: IndexTransaction) -> bool:
        inode = txn.inode(self.ino)
        if inode is None or inode.is_small:
            return False
        if not txn.has_disk(self.disk):
            raise DiskGoneError(f"disk {self.disk} of the cache was taken out of service")
        present, checksums, disk = txn.part(self.ino, self.part)
        if present and disk != self.disk:
            DropBlocks(self.ino, self.part, -1).apply(txn)
            present = 0
        added = 0
        for block, checksum in self.checksums.items():
            if not present >> block & 1:
                added |= 1 << block
            checksums[block] = checksum
        txn.put_part(self.ino, self.part, present | added, checksums, self.disk)
        txn.add_cached_bytes(blocks_bytes(inode.size_bytes, self.part, added), self.disk)
        return True


@dataclass(frozen=True, slots=True)
class DropBlocks:
    """Note that blocks of one part are not in the cache any more.

    Returns (bits dropped, bytes they held, disk that still has them).
    """

    ino: int
    part: int
    mask: int

    def apply(self, txn: IndexTransaction) -> tuple[int, int, int]:
        present, checksums, disk = txn.part(self.ino, self.part)
        inode = txn.inode(self.ino)
        dropped = present & self.mask
        if not dropped or inode is None:
            return 0, 0, disk
        size_bytes = blocks_bytes(inode.size_bytes, self.part, dropped)
        txn.put_part(self.ino, self.part, present & ~self.mask, checksums, disk)
        txn.add_cached_bytes(-size_bytes, disk)
        return dropped, size_bytes, disk


@dataclass(frozen=True, slots=True)
class FreeOrphans:
    """Remove inodes that no name leads to and that the kernel forgot.  Returns the freed inode numbers."""

    inos: tuple[int, ...]

    def apply(self, txn: IndexTransaction) -> list[int]:
        freed = []
        for ino in self.inos:
            inode = txn.inode(ino)
            txn.delete_orphan(ino)
            if inode is None:
                continue
            for part in txn.parts(ino):
                DropBlocks(ino, part, -1).apply(txn)
            txn.delete_inode(ino)
            txn.changed.forget(ino)
            txn.tiers.forget(ino)
            departed = txn.changed.departed(inode.key) if inode.key else None
            if departed is not None and departed.ino == ino:  # nobody can read its object any more: it may go
                txn.changed.put_departed(inode.key, Departed(0, departed.version))
            freed.append(ino)
        return freed


def blocks_bytes(size_bytes: int, part: int, mask: int) -> int:
    """Return how many bytes the blocks in `mask` of a part hold; the file's last block may be short."""
    total = mask.bit_count() * BLOCK_BYTES
    last_part, in_part = divmod(max(0, size_bytes - 1), PART_BYTES)
    last_block = in_part // BLOCK_BYTES
    if part == last_part and mask >> last_block & 1:
        total -= BLOCK_BYTES - (in_part % BLOCK_BYTES + 1)
    return total


def present_children(txn: IndexTransaction, children: tuple[Child, ...]) -> tuple[Child, ...]:
    """Return those whose objects did not leave their place here."""
    if not txn.changed.has_departed:
        return children
    return tuple(child for child in children if txn.changed.departed(child.key) is None)


def learn(
    txn: IndexTransaction, directory: Inode, children: Iterable[Child], owner: Ownership, now_ns: int
) -> list[Change]:
    """Give a directory the names that it does not know yet; a directory displaces a file of its name, as ever."""
    changes = []
    for child in sorted(children, key=lambda child: child.version is not None):
        known = txn.entry(directory.ino, child.name)
        if known is None:
            ino = add_child(txn, directory.ino, child, owner, now_ns)
            changes.append(Change(ChangeKind.ADDED, directory.ino, child.name, ino))
        elif child.version is None and known[1] != DT_DIR and not is_kept(txn, directory, child.name, known[0]):
            change = meet_file(txn, directory.ino, child, known[0], owner, now_ns)
            changes += [] if change is None else [change]
    return changes


def meet_file(
    txn: IndexTransaction, parent: int, child: Child, ino: int, owner: Ownership, now_ns: int
) -> Change | None:
    """Let a name that leads to a file lead to what was found under it; None: nothing has changed."""
    old = txn.inode(ino)
    if old is not None and child.version is not None and is_same_version(old.version, child.version):
        note_class(txn, ino, child)
        if old.version.mtime_ns == child.version.mtime_ns or old.has_attributes:
            return None
        mtime_ns, size_bytes = child.version.mtime_ns, child.version.size_bytes
        attr = make_attr(ino, old.mode, size_bytes, mtime_ns, owner.uid, owner.gid)
        txn.put_inode(replace(old, attr=attr))
        return Change(ChangeKind.TOUCHED, parent, child.name, ino)
    remove_leaf(txn, parent, child.name, ino, now_ns)
    add_child(txn, parent, child, owner, now_ns)
    return Change(ChangeKind.REPLACED, parent, child.name, ino)


def add_child(txn: IndexTransaction, parent: int, child: Child, owner: Ownership, now_ns: int) -> int:
    """Give a child a new inode and its name; return the inode number."""
    ino = txn.new_ino()
    inode: Inode
    if child.version is None:
        inode = directory_inode(ino, child.key, now_ns, owner)
    else:
        inode = file_inode(ino, child.key, child.version, owner)
        txn.add_totals(1, child.version.size_bytes)
    txn.put_inode(inode)
    txn.put_entry(parent, child.name, inode)
    note_class(txn, ino, child)
    if inode.is_dir:
        txn.changed.put_name(ino, parent, child.name)
    return ino


def note_class(txn: IndexTransaction, ino: int, child: Child) -> None:
    """Take the class of a listing over where it is news: a rule of the bucket moves objects without a new version.

    That it is the default class is no news: some stores say so of every object, and no rule moves one back.
    """
    if child.stored is not None and txn.tiers.stored_as(ino).storage_class != child.stored.storage_class:
        txn.tiers.put_stored(ino, child.stored)


def remove_leaf(txn: IndexTransaction, parent: int, name: bytes, ino: int, now_ns: int) -> None:
    """Take away the name of a file, or of a directory with nothing in it; the inode becomes an orphan."""
    inode = txn.inode(ino)
    txn.delete_entry(parent, name)
    if inode is not None and not inode.is_dir and inode.links > 1:
        txn.put_inode(with_links(inode, inode.links - 1))  # another name leads there
        return
    txn.put_orphan(ino, now_ns)
    if inode is not None and not inode.is_dir:
        txn.add_totals(-1, -inode.size_bytes)


def mark_changed(txn: IndexTransaction, ino: int, now_ns: int) -> None:
    """Move the mtime of a listed directory, in the transaction that changes what is in it.

    By it the kernel recognises that a listing it cached is old, also when the core dies before it can say so.  Hence
    never twice the same.  A directory that was not listed has been shown to nobody.
    """
    directory = txn.inode(ino)
    if directory is None or not directory.is_listed:
        return
    mtime_ns = max(now_ns, directory.version.mtime_ns + 1)
    txn.put_inode(replace(directory, attr=moved_attr(directory.attr, mtime_ns)))
