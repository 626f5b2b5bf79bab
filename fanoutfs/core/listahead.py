"""Which directories to list ahead: who lists one after the other in order waits for the store once for each.

A loader lists a data set of a thousand classes directory by directory; 20 ms away that is 20 s in which nothing else
happens.  A directory that nobody has listed, the next one behind those of its parent that have been, is taken as a sign
that somebody walks through them: those behind it are listed, too, four at first, and four times as many each time that
he comes to the end of them.  What fronts answer from the index is not seen here, and needs not be.

At most four times as many directories are listed in vain as a walk came to.  Big ones are not listed ahead: a page
costs a request.  Core, trio thread only; state: an edge and a window for each directory walked through.
"""

from collections import OrderedDict
from itertools import islice
from typing import Final

from fanoutfs.core.listing import Listings
from fanoutfs.index.format import DT_DIR, Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.records import ROOT_INO

_GROWTH: Final = 4
_MOST: Final = 64
_WALKS: Final = 256
_BIG_NAMES: Final = 4000
"""Four pages.  Who walks through such directories waits mostly for the pages of one, which come one after the other."""
_LOOK_AT: Final = 4
"""Entries looked at for each directory wanted: files may lie between them."""
_LEAST_TTL_S: Final = 30.0
"""What is listed ahead has to be fresh still when the reader comes."""


class ListAhead:
    """Starts listings ahead of who walks through the directories below one."""

    def __init__(self, reader: IndexReader, listings: Listings, root_prefix: str, metadata_ttl_s: float) -> None:
        self._reader = reader
        self._listings = listings
        self._root_prefix = root_prefix
        self._is_on = metadata_ttl_s >= _LEAST_TTL_S
        self._walks: OrderedDict[int, tuple[bytes, int]] = OrderedDict()
        """Parent → (the last directory listed for the walk, how many were listed ahead last)."""

    def note_first_use(self, directory: Inode) -> None:
        """Note that somebody wants the names of a directory that nobody has listed.  No checkpoint."""
        above, _slash, last = directory.key.removesuffix("/").rpartition("/")
        if not self._is_on or not last or directory.ino == ROOT_INO:
            return
        if self._listings.is_under_way(directory.ino):
            return  # it was begun ahead of him: he has not come to the end yet
        name = last.encode("utf-8", "surrogateescape")
        parent = find_directory(self._reader, self._root_prefix, f"{above}/" if above else "")
        edge, window = self._walks.pop(parent, (b"", 0))
        is_next = bool(edge) and [ino for _name, ino in self._behind(parent, edge, 1)] == [directory.ino]
        window = min(_GROWTH * window, _MOST) if is_next and not self._is_big(parent, edge) else 1
        edge = name
        if window > 1:
            for edge, ino in self._behind(parent, name, window):  # noqa: B007 - the last one is the edge
                self._listings.begin(ino)
        self._walks[parent] = edge, window
        if len(self._walks) > _WALKS:
            self._walks.popitem(last=False)

    def _behind(self, parent: int, name: bytes, count: int) -> list[tuple[bytes, int]]:
        """Return (name, inode) of the next directories behind a name that have not been listed."""
        found = []
        with self._reader.begin() as txn:
            for child, ino, dtype, _cookie in islice(self._reader.children(txn, parent, name), _LOOK_AT * count):
                inode = self._reader.inode(txn, ino) if dtype == DT_DIR else None
                if inode is not None and not inode.is_listed and not inode.is_held:
                    found.append((child, ino))
                    if len(found) == count:
                        break
        return found

    def _is_big(self, parent: int, name: bytes) -> bool:
        with self._reader.begin() as txn:
            ino = self._reader.child(txn, parent, name)
            names = () if ino is None else islice(self._reader.children(txn, ino, b""), _BIG_NAMES)
            return sum(1 for _each in names) == _BIG_NAMES


def find_directory(reader: IndexReader, root_prefix: str, key: str) -> int:
    """Return the inode of the directory with this key; 0, which has no entries, when no path leads there."""
    ino: int | None = ROOT_INO
    with reader.begin() as txn:
        for part in key.removeprefix(root_prefix).split("/")[:-1]:
            ino = None if ino is None else reader.child(txn, ino, part.encode("utf-8", "surrogateescape"))
    return ino or 0
