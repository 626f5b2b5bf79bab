"""Changes of what tiering remembers, as values; pins, which are settings.

Core; applied in the writer's transactions.  Pins belong to paths, not to inodes, so that a file which is replaced in
the store, or by a rename, stays pinned.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fanoutfs.index.format import FLAG_SMALL
from fanoutfs.index.tiers import StoredAs
from fanoutfs.index.transaction import IndexTransaction

PINS: Final = b"pin/"
_ID_DIGITS: Final = 32


@dataclass(frozen=True, slots=True)
class NoteAccess:
    """Note when files were read: {inode: ns}.  Of inodes that are gone nothing is kept."""

    times_ns: Mapping[int, int]

    def apply(self, txn: IndexTransaction) -> None:
        for ino, at_ns in self.times_ns.items():
            if txn.inode(ino) is not None:
                txn.tiers.put_accessed(ino, at_ns)


@dataclass(frozen=True, slots=True)
class NoteStored:
    """Note how the store keeps a file's object; nothing if it has another object (or none) by now."""

    ino: int
    etag: str
    stored: StoredAs

    def apply(self, txn: IndexTransaction) -> None:
        inode = txn.inode(self.ino)
        if inode is not None and inode.etag == self.etag:
            txn.tiers.put_stored(self.ino, self.stored)


@dataclass(frozen=True, slots=True)
class Repack:
    """Keep a clean file's content in the small-file store from now on, or in a cache file of its own.

    Returns False, and changes nothing, when its cache file has something, or it is not clean (any more).
    """

    ino: int
    is_small: bool

    def apply(self, txn: IndexTransaction) -> bool:
        inode = txn.inode(self.ino)
        if inode is None or inode.is_dir or inode.is_staged or txn.parts(self.ino):
            return False
        flags = inode.flags | FLAG_SMALL if self.is_small else inode.flags & ~FLAG_SMALL
        txn.put_inode(replace(inode, flags=flags))
        return True


@dataclass(frozen=True, slots=True)
class PutPins:
    """Set and remove pins.  pins: {path: pinned, not pinned, or None to forget the path}."""

    pins: Mapping[str, bool | None]
    now_ns: int

    def apply(self, txn: IndexTransaction) -> None:
        for path, is_pinned in self.pins.items():
            if is_pinned is None:
                txn.delete_settings(pin_name(path))
            else:
                value = json.dumps({"path": path, "pinned": is_pinned, "at_ns": self.now_ns})
                txn.set_setting(pin_name(path), value.encode())


def pin_name(path: str) -> bytes:
    """Return the setting that holds a path's pin: paths may be longer than LMDB's keys."""
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()
    return PINS + digest[:_ID_DIGITS].encode()


def unpack_pins(settings: Mapping[bytes, bytes]) -> dict[str, bool]:
    """Return {path: pinned} from the settings that begin with PINS."""
    pins = {}
    for value in settings.values():
        record = json.loads(value)
        pins[str(record["path"])] = bool(record["pinned"])
    return pins
