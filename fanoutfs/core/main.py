"""Life of a core: open what survives, say "ready", serve until told to stop, close in order.

Runs in a child of the keeper, forked before any thread exists.  Two steps, so that a mount never appears that could
not work: `prepare` (synchronous) opens the index and asks the backend one question; after the keeper has mounted it
sends `Go` with the /dev/fuse descriptor, and trio begins.

Order of the end: pyfuse3's loop and all fills are cancelled, then the writers commit what they have, then the
environments close.  Being killed at any point loses nothing but cached bytes.
"""

import ctypes
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyfuse3
import trio

from fanoutfs.backend import Backend, open_backend
from fanoutfs.cache.arena import Arena
from fanoutfs.cache.volume import Volume, open_volume
from fanoutfs.clock import SystemClock
from fanoutfs.config.schema import MountConfig
from fanoutfs.core.admission import Admission
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.changes import Changes
from fanoutfs.core.control import ControlServer
from fanoutfs.core.durable import Durable
from fanoutfs.core.filesystem import FileSystem, resolve_path
from fanoutfs.core.fill import Fills
from fanoutfs.core.freshness import Freshness, epoch_s
from fanoutfs.core.grace import Grace
from fanoutfs.core.hints import HintListeners, take_hints
from fanoutfs.core.imports import Imports
from fanoutfs.core.jobs import Jobs
from fanoutfs.core.listing import Listings
from fanoutfs.core.notify import Notifier
from fanoutfs.core.numbers import Numbers
from fanoutfs.core.objectattributes import AttributeReader
from fanoutfs.core.operations import Operations
from fanoutfs.core.orphans import OrphanReaper
from fanoutfs.core.outbound import Outbound, make_outbound
from fanoutfs.core.plans import Plans
from fanoutfs.core.prefetch import Prefetch
from fanoutfs.core.push import Push
from fanoutfs.core.readahead import ReadAhead
from fanoutfs.core.recovery import recover
from fanoutfs.core.siblings import Siblings
from fanoutfs.core.space import Space
from fanoutfs.core.staged import StagedBytes
from fanoutfs.core.staging import Staging
from fanoutfs.core.status import describe
from fanoutfs.core.strays import collect_strays
from fanoutfs.core.tidying import keep_tidy
from fanoutfs.core.warming import Warming, long_commands
from fanoutfs.errors import (
    AccessDeniedError,
    CacheUnusableError,
    DeadlineError,
    FanoutError,
    ObjectMissingError,
    TransientError,
)
from fanoutfs.index.format import FIRST_INO, Ownership
from fanoutfs.index.operations import OpenVolume
from fanoutfs.index.publishing import TagVolume
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import CORE_ROW, MAX_FRONTS, SLOTS_PER_FRONT, STAGING_FULL, SharedState, bump
from fanoutfs.observe.supervision import Go, receive_go, send_failed, send_ready
from fanoutfs.records import MIB, ROOT_INO
from fanoutfs.wire.kernel import FOREVER_S

log = logging.getLogger(__name__)

_M_TRIM_THRESHOLD: Final = -1  # <malloc.h>
_M_MMAP_THRESHOLD: Final = -3
EXIT_RENEW: Final = 87
"""Exit code of a core that asks for a new generation: what all processes have open must be opened anew."""
_PROBE_NAME: Final = ".fanoutfs-probe"
_READER_CHECK_S: Final = 10.0
SIBLING_FILES: Final = 1024
"""Small files fetched ahead of one reader at most, whatever their size: 20 ms at 50,000 files/s, the most seen."""
_BROKEN_POLL_S: Final = 0.2
_TASK_PAUSE_S: Final = 1.0
"""Between the failure of a background task and its next try."""


@dataclass(frozen=True, slots=True)
class CoreTask:
    """What the keeper hands to a core: the settings, the volume's place, and the core's ends of all channels."""

    config: MountConfig
    identity: str
    root_prefix: str
    volume_path: Path
    other_volumes_bytes: int
    shared: SharedState
    arena: Arena
    supervision: socket.socket
    relay: socket.socket
    hints: socket.socket
    notify: socket.socket
    push: socket.socket | None
    control: socket.socket
    is_first: bool

    @property
    def ownership(self) -> Ownership:
        """Return what files show as owner and mode."""
        config = self.config
        return Ownership(config.uid, config.gid, config.file_mode, config.dir_mode, config.small_file_size)


def run(task: CoreTask) -> int:
    """Live as a core and return the process's exit code."""
    _keep_freed_memory()
    try:
        volume, backend = prepare(task)
    except FanoutError as error:
        send_failed(task.supervision, error)
        return error.exit_code
    send_ready(task.supervision)
    go = receive_go(task.supervision)
    if go is not None:
        trio.run(partial(serve, task, volume, backend, go), restrict_keyboard_interrupt_to_checkpoints=True)
        log.info("core ends")
    backend.close()
    volume.close(task.volume_path)
    if volume.is_broken:
        volume.put_away_broken(task.volume_path)
        return EXIT_RENEW
    return 0


def _keep_freed_memory() -> None:
    """Have malloc reuse the buffers of GETs instead of giving each back to the kernel.

    A fresh 8 MiB buffer costs 2,048 page faults and as many zeroed pages: most of the core's system time in a cold
    sequential read.  What is kept is bounded by `fill_memory`.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * MIB)
        libc.mallopt(_M_TRIM_THRESHOLD, 1024 * MIB)


def prepare(task: CoreTask) -> tuple[Volume, Backend]:
    """Open the volume and make sure the backend lets us in.  Raises FanoutError with a line for the user."""
    backend = open_backend(task.config, count=ThreadSafeCounter(task.shared.row(CORE_ROW)))
    small_share_bytes = int(task.config.cache_size * task.config.small_cache_share)
    now_ns = SystemClock().wall_ns()
    # 16 million numbers for each second since 1970: no earlier index of this volume can have reached them.
    first_ino = max(FIRST_INO, now_ns // 1_000_000_000 << 24)
    wanted = OpenVolume(task.identity, task.ownership, now_ns, first_ino)
    grace = Grace(task.shared, task.config.front_count())
    volume = open_volume(task.volume_path, small_share_bytes, wanted, grace.wait, task.root_prefix)
    if not task.is_first and not volume.was_known:
        volume.close(task.volume_path)
        # The fronts of this generation hold the lost one open: the next generation begins with the new one.
        raise CacheUnusableError("the index was lost while mounted; a new one was begun")
    if task.is_first:
        check_access(backend, task.root_prefix, is_warm=volume.was_known)
    return volume, backend


def check_access(backend: Backend, root_prefix: str, *, is_warm: bool) -> None:
    """Ask the backend one question.  Raises what stands in the way of a mount.

    A volume never seen before needs a LIST.  A known one is served from the cache even while the backend is down;
    there one HEAD tells whether the credentials are good, without a LIST or a GET.
    """
    if is_warm:
        try:
            backend.head(root_prefix + _PROBE_NAME)
            return
        except ObjectMissingError:
            return
        except (TransientError, DeadlineError) as error:
            log.warning("backend does not answer, serving from the cache: %s", error)
            return
        except AccessDeniedError:
            pass  # HEAD has no body that tells bad credentials from a missing right: LIST tells
    next(iter(backend.list(root_prefix, limit=1)), None)


class ThreadSafeCounter:
    """Adds to the core's row from worker threads."""

    def __init__(self, row: memoryview) -> None:
        self._row = row
        self._lock = threading.Lock()
        self._indices = {count.name.lower(): int(count) for count in Count}

    def __call__(self, name: str, value: int) -> None:
        """Add to the counter of this name."""
        with self._lock:
            self._row[self._indices[name]] += value


async def serve(task: CoreTask, volume: Volume, backend: Backend, go: Go) -> None:
    """Serve requests until the mount ends or SIGTERM."""
    config, row = task.config, task.shared.row(CORE_ROW)
    environment = volume.environment
    clock = SystemClock()
    reader = IndexReader(environment)

    writer: GroupWriter[IndexTransaction] = GroupWriter("index-writer", partial(write_transaction, environment))
    notifier = Notifier(task.notify, has_epoch=go.has_epoch, row=row)
    grace = Grace(task.shared, config.front_count())
    arena = ArenaSlots(task.arena, grace)
    admission = Admission(config.fill_memory - config.arena_bytes(), config.requests)
    push = Push(task.push, row)
    readahead = ReadAhead(min(config.max_readahead, config.fill_memory))
    staged = StagedBytes(task.volume_path, partial(task.shared.total, Count.WRITER_BYTES))
    space = Space(
        cap_bytes=config.cache_size,
        floor_bytes=config.free_space_floor,
        other_bytes=task.other_volumes_bytes,
        environment=environment,
        writer=writer,
        files=volume.files,
        small=volume.small,
        grace=grace,
        staged=staged,
        staging_cap_bytes=config.staging_bytes(),
        row=row,
    )
    async with trio.open_nursery() as nursery:
        listings = Listings(
            nursery=nursery,
            backend=backend,
            root_prefix=task.root_prefix,
            reader=reader,
            writer=writer,
            notifier=notifier,
            grace=grace,
            ownership=task.ownership,
            clock=clock,
            op_timeout_s=config.op_timeout,
            row=row,
        )
        fills = Fills(
            nursery=nursery,
            backend=backend,
            reader=reader,
            writer=writer,
            files=volume.files,
            small=volume.small,
            arena=arena,
            space=space,
            admission=admission,
            readahead=readahead,
            requests=config.requests,
            op_timeout_s=config.op_timeout,
            row=row,
        )
        freshness = Freshness(listings=listings, reader=reader, notifier=notifier, metadata_ttl_s=config.metadata_ttl)
        attributes = AttributeReader(
            nursery=nursery,
            backend=backend,
            writer=writer,
            distrust=listings.distrust,
            patience_s=config.op_timeout,
        )
        filesystem = FileSystem(
            reader=reader,
            listings=listings,
            fills=fills,
            freshness=freshness,
            shared=task.shared,
            metadata_ttl_s=config.metadata_ttl,
            attributes=attributes if config.object_attributes == "lookup" else None,
        )
        small_cache_bytes = int(config.cache_size * config.small_cache_share)
        plans = Plans(
            reader=reader,
            filesystem=filesystem,
            fills=fills,
            small=volume.small,
            window_bytes=min(config.plan_window, small_cache_bytes // 4),
            requests=config.requests,
            row=row,
        )
        space.is_awaited = plans.is_ahead
        prefetch = Prefetch(
            reader=reader,
            fills=fills,
            root_prefix=task.root_prefix,
            requests=config.requests,
            siblings=Siblings(
                max_files=SIBLING_FILES,
                max_bytes=config.max_readahead,
                sweep_bytes=small_cache_bytes // 4 if config.max_readahead else 0,
            ),
            plans=plans,
            row=row,
        )
        durable = Durable(environment, writer)
        numbers = Numbers(writer)
        staging_files = volume.staging
        await recover(
            environment,
            reader,
            writer,
            staging_files,
            volume.small,
            task.root_prefix,
            clock.wall_ns(),
            is_first=task.is_first,
        )
        staging = Staging(
            reader=reader,
            writer=writer,
            staging=staging_files,
            files=volume.files,
            small=volume.small,
            fills=fills,
            arena=arena,
            space=space,
            grace=grace,
            durable=durable,
            numbers=numbers,
            ownership=task.ownership,
            root_prefix=task.root_prefix,
            clock=clock,
            op_timeout_s=config.op_timeout,
        )
        changes = Changes(
            filesystem=filesystem,
            staging=staging,
            reader=reader,
            writer=writer,
            numbers=numbers,
            root_prefix=task.root_prefix,
            clock=clock,
        )
        orphans = OrphanReaper(
            environment=environment,
            writer=writer,
            files=volume.files,
            staging=staging_files,
            small=volume.small,
            space=space,
            notifier=notifier,
            grace=grace,
            readahead=readahead,
            clock=clock,
            row=row,
        )

        async def status(_request: Mapping[str, Any]) -> Any:
            return describe(
                config, task.shared, space, volume.small, environment, filesystem, freshness, admission, plans, outbound
            )

        async def invalidate(request: Mapping[str, Any]) -> None:
            path = os.fsencode(str(request.get("path", "")))
            await filesystem.invalidate(resolve_path(filesystem, reader, ROOT_INO, path))

        jobs = Jobs(nursery)
        imports = Imports(
            jobs=jobs,
            backend=backend,
            root_prefix=task.root_prefix,
            reader=reader,
            writer=writer,
            listings=listings,
            ownership=task.ownership,
            clock=clock,
            row=row,
            has_epoch=go.has_epoch,
        )
        warming = Warming(
            jobs=jobs,
            reader=reader,
            listings=listings,
            imports=imports,
            fills=fills,
            small=volume.small,
            metadata_ttl_s=config.metadata_ttl,
        )
        outbound: Outbound | None = None
        if not config.read_only:
            outbound = make_outbound(
                config=config,
                backend=backend,
                root_prefix=task.root_prefix,
                reader=reader,
                writer=writer,
                files=staging_files,
                staging=staging,
                grace=grace,
                listings=listings,
                jobs=jobs,
                locate=partial(resolve_path, filesystem, reader, ROOT_INO),
                ownership=task.ownership,
                clock=clock,
                tag=await writer.run(TagVolume(secrets.token_hex(6)).apply),
                row=row,
            )
            changes.note_dirty = outbound.note_changed
            changes.is_uploading = outbound.uploads.is_uploading
            filesystem.wait_published = outbound.publisher.wait_idle
            staging.note_dirty = outbound.uploads.note_dirty
            for name, outbound_task in outbound.tasks().items():
                nursery.start_soon(_kept_going, name, outbound_task, row)
        commands = {
            **(outbound.commands() if outbound is not None else {}),
            "status": status,
            "invalidate": invalidate,
            **plans.commands(),
            **long_commands(jobs, imports, warming),
        }
        if config.import_source and (task.is_first or imports.is_unfinished(ROOT_INO)):
            imports.start(ROOT_INO)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(task.control))
        control = ControlServer(listener, commands)
        nursery.start_soon(control.run)
        nursery.start_soon(notifier.run)
        collect = partial(collect_strays, volume.files, environment, reader, space)
        nursery.start_soon(_kept_going, "strays", collect, row)
        if not task.is_first:
            nursery.start_soon(_expire_what_was_told, notifier)
        nursery.start_soon(_kept_going, "staged bytes", staged.run, row)
        nursery.start_soon(_kept_going, "freshness", freshness.run, row)
        nursery.start_soon(_kept_going, "arena", arena.run, row)
        nursery.start_soon(_kept_going, "plans", plans.run, row)
        nursery.start_soon(_kept_going, "orphans", orphans.run, row)
        nursery.start_soon(_kept_going, "tidying", partial(keep_tidy, volume.small, space), row)
        listeners = HintListeners(
            directory_used=freshness.note_used,
            part_read=fills.note_part_read,
            small_reads=(prefetch.note_reads, push.note_reads),
            listed=push.note_listed,
            written=_nothing if outbound is None else outbound.uploads.note_dirty,
        )
        nursery.start_soon(_kept_going, "hints", partial(take_hints, task.hints, listeners), row)
        nursery.start_soon(_kept_going, "dead readers", partial(_release_dead_readers, volume), row)
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        nursery.start_soon(_end_when_broken, volume, nursery.cancel_scope)
        entry_timeout_s = entry_timeout(go.has_epoch, config.metadata_ttl)
        keep_room = partial(space.keep_staging_room, partial(_tell_of_room, task.shared))
        nursery.start_soon(_kept_going, "staging room", keep_room, row)
        stored = outbound.uploads.wait if outbound is not None and config.durability == "remote" else None
        operations = Operations(filesystem, changes, staging, entry_timeout_s, row, stored)
        await _answer_requests(task.relay, operations, config.front_count())
        nursery.cancel_scope.cancel()
    writer.stop()


def _nothing(_ino: int) -> None:
    """Nobody wants to know."""


def entry_timeout(has_epoch: bool, metadata_ttl_s: float) -> float:
    """Return how long the kernel may trust a name: for ever, if it can be told otherwise for all names at once."""
    if has_epoch or metadata_ttl_s == float("inf"):
        return FOREVER_S
    return min(FOREVER_S, epoch_s(metadata_ttl_s))


async def _answer_requests(relay: socket.socket, operations: Operations, fronts: int) -> None:
    """Run pyfuse3's loop on the relay until the mount ends.

    max_tasks covers every request that fronts can have in flight: a fill that waits never blocks a lookup.
    """
    pyfuse3.init(operations, f"/dev/fd/{relay.fileno()}", set())
    try:
        await pyfuse3.main(min_tasks=1, max_tasks=min(fronts, MAX_FRONTS) * SLOTS_PER_FRONT + 1)
    finally:
        pyfuse3.close(unmount=False)


async def _kept_going(name: str, task: Callable[[], Awaitable[None]], row: memoryview) -> None:
    """Run a background task; begin anew after an exception nobody foresaw: none of them is worth a restart."""
    while True:
        try:
            await task()
            return
        except Exception:
            bump(row, Count.REQUEST_ERRORS)
            log.exception("background task failed task=%s", name)
        await trio.sleep(_TASK_PAUSE_S)


def _tell_of_room(shared: SharedState, is_full: bool) -> None:
    """Have fronts ask before they write while there is no room in staging."""
    shared.flags[STAGING_FULL] = is_full


async def _expire_what_was_told(notifier: Notifier) -> None:
    """Have the kernel ask for names again: the core before this one may have died between a commit and its notice."""
    if notifier.has_epoch:
        await notifier.expire_all_names()
    await notifier.expire_attributes(ROOT_INO)  # no name leads to it


async def _release_dead_readers(volume: Volume) -> None:
    """Free what killed fronts held: a dead reader's snapshot would keep LMDB from reusing any page."""
    while True:
        await trio.sleep(_READER_CHECK_S)
        volume.environment.env.reader_check()
        volume.small.release_dead_readers()


async def _end_when_broken(volume: Volume, scope: trio.CancelScope) -> None:
    """Ask for a new generation when a database is damaged inside.  Looks now and then: it matters once in years."""
    while not volume.is_broken:
        await trio.sleep(_BROKEN_POLL_S)
    log.error("a database of the cache is damaged: beginning anew without it")
    scope.cancel()


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _number in signals:
            scope.cancel()
            return
