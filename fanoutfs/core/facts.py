"""What the index says about a dirty inode: everything that publishing it depends on, from one snapshot.

Core.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from fanoutfs.backend.archive import has_to_be_restored
from fanoutfs.backend.writing import Condition, Expect
from fanoutfs.index.format import DirtyRecord, Inode
from fanoutfs.index.intents import INTENTS, intent_name, read_intent
from fanoutfs.index.places import Obstacle, Places
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.tiers import StoredAs
from fanoutfs.records import ObjectInfo, Version


class Outcome(Enum):
    """How a publish ended."""

    CLEAN = auto()  # nothing is dirty any more
    CHANGED = auto()  # written to since, or meanwhile: come again
    NEVER = auto()  # its name is not to be uploaded
    BLOCKED = auto()  # another inode's object has to leave the key first


class StagedContent(Protocol):
    """What publishing needs of `core.staging`."""

    async def stage(self, ino: int, offset: int, size: int) -> object:
        """Make an inode's newest content a staging file."""
        ...

    async def wait_for_room(self, size: int) -> bool:
        """Return when so much may be staged."""
        ...

    async def localise(self, ino: int, offset: int, size: int) -> None:
        """Bring a range below the base size into the staging file."""
        ...

    async def seal(self, ino: int) -> bool:
        """Let no front write any more; False: not staged."""
        ...

    async def unseal(self, ino: int) -> None:
        """Let fronts write again."""
        ...

    async def make_clean(self, ino: int, key: str, version: Version, checksums: Mapping[int, int] | None) -> bool:
        """Make a sealed inode's content the cached content of an object; False: it is not sealed."""
        ...

    async def sync_content(self, ino: int, life: int) -> None:
        """Return when what a staging file holds, and its name, survive a power cut."""
        ...

    async def sync_names(self) -> None:
        """Return when everything committed so far survives a power cut."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody asked for an upload by name.  storage_class: in which, "" for what policy says."""

    storage_class: str = ""


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
    storage_class: str = ""
    """In which its object is put; "" for the store's default."""

    @property
    def source(self) -> ObjectInfo | None:
        """Return the object that has, or had, the content; None: there is none."""
        if not self.inode.key or not self.inode.etag:
            return None
        return ObjectInfo(self.inode.key, self.inode.version, self.storage_class)

    @property
    def has_new_content(self) -> bool:
        """Tell whether no object has the content as it is, or the name needs one of its own."""
        return self.source is None or self.inode.is_staged or self.is_link

    @property
    def stored_as(self) -> StoredAs:
        """Return how the store keeps an object that it is given in this class."""
        return StoredAs(self.storage_class, has_to_be_restored(self.storage_class))


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
            # What only moves, or gets other attributes, stays in its class; new content goes where policy says.
            storage_class="" if inode.is_staged else places.stored_as(inode.ino).storage_class,
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
                return read_intent(value)
        return None
