"""What all changes share that requests ask for: whom they answer, and what makes an inode dirty.

Core; parts of the operations in `changes`, `attributes` and `staged`, inside the writer's transactions.

Each operation carries the `Request` it answers.  One that the kernel delivers again after a crash is recognised by its
token and answered from what was noted with the first one.
"""

from dataclasses import dataclass, replace
from typing import Final

from fanoutfs.errors import InvariantError, StaleInodeError
from fanoutfs.index.format import U64, Dirty, DirtyRecord, Inode, attr_with
from fanoutfs.index.places import Places
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import ROOT_INO
from fanoutfs.wire.relay import TOKEN_MASK, TOKEN_RESENT

CREATED: Final = 1 << 31
"""Added to the opcode of a noted SETXATTR that made the attribute: the one that replaces tells nothing new."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a change answers.  token: 0 when no request asked for it.  root_prefix: what all keys of the mount share."""

    now_ns: int
    token: int
    opcode: int
    root_prefix: str

    def places(self, txn: IndexTransaction) -> Places:
        """Return where everything is, in this transaction."""
        return Places.of_transaction(txn, self.root_prefix)

    def key_at(self, txn: IndexTransaction, parent: int, name: bytes) -> str:
        """Return the object key that belongs to a name in a directory that a name leads to."""
        prefix = self.places(txn).prefix(parent)
        if prefix is None:
            raise InvariantError(f"no path leads to directory {parent}")
        return prefix + name.decode("utf-8", "surrogateescape")

    def earlier(self, txn: IndexTransaction) -> int | None:
        """Return the inode noted when this very request was carried out before; None: it was not."""
        if not self.token & TOKEN_RESENT:
            return None
        found = txn.changed.applied(self.token & TOKEN_MASK)
        return found[1] if found is not None and found[0] & ~CREATED == self.opcode else None

    def note(self, txn: IndexTransaction, ino: int, *, created: bool = False) -> None:
        """Note that this request was carried out."""
        if self.token:
            sequence = int.from_bytes(txn.setting(b"changes") or b"", "little") + 1
            txn.set_setting(b"changes", U64.pack(sequence))
            opcode = self.opcode | CREATED if created else self.opcode
            txn.changed.put_applied(self.token & TOKEN_MASK, opcode, ino, sequence)


@dataclass(frozen=True, slots=True)
class ForgetRequests:
    """Forget which requests were carried out: a new mount counts its own from the beginning."""

    def apply(self, txn: IndexTransaction) -> None:
        txn.changed.forget_applied()


@dataclass(frozen=True, slots=True)
class ReserveNumbers:
    """Take inode numbers (also used as lives and positions) off the counter.  Returns the first of them."""

    count: int

    def apply(self, txn: IndexTransaction) -> int:
        return txn.new_inos(self.count)


def known_inode(txn: IndexTransaction, ino: int) -> Inode:
    """Return an inode's record.  Raises StaleInodeError."""
    inode = txn.inode(ino)
    if inode is None:
        raise StaleInodeError(f"inode {ino} is not in the index")
    return inode


def put_attr(
    txn: IndexTransaction,
    inode: Inode,
    request: Request,
    *,
    mode: int | None = None,
    links: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    atime_ns: int | None = None,
    mtime_ns: int | None = None,
) -> Inode:
    """Store attributes; the inode's ctime moves with them.  Times given are set."""
    attr = attr_with(
        inode.attr,
        mode=mode,
        links=links,
        uid=uid,
        gid=gid,
        atime_ns=atime_ns,
        mtime_ns=mtime_ns,
        ctime_ns=request.now_ns,
    )
    changed = replace(inode, attr=attr)
    txn.put_inode(changed)
    return changed


def make_dirty(txn: IndexTransaction, inode: Inode, what: Dirty, request: Request) -> None:
    """Note that the store does not have this inode as it is, and where it is, so that its path can be told.

    Its further names have objects of their own, which are as old now.
    """
    if txn.is_orphan(inode.ino) or inode.ino == ROOT_INO:  # the root has no object
        return
    if txn.changed.name(inode.ino) is None and (place := request.places(txn).place(inode.ino)) is not None:
        txn.changed.put_name(inode.ino, *place)
    if inode.links > 1 and what:
        for cookie in txn.changed.links(inode.ino):
            make_link_dirty(txn, cookie, request)
    known = txn.changed.dirty(inode.ino)
    since_ns = request.now_ns if known is None else known.since_ns
    if known is not None:
        what |= known.what
    txn.changed.put_dirty(inode.ino, DirtyRecord(since_ns, request.now_ns, what))


def touch_directory(txn: IndexTransaction, ino: int, now_ns: int) -> None:
    """Move a directory's mtime and ctime: what is in it changed.  Never twice the same: see `mark_changed`."""
    txn.touch_inode(ino, now_ns)


def make_link_dirty(txn: IndexTransaction, cookie: int, request: Request, *, is_moved: bool = False) -> None:
    """Note that a further name has no object that is as the inode is.  is_moved: and none at all, not where it is."""
    known = txn.changed.dirty(cookie)
    is_stored = not is_moved and (known is None or Dirty.STORED in known.what)
    what = Dirty.CONTENT | Dirty.STORED if is_stored else Dirty.CONTENT
    txn.changed.put_dirty(cookie, DirtyRecord(known.since_ns if known else request.now_ns, request.now_ns, what))
