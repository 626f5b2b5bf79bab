"""Conflicts: another object is at a key than was expected there.

Core, trio thread only.  It may be our own, put by an attempt whose answer nobody heard (its token says so), or hold the
same bytes; then the put goes on with that version as its condition.  Otherwise both versions are kept: what was changed
here gets the name `<name>.conflict-<host>-<utc time>` and is uploaded under it, the old name leads to the foreign
object.  A foreign deletion is no conflict: there is nothing to keep of it, and what was changed here is uploaded.
What was only renamed here, and neither is in the store as we knew it nor all in the cache, has no content any more: it
goes, and is told.
"""

import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import Condition, Expect
from fanoutfs.clock import Clock
from fanoutfs.core.properties import is_ours, owner_of
from fanoutfs.errors import BackendError, ObjectMissingError, StaleInodeError
from fanoutfs.index.format import Ownership
from fanoutfs.index.names import NAME_MAX_BYTES
from fanoutfs.index.operations import Change, ChangeKind, is_same_version
from fanoutfs.index.publishing import NoteConflict
from fanoutfs.index.removal import RemoveLost
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import PART_BYTES, ObjectInfo, Version

log = logging.getLogger(__name__)

_HOST_BYTES: Final = 64
_SURE_S: Final = 2.0
"""What is missing is looked for once more so much later."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Somebody else's object."""

    foreign: ObjectInfo


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of an object of ours by somebody else's doing.  version: of what is there now; None: nothing."""

    version: Version | None


class Displaced(Exception):  # noqa: N818 - not an error: the inode's turn comes again
    """Another object has the key: a foreign one (the inode was given another name), or one of ours for the moment."""


class Conflicts:
    """Finds out whose an unexpected object is, and keeps both."""

    def __init__(
        self,
        *,
        backend: Backend,
        writer: GroupWriter[IndexTransaction],
        ownership: Ownership,
        clock: Clock,
        root_prefix: str,
        tag: str,
        publish: Callable[[list[Change]], Awaitable[None]],
        is_needed: Callable[[int, ObjectInfo], bool],
        row: memoryview,
    ) -> None:
        """publish: tells the kernel of changes.  is_needed: tells whether an object is that of an inode's record."""
        self._is_needed = is_needed
        self._backend = backend
        self._writer = writer
        self._ownership = ownership
        self._clock = clock
        self._root_prefix = root_prefix
        self._tag = tag
        self._publish = publish
        self._row = row

    async def examine(
        self, key: str, ino: int, expected: Condition, size_bytes: int, read: Callable[[int, int], bytes]
    ) -> Condition | Finding:
        """Look at an object that was not expected.  Return the condition to go on with, or the foreign object.

        read: our content, called in a worker thread.  Checkpoint.  Raises BackendError.
        """
        try:
            found = await trio.to_thread.run_sync(partial(self._backend.details, key), abandon_on_cancel=True)
        except ObjectMissingError:
            if expected is Expect.NOTHING:
                await self._remove_directory(key)
                return Expect.NOTHING
            log.info("object was deleted by somebody else, uploading it anew key=%s", key)
            return Expect.NOTHING
        version = found.info.version
        if isinstance(expected, Version) and expected.etag == version.etag and expected.etag:
            raise BackendError(f"{key}: the store refuses a condition that holds")
        if is_ours(found.properties, self._tag, ino):
            return version
        other = owner_of(found.properties, self._tag)
        if other is not None:
            if self._is_needed(other, found.info):
                raise StaleInodeError(f"{key} is still taken by inode {other}")
            return version  # put for another file of ours, which has gone or moved since
        same = partial(self._is_same, found.info, size_bytes, read)
        if await trio.to_thread.run_sync(same, abandon_on_cancel=True):
            return version
        return Finding(found.info)

    async def _remove_directory(self, key: str) -> None:
        """Remove the empty directory that a store which is a file system inside has where a file is to come.

        SeaweedFS keeps those that came with the first object below them; one that is not empty stays.  Checkpoint.
        """
        abilities = await trio.to_thread.run_sync(self._backend.abilities, abandon_on_cancel=True)
        if not abilities.can_mark_directories:
            raise BackendError(f"{key}: the store says that it is there, and that it is not")
        log.info("an empty directory is where a file is to come key=%s", key)
        await trio.to_thread.run_sync(partial(self._backend.delete, f"{key}/"), abandon_on_cancel=True)

    async def keep_both(self, ino: int, key: str, foreign: ObjectInfo) -> None:
        """Give what was changed here another name and the old name to the foreign object.  Checkpoint."""
        name = conflict_name(key.rstrip("/").rpartition("/")[2], socket.gethostname(), self._clock.wall_ns())
        noted = NoteConflict(ino, key, foreign, name, self._ownership, self._clock.wall_ns(), self._root_prefix)
        changes = await self._writer.run(noted.apply)
        if changes:
            bump(self._row, Count.CONFLICTS)
            log.warning("conflict: both versions are kept key=%s ours=%s", key, name.decode(errors="replace"))
            await self._publish(changes)

    async def fate(self, source: ObjectInfo) -> Fate | None:
        """Return what somebody else did to an object; None: it is there as we know it.  Checkpoint.

        One that is missing is looked for once more, after a while: some stores forget for a moment.  Raises
        BackendError.
        """
        look = partial(self._backend.details, source.key)
        for pause_s in (_SURE_S, 0.0):
            try:
                found = (await trio.to_thread.run_sync(look, abandon_on_cancel=True)).info.version
            except ObjectMissingError:
                await trio.sleep(pause_s)
                continue
            return None if is_same_version(source.version, found) else Fate(found)
        return Fate(None)

    async def remove_lost(self, ino: int, source: ObjectInfo) -> bool:
        """Take the name of a file away whose object is not there any more as we knew it.  Checkpoint.

        Tells whether that was so.  What somebody else put in its place stays; the name leads there, if it is still the
        same.  Raises BackendError.
        """
        fate = await self.fate(source)
        if fate is None:
            return False
        now_ns = self._clock.wall_ns()
        lost = RemoveLost(
            ino, source.key, source.version.etag, fate.version, self._ownership, now_ns, self._root_prefix
        )
        changes = await self._writer.run(lost.apply)
        for change in changes:
            bump(self._row, Count.CONFLICTS)
            log.warning(
                "%s name=%s: somebody else has %s its object before a rename or new attributes reached it, and not all"
                " of it was cached key=%s",
                "a file shows what others made of it" if change.kind is ChangeKind.REPLACED else "a file is gone",
                change.name.decode(errors="replace"), "changed" if fate.version else "removed", source.key
            )  # fmt: skip
        await self._publish(changes)
        return bool(changes)

    def _is_same(self, info: ObjectInfo, size_bytes: int, read: Callable[[int, int], bytes]) -> bool:
        """Compare an object with ours, up to the first difference.  Blocking."""
        if info.version.size_bytes != size_bytes:
            return False
        for start in range(0, size_bytes, PART_BYTES):
            end = min(size_bytes, start + PART_BYTES)
            if self._backend.get_range(info.key, start, end, info.version) != read(start, end):
                return False
        return True


def conflict_name(name: str, host: str, now_ns: int) -> bytes:
    """Return the name that our version of a file gets."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_ns // 1_000_000_000))
    label = host.encode("ascii", "replace").replace(b"/", b"_").replace(b"?", b"_")[:_HOST_BYTES]
    # Milliseconds keep two conflicts of one second apart.
    tail = b".conflict-%s-%s.%03d" % (label, moment.encode(), now_ns // 1_000_000 % 1000)
    encoded = name.encode("utf-8", "surrogateescape")
    return _cut(encoded, NAME_MAX_BYTES - len(tail)) + tail


def _cut(name: bytes, size: int) -> bytes:
    """Cut a name, not within a character."""
    if len(name) <= size:
        return name
    return name[:size].decode("utf-8", "ignore").encode()
