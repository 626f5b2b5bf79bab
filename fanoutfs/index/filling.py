"""Give a file the attributes that its object carries.  Values like `operations`; writer thread of the core.

Done before the kernel hears of the inode for the first time: attributes of a clean file do not change under its number.
"""

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fanoutfs.index.format import FLAG_ATTRS, FLAG_LOCAL, FLAG_STAGED, Inode, attr_with
from fanoutfs.index.operations import is_same_version
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import Version

_PERMISSIONS: Final = 0o1777
"""Not set-user-ID and set-group-ID: whoever may write to the bucket is not root here."""


@dataclass(frozen=True, slots=True)
class ObjectAttributes:
    """What an object says of a file; None: nothing.  target: of a symbolic link."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    atime_ns: int | None = None
    rdev: int | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    target: bytes | None = None


@dataclass(frozen=True, slots=True)
class FillAttributes:
    """Enter what the object of a name carries, if that is still what the name leads to.  Returns the record as it is.

    A type that the file cannot have (a directory, a link without a target) is passed over.
    """

    parent: int
    name: bytes
    ino: int
    version: Version
    attributes: ObjectAttributes

    def apply(self, txn: IndexTransaction) -> Inode | None:
        """Carry it out."""
        inode = txn.inode(self.ino)
        if (
            inode is None
            or inode.flags & (FLAG_ATTRS | FLAG_STAGED | FLAG_LOCAL)
            or txn.changed.dirty(self.ino) is not None
            or not is_same_version(inode.version, self.version)
        ):
            return inode
        found = self.attributes
        mode = inode.mode
        if found.mode is not None:
            kind = stat.S_IFMT(found.mode)
            if kind == stat.S_IFDIR or (kind == stat.S_IFLNK) != (found.target is not None):
                kind = stat.S_IFREG
            mode = kind | (0o777 if kind == stat.S_IFLNK else found.mode & _PERMISSIONS)
        attr = attr_with(
            inode.attr,
            mode=mode,
            uid=found.uid,
            gid=found.gid,
            atime_ns=found.atime_ns if found.atime_ns is not None else found.mtime_ns,
            mtime_ns=found.mtime_ns,
            ctime_ns=found.ctime_ns if found.ctime_ns is not None else found.mtime_ns,
            rdev=found.rdev,
        )
        filled = replace(inode, attr=attr, flags=inode.flags | FLAG_ATTRS)
        txn.put_inode(filled)
        if found.target is not None:
            txn.changed.put_target(self.ino, found.target)
        for name, value in found.xattrs.items():
            if name.startswith(b"user."):
                txn.changed.put_xattr(self.ino, name, value)
        known = txn.entry(self.parent, self.name)
        if known is not None and known[0] == self.ino:
            cookie = txn.entry_cookie(self.parent, self.name)
            txn.put_entry(self.parent, self.name, filled, 0 if cookie in (None, self.ino) else cookie or 0)
        return filled
