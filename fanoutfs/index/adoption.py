"""Take staging files into a new index: content that was not uploaded yet when the index before it was lost.

Core, in the transaction that makes the index, so that after a crash it is done again or was done as a whole.  A file
keeps its number and life, and with them its name in staging/.  What the index alone knew is gone: mode and owner are
the mount's, extended attributes and names that had no content are lost, and whether the object store has an object at
the path is found out by the upload (if so, both are kept: a conflict).
"""

import stat
from dataclasses import dataclass
from typing import Final

from fanoutfs.index.format import (
    DT_DIR,
    FIRST_INO,
    FLAG_ATTRS,
    FLAG_LOCAL,
    FLAG_STAGED,
    FLAG_WHOLE,
    U64,
    Dirty,
    DirtyRecord,
    Inode,
    Ownership,
    directory_inode,
    make_attr,
)
from fanoutfs.index.names import NAME_MAX_BYTES, child_name
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import ROOT_INO, StagedFile, Version

_LOST_NAME: Final = "recovered"


@dataclass(frozen=True, slots=True)
class Adopt:
    """Enter staging files under their paths.  Returns the paths, in the order of the files."""

    files: tuple[StagedFile, ...]
    root_prefix: str
    ownership: Ownership
    now_ns: int

    def apply(self, txn: IndexTransaction) -> list[str]:
        """Carry it out; the index must not know the files yet."""
        highest = max((max(each.ino, each.life) for each in self.files), default=0)
        next_ino = U64.unpack(txn.setting(b"next_ino") or U64.pack(FIRST_INO))[0]
        txn.set_setting(b"next_ino", U64.pack(max(next_ino, highest + 1)))
        return [self._adopt(txn, each) for each in self.files]

    def _adopt(self, txn: IndexTransaction, staged: StagedFile) -> str:
        parent, prefix, name = self._place(txn, staged)
        key = prefix + name.decode("utf-8", "surrogateescape")
        base = staged.base
        version = base or Version("", "", staged.size_bytes, staged.mtime_ns)
        owner = self.ownership
        mode = stat.S_IFREG | owner.file_mode
        attr = make_attr(staged.ino, mode, version.size_bytes, version.mtime_ns, owner.uid, owner.gid)
        is_whole = base is None or not staged.base_size
        flags = FLAG_STAGED | FLAG_ATTRS | (FLAG_WHOLE if is_whole else 0)
        if base is None or key != staged.key:
            flags |= FLAG_LOCAL
        object_key = "" if base is None else staged.key
        inode = Inode(staged.ino, attr, staged.life, flags, version.etag, version.version_id, object_key)
        txn.put_inode(inode)
        txn.put_entry(parent, name, inode)
        txn.add_totals(1, version.size_bytes)
        txn.changed.put_name(staged.ino, parent, name)
        txn.changed.put_dirty(staged.ino, DirtyRecord(staged.mtime_ns, staged.mtime_ns, Dirty.CONTENT))
        if not is_whole:
            txn.changed.put_base_size(staged.ino, staged.base_size)
            for part, mask in staged.local:
                txn.changed.put_local_blocks(staged.ino, part, mask)
        return key

    def _place(self, txn: IndexTransaction, staged: StagedFile) -> tuple[int, str, bytes]:
        """Return (directory, its prefix, name) for a file; directories that are not there are made."""
        parent, prefix = ROOT_INO, self.root_prefix
        *above, last = staged.key.removeprefix(prefix).split("/")
        if not staged.key.startswith(prefix) or not all(child_name(part, "") for part in (*above, last)):
            return parent, prefix, self._free_name(txn, parent, b"", staged)
        for part in above:
            name = part.encode("utf-8", "surrogateescape")
            known = txn.entry(parent, name)
            if known is not None and known[1] != DT_DIR:
                return parent, prefix, self._free_name(txn, parent, name, staged)
            prefix += part + "/"
            parent = known[0] if known is not None else self._make_directory(txn, parent, name, prefix)
        name = last.encode("utf-8", "surrogateescape")
        if txn.entry(parent, name) is not None:
            name = self._free_name(txn, parent, name, staged)
        return parent, prefix, name

    def _make_directory(self, txn: IndexTransaction, parent: int, name: bytes, prefix: str) -> int:
        ino = txn.new_ino()
        directory = directory_inode(ino, prefix, self.now_ns, self.ownership)
        txn.put_inode(directory)
        txn.put_entry(parent, name, directory)
        txn.changed.put_name(ino, parent, name)
        return ino

    @staticmethod
    def _free_name(txn: IndexTransaction, parent: int, name: bytes, staged: StagedFile) -> bytes:
        ending = f"{_LOST_NAME}-{staged.ino:x}-{staged.life:x}".encode()
        wanted = name[: NAME_MAX_BYTES - len(ending) - 1] + b"." + ending if name else ending
        while txn.entry(parent, wanted) is not None:
            wanted = wanted[: NAME_MAX_BYTES - 1] + b"_"
        return wanted
