"""Intents: under which keys objects are about to be put, and what came of those of which nobody heard.

Core, trio thread only; requests run in worker threads.  The caller has the inode to himself (`Publisher.lock`).
"""

from collections.abc import Callable
from functools import partial

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import ObjectDetails
from fanoutfs.core.facts import FactsReader, StagedContent
from fanoutfs.core.late import LateRequests
from fanoutfs.core.properties import is_ours
from fanoutfs.errors import ObjectMissingError
from fanoutfs.index.intents import NoteIntent, ResolveIntent
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import Version


class Intents:
    """Notes and resolves them."""

    def __init__(
        self,
        *,
        backend: Backend,
        root_prefix: str,
        facts: FactsReader,
        writer: GroupWriter[IndexTransaction],
        staging: StagedContent,
        late: LateRequests,
        threads: trio.CapacityLimiter,
        tag: str,
        aside_prefix: str,
    ) -> None:
        """tag: the volume's.  aside_prefix: what keys begin with under which objects wait that made way for others."""
        self._backend = backend
        self._root_prefix = root_prefix
        self._facts = facts
        self._writer = writer
        self._staging = staging
        self._late = late
        self._threads = threads
        self._tag = tag
        self._aside_prefix = aside_prefix

    async def note(self, ino: int, key: str, etag: str = "") -> None:
        """Remember, over a power cut too, that an object is about to be put under a key.  etag: see NoteIntent.

        An index that fell back behind the request would hold the content for that of an object which is replaced.
        Checkpoint.
        """
        await self._writer.run(NoteIntent(ino, key, self._root_prefix, etag).apply)
        await self._staging.sync_names()

    async def note_marker(self, ino: int, key: str) -> None:
        """Remember, over a power cut too, that a directory's marker is about to be moved to a key.

        Else nobody would know of the marker, and a directory that is removed would come back.  Checkpoint.  Raises
        BackendError, OSError.
        """
        await self.resolve(ino)
        await self.note(ino, key)

    def is_open(self, ino: int) -> bool:
        """Tell whether the store may still carry out what an earlier core intended for an inode.  No checkpoint."""
        intent = self._facts.intent(ino)
        return intent is not None and self._late.may_put(intent[0])

    async def resolve(self, ino: int) -> None:
        """Find out whether an object of an inode is under the key of an earlier attempt.  Checkpoint.

        What may still arrive there is not given up.  Raises BackendError.
        """
        intent = self._facts.intent(ino)
        if intent is None:
            return
        key, etag = intent
        version: Version | None = None
        try:
            found = await self._ask(partial(self._backend.details, key))
            is_copy = (etag and found.info.version.etag == etag) or key.startswith(self._aside_prefix)
            if is_copy or is_ours(found.properties, self._tag, ino):
                version = found.info.version
        except ObjectMissingError:
            version = None
        if version is None and self._late.may_put(key):
            return
        await self._writer.run(ResolveIntent(ino, key, version, self._root_prefix).apply)

    async def _ask(self, call: Callable[[], ObjectDetails]) -> ObjectDetails:
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)
