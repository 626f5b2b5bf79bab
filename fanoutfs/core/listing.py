"""Directories: the first touch lists one once; after that names, also absent ones, are exact.

Core, trio thread only.  One listing per directory at a time, run in the core's nursery; whoever needs the directory
waits for it.  Pages are entered as they arrive, each in transactions of bounded size that also take away what the
page should have shown and did not (`index.merging`): neither memory nor a reader's wait grows with the directory.
A name in a directory whose first listing is still under way is asked for by itself (HEAD and a one-key LIST), so that
one file in a directory of a million is not kept waiting.

A listing that fails half-way has taken away only names that the store passed over.  A store whose pages come in no
order (S3 directory buckets) is listed as a whole, sorted, and entered then: only there memory grows with a directory.

Measured (a directory of 1,000,000 files, file:// source, 2 cores at a load of 9): first `ls -f` with listing 64 s;
once listed `ls -f` 41 s (attributes come along), `find` 18 s, os.scandir 11 s; listed again, one deletion found, 46 s.
Anonymous memory: core 24 to 33 MB, fronts 26 MB throughout; 253 bytes of index a file.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, TypeVar

import trio

from fanoutfs.backend.archive import has_to_be_restored
from fanoutfs.backend.base import Backend
from fanoutfs.backend.keys import is_addressable
from fanoutfs.clock import Clock
from fanoutfs.core.failures import RecentFailures
from fanoutfs.core.grace import Grace
from fanoutfs.core.notify import ChangeLog, Notifier
from fanoutfs.core.settling import Settling
from fanoutfs.errors import (
    DeadlineError,
    DisorderedListingError,
    FanoutError,
    InvariantError,
    ObjectMissingError,
    StaleInodeError,
)
from fanoutfs.index.format import Inode, Ownership
from fanoutfs.index.keeping import is_complete
from fanoutfs.index.merging import BEGIN, END, Frontier, MergeNames, NoteComplete
from fanoutfs.index.names import child_name
from fanoutfs.index.operations import ApplyChildren, ChangeKind, Child
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.removal import RemoveName
from fanoutfs.index.tiers import StoredAs
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import ROOT_INO, ListPage, ObjectInfo

log = logging.getLogger(__name__)

T = TypeVar("T")

_PARALLEL: Final = 16
_SORTED_PAGE: Final = 1000
_TOUCHED: Final = 50_000
"""Directories remembered for an import at most: about 8 MB."""
_DISTRUST_S: Final = 1.0
"""A directory is listed again at most this often because of versions that are gone."""


class _Listing:
    """One listing under way."""

    def __init__(self) -> None:
        self.progress = trio.Event()  # replaced after each page
        self.first_page = trio.Event()
        self.done = trio.Event()
        self.error: FanoutError | None = None
        self.asked_names: set[bytes] = set()

    def note_progress(self) -> None:
        """Wake those who wait as long as something arrives."""
        self.progress.set()
        self.progress = trio.Event()

    def end(self) -> None:
        """Wake everybody."""
        self.done.set()
        self.first_page.set()
        self.progress.set()


class Listings:
    """Lists directories, once each, and enters what was found."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        backend: Backend,
        root_prefix: str,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        notifier: Notifier,
        grace: Grace,
        ownership: Ownership,
        clock: Clock,
        op_timeout_s: float,
        row: memoryview,
    ) -> None:
        self._nursery = nursery
        self._backend = backend
        self._root_prefix = root_prefix
        self._reader = reader
        self._writer = writer
        self._notifier = notifier
        self._grace = grace
        self._ownership = ownership
        self._clock = clock
        self._op_timeout_s = op_timeout_s
        self._row = row
        self._under_way: dict[int, _Listing] = {}
        self._watchers = 0
        self._touched: dict[int, int] = {}
        """Directory → when it was last listed or asked for a name, while somebody watches."""
        self._all_touched_ns = 0
        """Every directory counts as touched then: there were too many to remember."""
        self._distrusted: dict[int, float] = {}
        self._settling = Settling()
        self._telling: set[trio.Event] = set()
        """One for each set of changes that the kernel is being told."""
        self._threads = trio.CapacityLimiter(_PARALLEL)
        self._failures = RecentFailures()

    # --- what others ask ---------------------------------------------------------------------------------------

    def age_ns(self, directory: Inode) -> int | None:
        """Return how old the directory's complete listing is, or None when there is none (or the clock jumped).

        None as well for one that is to be listed again whatever its age (core.forgetting).
        """
        if directory.is_local or (directory.is_held and directory.is_listed):
            return 0  # its names are known here better than in the store
        if not directory.listed_at_ns:
            return None
        age = self._clock.wall_ns() - directory.listed_at_ns
        return age if directory.is_listed and age >= 0 else None

    async def refresh(self, ino: int) -> None:
        """List the directory now, or join the listing under way, and return when it is complete.  Checkpoint.

        Waits as long as pages keep arriving.  Raises StaleInodeError, DeadlineError or what the backend raised.
        """
        self._failures.check(ino)
        await self._wait(self._join(ino))

    def begin(self, ino: int) -> None:
        """List a directory that nobody waits for yet, unless that is under way or failed just now.  No checkpoint."""
        try:
            self._failures.check(ino)
        except FanoutError:
            return
        self._join(ino)

    def is_under_way(self, ino: int) -> bool:
        """Tell whether a directory is being listed."""
        return ino in self._under_way

    async def _wait(self, listing: _Listing) -> None:
        while not listing.done.is_set():
            progress = listing.progress
            with trio.move_on_after(self._op_timeout_s) as scope:
                await progress.wait()
            if scope.cancelled_caught:
                raise DeadlineError(f"no answer to a listing within {self._op_timeout_s:g} s")
        if listing.error is not None:
            raise listing.error

    async def refresh_anew(self, ino: int) -> None:
        """List the directory once more, beginning not before now: for a caller who knows that it changed.  Checkpoint.

        Returns when the kernel knows, too.  Not for request handlers: the kernel may wait for the request first.
        Raises as `refresh`.
        """
        if ino in self._under_way:  # it may be past what changed
            with contextlib.suppress(FanoutError):
                await self.refresh(ino)
        await self._wait(self._join(ino))
        await self.told()  # also what an earlier listing had found, which was no change to this one any more

    async def told(self) -> None:
        """Return when the kernel knows every change found before now.  Checkpoint.  Not for request handlers."""
        for told in tuple(self._telling):
            await told.wait()

    async def find(self, parent: int, name: bytes) -> int | None:
        """Return the inode of one name in a directory that was never listed, and start listing it.  Checkpoint.

        None: there is no such name (now).  Raises as `refresh`.
        """
        self._failures.check(parent)
        listing = self._join(parent)
        with trio.move_on_after(self._op_timeout_s) as scope:
            await listing.first_page.wait()
        if scope.cancelled_caught:
            raise DeadlineError(f"no answer to a listing within {self._op_timeout_s:g} s")
        if listing.error is not None:
            raise listing.error
        found = self._child(parent, name)
        if found is not None or listing.done.is_set():
            return found
        listing.asked_names.add(name)
        await self._point_lookup(parent, name)
        return self._child(parent, name)

    def distrust(self, inode: Inode) -> None:
        """List the directory of a file again soon, because the backend has no such version any more.  No checkpoint.

        Not for a file that was replaced or removed already: who still has it open is entitled to try.
        """
        ino: int | None = ROOT_INO
        now = trio.current_time()
        with self._reader.begin() as txn:
            if self._reader.is_orphan(txn, inode.ino):
                return
            for part in inode.key.removeprefix(self._root_prefix).split("/")[:-1]:
                ino = None if ino is None else self._reader.child(txn, ino, part.encode("utf-8", "surrogateescape"))
        if ino is not None and now >= self._distrusted.get(ino, 0.0):
            self._distrusted = {each: until for each, until in self._distrusted.items() if until > now}
            self._distrusted[ino] = now + _DISTRUST_S
            self._join(ino)

    def settle(self, parent: int, name: bytes) -> None:
        """Have listings under way leave a name alone: its object is published, moved or deleted now.  No checkpoint.

        To be called right before the transaction is submitted that records this (see `core.settling`).
        """
        place: tuple[int, bytes] | None = (parent, name)
        with self._reader.begin() as txn:
            records = self._reader.changed(txn)
            # A directory appears and vanishes with what is below it.
            while place is not None:
                self._settling.settle(*place)
                self._note_touched(place[0])
                place = records.name(place[0])

    # --- what imports ask --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Remember for a while which directories are listed, for `was_touched`."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._touched.clear()

    async def wait_idle(self, ino: int) -> None:
        """Return when no listing of this directory is under way, however it ended.  Checkpoint."""
        while (listing := self._under_way.get(ino)) is not None:
            await listing.done.wait()

    async def leave_alone(self, ino: int) -> None:
        """Wait for a listing of a directory that is under way, and have imports leave it to listings.  Checkpoint."""
        await self.wait_idle(ino)
        await trio.lowlevel.checkpoint()
        self._note_touched(ino)

    def was_touched(self, ino: int, since_ns: int) -> bool:
        """Tell whether a listing of this directory is or was under way since then (wall clock, while watched)."""
        return ino in self._under_way or max(self._touched.get(ino, 0), self._all_touched_ns) >= since_ns

    def _note_touched(self, ino: int) -> None:
        if self._watchers:
            if len(self._touched) >= _TOUCHED:
                self._touched.clear()
                self._all_touched_ns = self._clock.wall_ns()
            self._touched[ino] = self._clock.wall_ns()

    # --- one listing -------------------------------------------------------------------------------------------

    def _join(self, ino: int) -> _Listing:
        listing = self._under_way.get(ino)
        if listing is None:
            listing = self._under_way[ino] = _Listing()
            self._nursery.start_soon(self._run, ino, listing)
        return listing

    def _directory(self, ino: int) -> Inode:
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
            is_gone = self._reader.is_orphan(txn, ino)
        if inode is None or not inode.is_dir or is_gone:
            raise StaleInodeError(f"inode {ino} is not a directory in the index")
        return inode

    def _child(self, parent: int, name: bytes) -> int | None:
        with self._reader.begin() as txn:
            return self._reader.child(txn, parent, name)

    async def _run(self, ino: int, listing: _Listing) -> None:
        changes = ChangeLog(has_epoch=self._notifier.has_epoch)
        self._note_touched(ino)
        try:
            await self._list(ino, listing, changes)
        except FanoutError as error:
            listing.error = error
            if isinstance(error, DeadlineError):
                self._failures.note(ino, error)
            log.warning("listing failed ino=%d: %s", ino, error)
        except Exception:  # a listing must not end the core; whoever waits gets EIO
            listing.error = InvariantError(f"listing of directory {ino} failed unexpectedly")
            log.exception("listing failed unexpectedly ino=%d", ino)
        finally:
            self._note_touched(ino)
            del self._under_way[ino]
            listing.end()
        # Those who wait need the commit, not the notification, and must go on before it: the kernel may hold the
        # notification back until their requests in this directory are answered.  A listing that failed half-way has
        # committed pages, too.
        await self.publish(changes)
        # A name asked for by itself may have gone before the listing came to where it stood.
        for name in listing.asked_names:
            try:
                await self._point_lookup(ino, name)
            except FanoutError as error:
                log.warning("lookup failed ino=%d name=%r: %s", ino, name, error)
            except Exception:  # nobody waits for it, and it must not end the core
                log.exception("lookup failed unexpectedly ino=%d name=%r", ino, name)

    async def _list(self, ino: int, listing: _Listing, changes: ChangeLog) -> None:
        """List a directory; add to `changes` what was committed, page by page.  Checkpoint."""
        directory = self._directory(ino)
        started_ns = self._clock.wall_ns()
        if await self._is_complete(directory, started_ns):
            return
        with self._settling.asking(ino) as settled:
            try:
                await self._merge(directory, started_ns, self._children(directory), listing, changes, settled)
            except DisorderedListingError as error:
                log.warning("%s: listed as a whole ino=%d", error, ino)
                started_ns = self._clock.wall_ns()
                next_children = await self._sorted_children(directory, listing)
                await self._merge(directory, started_ns, next_children, listing, changes, settled)
        bump(self._row, Count.LISTINGS)

    async def _is_complete(self, directory: Inode, now_ns: int) -> bool:
        """Tell whether all names are known here without asking; fronts then take the listing for fresh.  Checkpoint."""
        with self._reader.begin() as txn:
            if not is_complete(partial(self._reader.inode, txn), self._reader.changed(txn), directory):
                return False
        await self._writer.run(NoteComplete(directory.ino, now_ns).apply)
        return True

    async def _merge(
        self,
        directory: Inode,
        started_ns: int,
        next_children: Callable[[], Awaitable[tuple[list[Child], int] | None]],
        listing: _Listing,
        changes: ChangeLog,
        settled: set[bytes],
    ) -> None:
        ino, hidden = directory.ino, 0
        before = BEGIN
        deferred: tuple[Child, ...] = ()
        # Names that the kernel cannot know need no invalidation: in a first listing of an empty record an added name
        # is news to nobody; a point lookup may have shown the others.
        with self._reader.begin() as txn:
            is_first = not directory.is_listed and next(self._reader.children(txn, ino, b""), None) is None

        async def enter(children: list[Child], after: Frontier, listed_at_ns: int | None) -> None:
            nonlocal hidden, deferred
            while True:
                merge = MergeNames(
                    parent=ino,
                    children=tuple(children),
                    before=before,
                    after=after,
                    ownership=self._ownership,
                    now_ns=started_ns,
                    deferred=deferred,
                    listed_at_ns=listed_at_ns,
                    key=directory.key,
                    settled=frozenset(settled),
                )
                result = await self._writer.run(merge.apply)
                changes.add(change for change in result.changes if not is_first or change.kind is not ChangeKind.ADDED)
                if result.is_done:
                    hidden += result.hidden
                    deferred = result.deferred
                    return

        while (found := await next_children()) is not None:
            children, page_hidden = found
            hidden += page_hidden
            if any(before.has_passed(child) for child in children):
                raise DisorderedListingError(f"the store lists {directory.key or '/'} in no order")
            after = before.advanced(children)
            await enter(children, after, None)
            before = after
            listing.first_page.set()
            listing.note_progress()
        # The store may have answered the first page this long ago: fresh since then, not since now.
        await enter([], END, started_ns)
        if not directory.is_listed:
            bump(self._row, Count.HIDDEN_NAMES, hidden)

    def _children(self, directory: Inode) -> Callable[[], Awaitable[tuple[list[Child], int] | None]]:
        """Return what gets the next page: (what it shows, how many of its keys cannot be shown), None at the end."""
        prefix = directory.key or self._root_prefix
        pages = self._backend.list(prefix)

        async def next_children() -> tuple[list[Child], int] | None:
            page = await self._in_thread(partial(_next_page, pages))
            if page is None:
                return None
            children, hidden = children_of(page, prefix)
            return children, hidden + page.hidden

        return next_children

    async def _sorted_children(
        self, directory: Inode, listing: _Listing
    ) -> Callable[[], Awaitable[tuple[list[Child], int] | None]]:
        """List a directory as a whole, then do as `_children`, in order.  Checkpoint."""
        next_children = self._children(directory)
        everything: list[Child] = []
        hidden = 0
        while (found := await next_children()) is not None:
            everything += found[0]
            hidden += found[1]
            listing.note_progress()
        everything.sort(key=lambda child: child.name)
        parts = [(everything[at : at + _SORTED_PAGE], 0) for at in range(0, len(everything), _SORTED_PAGE)]
        ordered = iter([*parts, ([], hidden)])

        async def next_sorted() -> tuple[list[Child], int] | None:
            return next(ordered, None)

        return next_sorted

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Ask the backend.  Checkpoint; a core that ends does not wait for the answer."""
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)

    async def publish(self, changes: ChangeLog) -> None:
        """Tell the kernel what changed.  Checkpoint.

        A front may still be answering from the state before the commit: only after a grace period is every later
        answer new, and the kernel's last word on a name the right one.
        """
        if not changes:
            return
        told = trio.Event()
        self._telling.add(told)
        try:
            await self._grace.wait()
            bump(self._row, Count.VERSION_SWITCHES, changes.replaced)
            await self._notifier.publish(changes)
        finally:
            self._telling.discard(told)
            told.set()

    # --- one name ----------------------------------------------------------------------------------------------

    async def _point_lookup(self, parent: int, name: bytes) -> None:
        """Enter what the store has under one name, as an object, a prefix, or nothing.  Checkpoint."""
        directory = self._directory(parent)
        prefix = directory.key or self._root_prefix
        key = prefix + name.decode("utf-8", "surrogateescape")
        if not is_addressable(key):
            return  # no store can be asked for it, and no listing shows it
        with self._settling.asking(parent) as settled:
            await self._ask_for(directory, name, key, settled)

    async def _ask_for(self, directory: Inode, name: bytes, key: str, settled: set[bytes]) -> None:
        parent, now_ns = directory.ino, self._clock.wall_ns()
        self._note_touched(parent)
        child: Child | None = None
        if await self._in_thread(partial(self._has_below, key + "/")):
            child = Child(name, key + "/", None)
        else:
            with contextlib.suppress(ObjectMissingError):
                child = Child(name, key, (await self._in_thread(partial(self._backend.head, key))).version)
        told = ChangeLog(has_epoch=self._notifier.has_epoch)
        try:
            if child is not None:
                apply = ApplyChildren(parent, (child,), self._ownership, now_ns, frozenset(settled)).apply
                changes = await self._writer.run(apply)
                # An added name is news to nobody before a listing is complete: absence is not remembered until then.
                is_listed = self._directory(parent).is_listed
                told.add(change for change in changes if is_listed or change.kind is not ChangeKind.ADDED)
            elif self._child(parent, name) is not None:
                is_done = False
                while not is_done:
                    remove = RemoveName(parent, name, now_ns, frozenset(settled))
                    changes, is_done = await self._writer.run(remove.apply)
                    told.add(changes)
        finally:
            # Not here: the caller may be a request in the very directory that the notification needs.
            self._nursery.start_soon(self.publish, told)

    def _has_below(self, prefix: str) -> bool:
        return any(page.objects or page.prefixes for page in self._backend.list(prefix, limit=1))


def stored_as(info: ObjectInfo) -> StoredAs | None:
    """Return how the store says that it keeps an object; None: as usual, or it did not say."""
    name = info.storage_class
    return StoredAs(name, is_archived=has_to_be_restored(name)) if name else None


def children_of(page: ListPage, prefix: str) -> tuple[list[Child], int]:
    """Return what a page shows below a directory, and how many of its keys cannot be shown.

    The object whose key is the prefix itself marks the directory and is neither shown nor counted.
    """
    children: list[Child] = []
    hidden = 0
    for key in page.prefixes:
        name = child_name(key, prefix)
        if name is None:
            hidden += 1
        else:
            children.append(Child(name, key, None))
    for info in page.objects:
        if info.key == prefix:
            continue
        name = None if info.key.endswith("/") else child_name(info.key, prefix)
        if name is None:
            hidden += 1
        else:
            children.append(Child(name, info.key, info.version, stored_as(info)))
    return children, hidden


def _next_page(pages: Iterator[ListPage]) -> ListPage | None:
    return next(pages, None)
