"""Intents: what the object store may have got without anybody having heard of it, remembered before it is asked.

Pure `apply`, as `operations`; in the writer thread of the core.  One for each inode, or further name by its cookie.
Whoever finds one later, without knowing what came of it, looks, and notes what is there (`ResolveIntent`): else an
object that arrived unnoticed, and whose file was then removed or renamed, would come back as a file.
"""

import json
from dataclasses import dataclass, replace
from typing import Final

from fanoutfs.index.changed import no_version
from fanoutfs.index.departing import depart
from fanoutfs.index.format import FLAG_LOCAL, Departed, Dirty, DirtyRecord, Inode, attr_with
from fanoutfs.index.operations import DropBlocks
from fanoutfs.index.places import Places
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES, Version

INTENTS: Final = b"intent/"


@dataclass(frozen=True, slots=True)
class NoteIntent:
    """Remember under which key an object of an inode is about to be, before the store is asked.

    Whoever finds it later, without knowing what came of it, looks (ResolveIntent): else an object that arrived
    unnoticed and whose file was then removed or renamed would come back as a file.
    """

    ino: int
    key: str
    root_prefix: str
    etag: str = ""
    """Of the object, if it is a plain copy, which is not known by a token."""

    def apply(self, txn: IndexTransaction) -> None:
        """Carry it out."""
        self._leave_earlier(txn)
        txn.set_setting(intent_name(self.ino), json.dumps([self.key, self.etag]).encode())

    def _leave_earlier(self, txn: IndexTransaction) -> None:
        """Have what may still arrive elsewhere deleted: a directory above was renamed meanwhile."""
        value = txn.setting(intent_name(self.ino))
        key = self.key if value is None else read_intent(value)[0]
        if key != self.key and Places.of_transaction(txn, self.root_prefix).at(key) is None:
            leave_intent(txn, self.ino, self.root_prefix)


@dataclass(frozen=True, slots=True)
class ResolveIntent:
    """Note what came of an intent.  version: of the object there, if it is ours; None: there is none of ours."""

    ino: int
    key: str
    version: Version | None
    root_prefix: str

    def apply(self, txn: IndexTransaction) -> None:
        """Carry it out."""
        txn.delete_settings(intent_name(self.ino))
        version = self.version
        inode = txn.inode(self.ino)
        if inode is not None and inode.is_dir and not txn.is_orphan(self.ino):
            place = Places.of_transaction(txn, self.root_prefix).key(self.ino)
            if self.key in (place, inode.key):
                if version is not None:  # its removal has something to delete
                    txn.put_inode(replace(inode, flags=inode.flags & ~FLAG_LOCAL))
                return  # the marker is where it belongs, or where the directory's move finds it
        if version is None or (inode is not None and (inode.key, inode.etag) == (self.key, version.etag)):
            return
        known = txn.changed.departed(self.key)
        if inode is not None and not inode.is_dir and inode.key == self.key:
            _take_version(txn, inode, version)
            if known is not None and known.ino == self.ino:
                txn.changed.put_departed(self.key, Departed(self.ino, version))
            return
        if known is None or known.ino == 0 or (known.ino == self.ino and not self.key.endswith("/")):
            # (a directory's record says whose all below is)
            depart(txn, self.key, Departed(0, version), self.root_prefix)
        if inode is not None and inode.is_dir and not txn.is_orphan(self.ino):
            # Its only marker, perhaps, is where it does not belong: it is put anew.
            dirty = txn.changed.dirty(self.ino) or DirtyRecord(inode.version.mtime_ns, inode.version.mtime_ns, Dirty(0))
            txn.changed.put_dirty(self.ino, replace(dirty, what=dirty.what | Dirty.META))


def leave_intent(txn: IndexTransaction, ino: int, root_prefix: str) -> None:
    """Have what an intent may have brought, or may still bring, to its key deleted: the file has another name, or none.

    Whose the object is its token says, or its ETag.
    """
    value = txn.setting(intent_name(ino))
    if value is None:
        return
    key, etag = read_intent(value)
    inode = txn.inode(ino)
    is_copy = etag and inode is not None and inode.etag == etag
    if inode is not None and inode.key == key and not inode.is_dir:
        return  # what is there is its object still, which goes when it has another one, whatever it has become
    if txn.changed.departed(key) is None:
        version = inode.version if is_copy and inode is not None else no_version()
        depart(txn, key, Departed(0, version), root_prefix)


def read_intent(value: bytes) -> tuple[str, str]:
    """Return (key, ETag of a plain copy or "") of an intent as it is stored."""
    key, etag = json.loads(value)
    return key, etag


def intent_name(ino: int) -> bytes:
    """Return the name of the setting that holds the intent of an inode (or of a further name, by its cookie)."""
    return INTENTS + b"%x." % ino


def _take_version(txn: IndexTransaction, inode: Inode, version: Version) -> None:
    """Let an inode's object be another version under the same key: one that we put and did not hear of."""
    attr = inode.attr
    if inode.is_staged:
        change_base(txn, inode, version)
        attr = attr_with(attr, size_bytes=version.size_bytes)
    txn.put_inode(replace(inode, attr=attr, etag=version.etag, version_id=version.version_id))


def change_base(txn: IndexTransaction, inode: Inode, version: Version) -> None:
    """Let a staged file's object be another version: what is not local is the same in both, up to the base size."""
    txn.add_totals(0, version.size_bytes - inode.size_bytes)
    base_size = txn.changed.base_size(inode.ino) or 0
    for part in txn.parts(inode.ino):
        whole = max(0, base_size - part * PART_BYTES) // BLOCK_BYTES
        DropBlocks(inode.ino, part, -1 << min(whole, PART_BLOCKS)).apply(txn)
