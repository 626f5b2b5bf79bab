"""Changes of where a file's content is: staged, made local, truncated, sealed, clean again.  Values like `changes`.

Core; applied in the writer's transactions.  What they promise about the staging file has been done to it before
(`core.staging` says in which order).  A record of a staged file keeps the size and mtime of its object: content that
is not local is fetched by them.

Those that follow from something that took time name the inode's life: when the inode is not staged in that life any
more they change nothing, and say so.
"""

import errno
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fanoutfs.errors import RefusedError, StaleInodeError
from fanoutfs.index.format import (
    FLAG_ATTRS,
    FLAG_SEALED,
    FLAG_SMALL,
    FLAG_STAGED,
    FLAG_WHOLE,
    Departed,
    Dirty,
    Inode,
    attr_with,
)
from fanoutfs.index.operations import DropBlocks, PutBlocks
from fanoutfs.index.requests import Request, make_dirty
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES, Version

_NOT_CLEAN: Final = FLAG_STAGED | FLAG_WHOLE | FLAG_SEALED | FLAG_SMALL


@dataclass(frozen=True, slots=True)
class Stage:
    """Let a file's newest content be that of a staging file.  Returns the record.

    The staging file has the size, mtime and, if `whole`, the content of the clean file (or is empty, when that is what
    the file becomes).  Not whole: an overlay of which nothing is local yet.
    """

    ino: int
    life: int
    whole: bool
    request: Request

    def apply(self, txn: IndexTransaction) -> Inode:
        inode = txn.inode(self.ino)
        if inode is None:
            raise StaleInodeError(f"inode {self.ino} is not in the index")
        if not stat.S_ISREG(inode.mode):
            raise RefusedError(errno.EISDIR if inode.is_dir else errno.EINVAL)
        flags = inode.flags | FLAG_STAGED | FLAG_ATTRS | (FLAG_WHOLE if self.whole else 0)
        staged = replace(inode, listed_at_ns=self.life, flags=flags)
        txn.put_inode(staged)
        if not self.whole:
            txn.changed.put_base_size(self.ino, inode.size_bytes)
        make_dirty(txn, staged, Dirty.CONTENT, self.request)
        return staged


@dataclass(frozen=True, slots=True)
class MarkLocal:
    """Note that blocks of an overlay are in its staging file.  masks: {part: bits}.  Returns False: another life."""

    ino: int
    life: int
    masks: Mapping[int, int]

    def apply(self, txn: IndexTransaction) -> bool:
        if _living(txn, self.ino, self.life) is None:
            return False
        for part, mask in self.masks.items():
            txn.changed.put_local_blocks(self.ino, part, txn.changed.local_blocks(self.ino, part) | mask)
        return True


@dataclass(frozen=True, slots=True)
class Truncate:
    """Note that a staging file was given another size.  Behind what it was cut to nothing of the object is left."""

    ino: int
    life: int
    size_bytes: int
    request: Request

    def apply(self, txn: IndexTransaction) -> bool:
        inode = _living(txn, self.ino, self.life)
        if inode is None:
            return False
        base_size = txn.changed.base_size(self.ino)
        if base_size is not None and self.size_bytes < base_size:
            if self.size_bytes:
                txn.changed.put_base_size(self.ino, self.size_bytes)
            else:
                txn.changed.delete_staged(self.ino)
                txn.put_inode(replace(inode, flags=inode.flags | FLAG_WHOLE))
        make_dirty(txn, inode, Dirty.CONTENT, self.request)
        return True


@dataclass(frozen=True, slots=True)
class Seal:
    """Have fronts ask before they write, or (sealed False) write again.  Returns the record; None: another life."""

    ino: int
    life: int
    sealed: bool

    def apply(self, txn: IndexTransaction) -> Inode | None:
        inode = _living(txn, self.ino, self.life)
        if inode is None:
            return None
        flags = inode.flags | FLAG_SEALED if self.sealed else inode.flags & ~FLAG_SEALED
        sealed = replace(inode, flags=flags)
        txn.put_inode(sealed)
        return sealed


@dataclass(frozen=True, slots=True)
class MakeClean:
    """Let a staged file's content be the object `key` in `version`, which has it.

    Returns False, and changes nothing, when it was removed or has another life.

    times_ns: (mtime, ctime) of the content.  checksums: block of the file → xxh3, of what is in the cache file now.
    What this leaves of the inode to be done in the store (`dirty`, LOCAL, a name it lost meanwhile) is settled by
    whoever put the object there.
    """

    ino: int
    life: int
    key: str
    version: Version
    times_ns: tuple[int, int]
    checksums: Mapping[int, int]
    is_small: bool
    """The content belongs to the small-file store."""
    disks: Mapping[int, int] = field(default_factory=dict)
    """Part → number of the disk that its blocks are on; what is not named is on disk 0."""

    def apply(self, txn: IndexTransaction) -> bool:
        inode = _living(txn, self.ino, self.life)
        if inode is None or txn.is_orphan(self.ino):  # (removed: who has it open goes on with the staging file)
            return False
        if inode.key and inode.key != self.key:
            owner = txn.changed.departed(inode.key)
            if owner is None or owner.ino == self.ino:
                txn.changed.put_departed(inode.key, Departed(0, inode.version))
        clean = self._record(inode)
        txn.add_totals(0, clean.size_bytes - inode.size_bytes)
        for part in txn.parts(self.ino):
            kept = 0 if inode.is_whole or clean.is_small else kept_blocks(txn, inode, part, clean.size_bytes)
            DropBlocks(self.ino, part, ~kept).apply(txn)
        txn.changed.delete_staged(self.ino)
        txn.put_inode(clean)
        parts: dict[int, dict[int, int]] = {}
        for block, checksum in self.checksums.items():
            parts.setdefault(block // PART_BLOCKS, {})[block % PART_BLOCKS] = checksum
        for part, checksums in parts.items():
            disk = self.disks.get(part, 0)
            if txn.has_disk(disk):  # (else it went out of service since they were copied there)
                PutBlocks(self.ino, part, checksums, disk).apply(txn)
        return True

    def _record(self, inode: Inode) -> Inode:
        size_bytes, (mtime_ns, ctime_ns) = self.version.size_bytes, self.times_ns
        blocks = (size_bytes + 511) // 512
        attr = attr_with(inode.attr, size_bytes=size_bytes, blocks=blocks, mtime_ns=mtime_ns, ctime_ns=ctime_ns)
        flags = inode.flags & ~_NOT_CLEAN | FLAG_ATTRS
        if self.is_small:
            flags |= FLAG_SMALL
        return Inode(self.ino, attr, 0, flags, self.version.etag, self.version.version_id, self.key)


@dataclass(frozen=True, slots=True)
class Unstage:
    """Let a file be its object again: its staging file was lost, which only what was never synced can be."""

    ino: int
    life: int

    def apply(self, txn: IndexTransaction) -> bool:
        inode = _living(txn, self.ino, self.life)
        if inode is None:
            return False
        txn.changed.delete_staged(self.ino)
        flags = inode.flags & ~(FLAG_STAGED | FLAG_WHOLE | FLAG_SEALED)
        txn.put_inode(replace(inode, listed_at_ns=0, flags=flags))
        known = txn.changed.dirty(self.ino)
        if known is not None:
            txn.changed.put_dirty(self.ino, replace(known, what=known.what & ~Dirty.CONTENT | Dirty.META))
        return True


def kept_blocks(txn: IndexTransaction, inode: Inode, part: int, size_bytes: int) -> int:
    """Return the cached blocks of an overlay's object that are also blocks of the file of this size, as bits.

    Not those that were local, and not one that ends elsewhere now: the last block of either.
    """
    base_size = txn.changed.base_size(inode.ino) or 0
    present, _checksums, _disk = txn.part(inode.ino, part)
    kept = present & ~txn.changed.local_blocks(inode.ino, part)
    is_same_end = base_size == inode.size_bytes == size_bytes
    for block in range(PART_BLOCKS):
        end = part * PART_BYTES + (block + 1) * BLOCK_BYTES
        if end > base_size and not is_same_end:
            kept &= ~(1 << block)
    return kept


def _living(txn: IndexTransaction, ino: int, life: int) -> Inode | None:
    inode = txn.inode(ino)
    return inode if inode is not None and inode.is_staged and inode.life == life else None
