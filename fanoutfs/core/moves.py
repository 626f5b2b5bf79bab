"""Objects follow the names: deletions, and directories whose objects move to another prefix.

Core, trio thread only.  The journal is `departed` in the index; this task reads it round and round and does what it
says.  Single files that were renamed are the queue's business (`uploads`): they are dirty.

A directory that moved from prefix P (its objects' keys) to T (its place), in steps that may be repeated:
  1. commit: T belongs to it as well, so that a further rename finds what is already there
  2. complete the knowledge of what is below P: each directory that was never listed is listed
  3. each file whose object is below P: copy to its place, commit its new key and that the old object has departed
  4. the old objects are deleted (as every departed object)
  5. each directory: its marker, if it has one, is put anew and the old one deleted; commit its new prefix
  6. commit: nothing is below P any more
Until then listings do not see P, and the directory's names are those known here.  No object is deleted before the
record of its file names another.  If T still belongs to another directory, that one moves first; if that waits for this
one in turn, the objects go to a prefix aside first.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import Expect
from fanoutfs.clock import Clock
from fanoutfs.core.listing import Listings
from fanoutfs.core.properties import is_tagged
from fanoutfs.core.publishing import Publisher, aside_prefix
from fanoutfs.core.uploads import Uploads
from fanoutfs.errors import FanoutError, ObjectMissingError, PreconditionFailedError, StaleInodeError
from fanoutfs.index.changes import MoveLink
from fanoutfs.index.format import Departed, Dirty, Inode
from fanoutfs.index.places import Places
from fanoutfs.index.publishing import BeginMove, FinishDeparted, FinishMove, LeavePrefix, MoveDirectory, ParkDirectory
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.requests import Request
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump

log = logging.getLogger(__name__)

_PERIOD_S: Final = 1.0
_BATCH: Final = 512
_BACKOFF_S: Final = 0.05
_BACKOFF_MAX_S: Final = 30.0
_PATIENCE: Final = 3
"""Looks at an obstacle before it is moved aside."""
_MAX_DELAY_S: Final = 2.0
"""A deletion waits as long as an upload would, but no longer than this, for a file that takes the key over."""


@dataclass(slots=True)
class _Delay:
    """When to look at a departed key again, as long as its record stays the same."""

    departed: Departed
    at: float
    failures: int = 0


@dataclass(slots=True)
class _Move:
    """A directory on its way.  old: prefixes that its objects may be below; target: where they belong."""

    ino: int
    old: tuple[str, ...]
    target: str
    is_aside: bool = False
    left: int = 0
    error: FanoutError | None = None
    directories: list[tuple[int, str, str]] = field(default_factory=list)


class Moves:
    """The task that empties `departed`."""

    def __init__(
        self,
        *,
        backend: Backend,
        root_prefix: str,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        clock: Clock,
        listings: Listings,
        publisher: Publisher,
        uploads: Uploads,
        make_durable: Callable[[], Awaitable[None]],
        requests: int,
        delay_s: float,
        tag: str,
        row: memoryview,
    ) -> None:
        """make_durable: returns when everything committed so far survives a power cut; raises OSError."""
        self._backend = backend
        self._root_prefix = root_prefix
        self._reader = reader
        self._writer = writer
        self._clock = clock
        self._listings = listings
        self._publisher = publisher
        self._uploads = uploads
        self._make_durable = make_durable
        self._limiter = trio.CapacityLimiter(requests + 1)  # one of them is the directory that is being moved
        self._delay_s = min(delay_s, _MAX_DELAY_S)
        self._tag = tag
        self._row = row
        uploads.on_blocked = self.note_departed
        self._wake = trio.Event()
        self._delays: dict[str, _Delay] = {}
        self._blocked_by: dict[int, int] = {}
        self._moving: dict[int, tuple[str, Departed]] = {}
        self._has_moves = trio.Event()
        self._is_hurried = False
        self._error: FanoutError | None = None

    def hurry(self) -> None:
        """Do not wait with deletions.  No checkpoint."""
        self._is_hurried = True
        self._wake.set()

    def note_departed(self) -> None:
        """Something has departed, or may have.  No checkpoint."""
        self._wake.set()

    def is_busy(self, key: str) -> bool:
        """Tell whether objects still have to leave a key, or (key ends with "/") a place below it, or to come there.

        What an unlinked file left behind while somebody has it open is not waited for, nor are the markers above it.
        """
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            above: set[str] = set()
            rest: list[tuple[str, Departed]] = []
            for departed_key, departed in places.records.all_departed():
                if departed.ino and self._reader.is_orphan(txn, departed.ino):
                    above.update(departed_key[: at + 1] for at, letter in enumerate(departed_key) if letter == "/")
                elif not departed.ino or not self._is_never_uploaded(places, departed.ino):
                    rest.append((departed_key, departed))
            for departed_key, departed in rest:
                if not departed.ino and departed_key in above:
                    continue
                place = places.key(departed.ino) if departed.ino and departed_key.endswith("/") else None
                if any(
                    each == key or (key.endswith("/") and each.startswith(key)) for each in (departed_key, place or "")
                ):
                    return True
                if not key:
                    return True
        return False

    @staticmethod
    def _is_never_uploaded(places: Places, ino: int) -> bool:
        """Tell whether a file got a name that is not uploaded: what it left behind stays until it has another."""
        dirty = places.records.dirty(ino)
        return dirty is not None and bool(dirty.what & Dirty.NEVER)

    def left(self) -> int:
        """Return how many keys are departed: nothing is to be done when there are none."""
        with self._reader.begin() as txn:
            return self._reader.changed(txn).departed_count

    def describe(self) -> dict[str, Any]:
        """Return how things stand, for status."""
        described: dict[str, Any] = {"departed": self.left()}
        if self._error is not None and described["departed"]:
            described["moves_error"] = str(self._error)
        return described

    async def run(self) -> None:
        """Do what the journal says, for ever."""
        self._moving.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._move_directories)
            after = ""
            while True:
                with self._reader.begin() as txn:
                    batch = self._reader.changed(txn).departed_behind(after, _BATCH)
                await self._do([(key, departed) for key, departed in batch if self._is_due(key, departed)])
                after = batch[-1][0] if len(batch) == _BATCH else ""
                if after:
                    continue
                if not batch:
                    self._is_hurried = False
                    self._delays.clear()
                    self._error = None
                self._wake = trio.Event()
                with trio.move_on_after(self._pause_s() if batch else _PERIOD_S):
                    await self._wake.wait()

    def _pause_s(self) -> float:
        now = trio.current_time()
        return min([_PERIOD_S, *(max(0.01, delay.at - now) for delay in self._delays.values())])

    async def _do(self, due: list[tuple[str, Departed]]) -> None:
        """Do what is due of a part of the journal; directories are handed on."""
        async with trio.open_nursery() as nursery:
            for key, departed in due:
                if not departed.ino:
                    nursery.start_soon(self._attempt, key, departed, partial(self._delete_alone, key, departed))
                elif key.endswith("/"):
                    self._moving.setdefault(departed.ino, (key, departed))
                    self._has_moves.set()
                else:  # the queue's business; of an unlinked file it is freed once the kernel has forgotten it
                    self._uploads.take_up(departed.ino)
                    self._delays[key] = _Delay(departed, trio.current_time() + _BACKOFF_MAX_S)

    async def _move_directories(self) -> None:
        """Move one directory at a time: they may be in each other's way."""
        while True:
            while self._moving:
                ino, (key, departed) = next(iter(self._moving.items()))
                await self._attempt(key, departed, partial(self._move, ino))
                del self._moving[ino]
            self._has_moves = trio.Event()
            await self._has_moves.wait()

    def _is_due(self, key: str, departed: Departed) -> bool:
        delay = self._delays.get(key)
        if delay is None or delay.departed != departed:
            patience_s = 0.0 if key.endswith("/") else self._delay_s
            delay = self._delays[key] = _Delay(departed, trio.current_time() + patience_s)
        return trio.current_time() >= delay.at or (self._is_hurried and not delay.failures)

    async def _attempt(self, key: str, departed: Departed, step: Callable[[], Awaitable[bool]]) -> None:
        """Do one step of the journal; after a failure, or when it was not all, come again later."""
        is_done, has_failed = False, True
        async with self._limiter:
            try:
                is_done = await step()
            except (FanoutError, OSError) as error:
                self._note_failure(key, error if isinstance(error, FanoutError) else FanoutError(str(error)))
            except Exception as error:  # one key must not stop the others
                log.exception("objects cannot follow their names key=%s", key)
                bump(self._row, Count.REQUEST_ERRORS)
                self._error = FanoutError(f"internal error: {error!r}")
            else:
                has_failed = False
                self._error = None
        if is_done:
            self._delays.pop(key, None)
        else:
            delay = self._delays.setdefault(key, _Delay(departed, 0.0))
            delay.failures += 1
            # A marker that waits for what is below it did not fail: asking costs one look at the index.
            most_s = _PERIOD_S if key.endswith("/") and not departed.ino and not has_failed else _BACKOFF_MAX_S
            delay.at = trio.current_time() + min(most_s, _BACKOFF_S * 2.0 ** min(delay.failures, 16))

    def _note_failure(self, key: str, error: FanoutError) -> None:
        if self._error is None or type(self._error) is not type(error):
            log.warning("objects do not follow their names yet key=%s: %s", key, error)
        self._error = error

    # --- deletions -------------------------------------------------------------------------------------------------

    async def _delete_alone(self, key: str, departed: Departed) -> bool:
        async with self._publisher.lock(key):
            return await self._delete(key, departed)

    async def _delete(self, key: str, departed: Departed) -> bool:
        """Delete a departed object, if it is still that one.  Returns False when it is not its time.

        An index that a power cut threw back behind the departure would look for content in what is deleted here.
        """
        await self._make_durable()
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            if places.records.departed(key) != departed:
                return True
            ino = places.at(key)
            inode = None if ino is None else places.inode(ino)
            dirty = None if ino is None else places.records.dirty(ino)
            is_below = key.endswith("/") and places.records.is_departed_below(key)
        if key.endswith("/"):
            if is_below:
                return False
            if inode is None or not inode.is_dir:
                await self._delete_marker(key)
        elif inode is not None and dirty is not None and not dirty.what & Dirty.NEVER and not inode.is_dir:
            return False  # the upload that is to come replaces the object
        elif inode is None or inode.key != key or inode.etag != departed.version.etag:
            await self._delete_object(key, departed, is_free=ino is None)
        self._settle(key)
        await self._writer.run(FinishDeparted(key, departed, self._root_prefix).apply)
        return True

    async def _delete_object(self, key: str, departed: Departed, *, is_free: bool) -> None:
        """Delete the object, if it is the departed version; is_free: no name leads to its key any more.

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
            if not is_tagged(details.properties, self._tag):
                return False
            await self._in_thread(partial(self._backend.delete, key, details.info.version))
        except ObjectMissingError:
            return True
        except PreconditionFailedError:
            return False
        bump(self._row, Count.OBJECTS_DELETED)
        return True

    async def _delete_marker(self, key: str) -> None:
        if (await self._in_thread(self._backend.abilities)).can_mark_directories:
            await self._in_thread(partial(self._backend.delete, key))

    def _settle(self, key: str) -> None:
        """Tell listings under way that what they hear of this name may be old."""
        prefix, _, name = key.rstrip("/").rpartition("/")
        with self._reader.begin() as txn:
            directory = Places.of_reader(self._reader, txn, self._root_prefix).at(f"{prefix}/")
        if directory is not None:
            self._listings.settle(directory, name.encode("utf-8", "surrogateescape"))

    # --- directories -----------------------------------------------------------------------------------------------

    async def _move(self, ino: int) -> bool:
        """Bring a directory's objects to its place.  Returns False when something is left to do."""
        move = self._plan(ino)
        if move is None:
            await self._writer.run(LeavePrefix(ino).apply)
            return False  # its prefixes are to be deleted now
        if not move.old:
            return await self._finish(move)
        if not await self._writer.run(BeginMove(ino, move.target).apply):
            return await self._make_way(move)
        self._blocked_by.pop(ino, None)
        await self._walk(move, ino, move.target)
        if move.error is not None:
            raise move.error
        return not move.left and await self._finish(move)

    def _plan(self, ino: int) -> _Move | None:
        """Return where a directory's objects are and where they belong; None: no name leads to it any more."""
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            target = places.key(ino)
            if target is None or self._reader.is_orphan(txn, ino):
                return None
            owned = places.records.prefixes_of(ino)
        return _Move(ino, tuple(key for key in owned if key != target), target)

    async def _make_way(self, move: _Move) -> bool:
        """Another directory's objects are where these belong.  Wait for it, or in a circle move these aside."""
        with self._reader.begin() as txn:
            owner = self._reader.changed(txn).departed(move.target)
        if owner is None:
            return False
        self._blocked_by[move.ino] = owner.ino
        at: int | None = owner.ino
        seen: set[int] = set()
        while at is not None and at not in seen and at != move.ino:
            seen.add(at)
            at = self._blocked_by.get(at)
        if at != move.ino:
            return False
        del self._blocked_by[move.ino]
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, move.ino)
        if inode is None:
            return False
        # Aside: every object that is below its old prefixes, and the prefix that the directory goes by.
        aside = f"{aside_prefix(self._root_prefix, self._tag)}{move.ino:x}/"
        log.info("two directories changed places, objects go aside first prefix=%s", aside)
        aside_move = _Move(move.ino, move.old, aside, is_aside=True)
        await self._writer.run(BeginMove(move.ino, aside).apply)
        await self._walk(aside_move, move.ino, aside)
        if aside_move.error is not None:
            raise aside_move.error
        if not aside_move.left:
            await self._move_markers(aside_move)
            await self._writer.run(ParkDirectory(move.ino, aside, move.old).apply)
        return False

    async def _walk(self, move: _Move, ino: int, prefix: str) -> None:
        """Move what is below one directory, depth first.  prefix: where its objects belong."""
        try:
            await self._know(ino)
        except FanoutError as error:
            move.error, move.left = error, move.left + 1
            return
        after = b""
        while True:
            with self._reader.begin() as txn:
                children = []
                for name, child, _dtype, cookie in self._reader.children(txn, ino, after):
                    children.append((name, child, cookie, self._reader.inode(txn, child)))
                    if len(children) == _BATCH:
                        break
                directory = self._reader.inode(txn, ino)
            async with trio.open_nursery() as nursery:
                for name, child, cookie, inode in children:
                    text = name.decode("utf-8", "surrogateescape")
                    if inode is None or inode.is_dir:
                        continue
                    if cookie == child:
                        nursery.start_soon(self._move_file, move, inode, prefix + text)
                    elif directory is not None and _is_below(directory.key, move.old):
                        nursery.start_soon(self._move_link, move, cookie, directory.key + text)
            for name, child, _cookie, inode in children:
                if inode is not None and inode.is_dir and not inode.is_held and _is_below(inode.key, move.old):
                    text = name.decode("utf-8", "surrogateescape")
                    await self._walk(move, child, f"{prefix}{text}/")
            if len(children) < _BATCH:
                break
            after = children[-1][0]
        with self._reader.begin() as txn:
            directory = self._reader.inode(txn, ino)
        if directory is not None and directory.key != prefix:
            move.directories.append((ino, directory.key, prefix))

    async def _know(self, ino: int) -> None:
        """Make sure that all names in a directory are known: those never listed are, under their old prefix."""
        with self._reader.begin() as txn:
            directory = self._reader.inode(txn, ino)
        if directory is not None and not directory.is_listed:
            await self._listings.refresh(ino)

    async def _move_file(self, move: _Move, inode: Inode, key: str) -> None:
        if not inode.etag or not _is_below(inode.key, move.old):
            return
        with self._reader.begin() as txn:
            dirty = self._reader.changed(txn).dirty(inode.ino)
        try:
            if move.is_aside:
                await self._publisher.park(inode.ino, key)
                return
            if dirty is not None and not dirty.what & Dirty.NEVER:
                self._uploads.take_up(inode.ino)
                self._uploads.hurry((inode.ino,))
                move.left += 1
                return
            obstacle = await self._publisher.relocate(inode.ino, key)
            if obstacle is None:
                self._check_moved(move, inode.ino)
                return
            move.left += 1
            self._uploads.take_up(obstacle.ino)
            if self._tries(move) >= _PATIENCE or obstacle.ino == inode.ino:
                await self._publisher.clear(obstacle)
                self._uploads.take_up(obstacle.ino)
        except StaleInodeError:
            move.left += 1  # removed meanwhile
        except (FanoutError, OSError) as error:
            move.left += 1
            move.error = error if isinstance(error, FanoutError) else FanoutError(str(error))

    async def _move_link(self, move: _Move, cookie: int, old_key: str) -> None:
        """Have a further name of a file put at its place, if its object is still where the directory was."""
        with self._reader.begin() as txn:
            is_under_way = self._reader.changed(txn).dirty(cookie) is not None
        if is_under_way:
            return
        try:
            details = await self._in_thread(partial(self._backend.details, old_key))
        except ObjectMissingError:
            return
        except FanoutError as error:
            move.left += 1
            move.error = error
            return
        if is_tagged(details.properties, self._tag):
            request = Request(self._clock.wall_ns(), 0, 0, self._root_prefix)
            if await self._writer.run(MoveLink(cookie, old_key, request).apply):
                self._uploads.take_up(cookie)

    def _check_moved(self, move: _Move, ino: int) -> None:
        """Leave a file that met a foreign object, and has another name now, to the queue."""
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
        if inode is not None and _is_below(inode.key, move.old):
            move.left += 1
        self._uploads.take_up(ino)

    def _tries(self, move: _Move) -> int:
        """Return how often this move did not come to its end."""
        return max((delay.failures for key in move.old if (delay := self._delays.get(key)) is not None), default=0)

    async def _finish(self, move: _Move) -> bool:
        """Note that nothing is below the old prefixes, once it is so."""
        own = {*move.old, move.target}
        with self._reader.begin() as txn:
            records = self._reader.changed(txn)
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            for prefix in move.old:
                for key, departed in records.all_departed(prefix):
                    if key not in own and not places.is_target(key, departed):
                        return False
        await self._move_markers(move)
        for prefix in own:
            self._settle(prefix)
        is_done = await self._writer.run(FinishMove(move.ino, move.target, self._root_prefix).apply)
        if is_done:
            self._uploads.note_renamed()
            self._uploads.take_up(move.ino)
        return is_done

    async def _move_markers(self, move: _Move) -> None:
        """Put the markers of moved directories anew, delete the old ones, and note the new prefixes."""
        has_markers = (await self._in_thread(self._backend.abilities)).can_mark_directories
        for ino, old, new in move.directories:
            if has_markers and old:
                await self._in_thread(partial(self._move_marker, old, new))
                for prefix in move.old:  # where it was on its way for a while
                    if not old.startswith(prefix):
                        await self._in_thread(partial(self._backend.delete, prefix + new.removeprefix(move.target)))
            if ino != move.ino:
                await self._writer.run(MoveDirectory(ino, new).apply)

    def _move_marker(self, old: str, new: str) -> None:
        """Put a marker anew with what it carries, and delete the old one.  Blocking."""
        try:
            found = self._backend.details(old)
        except ObjectMissingError:
            return
        self._backend.put(new, b"", Expect.ANYTHING, found.properties)
        self._backend.delete(old)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


def _is_at(key: str, place: str) -> bool:
    """Tell whether a key is a place, or lies below it.  place: "" or ending with "/" for what is below."""
    return key == place or ((not place or place.endswith("/")) and key.startswith(place))


def _is_below(key: str, prefixes: Iterable[str]) -> bool:
    return any(key.startswith(prefix) for prefix in prefixes)
