"""Changes of mode, owner, times and extended attributes, as values like `changes`.  Core."""

import errno
import stat
from dataclasses import dataclass, replace

from fanoutfs.errors import RefusedError
from fanoutfs.index.format import FLAG_ATTRS, Dirty, Inode
from fanoutfs.index.requests import Request, known_inode, make_dirty, put_attr
from fanoutfs.index.transaction import IndexTransaction


@dataclass(frozen=True, slots=True)
class SetAttributes:
    """Change mode, owner or times.  Returns the record.

    What a change of owner or content takes away of the mode, the front has spelled out.  A staged file's mtime is that
    of its staging file; the record's stays that of the object.
    """

    ino: int
    request: Request
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    def apply(self, txn: IndexTransaction) -> Inode:
        inode = known_inode(txn, self.ino)
        if self.request.earlier(txn) is not None:
            return inode
        mode = inode.mode
        if self.mode is not None:
            mode = stat.S_IFMT(mode) | stat.S_IMODE(self.mode)
        changed = put_attr(
            txn,
            inode,
            self.request,
            mode=mode,
            uid=self.uid,
            gid=self.gid,
            atime_ns=self.atime_ns,
            mtime_ns=None if inode.is_staged else self.mtime_ns,
        )
        changed = replace(changed, flags=changed.flags | FLAG_ATTRS)
        txn.put_inode(changed)
        if changed.mode != inode.mode or self.uid is not None or self.gid is not None or self.mtime_ns is not None:
            make_dirty(txn, changed, Dirty.META, self.request)
        self.request.note(txn, self.ino)
        return changed


@dataclass(frozen=True, slots=True)
class SetXattr:
    """Set an extended attribute."""

    ino: int
    name: bytes
    value: bytes
    request: Request

    def apply(self, txn: IndexTransaction) -> None:
        inode = known_inode(txn, self.ino)
        if self.request.earlier(txn) is not None:
            return
        created = txn.changed.xattr(self.ino, self.name) is None
        txn.changed.put_xattr(self.ino, self.name, self.value)
        make_dirty(txn, put_attr(txn, inode, self.request), Dirty.META, self.request)
        self.request.note(txn, self.ino, created=created)


@dataclass(frozen=True, slots=True)
class RemoveXattr:
    """Remove an extended attribute."""

    ino: int
    name: bytes
    request: Request

    def apply(self, txn: IndexTransaction) -> None:
        inode = known_inode(txn, self.ino)
        if self.request.earlier(txn) is not None:
            return
        if not txn.changed.delete_xattr(self.ino, self.name):
            raise RefusedError(errno.ENODATA)
        make_dirty(txn, put_attr(txn, inode, self.request), Dirty.META, self.request)
        self.request.note(txn, self.ino)
