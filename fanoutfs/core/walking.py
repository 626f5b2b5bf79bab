"""Everything below a path that the index knows, batch by batch: nothing is listed for it.

Core, trio thread only.  Each batch is read from a snapshot of its own, because a reader's transaction must not live
long.  Memory: the names above, whatever the size of the tree.
"""

import os
from collections.abc import Iterator
from itertools import islice
from typing import Final

from fanoutfs.index.format import DT_DIR, DT_REG, Inode
from fanoutfs.index.reader import IndexReader

_BATCH: Final = 256
"""Files looked at in one go: a few milliseconds."""
_LOOKED_AT: Final = 4096
"""Names looked at for directories in one go: likewise."""


def directories_below(reader: IndexReader, top: int) -> Iterator[int]:
    """Yield a directory and all known directories below it, each above what is below it."""
    waiting = [top]
    while waiting:
        ino = waiting.pop()
        yield ino
        after: bytes | None = b""
        while after is not None:
            with reader.begin() as txn:
                batch = list(islice(reader.children(txn, ino, after), _LOOKED_AT))
            waiting += [child for _name, child, dtype, _cookie in batch if dtype == DT_DIR]
            after = batch[-1][0] if len(batch) == _LOOKED_AT else None


class TreeWalk:
    """One walk, depth first.  unlisted: directories met so far of which not all names are known."""

    def __init__(self, reader: IndexReader, path: str, inode: Inode) -> None:
        """path: relative to the mountpoint, "" for its root."""
        self._reader = reader
        self.unlisted = 0
        self._first: list[tuple[str, Inode]] = [] if inode.is_dir else [(path, inode)]
        self._above: list[tuple[str, int, bytes]] = []
        self._linked: set[int] = set()
        if inode.is_dir:
            self._enter(path, inode)

    def batch(self) -> list[tuple[str, Inode]]:
        """Return some regular files with their paths; [] at the end.  A file of several names comes once."""
        while not (found := self.step()) and not self.is_over:
            pass
        return found

    @property
    def is_over(self) -> bool:
        """Tell whether nothing more will be found."""
        return not self._first and not self._above

    def step(self) -> list[tuple[str, Inode]]:
        """Do as `batch`, but take no longer where there are many directories: [] need not be the end."""
        found, self._first = self._first, []
        looked_at = 0
        with self._reader.begin() as txn:
            while self._above and len(found) < _BATCH and looked_at < _LOOKED_AT:
                path, ino, after = self._above.pop()
                for name, child, dtype, _cookie in self._reader.children(txn, ino, after):
                    looked_at += 1
                    inode = self._reader.inode(txn, child) if dtype in (DT_DIR, DT_REG) else None
                    child_path = f"{path}/{os.fsdecode(name)}".lstrip("/")
                    if inode is not None and inode.is_dir:
                        self._above.append((path, ino, name))
                        self._enter(child_path, inode)
                        break
                    if inode is not None and self._is_first(inode):
                        found.append((child_path, inode))
                    if len(found) >= _BATCH or looked_at >= _LOOKED_AT:
                        self._above.append((path, ino, name))
                        break
        return found

    def _enter(self, path: str, inode: Inode) -> None:
        self.unlisted += not inode.is_listed
        self._above.append((path, inode.ino, b""))

    def _is_first(self, inode: Inode) -> bool:
        if inode.links <= 1:
            return True
        is_first = inode.ino not in self._linked
        self._linked.add(inode.ino)
        return is_first
