"""Publishing: bring the object store to what one inode is here, once.

Core, trio thread only; requests and disk run in worker threads.  One `publish` per inode at a time (`Publisher.lock`).

Order of a content upload, so that a crash between any two steps loses nothing and repeats at most a request:
  1. wait until the content is one state (see `content`), or make a copy of it under a seal
  2. sync the staging file and the index: what the store has must not be newer than what a power cut leaves here
  3. put it under its key, conditionally, with a token that names this very state
  4. seal; if the file is as it was in step 1, it becomes clean
  5. commit: the record has key and version, the object under the old key is departed, the inode is not dirty
A core that starts after step 3 puts again with the same token and recognises its object (backend.retry).  A condition
that fails without our token in the object is a foreign change: see `conflicts`.

What only moved, or changed in its metadata, is copied inside the store.
"""

import contextlib
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import Condition, Expect, FileRange, Properties
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.admission import Admission, Urgency
from fanoutfs.core.conflicts import Conflicts, Displaced, Finding
from fanoutfs.core.content import Stamp, checksums_of
from fanoutfs.core.facts import Asked, Facts, FactsReader, Outcome, StagedContent
from fanoutfs.core.freezing import SINGLE_PUT_BYTES, Freezer, Frozen
from fanoutfs.core.grace import Grace
from fanoutfs.core.intents import Intents
from fanoutfs.core.kept import KeptFiles
from fanoutfs.core.late import LateRequests
from fanoutfs.core.multipart import MultipartUploads
from fanoutfs.core.properties import aside_prefix, digest_of, make_token, properties_of, with_token
from fanoutfs.core.rescue import Rescue
from fanoutfs.core.restored import still_restored
from fanoutfs.core.rulings import Rulings, UploadRules
from fanoutfs.core.withdrawal import Withdrawal
from fanoutfs.errors import (
    ArchivedError,
    BackendError,
    FanoutError,
    ObjectMissingError,
    PreconditionFailedError,
    StaleInodeError,
    TransientError,
    VersionGoneError,
)
from fanoutfs.index.changes import GoBy
from fanoutfs.index.format import Dirty, DirtyRecord
from fanoutfs.index.places import Obstacle, Places
from fanoutfs.index.publishing import (
    NOTHING,
    SETTLED,
    DropDirty,
    DropNameless,
    LetGo,
    MakePublished,
    NoteState,
    Park,
    PublishDirectory,
    PublishLink,
    ReleaseObject,
)
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.requests import Request
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import MIB, ObjectInfo, Version

log = logging.getLogger(__name__)

T = TypeVar("T")

_MEMORY_BYTES: Final = 128 * MIB
"""Contents of single puts held at once: what was read is one state, a file that is streamed need not stay so."""
_FINDINGS: Final = 4
"""Times that an object may turn out to be another than expected within one publish."""


class Publisher:
    """Publishes single inodes."""

    def __init__(
        self,
        *,
        backend: Backend,
        root_prefix: str,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        files: StagingFiles,
        staging: StagedContent,
        grace: Grace,
        conflicts: Conflicts,
        multipart: MultipartUploads,
        settle: Callable[[int, bytes], None],
        rules: UploadRules,
        late: LateRequests,
        requests: int,
        tag: str,
        row: memoryview,
    ) -> None:
        """settle: has listings under way skip a name.  rules: what is uploaded, when, how.  tag: the volume's."""
        self._backend = backend
        self._root_prefix = root_prefix
        self.facts = FactsReader(reader, root_prefix)
        self._reader = reader
        self._writer = writer
        self._files = files
        self._staging = staging
        self._freezer = Freezer(files, staging, grace, self._in_thread)
        self._conflicts = conflicts
        self._multipart = multipart
        self._settle = settle
        self._rulings = Rulings(rules, files, root_prefix)
        self._late = late
        self.rescue = Rescue(staging, conflicts, writer)
        self.kept = KeptFiles(
            facts=self.facts,
            reader=reader,
            rulings=self._rulings,
            withdrawal=Withdrawal(files, staging, reader, writer, root_prefix),
            late=late,
            lock=self.lock,
            put_copy=self._put_copy,
            conflicts=conflicts,
            writer=writer,
            root_prefix=root_prefix,
            note_object=self.published,
        )
        self._threads = trio.CapacityLimiter(requests)
        self._memory = Admission(_MEMORY_BYTES, requests)
        self._tag = tag
        self._aside_prefix = aside_prefix(root_prefix, tag)
        self.intents = Intents(
            backend=backend,
            root_prefix=root_prefix,
            facts=self.facts,
            writer=writer,
            staging=staging,
            late=late,
            threads=self._threads,
            tag=tag,
            aside_prefix=self._aside_prefix,
        )
        self._row = row
        self._locks: dict[int | str, trio.Lock] = {}
        self.keep_unlinked: Callable[[int], Awaitable[None]] | None = None
        """Brings here what somebody has open of a file without a name, before its object goes."""
        self.note_dirty: Callable[[int], None] = _ignore
        """Called with an inode that is to be published under another name.  No checkpoint."""

    async def wait_idle(self, ino: int) -> None:
        """Return when what was, and is being, done to an inode's object has been recorded.  Checkpoint."""
        async with self.lock(ino):
            with contextlib.suppress(FanoutError):
                await self.intents.resolve(ino)

    @asynccontextmanager
    async def lock(self, what: int | str) -> AsyncIterator[None]:
        """Have an inode's object, or what is under a key, to oneself; an inode first, then a key.

        A deletion must not be overtaken by a put under its key: of equal content, it would have the same version.
        """
        lock = self._locks.setdefault(what, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._locks.pop(what, None)

    # --- what there is to do -----------------------------------------------------------------------------------

    async def publish(self, ino: int, *, is_overdue: bool, is_urgent: bool, asked: Asked | None = None) -> Outcome:
        """Publish what is dirty of an inode.  Checkpoint.

        is_overdue: do not wait any longer until nobody writes.  is_urgent: do not wait for the upload delay.
        asked: by name, so that also goes what does not by itself.  Raises FanoutError: the inode is dirty as before.
        """
        async with self.lock(ino):
            await trio.lowlevel.checkpoint()
            facts = self.facts.look(ino)
            if facts is None:
                await self.intents.resolve(ino)
                is_clean = await self._writer.run(DropNameless(ino, self._root_prefix).apply)
                return Outcome.CLEAN if is_clean else Outcome.CHANGED
            if self._rulings.is_never(facts, is_asked=asked is not None):
                return await self._keep_here(facts)
            await self.intents.resolve(ino)  # what it left may be in somebody's way, or is what a condition must name
            async with self.lock(facts.key):
                if self._late.may_change(facts.key):
                    return Outcome.BLOCKED
                # A power cut shall not throw the index back behind what the store has: nobody would remove it there.
                if facts.inode.is_dir or facts.is_link:  # else see `intents`
                    await self._staging.sync_names()
                now = self.facts.look(ino)
                if now is None or now.key != facts.key:
                    return Outcome.CHANGED
                if now.obstacle is not None:
                    return Outcome.BLOCKED
                chosen = (asked.storage_class if asked else "") or self._rulings.upload_class(now)
                now = replace(now, storage_class=chosen or now.storage_class)
                return await self._publish(now, is_overdue=is_overdue, is_urgent=is_urgent)

    async def _publish(self, facts: Facts, *, is_overdue: bool, is_urgent: bool) -> Outcome:
        if facts.is_link:
            return await self._publish_link(facts)
        if facts.inode.is_dir:
            return await self._publish_directory(facts)
        if facts.inode.is_staged:
            return await self._publish_content(facts, is_overdue=is_overdue, is_urgent=is_urgent)
        return await self._publish_unstaged(facts)

    async def resolve_intents(self, is_queued: Callable[[int], bool]) -> FanoutError | None:
        """Find out what came of requests whose answers nobody heard, for inodes that are not queued.  Checkpoint.

        Returns why some of it is not known yet.
        """
        failure: FanoutError | None = None
        for ino in self.facts.intents():
            if self.intents.is_open(ino):
                failure = TransientError("a request of an earlier run may still arrive")
            elif not is_queued(ino):
                async with self.lock(ino):
                    try:
                        await self.intents.resolve(ino)
                        self.note_dirty(ino)  # it may be, now
                    except FanoutError as error:
                        failure = error
        return failure

    async def _secure(self, ino: int) -> None:
        """Have all of a file here, and synced, whose object is about to go: it may have been the only durable copy.

        Of a file without a name it may be what somebody has open and has not read yet.
        """
        with self._reader.begin() as txn:
            is_orphan = self._reader.is_orphan(txn, ino)
            inode = self._reader.inode(txn, ino)
        if is_orphan and self.keep_unlinked is not None:
            await self.keep_unlinked(ino)
        elif inode is not None and inode.is_staged and not is_orphan:
            await self._staging.sync_content(ino, inode.life)

    def is_to_free_staging(self, ino: int, *, is_asked: bool) -> bool:
        """Tell whether a dirty inode has staged content that is going to be uploaded.  No checkpoint."""
        facts = self.facts.look(ino)
        return facts is not None and facts.inode.is_staged and not self._rulings.is_never(facts, is_asked=is_asked)

    def size_bytes(self, ino: int) -> int:
        """Return a dirty inode's size as users see it; 0 when it is gone.  No checkpoint."""
        facts = self.facts.look(ino)
        return 0 if facts is None else self._rulings.subject(facts)[1]

    async def _drop(self, facts: Facts) -> Outcome:
        """Forget that an inode is dirty: the store lacks nothing of it."""
        is_same = await self._writer.run(DropDirty(facts.ino, facts.dirty).apply)
        return Outcome.CLEAN if is_same else Outcome.CHANGED

    async def _keep_here(self, facts: Facts) -> Outcome:
        """Keep what is not uploaded."""
        await self.intents.resolve(facts.ino)
        if (outcome := await self.kept.keep(facts)) is not None:
            return outcome
        await self._writer.run(NoteState(facts.ino, add=Dirty.NEVER).apply, is_short=True)
        return Outcome.NEVER

    async def _commit(self, ino: int, apply: Callable[[IndexTransaction], bool]) -> Outcome:
        """Note what the store has now.  Listings under way may be wrong about the name."""
        with self._reader.begin() as txn:
            place = Places.of_reader(self._reader, txn, self._root_prefix).place(ino)
        if place is not None:
            self._settle(*place)
        is_clean = False
        with trio.CancelScope(shield=True):
            is_clean = await self._writer.run(apply)
        return Outcome.CLEAN if is_clean else Outcome.CHANGED

    # --- staged files ------------------------------------------------------------------------------------------

    async def _publish_content(self, facts: Facts, *, is_overdue: bool, is_urgent: bool) -> Outcome:
        ino, life = facts.inode.ino, facts.inode.life
        with self._freezer.descriptor(ino, life) as fd:
            stamp = Stamp.of(os.fstat(fd))
            delay_s = self._rulings.delay_s(facts, stamp.size_bytes)
            if not (is_overdue or is_urgent) and stamp.age_ns() < delay_s * 1e9:
                return Outcome.CHANGED
            ask = self._backend.abilities
            is_single = stamp.size_bytes <= SINGLE_PUT_BYTES or not (await self._in_thread(ask)).can_upload_parts
            if is_single and facts.local is not None:
                await self._staging.localise(ino, 0, facts.base_size)
            ticket = self._memory.enqueue(min(stamp.size_bytes, SINGLE_PUT_BYTES) if is_single else 0, Urgency.DEMAND)
            try:
                await ticket.admitted.wait()
                frozen = await self._freezer.freeze(facts, fd, is_overdue=is_overdue, is_single=is_single)
                if frozen is None:
                    return Outcome.CHANGED
                try:
                    return await self._send(facts, frozen, is_single=is_single)
                finally:
                    if frozen.is_copy:
                        os.close(frozen.fd)
            finally:
                self._memory.release(ticket)

    async def _send(self, facts: Facts, frozen: Frozen, *, is_single: bool) -> Outcome:
        inode, stamp = facts.inode, frozen.stamp
        state = (inode.life, stamp.size_bytes, stamp.ctime_ns, facts.dirty.changed_ns)
        token = make_token(self._tag, inode.ino, *state)
        properties = properties_of(inode, stamp.mtime_ns, facts.xattrs, token, facts.storage_class)
        checksums: dict[int, int] = {}

        async def put(condition: Condition) -> Version:
            if is_single:
                body = (
                    FileRange(frozen.fd, 0, stamp.size_bytes) if frozen.content is None else memoryview(frozen.content)
                )
                await self._multipart.rate.take(stamp.size_bytes)
                return await self._in_thread(partial(self._backend.put, facts.key, body, condition, properties))
            return await self._multipart.send(facts, frozen.fd, stamp, properties, condition, checksums, self._staging)

        def read(start: int, end: int) -> bytes:
            return os.pread(frozen.fd, end - start, start)

        try:
            # Else a power cut may leave a file that is older than its object: readers would see the size of one, then
            # of the other.
            await self._staging.sync_content(inode.ino, inode.life)
            version = await self._conditionally(facts, put, stamp.size_bytes, read)
        except Displaced:
            return Outcome.CHANGED
        except StaleInodeError:
            return Outcome.CHANGED  # removed, or written to: the multipart upload was given up
        if frozen.content is not None:
            checksums = await self._in_thread(partial(checksums_of, inode.ino, 0, frozen.content))
        bump(self._row, Count.UPLOADED_FILES)
        bump(self._row, Count.UPLOADED_BYTES, stamp.size_bytes)
        return await self._make_clean(facts, stamp, version, checksums)

    async def _make_clean(self, facts: Facts, stamp: Stamp, version: Version, checksums: dict[int, int]) -> Outcome:
        """Let the object's version be the content, if the staging file still holds it.  Checkpoint."""
        ino, is_same = facts.inode.ino, False
        with trio.CancelScope(shield=True):  # the object is there: what follows is quick and local
            if await self._staging.seal(ino):
                now = self.facts.look(facts.ino)
                with contextlib.suppress(OSError):
                    is_same = Stamp.of(self._files.stat(ino, facts.inode.life)) == stamp
                if now is None or now.key != facts.key:
                    is_same = False  # unlinked or renamed meanwhile: the record must not take this key for its own yet
                if is_same:
                    is_same = await self._staging.make_clean(ino, facts.key, version, checksums)
                if not is_same:
                    await self._staging.unseal(ino)
        settled = SETTLED if is_same else Dirty.META
        return await self.published(facts, version, settled)

    # --- everything else ---------------------------------------------------------------------------------------

    async def _publish_unstaged(self, facts: Facts) -> Outcome:
        """Publish a symbolic link, a special file, an empty file, or an object that moved or has other metadata."""
        inode = facts.inode
        token = make_token(self._tag, inode.ino, inode.size_bytes, facts.dirty.changed_ns)
        properties = properties_of(inode, inode.version.mtime_ns, facts.xattrs, token, facts.storage_class)
        if facts.target is None and stat.S_ISREG(inode.mode) and facts.source is not None:
            return await self._publish_copy(facts, properties if facts.dirty.what & Dirty.META else None)
        body = facts.target or b""

        async def put(condition: Condition) -> Version:
            return await self._in_thread(partial(self._backend.put, facts.key, body, condition, properties))

        try:
            version = await self._conditionally(facts, put, len(body), lambda start, end: body[start:end])
        except Displaced:
            return Outcome.CHANGED
        return await self.published(facts, version, SETTLED)

    async def _publish_copy(self, facts: Facts, properties: Properties | None) -> Outcome:
        """Copy an object to where it belongs, or onto itself with other metadata."""
        source = facts.source
        assert source is not None  # noqa: S101 - the callers looked
        if source.key == facts.key and properties is None:
            return await self.published(facts, source.version, SETTLED)
        try:
            version = await self._put_copy(facts, source, properties)
        except Displaced:
            return Outcome.CHANGED
        except (VersionGoneError, ObjectMissingError, ArchivedError) as error:
            await self.rescue.rescue(facts, error)
            return Outcome.CHANGED
        bump(self._row, Count.OBJECTS_MOVED)
        return await self.published(facts, version, SETTLED)

    async def _put_copy(self, facts: Facts, source: ObjectInfo, properties: Properties | None) -> Version:
        """Copy an object to where it belongs, conditionally.  Raises Displaced."""

        def read(start: int, end: int) -> bytes:
            return bytes(self._backend.get_range(source.key, start, end, source.version))

        copy = partial(self._copy, source, facts, properties)
        async with still_restored(self._backend, source, facts.key, self._in_thread):
            return await self._conditionally(facts, copy, source.version.size_bytes, read)

    async def _copy(
        self, source: ObjectInfo, facts: Facts, properties: Properties | None, condition: Condition
    ) -> Version:
        if properties is None and "-" in source.version.etag:
            # The ETag of a copy will differ, so that only a token can tell it from a foreign object after a crash.
            known = (await self._in_thread(partial(self._backend.details, source.key))).properties
            token = make_token(self._tag, facts.inode.ino, source.version.size_bytes, digest_of(source.version.etag))
            properties = with_token(known, token)
        if source.version.size_bytes > (await self._in_thread(self._backend.abilities)).max_copy_bytes:
            if properties is None:
                properties = (await self._in_thread(partial(self._backend.details, source.key))).properties
            return await self._multipart.copy(source, facts.key, properties, condition)
        return await self._in_thread(partial(self._backend.copy, source, facts.key, condition, properties))

    async def _publish_link(self, facts: Facts) -> Outcome:
        """Give a further name of an inode an object of its own: a copy of the first name's."""
        with self._reader.begin() as txn:
            is_dirty = self._reader.changed(txn).dirty(facts.inode.ino) is not None
        source = facts.source
        if is_dirty:
            first = self.facts.look(facts.inode.ino)
            if first is not None and self._rulings.is_never(first, is_asked=False):
                request = Request(time.time_ns(), 0, 0, self._root_prefix)
                if (ino := await self._writer.run(GoBy(facts.ino, request).apply)) is not None:
                    self.note_dirty(ino)
                return Outcome.CHANGED
            return Outcome.BLOCKED
        if source is None:
            return await self._drop(facts)
        # With a token: the object of a further name is known by nothing else.
        token = make_token(self._tag, facts.inode.ino, facts.ino, facts.dirty.changed_ns)
        properties = properties_of(facts.inode, facts.inode.version.mtime_ns, facts.xattrs, token)
        try:
            version = await self._put_copy(facts, source, properties)
        except Displaced:
            return Outcome.CHANGED
        done = PublishLink(facts.ino, facts.key, version, facts.dirty, self._root_prefix)
        return await self._commit(facts.ino, done.apply)

    async def _publish_directory(self, facts: Facts) -> Outcome:
        """Put a directory's marker, where the store has such.  One that only moved keeps what it has (`moves`)."""
        if not facts.dirty.what & SETTLED:
            return Outcome.BLOCKED if facts.inode.is_held else await self._drop(facts)
        is_marked = (await self._in_thread(self._backend.abilities)).can_mark_directories
        if is_marked:
            token = make_token(self._tag, facts.inode.ino, facts.dirty.changed_ns)
            properties = properties_of(facts.inode, facts.inode.version.mtime_ns, facts.xattrs, token)
            # A marker says nothing that somebody else's marker could contradict, but for attributes: the last wins.
            put = partial(self._backend.put, facts.key, b"", Expect.ANYTHING, properties)
            await self.intents.note(facts.ino, facts.key)
            await self._in_thread(put)
        done = PublishDirectory(facts.ino, facts.key, facts.dirty, self._root_prefix, is_marked)
        return await self._commit(facts.ino, done.apply)

    async def published(self, facts: Facts, version: Version, settled: Dirty) -> Outcome:
        """Note that the store has an inode's object in this version.  settled: see MakePublished.  Checkpoint."""
        done = MakePublished(
            facts.inode.ino, facts.key, version, settled, facts.dirty, self._root_prefix, facts.stored_as
        )
        return await self._commit(facts.ino, done.apply)

    # --- moves of objects, asked for by `moves` and by the queue -------------------------------------------------

    async def relocate(self, ino: int, key: str) -> Obstacle | None:
        """Move the object of an inode below a directory that moves, and nothing else.  Checkpoint.

        Returns what is in the way.  Raises FanoutError.
        """
        async with self.lock(ino), self.lock(key):
            await self.intents.resolve(ino)
            with self._reader.begin() as txn:
                places = Places.of_reader(self._reader, txn, self._root_prefix)
                inode, dirty = places.inode(ino), places.records.dirty(ino)
                facts = self.facts.facts(places, ino, dirty or DirtyRecord(0, 0, NOTHING))
            if inode is None or facts is None or facts.key != key or facts.source is None or inode.key == key:
                return None
            if facts.obstacle is not None:
                return facts.obstacle
            if self._late.may_change(key):
                return None
            if dirty is None:
                await self._publish_copy(facts, None)
                return None
            await self.kept.take_along(facts)
            return None

    async def clear(self, obstacle: Obstacle) -> bool:
        """Free the key that something holds which does not go by itself; False: it is no file.  Checkpoint."""
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, obstacle.ino)
            is_orphan = self._reader.is_orphan(txn, obstacle.ino)
        if is_orphan or (inode is not None and inode.is_staged and inode.is_whole):
            await self._secure(obstacle.ino)
            await self._writer.run(ReleaseObject(obstacle.ino, obstacle.key).apply)
        elif inode is not None and not inode.is_dir and inode.key == obstacle.key:
            await self.park(obstacle.ino)
        else:
            return False
        return True

    async def park(self, ino: int, aside: str = "") -> None:
        """Copy an inode's object aside, so that another may have its key: two files changed places.  Checkpoint.

        aside: where to; "", or when another's is there or may come: to a key of its own, at the root.
        """
        alone = f"{self._aside_prefix}{ino:x}-{time.time_ns():x}"  # wherever it is in the way, there it never is again
        async with self.lock(ino), self.lock(aside or alone):
            await self.intents.resolve(ino)
            with self._reader.begin() as txn:
                inode, stored = self._reader.inode(txn, ino), self._reader.tiers(txn).stored_as(ino)
                there = self._reader.changed(txn).departed(aside) if aside else None
            if (there is not None and there.ino not in (0, ino)) or self._late.may_change(aside):
                aside = ""
            if inode is None or inode.is_dir or not inode.etag or (not aside and self._is_aside(inode.key)):
                return
            if inode.is_staged and inode.is_whole:
                await self._secure(ino)
                await self._writer.run(LetGo(ino, self._root_prefix).apply)
                return
            source = ObjectInfo(inode.key, inode.version, stored.storage_class)
            parked = partial(Park, now_ns=time.time_ns(), root_prefix=self._root_prefix, with_directory=bool(aside))
            key = aside or alone
            await self.intents.note(ino, key, inode.etag)
            async with still_restored(self._backend, source, key, self._in_thread):
                version = await self._in_thread(partial(self._backend.copy, source, key, Expect.ANYTHING, None))
            await self._writer.run(parked(ino, key, version).apply)

    def _is_aside(self, key: str) -> bool:
        """Tell whether an object is aside already, by itself."""
        return key.startswith(self._aside_prefix) and "/" not in key.removeprefix(self._aside_prefix)

    # --- conditions ----------------------------------------------------------------------------------------------

    async def _conditionally(
        self,
        facts: Facts,
        change: Callable[[Condition], Awaitable[Version]],
        size_bytes: int,
        read: Callable[[int, int], bytes],
    ) -> Version:
        """Make a conditional change; when another object is there than expected, find out whose.

        Raises Displaced when it is somebody else's: the inode has another name now.
        """
        condition = facts.condition
        with self._reader.begin() as txn:
            departed = self._reader.changed(txn).departed(facts.key)
        if departed is not None and departed.ino not in (0, facts.inode.ino):
            await self._secure(departed.ino)
        await self.intents.note(facts.ino, facts.key, "" if facts.inode.is_staged else facts.inode.etag)
        for _try in range(_FINDINGS):
            try:
                return await change(condition)
            except PreconditionFailedError:
                try:
                    finding = await self._conflicts.examine(facts.key, facts.inode.ino, condition, size_bytes, read)
                except StaleInodeError:
                    raise Displaced from None  # another of ours has it, which has to go first
            if isinstance(finding, Finding):
                now = self.facts.look(facts.ino, facts.dirty)
                if now is None or (now.key, now.condition) != (facts.key, facts.condition):
                    raise Displaced  # what is there was found out meanwhile: come again
                await self._conflicts.keep_both(facts.ino, facts.key, finding.foreign)
                raise Displaced
            condition = finding
        raise BackendError(f"{facts.key}: the object changes faster than it can be replaced")

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)


def _ignore(_ino: int) -> None:
    """Nobody asked."""
