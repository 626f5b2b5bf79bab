"""Departed objects are deleted: what a name that is no more, or another object by now, has left in the store.

Core, trio thread only.  `moves` decides when; here it is found out whether a record of `departed` still means what is
in the store, and that is deleted, and nothing else.  No object is deleted before the record of its file names another.
"""

import logging
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from functools import partial
from typing import Any

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import ObjectDetails
from fanoutfs.core.late import LateRequests
from fanoutfs.core.listing import Listings
from fanoutfs.core.properties import aside_prefix, is_tagged, owner_of
from fanoutfs.core.publishing import Publisher
from fanoutfs.errors import ObjectMissingError, PreconditionFailedError
from fanoutfs.index.format import Departed, Dirty, Inode
from fanoutfs.index.places import Places
from fanoutfs.index.publishing import SETTLED, FinishDeparted
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump

log = logging.getLogger(__name__)


class _Verdict(Enum):
    """What is to be done about a departed key."""

    DELETE = auto()
    KEEP = auto()  # what is there is needed: only the record goes
    WAIT = auto()  # something else comes first
    CHANGED = auto()  # the record is another by now


class Deletions:
    """Deletes one departed object, or marker, at a time."""

    def __init__(
        self,
        *,
        backend: Backend,
        root_prefix: str,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        listings: Listings,
        publisher: Publisher,
        late: LateRequests,
        make_durable: Callable[[], Awaitable[None]],
        tag: str,
        row: memoryview,
    ) -> None:
        """make_durable: returns when everything committed so far survives a power cut; raises OSError."""
        self._backend = backend
        self._root_prefix = root_prefix
        self._reader = reader
        self._writer = writer
        self._listings = listings
        self._publisher = publisher
        self._late = late
        self._make_durable = make_durable
        self._tag = tag
        self._row = row

    async def delete(self, key: str, departed: Departed) -> bool:
        """Delete a departed object, if it is still that one.  Returns False when it is not its time.

        Raises as the backend does, and OSError.
        """
        async with self._publisher.lock(key):
            return await self._delete(key, departed)

    def settle(self, key: str) -> None:
        """Tell listings under way that what they hear of this name may be old.  No checkpoint."""
        prefix, _, name = key.rstrip("/").rpartition("/")
        with self._reader.begin() as txn:
            directory = Places.of_reader(self._reader, txn, self._root_prefix).at(f"{prefix}/")
        if directory is not None:
            self._listings.settle(directory, name.encode("utf-8", "surrogateescape"))

    async def _delete(self, key: str, departed: Departed) -> bool:
        # An index that a power cut threw back behind the departure would look for content in what is deleted here.
        if self._verdict(key, departed) is _Verdict.DELETE:
            await self._make_durable()
        verdict = self._verdict(key, departed)
        if verdict is _Verdict.WAIT:
            return False
        if verdict is _Verdict.DELETE and key.endswith("/"):
            await self._delete_marker(key)
        elif verdict is _Verdict.DELETE:
            await self._delete_object(key, departed, is_free=self._is_free(key))
        if verdict is not _Verdict.CHANGED:
            self.settle(key)
            await self._writer.run(FinishDeparted(key, departed, self._root_prefix).apply)
        return True

    def _verdict(self, key: str, departed: Departed) -> _Verdict:
        """Return what is to be done about a departed key."""
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            if places.records.departed(key) != departed:
                return _Verdict.CHANGED
            ino = places.at(key)
            inode = None if ino is None else places.inode(ino)
            dirty = None if ino is None else places.records.dirty(ino)
            leaving = places.leaving(key, ino or 0)
            if self._late.may_put(key):
                return _Verdict.WAIT
            if key.endswith("/"):
                if places.records.is_departed_below(key):
                    return _Verdict.WAIT
                if inode is None or not inode.is_dir:
                    return _Verdict.DELETE
                if dirty is None or dirty.what & Dirty.NEVER:
                    return _Verdict.KEEP
                # Of this marker a directory that has none here yet does not know: gone before, it would leave it.
                if not dirty.what & SETTLED:  # its objects are on their way here, the marker among the last of them
                    return _Verdict.KEEP if inode.key == key else _Verdict.DELETE
                if leaving is None:
                    return _Verdict.WAIT
                return _Verdict.DELETE if inode.is_local else _Verdict.KEEP
            left = self._left_below(places, key)
        is_kept = ino is not None and dirty is not None and dirty.what & Dirty.NEVER
        if ino is not None and is_kept and self._publisher.kept.replaced_version(ino, key) is not None:
            self._publisher.note_dirty(ino)
            return _Verdict.WAIT  # it takes over what it replaced
        is_to_come = dirty is not None and not dirty.what & Dirty.NEVER and inode is not None and not inode.is_dir
        if is_to_come and leaving is None:
            return _Verdict.WAIT  # its upload replaces the object, unless it waits itself for a directory to leave
        for each in (inode, left):
            if each is not None and each.key == key and departed.version.etag in ("", each.etag):
                return _Verdict.KEEP
        return _Verdict.DELETE

    def _is_free(self, key: str) -> bool:
        """Tell whether no file is at a key, nor the object of one that leaves it with its directory."""
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            ino = places.at(key)
            inode = None if ino is None else places.inode(ino)
            return (inode is None or inode.is_dir) and self._left_below(places, key) is None

    @staticmethod
    def _left_below(places: Places, key: str) -> Inode | None:
        """Return the file whose object leaves a key with its directory."""
        left = places.left_below(key)
        inode = None if left is None or left.key != key else places.inode(left.ino)
        return None if inode is None or inode.is_dir else inode

    async def _delete_object(self, key: str, departed: Departed, *, is_free: bool) -> None:
        """Delete the object, if it is the departed version; is_free: no file is at its key any more.

        An upload that was under way when the core was killed may have come through without being noted.  Its object
        bears this volume's tag: where the key is free it is as departed as the version before it.
        """
        version = departed.version
        try:
            if not version.etag:  # the object of a further hard link: whose it is its token says
                await self._delete_ours(key)
                return
            await self._in_thread(partial(self._backend.delete, key, version))
            bump(self._row, Count.OBJECTS_DELETED)
        except ObjectMissingError:
            return
        except PreconditionFailedError:
            if not is_free or not await self._delete_ours(key):
                log.info("object was changed by somebody else, it stays key=%s", key)

    async def _delete_ours(self, key: str) -> bool:
        """Delete an object if this volume has put it; tell whether it is gone.  Raises as the backend does."""
        try:
            details = await self._in_thread(partial(self._backend.details, key))
            is_aside = key.startswith(aside_prefix(self._root_prefix, self._tag))
            if not is_aside and not is_tagged(details.properties, self._tag):
                return False
            if self._is_needed(key, details):
                return False
            await self._in_thread(partial(self._backend.delete, key, details.info.version))
        except ObjectMissingError:
            return True
        except PreconditionFailedError:
            return False
        bump(self._row, Count.OBJECTS_DELETED)
        return True

    def _is_needed(self, key: str, details: ObjectDetails) -> bool:
        """Tell whether an object is the one that its file has, wherever that is by now."""
        owner = owner_of(details.properties, self._tag)
        if owner is None:
            return False
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, owner)
            is_orphan = self._reader.is_orphan(txn, owner)
        is_its = inode is not None and (inode.key, inode.etag) == (key, details.info.version.etag)
        return is_its and not is_orphan

    async def _delete_marker(self, key: str) -> None:
        if (await self._in_thread(self._backend.abilities)).can_mark_directories:
            await self._in_thread(partial(self._backend.delete, key))

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)
