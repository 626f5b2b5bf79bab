"""The file system without FUSE: what the core does for the requests that a front could not answer.

Core, trio thread only.  Names are bytes, errors are FanoutError, results are index records.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import trio

from fanoutfs.core.fill import Fills
from fanoutfs.core.freshness import Freshness
from fanoutfs.core.listing import Listings
from fanoutfs.core.objectattributes import AttributeReader
from fanoutfs.errors import (
    BackendError,
    CacheFullError,
    DatabaseError,
    FanoutError,
    NotADirectoryInIndexError,
    StaleInodeError,
    VersionGoneError,
)
from fanoutfs.index.format import FLAG_STAGED, Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.observe.shared import SCRATCH_BYTES, SCRATCH_SLOTS, SharedState
from fanoutfs.records import NO_WAITS, Waits
from fanoutfs.wire.relay import Outcome, Verb, pack_done

log = logging.getLogger(__name__)

T = TypeVar("T")

_STALE_PATIENCE_S: Final = 3.0
"""How long a request waits for a fresh listing before it is served from an older one."""
_STALE_PAUSE_S: Final = 5.0
"""After that failed, older listings serve without asking for this long."""
_PUBLISH_PATIENCE_S: Final = 10.0
"""How long who misses an object waits for what is being done to it: a copy within the store, rarely an upload."""
_FOLLOWED: Final = 3
_SCRATCH_EXPIRY_NS: Final = 30_000_000_000
_SCRATCH_WAIT_S: Final = 0.005


class FileSystem:
    """Lookups, listings and fills over the index."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        listings: Listings,
        fills: Fills,
        freshness: Freshness,
        shared: SharedState,
        metadata_ttl_s: float,
        attributes: AttributeReader | None = None,
    ) -> None:
        """attributes: asks objects for theirs; None: files have the mount's."""
        self._attributes = attributes
        self._reader = reader
        self._listings = listings
        self._fills = fills
        self._freshness = freshness
        self._shared = shared
        self._ttl_s = metadata_ttl_s
        self._serve_stale_until = 0.0
        self.wait_published: Callable[[int], Awaitable[None]] = _wait_for_nobody
        """Returns when what was being done to an inode's object has been recorded."""
        self.on_first_use: Callable[[Inode], None] = _ignore_use
        """Called with a directory that nobody has listed before it is.  No checkpoint."""

    def inode(self, ino: int) -> Inode:
        """Return an inode's record.  Raises StaleInodeError."""
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
        if inode is None:
            raise StaleInodeError(f"inode {ino} is not in the index")
        return inode

    def totals(self) -> tuple[int, int]:
        """Return (files, bytes) known so far."""
        with self._reader.begin() as txn:
            return self._reader.totals(txn)

    def knows_names(self, ino: int) -> bool:
        """Tell whether a directory's names are all in the index, and fresh.  Raises StaleInodeError."""
        directory = self._directory(ino)
        self._freshness.note_used(ino)
        return directory.is_listed and self._is_fresh(directory)

    async def lookup(self, parent: int, name: bytes) -> Inode | None:
        """Return what a name leads to, listing the directory or asking for the one name if need be.

        Checkpoint, unless the directory's names are known and fresh.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        directory = self._directory(parent)
        self._freshness.note_used(parent)
        if not directory.is_listed:
            ino = await self._listings.find(parent, name)
        else:
            await self._freshen(directory)
            with self._reader.begin() as txn:
                ino = self._reader.child(txn, parent, name)
        if ino is not None and self._attributes is not None:
            await self._attributes.fill(parent, name, self.inode(ino))
        return None if ino is None else self.inode(ino)

    async def make_listed(self, ino: int) -> None:
        """Make a directory's listing present and fresh.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        directory = self._directory(ino)
        self._freshness.note_used(ino)
        if directory.is_listed:
            await self._freshen(directory)
        else:
            self.on_first_use(directory)
            await self._listings.refresh(ino)

    async def invalidate(self, ino: int) -> None:
        """List a directory again now, whatever its age, and tell the kernel what changed.  Checkpoint."""
        self._directory(ino)
        await self._listings.refresh_anew(ino)

    async def prepare_read(self, verb: Verb, ino: int, offset: int, length: int) -> bytes:
        """Do what a front asks for before it answers a READ; return the packed outcome.  Checkpoint."""
        try:
            return await self.following(ino, partial(self._prepare_read, verb, ino, offset, length))
        except VersionGoneError:
            self._listings.distrust(self.inode(ino))  # the next open finds the new version
            raise

    async def following(self, ino: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do something that needs an inode's object; once more when we put that elsewhere or anew ourselves.

        Checkpoint.  Between the store's change and our record of it only the publisher knows; he is waited for.  Not to
        be called by what publishes.
        """
        for _try in range(_FOLLOWED):
            before = self.inode(ino)
            try:
                return await attempt()
            except VersionGoneError:
                with trio.move_on_after(_PUBLISH_PATIENCE_S):
                    await self.wait_published(ino)
                now = self.inode(ino)
                if (now.key, now.etag, now.flags & FLAG_STAGED) == (
                    before.key,
                    before.etag,
                    before.flags & FLAG_STAGED,
                ):
                    raise
        return await attempt()

    async def _prepare_read(self, verb: Verb, ino: int, offset: int, length: int) -> bytes:
        if self.inode(ino).is_staged:
            return pack_done(Outcome.READY, NO_WAITS)  # by now: what the cache has is not the content any more
        if verb is not Verb.DIRECT:
            try:
                if verb is Verb.REFILL:
                    await self._fills.discard_damaged(ino, offset, length)
                waits = await self._fills.ensure(ino, offset, length)
            except StaleInodeError:
                if not self.inode(ino).is_staged:  # else it was changed here while it was fetched
                    raise
                return pack_done(Outcome.READY, NO_WAITS)
            except (CacheFullError, DatabaseError) as error:
                log.debug("reading through ino=%d offset=%d: %s", ino, offset, error)
            else:
                return pack_done(Outcome.READY, waits)
        came_ns = time.monotonic_ns()
        data = await self._fills.fetch_direct(ino, offset, min(length, SCRATCH_BYTES))
        fetched_ns = time.monotonic_ns()
        slot, mark = await self._scratch_slot()
        self._shared.scratch(slot)[: len(data)] = data
        waits = Waits(fetched_ns - came_ns, time.monotonic_ns() - fetched_ns, 0)
        return pack_done(Outcome.SCRATCH, waits, slot, len(data), mark)

    def _directory(self, ino: int) -> Inode:
        inode = self.inode(ino)
        if not inode.is_dir:
            raise NotADirectoryInIndexError(f"inode {ino} is not a directory")
        return inode

    def _is_fresh(self, directory: Inode) -> bool:
        age_ns = self._listings.age_ns(directory)
        return age_ns is not None and age_ns <= self._ttl_s * 1e9

    async def _freshen(self, directory: Inode) -> None:
        """List again if the listing is older than the TTL; with the backend down, serve the older one."""
        if self._is_fresh(directory):
            return
        if trio.current_time() < self._serve_stale_until:
            return
        try:
            with trio.move_on_after(_STALE_PATIENCE_S) as scope:
                await self._listings.refresh(directory.ino)
        except StaleInodeError:
            pass  # no name leads to it any more: who holds it open sees it empty, as on a local disk
        except BackendError as error:
            log.warning("serving an older listing ino=%d: %s", directory.ino, error)
            self._serve_stale_until = trio.current_time() + _STALE_PAUSE_S
        if scope.cancelled_caught:
            log.warning("serving an older listing ino=%d: the backend is slow", directory.ino)
            self._serve_stale_until = trio.current_time() + _STALE_PAUSE_S

    async def _scratch_slot(self) -> tuple[int, int]:
        """Take a scratch slot, waiting for one if all are in use; return (slot, its mark).  Checkpoint."""
        while True:
            now = time.monotonic_ns()
            for slot in range(SCRATCH_SLOTS):
                mark = self._shared.scratch_mark(slot)
                if mark == 0 or now - mark > _SCRATCH_EXPIRY_NS:  # a front that died never gives it back
                    self._shared.set_scratch_mark(slot, now)
                    return slot, now
            await trio.sleep(_SCRATCH_WAIT_S)


async def _wait_for_nobody(_ino: int) -> None:
    """Nothing is published."""
    await trio.lowlevel.checkpoint()


def _ignore_use(_directory: Inode) -> None:
    """List nothing ahead."""


def resolve_path(filesystem: FileSystem, reader: IndexReader, root_ino: int, path: bytes) -> int:
    """Return the inode of a path relative to the mountpoint, as far as the index knows it.

    Raises FanoutError when a part of it is unknown.
    """
    ino = root_ino
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        with reader.begin() as txn:
            child = reader.child(txn, ino, name)
        if child is None:
            raise FanoutError(f"{path.decode(errors='replace')}: not known to the mount")
        ino = child
    filesystem.inode(ino)
    return ino
