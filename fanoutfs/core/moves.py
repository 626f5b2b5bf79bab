"""Objects follow the names: deletions, and directories whose objects move to another prefix.

Core, trio thread only.  The journal is `departed` in the index; this task reads it round and round and does what it
says; what is to be deleted goes to `deletions`.  Single files that were renamed are the queue's business (`uploads`):
they are dirty.

A directory that moved from prefix P (its objects' keys) to T (its place), in steps that may be repeated:
  1. commit: T belongs to it as well, so that a further rename finds what is already there
  2. complete the knowledge of what is below P: each directory that was never listed is listed
  3. each file whose object is below P: copy to its place, commit its new key and that the old object has departed
  4. the old objects are deleted (as every departed object)
  5. each directory: its marker, if it has one, is put anew and the old one deleted; commit its new prefix
  6. commit: nothing is below P any more
Until then listings do not see P, and the directory's names are those known here.  No object is deleted before the
record of its file names another.  If T, or a prefix above it, still belongs to another directory, that one moves first
(so does what uploads bring below such a prefix, see `Places.leaving`); if that waits for this one in turn, the objects
go to a prefix aside first.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.clock import Clock
from fanoutfs.core.deletions import Deletions
from fanoutfs.core.late import LateRequests
from fanoutfs.core.listing import Listings
from fanoutfs.core.markers import move_marker
from fanoutfs.core.moving import Delay, Move
from fanoutfs.core.properties import aside_prefix, is_tagged
from fanoutfs.core.publishing import Publisher
from fanoutfs.core.uploads import Uploads
from fanoutfs.errors import (
    AccessDeniedError,
    BucketMissingError,
    CredentialsError,
    FanoutError,
    ObjectMissingError,
    ReadOnlyStoreError,
    StaleInodeError,
    StoreFullError,
)
from fanoutfs.index.changes import MoveLink
from fanoutfs.index.format import Departed, Dirty, Inode
from fanoutfs.index.places import Places
from fanoutfs.index.publishing import BeginMove, FinishMove, LeavePrefix, MoveDirectory, ParkDirectory
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
_LOOK_SHARE: Final = 8
"""What waits is looked at for at most an eighth of the time: a directory may hold very many files."""
_REFUSALS: Final = (AccessDeniedError, BucketMissingError, CredentialsError, ReadOnlyStoreError, StoreFullError)
_PATIENCE: Final = 3
"""Looks at an obstacle before it is moved aside."""
_MAX_DELAY_S: Final = 2.0
"""A deletion waits as long as an upload would, but no longer than this, for a file that takes the key over."""


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
        deletions: Deletions,
        late: LateRequests,
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
        self._late = late
        self._make_durable = make_durable
        self._limiter = trio.CapacityLimiter(requests + 1)  # one of them is the directory that is being moved
        self._delay_s = min(delay_s, _MAX_DELAY_S)
        self._tag = tag
        self._row = row
        self._deletions = deletions
        uploads.on_blocked = self.note_departed
        self._wake = trio.Event()
        self._delays: dict[str, Delay] = {}
        self._blocked_by: dict[int, int] = {}
        self._moving: dict[int, tuple[str, Departed]] = {}
        self._has_moves = trio.Event()
        self._is_hurried = False
        self._error: FanoutError | None = None

    def hurry(self) -> None:
        """Do not wait with deletions.  No checkpoint."""
        self._is_hurried = True
        self._wake.set()

    def retry(self) -> None:
        """Try everything at once, whatever failed a moment ago.  No checkpoint."""
        self._error = None
        self._delays.clear()
        self.hurry()

    def refusal(self) -> FanoutError | None:
        """Return what the store said if it refused what was tried last: not what another try may change."""
        return self._error if isinstance(self._error, _REFUSALS) else None

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
                else:
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
                    nursery.start_soon(self._attempt, key, departed, partial(self._deletions.delete, key, departed))
                elif key.endswith("/"):
                    self._moving.setdefault(departed.ino, (key, departed))
                    self._has_moves.set()
                else:  # the queue's business; of an unlinked file it is freed once the kernel has forgotten it
                    self._uploads.take_up(departed.ino)
                    self._delays[key] = Delay(departed, trio.current_time() + _BACKOFF_MAX_S)

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
            delay = self._delays[key] = Delay(departed, trio.current_time() + patience_s)
        return trio.current_time() >= delay.at or (self._is_hurried and not delay.failures)

    async def _attempt(self, key: str, departed: Departed, step: Callable[[], Awaitable[bool]]) -> None:
        """Do one step of the journal; after a failure, or when it was not all, come again later."""
        is_done, has_failed, began_at = False, True, trio.current_time()
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
            delay = self._delays.setdefault(key, Delay(departed, 0.0))
            delay.failures += 1
            # What waits for something else did not fail: it is asked as often as its looks at the index allow.
            took_s = trio.current_time() - began_at
            most_s = _BACKOFF_MAX_S if has_failed else min(_BACKOFF_MAX_S, max(_PERIOD_S, _LOOK_SHARE * took_s))
            delay.at = trio.current_time() + min(most_s, _BACKOFF_S * 2.0 ** min(delay.failures, 16))

    def _note_failure(self, key: str, error: FanoutError) -> None:
        if self._error is None or type(self._error) is not type(error):
            log.warning("objects do not follow their names yet key=%s: %s", key, error)
        self._error = error

    # --- directories -----------------------------------------------------------------------------------------------

    async def _move(self, ino: int) -> bool:
        """Bring a directory's objects to its place.  Returns False when something is left to do."""
        move = self._plan(ino)
        if move is None:
            await self._writer.run(LeavePrefix(ino).apply)
            return False  # its prefixes are to be deleted now
        if any(move.target.startswith(key) for key in move.old):
            # What is there already would be taken for what is to come, `d/s/x` of `d/` for `x` of `d/s/`.
            await self._move_aside(move)
            return False
        owner = await self._writer.run(BeginMove(ino, move.target, self._root_prefix).apply)
        if owner is not None:
            if owner != ino and self._waits_for_itself(ino, owner):
                del self._blocked_by[ino]
                await self._move_aside(move)
            return False
        self._blocked_by.pop(ino, None)
        await self._make_durable()  # as before an upload
        await self._walk(move, ino, move.target)
        if move.error is not None:
            raise move.error
        return not move.left and await self._finish(move)

    def _plan(self, ino: int) -> Move | None:
        """Return where a directory's objects are and where they belong; None: no name leads to it any more."""
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            target, inode = places.key(ino), places.inode(ino)
            if target is None or inode is None or self._reader.is_orphan(txn, ino):
                return None
            owned = places.records.prefixes_of(ino)
        # Its own key has no record if it was at home when a directory above was renamed.
        return Move(ino, tuple(key for key in dict.fromkeys((*owned, inode.key)) if key not in ("", target)), target)

    async def _move_aside(self, move: Move) -> None:
        """Bring every object that is below the old prefixes to one of their own, by which the directory goes then.

        For two that are where the other's belong, in a circle.
        """
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, move.ino)
        if inode is None:
            return
        aside = f"{aside_prefix(self._root_prefix, self._tag)}{move.ino:x}/"
        log.info("objects go aside first, others are where they belong prefix=%s", aside)
        # What is there already stays, whatever its name is by now.
        aside_move = Move(move.ino, tuple(key for key in move.old if key != aside), aside, is_aside=True)
        await self._writer.run(BeginMove(move.ino, aside, self._root_prefix, is_aside=True).apply)
        await self._walk(aside_move, move.ino, aside)
        if aside_move.error is not None:
            raise aside_move.error
        if not aside_move.left:
            await self._move_markers(aside_move)
            below = tuple(old for ino, old, _new in aside_move.directories if ino != move.ino and old)
            await self._writer.run(ParkDirectory(move.ino, aside, move.old, below).apply)
            self._uploads.note_way_is_free()

    def _waits_for_itself(self, ino: int, owner: int) -> bool:
        """Note that a directory waits for another one; tell whether that waits for it in turn."""
        self._blocked_by[ino] = owner
        at: int | None = owner
        seen: set[int] = set()
        while at is not None and at not in seen and at != ino:
            seen.add(at)
            at = self._blocked_by.get(at)
        return at == ino

    async def _walk(self, move: Move, ino: int, prefix: str) -> None:
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
                    elif directory is not None:
                        for key in _link_keys(move, directory.key, prefix, text):
                            nursery.start_soon(self._move_link, move, cookie, key)
            for name, child, _cookie, inode in children:
                place = prefix + name.decode("utf-8", "surrogateescape") + "/"
                if inode is None or not inode.is_dir or (inode.is_held and self._is_moving(child)):
                    continue
                # One that was made on the way has a key of a third place: its marker may be at any of the old ones.
                if _is_below(inode.key, move.old) or not (move.is_aside or inode.key == place):
                    await self._walk(move, child, place)
            if len(children) < _BATCH:
                break
            after = children[-1][0]
        with self._reader.begin() as txn:
            directory = self._reader.inode(txn, ino)
        if directory is None:
            return
        is_at_home = all(directory.key.startswith(key) for key in move.old)
        if directory.key != prefix or not is_at_home:  # its marker may have been on its way
            move.directories.append((ino, directory.key, prefix))

    def _is_moving(self, ino: int) -> bool:
        """Tell whether a directory moves by itself; it may be held for another one's sake."""
        with self._reader.begin() as txn:
            return bool(self._reader.changed(txn).prefixes_of(ino))

    async def _know(self, ino: int) -> None:
        """Make sure that all names in a directory are known: those never listed are, under their old prefix."""
        with self._reader.begin() as txn:
            directory = self._reader.inode(txn, ino)
        if directory is not None and not directory.is_listed:
            await self._listings.refresh(ino)

    async def _move_file(self, move: Move, inode: Inode, key: str) -> None:
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
                if not await self._publisher.clear(obstacle):
                    await self._publisher.park(inode.ino)  # a directory that may wait for this one in turn
                self._uploads.take_up(obstacle.ino)
                self._uploads.take_up(inode.ino)
        except StaleInodeError:
            move.left += 1  # removed meanwhile
        except (FanoutError, OSError) as error:
            move.left += 1
            move.error = error if isinstance(error, FanoutError) else FanoutError(str(error))
        if self._publisher.facts.intent(inode.ino) is not None:
            self._uploads.note_changed(inode.ino)  # of a file that was removed meanwhile nobody else would soon ask

    async def _move_link(self, move: Move, cookie: int, old_key: str) -> None:
        """Have a further name of a file put at its place, if its object is still where the directory was."""
        with self._reader.begin() as txn:
            dirty = self._reader.changed(txn).dirty(cookie)
        if dirty is not None and Dirty.STORED not in dirty.what:
            return  # its upload is under way
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

    def _check_moved(self, move: Move, ino: int) -> None:
        """Leave a file that met a foreign object, and has another name now, to the queue."""
        with self._reader.begin() as txn:
            inode, is_gone = self._reader.inode(txn, ino), self._reader.is_orphan(txn, ino)
        if inode is None or is_gone:
            return
        if _is_below(inode.key, move.old):
            move.left += 1
        self._uploads.take_up(ino)

    def _tries(self, move: Move) -> int:
        """Return how often this move did not come to its end."""
        return max((delay.failures for key in move.old if (delay := self._delays.get(key)) is not None), default=0)

    async def _finish(self, move: Move) -> bool:
        """Note that nothing is below the old prefixes, once it is so.

        Each of two directories may have objects below an old prefix of the other.  Then one ends its move all the same:
        those are the other's by its own record.
        """
        own, is_left, shared = {*move.old, move.target}, False, set()
        with self._reader.begin() as txn:
            records = self._reader.changed(txn)
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            for prefix in move.old:
                for key, departed in records.all_departed(prefix):
                    if key in own or places.is_target(key, departed):
                        continue
                    if not (key.endswith("/") and departed.ino):
                        is_left = True
                    elif self._waits_for_itself(move.ino, departed.ino):
                        shared.add(prefix)
                    else:
                        return False
        if is_left or await self._are_in_way(move):
            return False
        await self._move_markers(move)
        for prefix in own:
            self._deletions.settle(prefix)
        is_done = await self._writer.run(FinishMove(move.ino, move.target, self._root_prefix, tuple(shared)).apply)
        if is_done:
            self._uploads.note_renamed()
            self._uploads.note_way_is_free()
            self._uploads.take_up(move.ino)
        return is_done

    async def _are_in_way(self, move: Move) -> bool:
        """Tell whether files' objects have to leave before the markers come: a store may replace `a` by `a/`."""
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            found = {places.file_in_way(new, ino) for ino, _old, new in move.directories}
        files = [each for each in found if each is not None and not each.key.endswith("/")]
        for obstacle in files:
            self._uploads.take_up(obstacle.ino)
            if self._tries(move) >= _PATIENCE and await self._publisher.clear(obstacle):
                self._uploads.take_up(obstacle.ino)
        return bool(files)

    async def _move_markers(self, move: Move) -> None:
        """Put the markers of moved directories anew, delete the old ones, and note the new prefixes."""
        has_markers = (await self._in_thread(self._backend.abilities)).can_mark_directories
        for ino, old, new in move.directories:
            on_its_way = [each + new.removeprefix(move.target) for each in move.old if not old.startswith(each)]
            olds = [each for each in (old, *on_its_way) if each not in ("", new)]
            async with self._publisher.lock(ino), self._publisher.lock(new):  # the queue may put it there as well
                await self._late.ended(old, new)
                if has_markers and olds:
                    with self._reader.begin() as txn:
                        places = Places.of_reader(self._reader, txn, self._root_prefix)
                        there = {key: places.at(key) for key in olds}
                    await self._publisher.intents.note_marker(ino, new)
                    await self._in_thread(partial(move_marker, self._backend, self._tag, ino, there, new))
                await self._writer.run(MoveDirectory(ino, new, is_root=ino == move.ino).apply)
            self._uploads.take_up(ino)  # what became of an earlier marker may have made it dirty

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


def _is_below(key: str, prefixes: Iterable[str]) -> bool:
    return any(key.startswith(prefix) for prefix in prefixes)


def _link_keys(move: Move, directory_key: str, prefix: str, name: str) -> set[str]:
    """Return where the object of a further name in a directory may be.  directory_key: the directory's own so far."""
    own = [directory_key] if _is_below(directory_key, move.old) else []
    return {f"{each}{name}" for each in (*own, *(old + prefix.removeprefix(move.target) for old in move.old))}
