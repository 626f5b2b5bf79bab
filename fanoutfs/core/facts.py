"""What the index says about a dirty inode: everything that publishing it depends on, from one snapshot.

Core.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fanoutfs.backend.writing import Condition, Expect
from fanoutfs.index.format import DirtyRecord, Inode
from fanoutfs.index.places import Obstacle, Places
from fanoutfs.index.publishing import INTENTS, intent_name
from fanoutfs.index.reader import IndexReader
from fanoutfs.records import ObjectInfo


@dataclass(frozen=True, slots=True)
class Facts:
    """What one snapshot of the index says about a dirty inode (or a further name of one, by its cookie).

    obstacle: what has to leave the store first.
    """

    ino: int
    inode: Inode
    dirty: DirtyRecord
    key: str
    condition: Condition
    obstacle: Obstacle | None
    target: bytes | None
    xattrs: Mapping[bytes, bytes]
    base_size: int
    local: dict[int, int] | None
    is_link: bool

    @property
    def source(self) -> ObjectInfo | None:
        """Return the object that has, or had, the content; None: there is none."""
        return ObjectInfo(self.inode.key, self.inode.version) if self.inode.key and self.inode.etag else None


class FactsReader:
    """Looks inodes up."""

    def __init__(self, reader: IndexReader, root_prefix: str) -> None:
        self._reader = reader
        self._root_prefix = root_prefix

    def look(self, ino: int, assumed: DirtyRecord | None = None) -> Facts | None:
        """Return what is to be published of an inode; None: nothing.  assumed: its dirty record if it has none."""
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            dirty = places.records.dirty(ino) or assumed
            if dirty is None:
                return None
            return self.facts(places, ino, dirty)

    def facts(self, places: Places, ino: int, dirty: DirtyRecord) -> Facts | None:
        """Return what a snapshot says about an inode, as if its dirty record were this; None: no name leads there."""
        records = places.records
        inode = places.inode(ino)
        is_link = inode is None
        if inode is None:  # the cookie of a further hard link
            place = records.name(ino)
            leads_to = None if place is None else places.child(*place)
            inode = None if leads_to is None else places.inode(leads_to)
        key = places.key(ino)
        if inode is None or key is None or inode.is_dir != key.endswith("/"):
            return None
        departed = records.departed(key)
        condition: Condition = Expect.NOTHING
        if departed is not None and departed.version.etag:
            condition = departed.version
        elif inode.key == key and inode.etag and not is_link:
            condition = inode.version
        is_overlay = inode.is_staged and not inode.is_whole
        return Facts(
            ino=ino,
            inode=inode,
            dirty=dirty,
            key=key,
            condition=condition,
            obstacle=places.obstacle(key, inode.ino),
            target=records.target(inode.ino),
            xattrs=records.xattrs(inode.ino),
            base_size=(records.base_size(inode.ino) or 0) if is_overlay else 0,
            local=records.local_parts(inode.ino) if is_overlay else None,
            is_link=is_link,
        )

    def further_names(self, ino: int) -> list[int]:
        """Return the cookies of an inode's further hard links."""
        with self._reader.begin() as txn:
            return list(self._reader.changed(txn).links(ino))

    def intents(self) -> list[int]:
        """Return the inodes (or cookies) of which an object may be in the store without a record that says so."""
        with self._reader.begin() as txn:
            found = self._reader.settings(txn, INTENTS)
        return [int(name.removeprefix(INTENTS).rstrip(b"."), 16) for name in found]

    def intent(self, ino: int) -> tuple[str, str] | None:
        """Return the key under which such an object may be, and the ETag that it has if it is a plain copy, or ""."""
        with self._reader.begin() as txn:
            for value in self._reader.settings(txn, intent_name(ino)).values():
                key, etag = json.loads(value)
                return key, etag
        return None
