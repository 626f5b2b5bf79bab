"""A core without a mount: the real parts over a directory as backend, and memory in the kernel's place."""

import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from fanoutfs.backend.base import Backend, Pages
from fanoutfs.backend.faulty import FaultyBackend, Gate
from fanoutfs.backend.local import LocalBackend
from fanoutfs.cache.arena import Arena
from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.admission import Admission
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.changes import Changes
from fanoutfs.core.disks import Disks, Further
from fanoutfs.core.durable import Durable
from fanoutfs.core.filesystem import FileSystem
from fanoutfs.core.fill import Fills
from fanoutfs.core.freshness import Freshness
from fanoutfs.core.grace import Grace
from fanoutfs.core.grants import Grants
from fanoutfs.core.jobs import Jobs
from fanoutfs.core.listing import Listings
from fanoutfs.core.notify import Notifier
from fanoutfs.core.numbers import Numbers
from fanoutfs.core.plans import Plans
from fanoutfs.core.prefetch import Prefetch
from fanoutfs.core.push import Push
from fanoutfs.core.readahead import ReadAhead
from fanoutfs.core.reads import Reads
from fanoutfs.core.siblings import Siblings
from fanoutfs.core.space import Space
from fanoutfs.core.spares import Spares
from fanoutfs.core.staged import StagedBytes
from fanoutfs.core.staging import Staging
from fanoutfs.core.stagingroom import StagingRoom
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import CORE_ROW, FIRST_FRONT_ROW, SharedState
from fanoutfs.records import GIB, MIB, PART_BYTES, ROOT_INO, ListPage
from fanoutfs.wire.kernel import OUT_HEADER, Notify
from tests.unit.indexes import NOW_NS, OWNER, open_index


class TurnedClock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now_ns = NOW_NS

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


class PagedBackend(LocalBackend):
    """Lists one entry a page.  `pages`: a permit for each page, when it is set."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.pages: threading.Semaphore | None = None

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        permits = None if limit is not None else self.pages  # probes pass

        def fetch(token: str) -> tuple[ListPage, str]:
            if permits is not None:
                assert permits.acquire(timeout=30), "nobody let the page pass"
            (page,) = LocalBackend.list(self, prefix)
            entries = [ListPage((), (name,)) for name in sorted(page.prefixes)]
            entries += [ListPage((found,), ()) for found in sorted(page.objects, key=lambda found: found.key)]
            at = int(token or 0)
            return (entries[at] if entries else ListPage((), ())), (str(at + 1) if at + 1 < len(entries) else "")

        return Pages(fetch)


@dataclass
class Rig:
    """The parts of a core, and its source directory."""

    source: Path
    backend: FaultyBackend
    pages: PagedBackend
    environment: IndexEnvironment
    reader: IndexReader
    writer: GroupWriter[IndexTransaction]
    files: CacheFiles
    small: SmallStore
    shared: SharedState
    grace: Grace
    space: Space
    room: StagingRoom
    admission: Admission
    arena: ArenaSlots
    notifier: Notifier
    listings: Listings
    fills: Fills
    plans: Plans
    prefetch: Prefetch
    filesystem: FileSystem
    staging_files: StagingFiles
    staging: Staging
    changes: Changes
    jobs: Jobs
    clock: TurnedClock
    row: memoryview
    kernel: list[bytes]

    def count(self, count: Count) -> int:
        """Return one counter of the core."""
        return int(self.row[count])

    def inode(self, path: str) -> Inode:
        """Return the record under a path that the index knows."""
        ino: int | None = ROOT_INO
        with self.reader.begin() as txn:
            for name in path.split("/") if path else ():
                assert ino is not None, path
                ino = self.reader.child(txn, ino, name.encode())
            assert ino is not None, path
            inode = self.reader.inode(txn, ino)
        assert inode is not None, path
        return inode

    async def put(self, name: str, content: bytes) -> Inode:
        """Write an object, list its directory, return its inode."""
        self.write(name, content)
        parent = name.rpartition("/")[0]
        await self.listings.refresh(ROOT_INO)
        if parent:
            await self.listings.refresh(self.inode(parent).ino)
        return self.inode(name)

    def write(self, name: str, content: bytes) -> None:
        """Write an object."""
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.source.parent / "aside"
        aside.write_bytes(content)
        aside.replace(path)

    def cached(self, inode: Inode) -> bytes:
        """Return what the cache file holds."""
        return os.pread(self.files.descriptor(inode.ino), inode.size_bytes, 0)

    def blocks(self, ino: int, part: int = 0) -> int:
        """Return the presence bits of a part."""
        with self.reader.begin() as txn:
            value = self.reader.part_value(txn, ino, part)
        return 0 if value is None else int.from_bytes(value[:4], "little")

    def told(self) -> list[tuple[Notify, bytes]]:
        """Return the notifications written so far: (code, body)."""
        return [(Notify(OUT_HEADER.unpack_from(message)[1]), message[OUT_HEADER.size :]) for message in self.kernel]


async def _stand_for_the_kernel(channel: socket.socket, messages: list[bytes]) -> None:
    """Take every notification, and say that it was delivered."""
    ours = trio.socket.from_stdlib_socket(channel)
    while message := await ours.recv(65536):
        messages.append(message)
        await ours.send((0).to_bytes(4, "little"))


async def arrived(gate: Gate, times: int = 1) -> None:
    """Return when so many calls wait at a gate."""
    for _n in range(times):
        assert await trio.to_thread.run_sync(partial(gate.arrived.acquire, timeout=30)), "no call arrived"


@asynccontextmanager
async def running_core(
    path: Path,
    *,
    cap_bytes: int = GIB,
    floor_bytes: int = 0,
    requests: int = 8,
    memory_bytes: int = 256 * MIB,
    readahead_bytes: int = 0,
    arena_slots: int = 0,
    op_timeout_s: float = 30.0,
    sibling_files: int = 0,
    run_bytes: int = MIB,
    plan_window_bytes: int = MIB,
    small_bytes: int = 16 * MIB,
    staging_bytes: int = GIB,
    further: Sequence[Further] = (),
    make_backend: type[PagedBackend] = PagedBackend,
    few_commits_of_bytes: int = 1 << 40,
) -> AsyncIterator[Rig]:
    """Put the parts together as core.assembly does, and take them apart at the end.

    few_commits_of_bytes: the cache whose index may not grow; nothing is synced here on its account.
    """
    (path / "objects").mkdir()
    source = path / "source"
    source.mkdir()
    shared = SharedState()
    row = shared.row(CORE_ROW)
    clock = TurnedClock()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel: list[bytes] = []
    pages = make_backend(str(source))
    backend = FaultyBackend(pages)
    with open_index(path) as environment:
        reader = IndexReader(environment)
        writer: GroupWriter[IndexTransaction] = GroupWriter("index-writer", partial(write_transaction, environment))
        grace = Grace(shared, 2)
        small = SmallStore(path, small_bytes, grace.wait)
        files = CacheFiles(path, writable=True)
        admission = Admission(memory_bytes, requests)
        notifier = Notifier(ours, has_epoch=True, row=row)
        reads = Reads(shared, path, cap_bytes)
        disks = Disks(
            further=further,
            files=files,
            environment=environment,
            writer=writer,
            grace=grace,
            volume=path,
            floor_bytes=floor_bytes,
            inode_floor=0,
            cap_bytes=cap_bytes,
            flags=shared.flags,
            row=row,
        )
        durable = Durable(environment, few_commits_of_bytes)
        staged = StagedBytes(path, lambda: 0)
        space = Space(
            cap_bytes=cap_bytes,
            floor_bytes=floor_bytes,
            other_bytes=0,
            environment=environment,
            writer=writer,
            files=files,
            small=small,
            grace=grace,
            staged=staged,
            reads=reads,
            staging_cap_bytes=staging_bytes,
            grants=Grants([shared.row(FIRST_FRONT_ROW + front) for front in range(2)]),
            disks=disks,
            durable=durable,
            row=row,
        )
        checked: Backend = backend
        staging_files = StagingFiles(path)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(notifier.run)
                nursery.start_soon(_stand_for_the_kernel, theirs, kernel)
                listings = Listings(
                    nursery=nursery,
                    backend=checked,
                    root_prefix="",
                    reader=reader,
                    writer=writer,
                    notifier=notifier,
                    grace=grace,
                    ownership=OWNER,
                    clock=clock,
                    op_timeout_s=op_timeout_s,
                    row=row,
                )
                arena = ArenaSlots(Arena(max(arena_slots, 1) * PART_BYTES), grace)
                if not arena_slots:
                    await arena.take()  # the only one: fills go through the page cache, and end with their commit
                fills = Fills(
                    nursery=nursery,
                    backend=checked,
                    reader=reader,
                    writer=writer,
                    files=files,
                    small=small,
                    arena=arena,
                    space=space,
                    admission=admission,
                    readahead=ReadAhead(readahead_bytes),
                    requests=requests,
                    op_timeout_s=op_timeout_s,
                    row=row,
                )
                push = Push(None, row)
                filesystem = FileSystem(
                    reader=reader,
                    listings=listings,
                    fills=fills,
                    freshness=Freshness(
                        listings=listings, reader=reader, notifier=notifier, metadata_ttl_s=float("inf")
                    ),
                    shared=shared,
                    metadata_ttl_s=float("inf"),
                )
                numbers = Numbers(writer)
                room = StagingRoom(space, staged)
                staging = Staging(
                    reader=reader,
                    writer=writer,
                    staging=staging_files,
                    files=files,
                    small=small,
                    fills=fills,
                    arena=arena,
                    space=space,
                    room=room,
                    grace=grace,
                    durable=durable,
                    numbers=numbers,
                    spares=Spares(staging_files, numbers),
                    ownership=OWNER,
                    root_prefix="",
                    clock=clock,
                    op_timeout_s=op_timeout_s,
                )
                changes = Changes(
                    filesystem=filesystem,
                    staging=staging,
                    reader=reader,
                    writer=writer,
                    numbers=numbers,
                    root_prefix="",
                    clock=clock,
                )
                plans = Plans(
                    reader=reader,
                    filesystem=filesystem,
                    fills=fills,
                    small=small,
                    push=push,
                    window_bytes=plan_window_bytes,
                    least_bytes=plan_window_bytes,
                    find_idle=space.idle_bytes,
                    requests=requests,
                    row=row,
                )
                space.is_awaited = plans.is_ahead
                reads.orders = plans
                small.judge = reads.judge_small
                nursery.start_soon(plans.run)
                prefetch = Prefetch(
                    reader=reader,
                    fills=fills,
                    root_prefix="",
                    requests=requests,
                    siblings=Siblings(sibling_files, MIB, MIB),
                    plans=plans,
                    push=push,
                    find_idle=space.idle_bytes,
                    run_bytes=run_bytes,
                    row=row,
                )
                yield Rig(
                    source=source,
                    backend=backend,
                    pages=pages,
                    environment=environment,
                    reader=reader,
                    writer=writer,
                    files=files,
                    small=small,
                    shared=shared,
                    grace=grace,
                    space=space,
                    room=room,
                    admission=admission,
                    arena=arena,
                    notifier=notifier,
                    listings=listings,
                    fills=fills,
                    plans=plans,
                    prefetch=prefetch,
                    filesystem=filesystem,
                    staging_files=staging_files,
                    staging=staging,
                    changes=changes,
                    jobs=Jobs(nursery),
                    clock=clock,
                    row=row,
                    kernel=kernel,
                )
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(writer.stop)
                await trio.to_thread.run_sync(small.close)
                files.close()
                staging_files.close()
                ours.close()
                theirs.close()
