"""Publishing: bring the object store to what one inode is here, once.

Core, trio thread only; requests and disk run in worker threads.  One `publish` per inode at a time (`Publisher.lock`).

Order of a content upload, so that a crash between any two steps loses nothing and repeats at most a request:
  1. wait until the content is one state (see `content`), or make a copy of it under a seal
  2. put it under its key, conditionally, with a token that names this very state
  3. seal; if the file is as it was in step 1, it becomes clean
  4. commit: the record has key and version, the object under the old key is departed, the inode is not dirty
A core that starts after step 2 puts again with the same token and recognises its object (backend.retry).  A condition
that fails without our token in the object is a foreign change: see `conflicts`.

What only moved, or changed in its metadata, is copied inside the store.
"""

import contextlib
import hashlib
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import Condition, Expect, FileRange, Properties
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.admission import Admission
from fanoutfs.core.conflicts import Conflicts, Finding
from fanoutfs.core.content import TICK_NS, Stamp, checksums_of, copy_file, read_all
from fanoutfs.core.facts import Facts, FactsReader
from fanoutfs.core.grace import Grace
from fanoutfs.core.multipart import MultipartUploads
from fanoutfs.core.properties import is_ours, make_token, properties_of, with_token
from fanoutfs.errors import (
    BackendError,
    FanoutError,
    ObjectMissingError,
    PreconditionFailedError,
    StaleInodeError,
    VersionGoneError,
)
from fanoutfs.index.format import Dirty, DirtyRecord
from fanoutfs.index.places import Obstacle, Places
from fanoutfs.index.publishing import (
    NOTHING,
    SETTLED,
    DropDirty,
    DropNameless,
    MakePublished,
    NoteIntent,
    NoteState,
    Park,
    PublishDirectory,
    PublishLink,
    ReleaseObject,
    ResolveIntent,
)
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import MIB, ObjectInfo, Version

log = logging.getLogger(__name__)

T = TypeVar("T")

SINGLE_PUT_BYTES: Final = 64 * MIB
_MEMORY_BYTES: Final = 128 * MIB
"""Contents of single puts held at once: what was read is one state, a file that is streamed need not stay so."""
_FINDINGS: Final = 4
"""Times that an object may turn out to be another than expected within one publish."""


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

    async def localise(self, ino: int, offset: int, size: int) -> None:
        """Bring a range below the base size into the staging file."""
        ...

    async def seal(self, ino: int) -> object | None:
        """Let no front write any more; None: not staged."""
        ...

    async def unseal(self, ino: int) -> None:
        """Let fronts write again."""
        ...

    async def make_clean(self, ino: int, key: str, version: Version, checksums: Mapping[int, int] | None) -> bool:
        """Make a sealed inode's content the cached content of an object; False: it is not sealed."""
        ...

    async def sync_names(self) -> None:
        """Return when everything committed so far survives a power cut."""
        ...


@dataclass(frozen=True, slots=True)
class Frozen:
    """A state of a staged file.  content: in memory; None: read it from the descriptor."""

    stamp: Stamp
    fd: int
    content: bytearray | None
    is_copy: bool


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
        is_excluded: Callable[[str], bool],
        requests: int,
        delay_s: float,
        tag: str,
        row: memoryview,
    ) -> None:
        """Take the parts.

        settle: has listings under way leave a name alone.  is_excluded: tells of a path whether its content is not to
        be uploaded.  tag: of the volume.
        """
        self._backend = backend
        self._root_prefix = root_prefix
        self.facts = FactsReader(reader, root_prefix)
        self._reader = reader
        self._writer = writer
        self._files = files
        self._staging = staging
        self._grace = grace
        self._conflicts = conflicts
        self._multipart = multipart
        self._settle = settle
        self._is_excluded = is_excluded
        self._threads = trio.CapacityLimiter(requests)
        self._memory = Admission(_MEMORY_BYTES, requests)
        self._delay_ns = int(delay_s * 1e9)
        self._tag = tag
        self._aside_prefix = aside_prefix(root_prefix, tag)
        self._row = row
        self._locks: dict[int | str, trio.Lock] = {}

    async def wait_idle(self, ino: int) -> None:
        """Return when what is being done to an inode's object has been recorded.  Checkpoint."""
        async with self.lock(ino):
            pass

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

    async def publish(self, ino: int, *, is_overdue: bool, is_urgent: bool) -> Outcome:
        """Publish what is dirty of an inode.  Checkpoint.

        is_overdue: do not wait any longer until nobody writes.  is_urgent: do not wait for the upload delay.
        Raises FanoutError; the inode is dirty then as before.
        """
        async with self.lock(ino):
            await trio.lowlevel.checkpoint()
            facts = self.facts.look(ino)
            if facts is None:
                await self._resolve_intent(ino)
                is_clean = await self._writer.run(DropNameless(ino, self._root_prefix).apply)
                return Outcome.CLEAN if is_clean else Outcome.CHANGED
            if self._is_never(facts):
                await self._writer.run(NoteState(ino, add=Dirty.NEVER).apply)
                return Outcome.NEVER
            await self._resolve_intent(ino, but=facts.key)  # what it left elsewhere may be in somebody's way
            async with self.lock(facts.key):
                now = self.facts.look(ino)
                if now is None or now.key != facts.key:
                    return Outcome.CHANGED
                if now.obstacle is not None:
                    return Outcome.BLOCKED
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
            if not is_queued(ino):
                async with self.lock(ino):
                    try:
                        await self._resolve_intent(ino)
                    except FanoutError as error:
                        failure = error
        return failure

    async def _resolve_intent(self, ino: int, but: str = "") -> None:
        """Find out whether an object of an inode is under the key of an earlier attempt.  but: the key of the next."""
        intent = self.facts.intent(ino)
        if intent is None or intent[0] == but:
            return
        key, etag = intent
        version: Version | None = None
        try:
            found = await self._in_thread(partial(self._backend.details, key))
            is_copy = (etag and found.info.version.etag == etag) or key.startswith(self._aside_prefix)
            if is_copy or is_ours(found.properties, self._tag, ino):
                version = found.info.version
        except ObjectMissingError:
            version = None
        await self._writer.run(ResolveIntent(ino, key, version).apply)

    async def _intend(self, ino: int, key: str, etag: str = "") -> None:
        """Remember, over a power cut too, that an object is about to be put under a key.  etag: see NoteIntent.

        An index that fell back behind the request would hold the content for that of an object which is replaced.
        """
        await self._resolve_intent(ino, but=key)
        await self._writer.run(NoteIntent(ino, key, etag).apply)
        await self._staging.sync_names()

    async def _drop(self, facts: Facts) -> Outcome:
        """Forget that an inode is dirty: the store lacks nothing of it."""
        is_same = await self._writer.run(DropDirty(facts.ino, facts.dirty).apply)
        return Outcome.CLEAN if is_same else Outcome.CHANGED

    def _is_never(self, facts: Facts) -> bool:
        is_moved_only = not facts.inode.is_staged and facts.source is not None
        return not is_moved_only and self._is_excluded(facts.key.removeprefix(self._root_prefix))

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
        with self._descriptor(ino, life) as fd:
            stamp = Stamp.of(os.fstat(fd))
            if not (is_overdue or is_urgent) and stamp.age_ns() < self._delay_ns:
                return Outcome.CHANGED
            is_single = stamp.size_bytes <= SINGLE_PUT_BYTES or not await self._in_thread(self._can_upload_parts)
            if is_single and facts.local is not None:
                await self._staging.localise(ino, 0, facts.base_size)
            ticket = self._memory.enqueue(min(stamp.size_bytes, SINGLE_PUT_BYTES) if is_single else 0, is_demand=True)
            try:
                await ticket.admitted.wait()
                frozen = await self._freeze(facts, fd, is_overdue=is_overdue, is_single=is_single)
                if frozen is None:
                    return Outcome.CHANGED
                try:
                    return await self._send(facts, frozen, is_single=is_single)
                finally:
                    if frozen.is_copy:
                        os.close(frozen.fd)
            finally:
                self._memory.release(ticket)

    async def _freeze(self, facts: Facts, fd: int, *, is_overdue: bool, is_single: bool) -> Frozen | None:
        """Return the content as it was at one moment; None: it is being written.  Checkpoint.  Raises OSError."""
        stamp = Stamp.of(os.fstat(fd))
        if stamp.age_ns() <= TICK_NS:
            await trio.sleep((TICK_NS - stamp.age_ns()) / 1e9)
        await self._grace.wait()
        if Stamp.of(os.fstat(fd)) == stamp:
            if not is_single or stamp.size_bytes > SINGLE_PUT_BYTES:
                if is_single:
                    return await self._copy_sealed(facts, fd)
                return Frozen(stamp, fd, None, is_copy=False)
            content = await self._in_thread(partial(read_all, fd, stamp.size_bytes))
            if Stamp.of(os.fstat(fd)) == stamp and len(content) == stamp.size_bytes:
                return Frozen(stamp, fd, content, is_copy=False)
        return await self._copy_sealed(facts, fd) if is_overdue else None

    async def _copy_sealed(self, facts: Facts, fd: int) -> Frozen | None:
        """Copy the content while nobody may write.  Checkpoint.  Raises OSError when there is no room for a copy."""
        if await self._staging.seal(facts.inode.ino) is None:
            return None
        try:
            stamp = Stamp.of(os.fstat(fd))
            if stamp.size_bytes <= SINGLE_PUT_BYTES:
                return Frozen(stamp, fd, await self._in_thread(partial(read_all, fd, stamp.size_bytes)), is_copy=False)
            copy = self._files.scratch()
            try:
                await trio.to_thread.run_sync(partial(copy_file, fd, copy, stamp.size_bytes))
            except BaseException:
                os.close(copy)
                raise
            return Frozen(stamp, copy, None, is_copy=True)
        finally:
            with trio.CancelScope(shield=True):
                await self._staging.unseal(facts.inode.ino)

    async def _send(self, facts: Facts, frozen: Frozen, *, is_single: bool) -> Outcome:
        inode, stamp = facts.inode, frozen.stamp
        token = make_token(
            self._tag, inode.ino, inode.life, stamp.size_bytes, stamp.ctime_ns, facts.dirty.changed_ns
        )  # fmt: skip
        properties = properties_of(inode, stamp.mtime_ns, facts.xattrs, token)
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
            version = await self._conditionally(facts, put, stamp.size_bytes, read)
        except _Displaced:
            return Outcome.CHANGED
        except StaleInodeError:
            return Outcome.CHANGED  # the multipart upload was given up: the file was written to
        if frozen.content is not None:
            checksums = await self._in_thread(partial(checksums_of, inode.ino, 0, frozen.content))
        bump(self._row, Count.UPLOADED_FILES)
        bump(self._row, Count.UPLOADED_BYTES, stamp.size_bytes)
        return await self._make_clean(facts, stamp, version, checksums)

    async def _make_clean(self, facts: Facts, stamp: Stamp, version: Version, checksums: dict[int, int]) -> Outcome:
        """Let the object's version be the content, if the staging file still holds it.  Checkpoint."""
        ino, is_same = facts.inode.ino, False
        with trio.CancelScope(shield=True):  # the object is there: what follows is quick and local
            if await self._staging.seal(ino) is not None:
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
        return await self._published(facts, version, settled)

    # --- everything else ---------------------------------------------------------------------------------------

    async def _publish_unstaged(self, facts: Facts) -> Outcome:
        """Publish a symbolic link, a special file, an empty file, or an object that moved or has other metadata."""
        inode = facts.inode
        token = make_token(self._tag, inode.ino, inode.size_bytes, facts.dirty.changed_ns)
        properties = properties_of(inode, inode.version.mtime_ns, facts.xattrs, token)
        if facts.target is None and stat.S_ISREG(inode.mode) and facts.source is not None:
            return await self._publish_copy(facts, properties if facts.dirty.what & Dirty.META else None)
        body = facts.target or b""

        async def put(condition: Condition) -> Version:
            return await self._in_thread(partial(self._backend.put, facts.key, body, condition, properties))

        try:
            version = await self._conditionally(facts, put, len(body), lambda start, end: body[start:end])
        except _Displaced:
            return Outcome.CHANGED
        return await self._published(facts, version, SETTLED)

    async def _publish_copy(self, facts: Facts, properties: Properties | None) -> Outcome:
        """Copy an object to where it belongs, or onto itself with other metadata."""
        source = facts.source
        assert source is not None  # noqa: S101 - the callers looked
        if source.key == facts.key and properties is None:
            return await self._published(facts, source.version, SETTLED)
        try:
            version = await self._put_copy(facts, source, properties)
        except _Displaced:
            return Outcome.CHANGED
        except (VersionGoneError, ObjectMissingError) as error:
            await self._rescue(facts, error)
            return Outcome.CHANGED
        bump(self._row, Count.OBJECTS_MOVED)
        return await self._published(facts, version, SETTLED)

    async def _put_copy(self, facts: Facts, source: ObjectInfo, properties: Properties | None) -> Version:
        """Copy an object to where it belongs, conditionally.  Raises _Displaced."""

        def read(start: int, end: int) -> bytes:
            return bytes(self._backend.get_range(source.key, start, end, source.version))

        copy = partial(self._copy, source, facts, properties)
        return await self._conditionally(facts, copy, source.version.size_bytes, read)

    async def _copy(
        self, source: ObjectInfo, facts: Facts, properties: Properties | None, condition: Condition
    ) -> Version:
        if properties is None and "-" in source.version.etag:
            # The ETag of a copy will differ, so that only a token can tell it from a foreign object after a crash.
            known = (await self._in_thread(partial(self._backend.details, source.key))).properties
            token = make_token(self._tag, facts.inode.ino, source.version.size_bytes, _digest(source.version.etag))
            properties = with_token(known, token)
        if source.version.size_bytes > (await self._in_thread(self._backend.abilities)).max_copy_bytes:
            if properties is None:
                properties = (await self._in_thread(partial(self._backend.details, source.key))).properties
            return await self._multipart.copy(source, facts.key, properties, condition)
        return await self._in_thread(partial(self._backend.copy, source, facts.key, condition, properties))

    async def _rescue(self, facts: Facts, error: FanoutError) -> None:
        """Upload what is cached of a file whose object went away under its old name.  Checkpoint.

        Raises BackendError when not all of it is.
        """
        log.warning("object of a renamed file is gone, uploading from the cache ino=%d: %s", facts.inode.ino, error)
        try:
            await self._staging.stage(facts.inode.ino, 0, 0)
            await self._staging.localise(facts.inode.ino, 0, facts.inode.size_bytes)
        except FanoutError as failure:
            raise BackendError(f"its object was changed or deleted by somebody else: {failure}") from error
        await self._writer.run(NoteState(facts.inode.ino, add=Dirty.CONTENT).apply)

    async def _publish_link(self, facts: Facts) -> Outcome:
        """Give a further name of an inode an object of its own: a copy of the first name's."""
        with self._reader.begin() as txn:
            is_dirty = self._reader.changed(txn).dirty(facts.inode.ino) is not None
        source = facts.source
        if is_dirty or source is None:
            return Outcome.BLOCKED if is_dirty else await self._drop(facts)
        # With a token: the object of a further name is known by nothing else.
        token = make_token(self._tag, facts.inode.ino, facts.ino, facts.dirty.changed_ns)
        properties = properties_of(facts.inode, facts.inode.version.mtime_ns, facts.xattrs, token)
        try:
            version = await self._put_copy(facts, source, properties)
        except _Displaced:
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
            await self._intend(facts.ino, facts.key)
            await self._in_thread(put)
        done = PublishDirectory(facts.ino, facts.key, facts.dirty, self._root_prefix, is_marked)
        return await self._commit(facts.ino, done.apply)

    async def _published(self, facts: Facts, version: Version, settled: Dirty) -> Outcome:
        done = MakePublished(facts.inode.ino, facts.key, version, settled, facts.dirty, self._root_prefix)
        return await self._commit(facts.ino, done.apply)

    # --- moves of objects, asked for by `moves` and by the queue -------------------------------------------------

    async def relocate(self, ino: int, key: str) -> Obstacle | None:
        """Move the object of an inode below a directory that moves, and nothing else.  Checkpoint.

        Returns what is in the way.  Raises FanoutError.
        """
        async with self.lock(ino), self.lock(key):
            with self._reader.begin() as txn:
                places = Places.of_reader(self._reader, txn, self._root_prefix)
                inode, dirty = places.inode(ino), places.records.dirty(ino)
                facts = self.facts.facts(places, ino, dirty or DirtyRecord(0, 0, NOTHING))
            if inode is None or facts is None or facts.key != key or facts.source is None or inode.key == key:
                return None
            if facts.obstacle is not None:
                return facts.obstacle
            if dirty is None:
                await self._publish_copy(facts, None)
                return None
            with contextlib.suppress(_Displaced):
                version = await self._put_copy(facts, facts.source, None)
                await self._published(facts, version, NOTHING)
            return None

    async def clear(self, obstacle: Obstacle) -> bool:
        """Free the key that something holds which does not go by itself; False: it is no file.  Checkpoint."""
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, obstacle.ino)
            is_orphan = self._reader.is_orphan(txn, obstacle.ino)
        if is_orphan or (inode is not None and inode.is_staged and inode.is_whole):
            await self._writer.run(ReleaseObject(obstacle.ino, obstacle.key).apply)
        elif inode is not None and not inode.is_dir and inode.key == obstacle.key:
            await self.park(obstacle.ino)
        else:
            return False
        return True

    async def park(self, ino: int, aside: str = "") -> None:
        """Copy an inode's object aside, so that another may have its key: two files changed places.  Checkpoint."""
        async with self.lock(ino):
            await self._resolve_intent(ino)
            with self._reader.begin() as txn:
                inode = self._reader.inode(txn, ino)
            if inode is None or inode.is_dir or not inode.etag or (not aside and self._is_aside(inode.key)):
                return
            source = ObjectInfo(inode.key, inode.version)
            parked = partial(
                Park, now_ns=time.time_ns(), root_prefix=self._root_prefix, with_directory=bool(aside)
            )  # fmt: skip
            # At the root: wherever it is in the way of something, it must not be so again.
            aside = aside or f"{self._aside_prefix}{ino:x}-{time.time_ns():x}"
            await self._intend(ino, aside, inode.etag)
            version = await self._in_thread(partial(self._backend.copy, source, aside, Expect.ANYTHING, None))
            await self._writer.run(parked(ino, aside, version).apply)

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

        Raises _Displaced when it is somebody else's: the inode has another name now.
        """
        condition = facts.condition
        await self._intend(facts.ino, facts.key, "" if facts.inode.is_staged else facts.inode.etag)
        for _try in range(_FINDINGS):
            try:
                return await change(condition)
            except PreconditionFailedError:
                finding = await self._conflicts.examine(facts.key, facts.inode.ino, condition, size_bytes, read)
            if isinstance(finding, Finding):
                now = self.facts.look(facts.ino, facts.dirty)
                if now is None or (now.key, now.condition) != (facts.key, facts.condition):
                    raise _Displaced  # what is there was found out meanwhile: come again
                await self._conflicts.keep_both(facts.ino, facts.key, finding.foreign)
                raise _Displaced
            condition = finding
        raise BackendError(f"{facts.key}: the object changes faster than it can be replaced")

    def _can_upload_parts(self) -> bool:
        return self._backend.abilities().can_upload_parts

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)

    @contextlib.contextmanager
    def _descriptor(self, ino: int, life: int) -> Iterator[int]:
        """Hold a descriptor of a staging file.  After a cancellation a worker thread may still read: it stays open."""
        try:
            fd = self._files.duplicate(ino, life)
        except OSError as error:
            raise StaleInodeError(f"inode {ino} has no staging file: {error}") from error
        try:
            yield fd
        except trio.Cancelled:
            raise
        except BaseException:
            os.close(fd)
            raise
        else:
            os.close(fd)


class _Displaced(Exception):  # noqa: N818 - not an error: the inode goes on under another name
    """A foreign object has the key; the inode was given another name."""


def aside_prefix(root_prefix: str, tag: str) -> str:
    """Return what the keys begin with under which objects wait that had to make way for others."""
    return f"{root_prefix}.fanoutfs-{tag}-"


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
