"""Staged files in the core: bring content into staging files, keep it, and hand it over to the cache when it is clean.

Core, trio thread only; what blocks runs in worker threads.  A lock for each inode orders what is done to its staging
file here.  Fronts write and read the files without asking where the index lets them (`front.changes`).

Order of staging a clean file, so that content which is durable in the store is never lost by a change of it:
  1. a life (a number never used); the staging file, with size and mtime of the object
  2. small files: their content into it, synced          large files: nothing, the file is an overlay
  3. commit: STAGED.  From now on fronts write            A kill before 3 leaves a file that no record knows: it goes.
  4. small files: out of the small store, after every fill that was under way
Blocks of an overlay become local: content into the staging file, synced, then commit, which is synced too where the
object ends within a page.  What the write that asked for it will overwrite is fetched as well: until it is written,
others read the block.

Order of becoming clean, so that at every moment one place has what fsync acknowledged:
  1. commit: SEALED, then a grace period: no front writes any more         (the caller has put the object)
  2. no fill of the inode is under way; the arena shows nothing of it
  3. the content into the cache: small files into the small store; whole ones by a link from objects/ to the staging
     file; of overlays the local blocks are copied
  4. commit: clean, with key, version and block map
  5. a grace period; the index is synced
  6. the staging file goes
A kill or power cut before 4 is durable leaves a staged file and its staging file; after it, a staging file that no
record knows.  What the cache lost of 3 in a power cut does not have its checksum, and is fetched again.
"""

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import trio

from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.small import SmallMismatchError
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.cache.staging import StagingFiles, staged_attr
from fanoutfs.clock import Clock
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.content import TICK_NS
from fanoutfs.core.durable import Durable
from fanoutfs.core.fill import Fills
from fanoutfs.core.grace import Grace
from fanoutfs.core.handover import HandOver
from fanoutfs.core.numbers import Numbers
from fanoutfs.core.overlay import AheadOfReaders, OverlayContent, missing_runs
from fanoutfs.core.space import Space
from fanoutfs.core.spares import Spares
from fanoutfs.core.stagingroom import StagingRoom
from fanoutfs.errors import BackendError, CacheFullError, InvariantError, RefusedError, StaleInodeError
from fanoutfs.index.format import Inode, Ownership, attr_times_ns
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.requests import Request
from fanoutfs.index.staged import MakeClean, MarkLocal, Seal, Stage, Truncate
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES, Version

_TRIES: Final = 3
_TICK_PAUSE_S: Final = 0.001
_AHEAD_S: Final = 0.2
_MAX_FILE_BYTES: Final = (1 << 63) - 1


class _Held:
    """The lock of one inode, and how many hold it or wait for it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.users = 0


class Staging:
    """The core's side of staging."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        staging: StagingFiles,
        files: CacheFiles,
        small: SmallStore,
        fills: Fills,
        arena: ArenaSlots,
        space: Space,
        room: StagingRoom,
        grace: Grace,
        durable: Durable,
        numbers: Numbers,
        spares: Spares,
        ownership: Ownership,
        root_prefix: str,
        clock: Clock,
        op_timeout_s: float,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._staging = staging
        self._small = small
        self._fills = fills
        self._arena = arena
        self._space = space
        self._room = room
        self._grace = grace
        self._durable = durable
        self._numbers = numbers
        self._spares = spares
        spares.note_given = self._note_unnamed
        self._ownership = ownership
        self._root_prefix = root_prefix
        self._clock = clock
        self._op_timeout_s = op_timeout_s
        self._overlays = OverlayContent(reader, files, fills)
        self._hand_over = HandOver(
            reader=reader,
            staging=staging,
            files=files,
            small=small,
            space=space,
        )
        self._ahead = AheadOfReaders()
        self._locks: dict[int, _Held] = {}
        self._unsealed: dict[int, trio.Event] = {}
        """Files that somebody here has sealed and will unseal."""
        self._unnamed: set[tuple[int, int]] = set()
        """Staging files whose names were not synced yet."""
        self._spoilt: set[tuple[int, int]] = set()
        """Staging files of which a sync failed: what they hold is not known any more."""
        self.note_dirty: Callable[[int], None] = _ignore
        """Called when the content of an inode was changed here.  No checkpoint."""

    # --- what everybody asks -----------------------------------------------------------------------------------

    def shown(self, inode: Inode) -> Inode:
        """Return a record with the attributes that users see: a staged file's are those of its staging file."""
        if not inode.is_staged:
            return inode
        try:
            found = self._staging.stat(inode.ino, inode.life)
        except FileNotFoundError:
            now = self._record(inode.ino)
            if now.is_staged and now.life == inode.life:
                raise StaleInodeError(f"inode {inode.ino} has no staging file") from None
            return self.shown(now)  # it became clean since the record was read
        return replace(inode, attr=staged_attr(inode.attr, found, is_whole=inode.is_whole))

    async def new_file(self) -> tuple[int, int]:
        """Return (inode number, life) of an empty staging file for an inode to be.  Checkpoint now and then."""
        ino = await self._spares.take()
        self._unnamed.add((ino, ino))
        return ino, ino

    def _note_unnamed(self, ino: int) -> None:
        """A front may make a file of this number; whoever syncs it must find that its name was not synced."""
        self._unnamed.add((ino, ino))

    def discard_file(self, ino: int, life: int) -> None:
        """Remove a staging file that no record knows.  No checkpoint."""
        self._unnamed.discard((ino, life))
        self._spoilt.discard((ino, life))
        self._staging.remove(ino, life)

    def touch(self, inode: Inode, atime_ns: int | None = None, mtime_ns: int | None = None) -> None:
        """Move the ctime of a staged file, and set its mtime where one is given.  No checkpoint."""
        if not inode.is_staged:
            return
        with contextlib.suppress(FileNotFoundError):  # it became clean since the record was read
            self._staging.touch(inode.ino, inode.life, atime_ns, mtime_ns)

    def tag(self, inode: Inode, key: str | None) -> None:
        """Write down in the staging file which object it shall be; None: it is removed.  No checkpoint."""
        if inode.is_staged:
            with contextlib.suppress(OSError):
                self._staging.tag(inode.ino, inode.life, key)

    # --- what requests ask -------------------------------------------------------------------------------------

    async def stage(self, ino: int, offset: int, size: int, truncate_to: int | None = None) -> Inode:
        """Make a file staged and unsealed, and [offset, offset + size) of its object local; return its record.

        truncate_to: its new size, set under the same lock.  Whoever is going to write waits for room first.
        Checkpoint.  Raises StaleInodeError, RefusedError, BackendError, OSError.
        """
        if offset + size > _MAX_FILE_BYTES or (truncate_to or 0) > _MAX_FILE_BYTES:
            raise RefusedError(errno.EFBIG)
        async with self._writable(ino) as found:
            inode = found if found.is_staged else await self._begin(found, is_emptied=truncate_to == 0)
            if not inode.is_whole:
                await self._localise(inode, offset, offset + size, keeps_times=False)
            inode = inode if truncate_to is None else await self._truncate(inode, truncate_to)
        self.note_dirty(ino)
        return inode

    async def localise(self, ino: int, offset: int, size: int) -> None:
        """Make a range of a file readable from its staging file, if it is staged.  Checkpoint.  Raises as `stage`."""
        async with self.held(ino):
            inode = self._record(ino)
            if inode.is_staged and not inode.is_whole and self._missing(inode, offset, offset + size):
                async with self._unwritten(inode):
                    await self._localise(inode, offset, offset + size)

    async def make_readable(self, ino: int, offset: int, size: int) -> None:
        """Do so for a reader, and for what he will want next if he goes on.  Checkpoint.  Raises as `stage`."""
        async with self.held(ino):
            inode, end = self._record(ino), offset + size
            if not inode.is_staged or inode.is_whole or not self._missing(inode, offset, end):
                return
            async with self._unwritten(inode):
                await self._localise(inode, offset, end)
                await self._read_ahead(inode, offset, end)

    async def wait_for_room(self, size: int, *, at_most_s: float = float("inf")) -> bool:
        """Return True when so much may be staged, False after so long at the cap.  Checkpoint.

        Raises CacheFullError when nothing becomes free; see `stagingroom`.
        """
        return await self._room.wait(size, self._op_timeout_s, at_most_s=at_most_s)

    async def sync(self, ino: int, *, data_only: bool) -> None:
        """Return when a file's content and everything committed so far survive a power cut.  Checkpoint.

        Raises OSError; after a failure every further sync of the same staging file fails as well.
        """
        inode = self._record(ino)
        if inode.is_staged:
            await self.sync_content(ino, inode.life, data_only=data_only)
        await self._durable.sync()

    async def sync_names(self) -> None:
        """Return when everything committed so far survives a power cut.  Checkpoint.  Raises OSError."""
        await self._durable.sync()

    async def sync_content(self, ino: int, life: int, *, data_only: bool = False) -> None:
        """Return when what a staging file holds survives a power cut, and so does its name.  Checkpoint.

        Raises as `sync`, and StaleInodeError when there is none.
        """
        if (ino, life) in self._spoilt:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        try:
            fd = self._staging.duplicate(ino, life)
        except FileNotFoundError:
            raise StaleInodeError(f"inode {ino} has no staging file") from None
        is_new = (ino, life) in self._unnamed

        def sync() -> None:
            (os.fdatasync if data_only else os.fsync)(fd)
            if is_new:
                self._staging.sync_directory()

        try:
            await trio.to_thread.run_sync(sync)
        except OSError:
            self._spoilt.add((ino, life))
            raise
        finally:
            os.close(fd)
        self._unnamed.discard((ino, life))

    # --- what uploads ask --------------------------------------------------------------------------------------

    async def seal(self, ino: int) -> bool:
        """Have nobody write to a staged file until it is clean or unsealed; False: it is not staged.  Checkpoint."""
        async with self.held(ino):
            inode = self._find(ino)
            if inode is None or not inode.is_staged:
                return False
            sealed = await self._writer.run(Seal(ino, inode.life, sealed=True).apply)
            if sealed is None:
                return False
            self._unsealed.setdefault(ino, trio.Event())
            await self._grace.wait()
            try:
                self._staging.stat(ino, inode.life)
            except OSError:
                await self._unseal(sealed)
                return False
            return True

    async def unseal(self, ino: int) -> None:
        """Let a sealed file be written to again.  Checkpoint."""
        async with self.held(ino):
            inode = self._find(ino)
            if inode is not None and inode.is_staged:
                await self._unseal(inode)
            self._wake(ino)

    async def _unseal(self, inode: Inode) -> None:
        self._wake(inode.ino)  # first: should the index refuse, they meet that.  They wait for the lock, held here.
        await self._writer.run(Seal(inode.ino, inode.life, sealed=False).apply)

    def _wake(self, ino: int) -> None:
        if (event := self._unsealed.pop(ino, None)) is not None:
            event.set()

    async def make_clean(
        self, ino: int, key: str, version: Version, checksums: Mapping[int, int] | None = None
    ) -> bool:
        """Let a sealed file's content be the object `key` in `version`, which has it.  Checkpoint.

        checksums: block of the file → xxh3, as far as they are known.  Returns False when the file is gone or was not
        sealed; see the module's docstring for the order.  Raises InvariantError, DatabaseError.
        """
        async with self.held(ino):
            inode = self._find(ino)
            if inode is None or not inode.is_staged or not inode.is_sealed:
                return False
            is_clean = False
            try:
                is_clean = await self._make_clean(inode, key, version, dict(checksums or {}))
            finally:
                self._wake(ino)
                if not is_clean:
                    with trio.CancelScope(shield=True):
                        await self._unseal(inode)
            return is_clean

    async def _make_clean(self, inode: Inode, key: str, version: Version, checksums: dict[int, int]) -> bool:
        ino, life = inode.ino, inode.life
        found = self._staging.stat(ino, life)
        if found.st_size != version.size_bytes:
            raise InvariantError(f"{key} has {version.size_bytes} bytes, its staging file {found.st_size}")
        await self._fills.wait_idle(ino)
        self._arena.withdraw_inode(ino)
        is_small = self._ownership.is_small(key, version.size_bytes)
        async with self._space.handing_over(ino):
            cached, disks = await self._hand_over.bring(inode, found.st_size, checksums, is_small=is_small)
            clean = MakeClean(
                ino=ino,
                life=life,
                key=key,
                version=version,
                times_ns=(found.st_mtime_ns, found.st_ctime_ns),
                checksums=cached,
                disks=disks,
                is_small=is_small,
            )
            if not is_small and cached and inode.is_whole:
                self._space.occupied.note_adopted(ino, found.st_blocks * 512)
            if not await self._writer.run(clean.apply):
                return False
            if not is_small:
                self._space.written_here.note_written(ino)
            await self._grace.wait()
            with contextlib.suppress(OSError):  # the staging file stays then, until a start finds it unknown
                await self._durable.sync()
                self.discard_file(ino, life)
                self._space.note_unstaged(found.st_blocks * 512)
        await self._space.holes.settle(ino)
        return True

    # --- under the inode's lock --------------------------------------------------------------------------------

    def _find(self, ino: int) -> Inode | None:
        with self._reader.begin() as txn:
            return self._reader.inode(txn, ino)

    def _record(self, ino: int) -> Inode:
        inode = self._find(ino)
        if inode is None:
            raise StaleInodeError(f"inode {ino} is not in the index")
        return inode

    @asynccontextmanager
    async def held(self, ino: int) -> AsyncIterator[None]:
        """Keep an inode from being staged, cut, sealed or made clean meanwhile."""
        held = self._locks.setdefault(ino, _Held())
        held.users += 1
        try:
            async with held.lock:
                yield
        finally:
            held.users -= 1
            if not held.users:
                del self._locks[ino]

    @asynccontextmanager
    async def _unwritten(self, inode: Inode) -> AsyncIterator[None]:
        """Keep users from writing to a staged file whose lock is held.

        Its modification time is set back after the core has written to it; that of a user's write would be lost.
        """
        if inode.is_sealed:
            yield
            return
        self._unsealed.setdefault(inode.ino, trio.Event())
        try:
            await self._writer.run(Seal(inode.ino, inode.life, sealed=True).apply)
            await self._grace.wait()
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._unseal(inode)

    @asynccontextmanager
    async def _writable(self, ino: int) -> AsyncIterator[Inode]:
        """Hold the lock of a regular file that is not sealed; yield its record."""
        while True:
            async with self.held(ino):
                inode = self._record(ino)
                if not stat.S_ISREG(inode.mode):
                    raise RefusedError(errno.EISDIR if inode.is_dir else errno.EINVAL)
                unsealed = self._unsealed.get(ino)
                if not inode.is_sealed:
                    yield inode
                    return
                if unsealed is None:  # who sealed it could not undo that: the index refused
                    await self._unseal(inode)
            if unsealed is not None:
                await unsealed.wait()

    async def _begin(self, inode: Inode, *, is_emptied: bool) -> Inode:
        """Stage a clean file.  Checkpoint."""
        is_whole = is_emptied or inode.is_small or not inode.size_bytes
        content = b"" if is_emptied or not inode.size_bytes or not inode.is_small else await self._content(inode)
        life = await self._numbers.take()
        fd = self._staging.create(inode.ino, life, 0 if is_whole else inode.size_bytes)
        self._unnamed.add((inode.ino, life))
        try:
            if content:
                await self._write(inode.ino, life, {0: content})
                fd = self._staging.descriptor(inode.ino, life)
            if not is_emptied:
                mtime_ns = inode.version.mtime_ns
                os.utime(fd, ns=(mtime_ns, mtime_ns))
            await self._outlast(inode, life)
            if inode.key:
                self._staging.tag(inode.ino, life, inode.key)
                self._staging.tag_base(inode.ino, life, inode.version, 0 if is_whole else inode.size_bytes)
            request = Request(self._clock.wall_ns(), 0, 0, self._root_prefix)
            staged = await self._writer.run(Stage(inode.ino, life, is_whole, request).apply)
        except Exception:  # (cancelled it may have been committed: a start will tell)
            self.discard_file(inode.ino, life)
            raise
        self._space.note_staged(len(content))
        self._arena.withdraw_inode(inode.ino)
        if inode.is_small:
            await self._fills.wait_idle(inode.ino)
            if self._small.has(inode.ino):
                await self._small.drop(inode.ino)
        return staged

    async def _outlast(self, inode: Inode, life: int) -> None:
        """Return when a staging file's change time is not before that of its record.  Checkpoint.

        The record's is exact, a file's that of the last tick of the kernel's clock (4 ms): users would see it go back.
        """
        await trio.lowlevel.checkpoint()
        shown_ns = attr_times_ns(inode.attr)[2]
        # Further ahead it is somebody's clock that was set.
        while 0 < shown_ns - self._staging.stat(inode.ino, life).st_ctime_ns < 10 * TICK_NS:
            await trio.sleep(_TICK_PAUSE_S)
            os.fchmod(self._staging.descriptor(inode.ino, life), 0o600)

    async def _content(self, inode: Inode) -> bytes:
        """Return the content of a clean small file.  Checkpoint."""
        for _try in range(_TRIES):
            try:
                await self._fills.ensure(inode.ino, 0, inode.size_bytes)
            except CacheFullError:
                break
            try:
                with self._small.reader.begin() as txn:
                    found = self._small.reader.get(txn, inode.ino)
                    content = None if found is None else bytes(found)
            except SmallMismatchError:
                await self._fills.discard_damaged(inode.ino, 0, inode.size_bytes)
                continue
            if content is not None and len(content) == inode.size_bytes:
                return content
        return bytes(await self._fills.fetch_direct(inode.ino, 0, inode.size_bytes))

    def _missing(self, inode: Inode, start: int, end: int) -> list[tuple[int, int]]:
        with self._reader.begin() as txn:
            return missing_runs(self._reader.changed(txn), inode.ino, start, end)

    async def _localise(self, inode: Inode, start: int, end: int, *, keeps_times: bool = True) -> None:
        """Make the blocks of a range of an overlay's object local.  Checkpoint.

        keeps_times: nobody is about to change them.  Nobody may write meanwhile then: see `_unwritten`.
        """
        for first, last_end in self._missing(inode, start, end):
            content = await self._overlays.read(inode, first, last_end)
            await self._write(inode.ino, inode.life, {first: content}, keeps_times=keeps_times)
            masks: dict[int, int] = {}
            for block in range(first // BLOCK_BYTES, -(-last_end // BLOCK_BYTES)):
                part = block // PART_BLOCKS
                masks[part] = masks.get(part, 0) | 1 << block % PART_BLOCKS
            await self._writer.run(MarkLocal(inode.ino, inode.life, masks).apply)
            self._space.note_staged(last_end - first)
            if last_end % mmap.PAGESIZE:
                # The object ends within a page.  Would a power cut take this record, but leave what is written behind
                # that end, the page were neither what it was nor what it became.
                await self._durable.sync()

    async def _read_ahead(self, inode: Inode, offset: int, end: int) -> None:
        """Make more local behind what a reader asked for.  Checkpoint.

        He waits for it, as he would for each READ by itself, but not for long where the store is slow.
        """
        stop = min(end + min(self._ahead.window(inode.ino, offset), self._space.staging_room() // 2), inode.size_bytes)
        until = trio.current_time() + _AHEAD_S
        with contextlib.suppress(BackendError, CacheFullError, OSError):  # nobody asked for it yet
            while end < stop and trio.current_time() < until:
                part_end = (end // PART_BYTES + 1) * PART_BYTES
                await self._localise(inode, end, min(part_end, stop))
                end = part_end
        self._ahead.note(inode.ino, end)

    async def _write(self, ino: int, life: int, pieces: Mapping[int, bytes], *, keeps_times: bool = False) -> None:
        """Write content of the object to the staging file and sync it.  Checkpoint.  Raises OSError."""
        fd = self._staging.duplicate(ino, life)

        def write() -> None:
            before = os.fstat(fd)
            for offset, content in pieces.items():
                view, done = memoryview(content), 0
                while done < len(view):
                    done += os.pwrite(fd, view[done:], offset + done)
            if keeps_times:
                os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
            os.fdatasync(fd)

        try:
            await trio.to_thread.run_sync(write)
        finally:
            os.close(fd)

    async def _truncate(self, inode: Inode, size_bytes: int) -> Inode:
        """Cut a staging file, or make it longer.  Checkpoint.

        The file first: should the core be killed in between, a start lowers the base size to the file's.
        """
        fd = self._staging.descriptor(inode.ino, inode.life)
        os.ftruncate(fd, size_bytes)
        os.utime(fd)
        if not inode.is_whole:
            with self._reader.begin() as txn:
                base_size = self._reader.changed(txn).base_size(inode.ino) or 0
            if size_bytes < base_size:
                self._staging.tag_base(inode.ino, inode.life, inode.version, size_bytes)
            request = Request(self._clock.wall_ns(), 0, 0, self._root_prefix)
            await self._writer.run(Truncate(inode.ino, inode.life, size_bytes, request).apply)
            if size_bytes < base_size:
                await self._durable.sync()  # as in `_localise`: behind the new end nothing meets the old
            return self._record(inode.ino)
        return inode


def _ignore(_ino: int) -> None:
    """Tell nobody."""
