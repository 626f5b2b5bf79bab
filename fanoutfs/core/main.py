"""Life of a core: open what survives, say "ready", serve until told to stop, close in order.

Runs in a child of the keeper, forked before any thread exists.  Two steps, so that a mount never appears that could
not work: `prepare` (synchronous) opens the index and asks the backend one question; after the keeper has mounted it
sends `Go` with the /dev/fuse descriptor, and trio begins.

Order of the end: pyfuse3's loop and all fills are cancelled, then the writers commit what they have, then the
environments close.  Being killed at any point loses nothing but cached bytes.
"""

import contextlib
import ctypes
import gc
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import pyfuse3
import trio

from fanoutfs.backend import Backend, open_backend
from fanoutfs.cache.volume import Volume, open_volume
from fanoutfs.clock import SystemClock
from fanoutfs.core.assembly import Core, build_base, build_core, build_outbound
from fanoutfs.core.control import Command, ControlServer
from fanoutfs.core.diskopening import close_further, open_further
from fanoutfs.core.disks import Further
from fanoutfs.core.filesystem import resolve_path
from fanoutfs.core.freshness import epoch_s
from fanoutfs.core.grace import Grace
from fanoutfs.core.granting import keep_staging_room
from fanoutfs.core.hints import HintListeners, take_hints
from fanoutfs.core.notify import Notifier
from fanoutfs.core.operations import Operations
from fanoutfs.core.outbound import READ_ONLY_COMMANDS, Outbound
from fanoutfs.core.recovery import recover
from fanoutfs.core.strays import collect_strays
from fanoutfs.core.task import CoreTask
from fanoutfs.core.taskdump import task_tree
from fanoutfs.core.tidying import keep_tidy
from fanoutfs.core.warming import long_commands
from fanoutfs.core.watching import Watching, build_watching
from fanoutfs.errors import (
    AccessDeniedError,
    BackendError,
    CacheUnusableError,
    DatabaseError,
    DeadlineError,
    FanoutError,
    ObjectMissingError,
    TransientError,
)
from fanoutfs.index.format import FIRST_INO
from fanoutfs.index.operations import OpenVolume
from fanoutfs.index.uploading import TagVolume
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.dump import follow_dumps
from fanoutfs.observe.latency import Call, observe
from fanoutfs.observe.shared import (
    BEAT_S,
    BEATS,
    CORE_ROW,
    MAX_FRONTS,
    SLOTS_PER_FRONT,
    bump,
)
from fanoutfs.observe.supervision import Go, receive_go, send_failed, send_ready
from fanoutfs.records import MIB, ROOT_INO
from fanoutfs.wire.kernel import FOREVER_S

log = logging.getLogger(__name__)

_GC_OBJECTS: Final = 20_000
"""Hundreds of fills under way are not garbage to look for after every 700 objects; what is waste here has no cycles,
save for exceptions."""
_M_TRIM_THRESHOLD: Final = -1  # <malloc.h>
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_ARENAS: Final = 4
"""Each arena keeps what was freed in it, and the C library makes eight for each processor: 20 threads that take turns
with buffers of 1 to 8 MiB, four at a time, hold 206 MiB and ever more in 16 arenas, 134 MiB in 4, 51 MiB in one."""
EXIT_RENEW: Final = 87
"""Exit code of a core that asks for a new generation: what all processes have open must be opened anew."""
_PROBE_NAME: Final = ".fanoutfs-probe"
_READER_CHECK_S: Final = 10.0
_BROKEN_POLL_S: Final = 0.2
_TASK_PAUSE_S: Final = 1.0
"""Between the failure of a background task and its next try."""
_LAST_FILLS_S: Final = 2.0
"""The keeper kills a core that does not end within 5 s."""


def run(task: CoreTask) -> int:
    """Live as a core and return the process's exit code."""
    _keep_freed_memory()
    follow_dumps(task_tree)
    gc.set_threshold(_GC_OBJECTS)
    try:
        volume, further, backend = prepare(task)
    except FanoutError as error:
        whose = f"{task.config.source}: " if isinstance(error, BackendError) else ""
        send_failed(task.supervision, error.exit_code, f"{whose}{error}")
        return error.exit_code
    send_ready(task.supervision)
    go = receive_go(task.supervision)
    if go is not None:
        trio.run(partial(serve, task, volume, further, backend, go), restrict_keyboard_interrupt_to_checkpoints=True)
        log.info("core ends")
    backend.close()
    close_further(further)
    volume.close(task.volume_path)
    if volume.is_broken:
        volume.put_away_broken(task.volume_path)
        return EXIT_RENEW
    return 0


def _keep_freed_memory() -> None:
    """Have malloc reuse the buffers of GETs instead of giving each back to the kernel.

    A fresh 8 MiB buffer costs 2,048 page faults and as many zeroed pages: most of the core's system time in a cold
    sequential read.  What is kept is bounded by what was in use at a time, in each of the few arenas.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * MIB)
        libc.mallopt(_M_TRIM_THRESHOLD, 1024 * MIB)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def prepare(task: CoreTask) -> tuple[Volume, list[Further], Backend]:
    """Open the volume and make sure the backend lets us in.  Raises FanoutError with a line for the user."""
    backend = open_backend(
        task.config,
        count=ThreadSafeCounter(task.shared.row(CORE_ROW), task.shared.latencies.row(CORE_ROW)),
        unanswered=task.unanswered,
    )
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
    further = open_further(task.config.cache_disks, volume, task.volume_path, is_first=task.is_first)
    if task.is_first:
        check_access(backend, task.root_prefix, is_warm=volume.was_known)
    return volume, further, backend


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

    def __init__(self, row: memoryview, latencies: memoryview) -> None:
        self._row = row
        self._latencies = latencies
        self._lock = threading.Lock()
        self._indices = {count.name.lower(): int(count) for count in Count}
        self._series = {f"backend_{call.name.lower()}_ns": int(call) for call in Call}

    def __call__(self, name: str, value: int) -> None:
        """Add to the counter of this name; a time is one call's, and counts among the latencies, too."""
        with self._lock:
            self._row[self._indices[name]] += value
            if name in self._series:
                observe(self._latencies, self._series[name], value)


async def serve(task: CoreTask, volume: Volume, further: list[Further], backend: Backend, go: Go) -> None:
    """Serve requests until the mount ends or SIGTERM."""
    config = task.config
    base = build_base(task, volume, further, backend, has_epoch=go.has_epoch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_beat, task.shared.row(CORE_ROW))
        await recover(
            volume.environment,
            base.reader,
            base.writer,
            volume.staging,
            volume.small,
            task.root_prefix,
            base.clock.wall_ns(),
            is_first=task.is_first,
        )
        core = build_core(base, nursery)
        outbound = None
        if not config.read_only:
            outbound = build_outbound(core, await base.writer.run(TagVolume(secrets.token_hex(6)).apply))
        watching = build_watching(core, outbound)
        _start_background(core, outbound, watching, nursery)
        imports = core.long_work.imports
        if config.import_source and (task.is_first or imports.is_unfinished(ROOT_INO)):
            imports.start(ROOT_INO)
        stored = outbound.uploads.wait if outbound is not None and config.durability == "remote" else None
        writing, entry_timeout_s = core.writing, entry_timeout(go.has_epoch, config.metadata_ttl)
        operations = Operations(
            core.filesystem,
            writing.changes,
            writing.staging,
            entry_timeout_s,
            base.row,
            watching.stalls,
            stored,
            lambda: base.volume.is_broken,
        )
        try:
            await _answer_requests(task.relay, operations, config.front_count())
        finally:
            _log_what_is_left(outbound)
        await _end(core, nursery.cancel_scope)
    core.data.reads.save()
    base.writer.stop()


def _start_background(core: Core, outbound: Outbound | None, watching: Watching, nursery: trio.Nursery) -> None:
    """Start what runs beside the requests, for as long as the nursery lives."""
    base, data, ahead = core.base, core.data, core.ahead
    task, volume, row, space, config = base.task, base.volume, base.row, data.space, base.config
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(task.control))
    commands = _commands(core) | watching.commands() | (READ_ONLY_COMMANDS if outbound is None else outbound.commands())
    nursery.start_soon(ControlServer(listener, commands).run)
    nursery.start_soon(base.notifier.run)
    if not task.is_first:
        nursery.start_soon(_expire_what_was_told, base.notifier)
    listeners = HintListeners(
        directory_used=core.names.freshness.note_used,
        part_reads=(
            data.fills.note_part_read,
            core.placement.note_part_read,
            lambda ino, _part: space.written_here.note_read(ino),
        ),
        small_reads=(
            ahead.prefetch.note_reads,
            ahead.push.note_reads,
            core.placement.note_small_reads,
            data.trace.note_small,
        ),
        listed=ahead.push.note_listed,
        pushed=(ahead.plans.note_pushed, ahead.prefetch.note_pushed),
        access=core.data.trace.note,
        written=_nothing if outbound is None else outbound.uploads.note_written,
        made=partial(_note_made, core),
    )
    background: dict[str, Callable[[], Awaitable[None]]] = {
        "disks": data.disks.run,
        "strays": partial(collect_strays, volume.files, volume.environment, base.reader, data.space),
        "freshness": core.names.freshness.run,
        "arena": data.arena.run,
        "plans": ahead.plans.run,
        "orphans": data.orphans.run,
        "tidying": partial(keep_tidy, volume.small, data.space),
        **watching.tasks(),
        "hints": partial(take_hints, task.hints, listeners),
        "syncs": base.durable.run,
        "spares": core.writing.spares.run,
        "dead readers": partial(_release_dead_readers, volume),
        "reads": data.reads.run,
        "staged bytes": data.staged.run,
        **core.placement.tasks(),
        **({"watermarks": partial(space.keep_below, *config.watermarks())} if config.high_watermark < 1 else {}),
        **({} if config.read_only else {"staging room": partial(keep_staging_room, space)}),
        **(outbound.tasks() if outbound is not None else {}),
    }
    if task.push is not None:
        background["pushed"] = partial(take_hints, task.push, listeners)
    for name, run_it in background.items():
        nursery.start_soon(_kept_going, name, run_it, row)
    nursery.start_soon(_end_on_signal, core, nursery.cancel_scope)
    nursery.start_soon(_end_when_broken, volume, nursery.cancel_scope)


def _note_made(core: Core) -> None:
    """Fronts have committed new files."""
    core.writing.spares.catch_up()
    core.base.durable.note_committed()


def _commands(core: Core) -> dict[str, Command]:
    """Return what the control socket answers for names and long work."""
    base, filesystem, long_work = core.base, core.filesystem, core.long_work

    async def invalidate(request: Mapping[str, Any]) -> None:
        path = os.fsencode(str(request.get("path", "")))
        await filesystem.invalidate(resolve_path(filesystem, base.reader, ROOT_INO, path))

    return {
        "invalidate": invalidate,
        **core.ahead.plans.commands(),
        **core.placement.commands(),
        **core.forgetting.commands(),
        **core.data.trace.commands(),
        **long_commands(long_work.jobs, long_work.imports, long_work.warming),
    }


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


def _log_what_is_left(outbound: Outbound | None) -> None:
    """Say what the store does not have yet, as `umount` does: after SIGTERM nobody else would."""
    left: dict[str, Any] = {}
    with contextlib.suppress(DatabaseError):  # it may be what ends this core
        left = {} if outbound is None else outbound.describe()
    if left.get("dirty") or left.get("departed"):
        log.warning(
            "not uploaded yet files=%d, not moved or deleted yet objects=%d: the next mount goes on",
            left["dirty"],
            left["departed"],
        )


def _nothing(_ino: int) -> None:
    """Nobody wants to know."""


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
    if volume.is_damaged:
        log.error("a database of the cache is damaged: beginning anew without it")
    else:
        log.error("the index has to be opened anew: its header could not be written")
    scope.cancel()


async def _beat(row: memoryview) -> None:
    """Show the keeper that the event loop turns (keeper.watchdog)."""
    while True:
        row[BEATS] += 1
        await trio.sleep(BEAT_S)


async def _end_on_signal(core: Core, scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _number in signals:
            await _end(core, scope)
            return


async def _end(core: Core, scope: trio.CancelScope) -> None:
    """End all tasks; but what was read has been paid for, and is kept if the disk takes it soon."""
    with trio.move_on_after(_LAST_FILLS_S):
        await core.data.fills.store_arrived()
    scope.cancel()
