"""What an import writes: pages of a scan, entered into all their directories at once, and how far it has come.

A page and the place behind it are one transaction, so that an import that was killed goes on exactly where its last
page ended.  The records are JSON values of `settings` (names: see `format`); keys that are not UTF-8 cannot be listed,
names are stored as the text of surrogateescape:

import  {"started_ns": wall clock, "order": "UNKNOWN", "KEY" or "TREE" (see core.scanning)}
range   {"after": key, "upto": key or null}: the keys behind `after`, up to and with `upto`, in the store's order
place   {"key": last key entered, "keys": how many, "is_done": …, "frames": [directories being scanned, outermost first:
        {"prefix", "name", "reached": [name, key] (Frontier), "started_ns", "is_whole",
         "deferred": [[name, key, etag, version id, size, mtime], …]}]}
"""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from fanoutfs.index.format import DT_DIR, Ownership
from fanoutfs.index.keeping import takes_no_names
from fanoutfs.index.merging import END, Frontier, MergeNames, mark_listed
from fanoutfs.index.operations import Change, ChangeKind, Child
from fanoutfs.index.tiers import unpack_stored
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import Version


@dataclass(frozen=True, slots=True)
class Frame:
    """A directory that a scan is inside of.

    reached: how far its listing was entered.  is_whole: the scan saw it from its beginning.
    """

    prefix: str
    name: bytes
    reached: Frontier
    started_ns: int
    is_whole: bool
    deferred: tuple[Child, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """How far a shard has come: behind `key`, inside of `frames`."""

    key: str
    keys: int
    is_done: bool
    frames: tuple[Frame, ...]

    def pack(self) -> bytes:
        """Return the stored form."""
        frames = [
            {
                "prefix": frame.prefix,
                "name": _text(frame.name),
                "reached": [_text(frame.reached.name), _text(frame.reached.key)],
                "started_ns": frame.started_ns,
                "is_whole": frame.is_whole,
                "deferred": [_pack_child(child) for child in frame.deferred],
            }
            for frame in self.frames
        ]
        return json.dumps({"key": self.key, "keys": self.keys, "is_done": self.is_done, "frames": frames}).encode()


def unpack_place(value: bytes) -> Place:
    """Decode a place."""
    record = json.loads(value)
    frames = tuple(
        Frame(
            prefix=frame["prefix"],
            name=_bytes(frame["name"]),
            reached=Frontier(*map(_bytes, frame["reached"])),
            started_ns=frame["started_ns"],
            is_whole=frame["is_whole"],
            deferred=tuple(_unpack_child(child) for child in frame["deferred"]),
        )
        for frame in record["frames"]
    )
    return Place(record["key"], record["keys"], record["is_done"], frames)


@dataclass(frozen=True, slots=True)
class KeyRange:
    """The keys behind `after`, up to and with `upto` (None: to the end)."""

    after: str
    upto: str | None

    def pack(self) -> bytes:
        """Return the stored form."""
        return json.dumps({"after": self.after, "upto": self.upto}).encode()


def unpack_range(value: bytes) -> KeyRange:
    """Decode a range."""
    record = json.loads(value)
    return KeyRange(record["after"], record["upto"])


def import_setting(prefix: str) -> bytes:
    """Return the name of an import's record; those of its shards begin with it."""
    return b"import/" + hashlib.sha256(prefix.encode("utf-8", "surrogateescape")).hexdigest()[:32].encode()


def range_setting(prefix: str, shard: int) -> bytes:
    """Return the name of the record of a shard's range."""
    return b"%b/%08d/range" % (import_setting(prefix), shard)


def place_setting(prefix: str, shard: int) -> bytes:
    """Return the name of the record of a shard's place."""
    return b"%b/%08d/place" % (import_setting(prefix), shard)


@dataclass(frozen=True, slots=True)
class PutSettings:
    """Store several settings at once."""

    settings: tuple[tuple[bytes, bytes], ...]

    def apply(self, txn: IndexTransaction) -> None:
        for name, value in self.settings:
            txn.set_setting(name, value)


@dataclass(frozen=True, slots=True)
class ForgetImport:
    """Remove the records of an import."""

    prefix: str

    def apply(self, txn: IndexTransaction) -> None:
        txn.delete_settings(import_setting(self.prefix))


@dataclass(frozen=True, slots=True)
class PagePart:
    """What a page shows of one directory.

    parent: the position in the page of the part of the directory above; None: `ino` is known.
    after: END when the scan has left the directory.  may_complete: then it is listed, beginning with started_ns.
    prefix: what was scanned; not the directory's own key any more when it was moved since.
    """

    parent: int | None
    ino: int | None
    name: bytes
    children: tuple[Child, ...]
    before: Frontier
    after: Frontier
    deferred: tuple[Child, ...]
    started_ns: int
    may_complete: bool
    kept: bytes = b""
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class PageResult:
    """inos: the directory of each part, None where there is none.  deferred: for each part."""

    changes: list[Change]
    hidden: int
    inos: list[int | None]
    deferred: list[tuple[Child, ...]]
    is_done: bool


@dataclass(frozen=True, slots=True)
class EnterPage:
    """Enter a page of a scan, parents before what is below them.

    left_alone: directories that an ordinary listing knows better.  Apply again while the result is not done; then
    store the place with it, in the same transaction.
    """

    parts: tuple[PagePart, ...]
    left_alone: frozenset[int]
    ownership: Ownership
    now_ns: int

    def apply(self, txn: IndexTransaction) -> PageResult:
        result = PageResult([], 0, [], [], True)
        hidden = 0
        for part in self.parts:
            ino = part.ino
            if ino is None and part.parent is not None:
                above = result.inos[part.parent]
                known = None if above is None else txn.entry(above, part.name)
                ino = known[0] if known is not None and known[1] == DT_DIR else None
            directory = None if ino is None else txn.inode(ino)
            result.inos.append(ino)
            if (
                ino is None
                or directory is None
                or ino in self.left_alone
                or directory.key not in ("", part.prefix)
                or takes_no_names(txn.inode, txn.changed, directory)
                or (directory.is_listed and directory.listed_at_ns > part.started_ns)
            ):
                result.deferred.append(())
                continue
            merge = MergeNames(
                parent=ino,
                children=part.children,
                before=part.before,
                after=part.after,
                ownership=self.ownership,
                now_ns=self.now_ns,
                deferred=part.deferred,
                listed_at_ns=part.started_ns if part.may_complete and part.after == END else None,
                kept=part.kept,
            ).apply(txn)
            # Absence is not remembered before a listing is complete, so an added name is news to nobody.
            result.changes.extend(
                change
                for change in merge.changes
                if directory.is_listed or change.kind is not ChangeKind.ADDED or change.parent != ino
            )
            result.deferred.append(merge.deferred)
            hidden += merge.hidden
            if not merge.is_done:
                return replace(result, is_done=False)
        return replace(result, hidden=hidden)


@dataclass(frozen=True, slots=True)
class CompleteDirectory:
    """Mark a directory as listed that several shards have entered together."""

    ino: int
    listed_at_ns: int

    def apply(self, txn: IndexTransaction) -> None:
        directory = txn.inode(self.ino)
        if (
            directory is not None
            and directory.is_dir
            and directory.listed_at_ns <= self.listed_at_ns
            and not takes_no_names(txn.inode, txn.changed, directory)
        ):
            mark_listed(txn, self.ino, self.listed_at_ns)


def _pack_child(child: Child) -> list[Any]:
    version = child.version
    if version is None:
        raise ValueError("only files are deferred")
    record = [_text(child.name), child.key, version.etag, version.version_id, version.size_bytes, version.mtime_ns]
    return record if child.stored is None else [*record, child.stored.pack().decode()]


def _unpack_child(record: list[Any]) -> Child:
    name, key, etag, version_id, size_bytes, mtime_ns, *stored = record
    known = unpack_stored(stored[0].encode()) if stored else None
    return Child(_bytes(name), key, Version(etag, version_id, size_bytes, mtime_ns), known)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
