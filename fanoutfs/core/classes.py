"""Storage classes of objects that are in the store already: changed by a copy onto themselves, inside the store.

Core, trio thread only; requests run in worker threads.  S3 alone: Google's and Azure's classes are chosen at upload
(obstore has no call that changes them later), and with them `change` says so.

A copy keeps content, metadata and name; what may change is the ETag (of objects that were uploaded in parts), so that
the order is that of any publish: intent, copy on condition that the object is the one we know, commit of the version.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.core.multipart import MultipartUploads
from fanoutfs.core.publishing import Publisher
from fanoutfs.errors import ArchivedError, PreconditionFailedError, UnsupportedError, VersionGoneError
from fanoutfs.index.format import DirtyRecord
from fanoutfs.index.operations import is_same_version
from fanoutfs.index.publishing import NOTHING
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.tiering import NoteStored
from fanoutfs.index.tiers import StoredAs
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter

log = logging.getLogger(__name__)

T = TypeVar("T")


class StorageClasses:
    """Changes classes, one object at a call."""

    def __init__(
        self,
        *,
        backend: Backend,
        publisher: Publisher,
        multipart: MultipartUploads,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        requests: int,
    ) -> None:
        self._backend = backend
        self._publisher = publisher
        self._multipart = multipart
        self._reader = reader
        self._writer = writer
        self._threads = trio.CapacityLimiter(requests)

    async def change(self, ino: int, storage_class: str) -> bool:
        """Put a clean file's object into a class; False: it is there already, or not clean by now.  Checkpoint.

        Raises UnsupportedError, ArchivedError, VersionGoneError (somebody changed the object), BackendError.
        """
        publisher = self._publisher
        async with publisher.lock(ino):
            facts = publisher.facts.look(ino, DirtyRecord(0, 0, NOTHING))
            with self._reader.begin() as txn:
                is_dirty = self._reader.changed(txn).dirty(ino) is not None
            if facts is None or is_dirty or facts.inode.is_staged or facts.inode.key != facts.key:
                return False
            source = facts.source
            if source is None:
                return False
            async with publisher.lock(facts.key):
                abilities = await self._in_thread(self._backend.abilities)
                if not abilities.can_change_class:
                    raise UnsupportedError(f"{source.key}: this store's classes are chosen at upload only")
                details = await self._in_thread(partial(self._backend.details, source.key))
                if not is_same_version(source.version, details.info.version):
                    raise VersionGoneError(f"{source.key}: somebody else has changed the object")
                if (details.properties.storage_class or "STANDARD") == storage_class:
                    known = StoredAs(storage_class, details.restore.is_archived)
                    await self._writer.run(NoteStored(ino, source.version.etag, known).apply)
                    return False
                if details.restore.is_archived:
                    known = StoredAs(details.properties.storage_class, is_archived=True)
                    await self._writer.run(NoteStored(ino, source.version.etag, known).apply)
                    raise ArchivedError(f"{source.key}: to be restored before it can be copied to another class")
                properties = replace(details.properties, storage_class=storage_class)
                await publisher.intents.note(ino, source.key, source.version.etag)
                try:
                    if source.version.size_bytes > abilities.max_copy_bytes:
                        copied = self._multipart.copy(source, source.key, properties, source.version)
                        version = await copied
                    else:
                        copy = partial(self._backend.copy, source, source.key, source.version, properties)
                        version = await self._in_thread(copy)
                except PreconditionFailedError as error:
                    raise VersionGoneError(f"{source.key}: somebody else has changed the object") from error
                await publisher.published(replace(facts, storage_class=storage_class), version, NOTHING)
        log.info("storage class changed key=%s class=%s", source.key, storage_class)
        return True

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)
