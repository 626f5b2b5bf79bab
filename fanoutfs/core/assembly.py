"""Put the parts of a core together: which part knows which.  Starts no task and talks to nobody.

Core, trio thread.  From the bottom up: the base everything stands on, names (what there is), data (bytes and the room
for them), the file system over both, what fetches ahead of readers, and jobs.  A part knows only parts built before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

from fanoutfs.backend import Backend
from fanoutfs.cache.volume import Volume
from fanoutfs.clock import Clock, SystemClock
from fanoutfs.config.schema import MountConfig
from fanoutfs.core.admission import Admission
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.changes import Changes
from fanoutfs.core.disks import Disks, Further
from fanoutfs.core.durable import Durable
from fanoutfs.core.filesystem import FileSystem, resolve_path
from fanoutfs.core.fill import Fills
from fanoutfs.core.forgetting import Forgetting
from fanoutfs.core.freshness import Freshness
from fanoutfs.core.grace import Grace
from fanoutfs.core.grants import Grants
from fanoutfs.core.imports import Imports
from fanoutfs.core.jobs import Jobs
from fanoutfs.core.listahead import ListAhead
from fanoutfs.core.listing import Listings
from fanoutfs.core.notify import Notifier
from fanoutfs.core.numbers import Numbers
from fanoutfs.core.objectattributes import AttributeReader
from fanoutfs.core.orphans import OrphanReaper
from fanoutfs.core.outbound import Outbound, make_outbound
from fanoutfs.core.placement import Placement, make_placement
from fanoutfs.core.plans import Plans
from fanoutfs.core.policybook import PolicyBook
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
from fanoutfs.core.task import CoreTask
from fanoutfs.core.trace import Trace
from fanoutfs.core.warming import Warming
from fanoutfs.eviction.recency import LEARNT
from fanoutfs.index.format import Inode, Ownership
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import CORE_ROW, FIRST_FRONT_ROW, INDEX_BUSY
from fanoutfs.records import ROOT_INO

SIBLING_FILES: Final = 1024
"""Small files fetched ahead of one reader at most, whatever their size: 20 ms at 50,000 files/s, the most seen."""
_RUN_SHARE: Final = 128
"""Of the small files' share of the cache, what is evicted at most for what one reader, or one announced order, is
ahead."""


@dataclass(frozen=True, slots=True)
class Base:
    """What every part stands on."""

    task: CoreTask
    volume: Volume
    backend: Backend
    has_epoch: bool
    row: memoryview
    clock: Clock
    reader: IndexReader
    writer: GroupWriter[IndexTransaction]
    notifier: Notifier
    grace: Grace
    durable: Durable
    further: Sequence[Further]
    book: PolicyBook

    @property
    def ownership(self) -> Ownership:
        """Return what files show as owner and mode, and where their content is kept."""
        return replace(self.task.ownership, policy=self.book.is_packed)

    @property
    def config(self) -> MountConfig:
        """Return the mount's settings."""
        return self.task.config

    @property
    def small_cache_bytes(self) -> int:
        """Return how much of the cache small files may take."""
        return int(self.config.cache_size * self.config.small_cache_share)


@dataclass(frozen=True, slots=True)
class Names:
    """What there is, and how fresh that is."""

    listings: Listings
    freshness: Freshness


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes: who may fetch, where they go, what is under way."""

    arena: ArenaSlots
    admission: Admission
    staged: StagedBytes
    reads: Reads
    trace: Trace
    disks: Disks
    space: Space
    fills: Fills
    orphans: OrphanReaper


@dataclass(frozen=True, slots=True)
class Writing:
    """What changes the tree, here."""

    room: StagingRoom
    staging: Staging
    changes: Changes
    spares: Spares


@dataclass(frozen=True, slots=True)
class Ahead:
    """What goes ahead of readers of small files, or in the order they announced."""

    plans: Plans
    prefetch: Prefetch
    push: Push


@dataclass(frozen=True, slots=True)
class LongWork:
    """What somebody asked for and watches."""

    jobs: Jobs
    imports: Imports
    warming: Warming


@dataclass(frozen=True, slots=True)
class Core:
    """All parts."""

    base: Base
    names: Names
    data: Data
    filesystem: FileSystem
    writing: Writing
    ahead: Ahead
    long_work: LongWork
    placement: Placement
    forgetting: Forgetting


def build_base(
    task: CoreTask, volume: Volume, further: Sequence[Further], backend: Backend, *, has_epoch: bool
) -> Base:
    """Open what the parts share.  Starts the writer's thread: stop it at the end."""
    row = task.shared.row(CORE_ROW)
    durable = Durable(volume.environment, task.config.cache_size)
    volume.environment.show_pin(task.shared.pin)
    clock, reader = SystemClock(), IndexReader(volume.environment)
    writer: GroupWriter[IndexTransaction] = GroupWriter(
        "index-writer",
        partial(write_transaction, volume.environment),
        durable.note_committed,
        partial(_mark_busy, task.shared.flags),
        volume.environment.make_room,
    )
    return Base(
        task=task,
        volume=volume,
        backend=backend,
        has_epoch=has_epoch,
        row=row,
        clock=clock,
        reader=reader,
        writer=writer,
        notifier=Notifier(task.notify, has_epoch=has_epoch, row=row),
        grace=Grace(task.shared, task.config.front_count()),
        durable=durable,
        further=further,
        book=PolicyBook(config=task.config, reader=reader, writer=writer, root_prefix=task.root_prefix, clock=clock),
    )


def _mark_busy(flags: memoryview, is_busy: bool) -> None:
    """Tell the fronts that the index is being changed, or is not any more."""
    flags[INDEX_BUSY] = is_busy


def build_core(base: Base, nursery: trio.Nursery) -> Core:
    """Put all parts together.  nursery: where listings, fills and jobs will run."""
    names = _build_names(base, nursery)
    data = _build_data(base, nursery)
    attributes = AttributeReader(
        nursery=nursery,
        backend=base.backend,
        writer=base.writer,
        distrust=names.listings.distrust,
        patience_s=base.config.op_timeout,
    )
    filesystem = FileSystem(
        reader=base.reader,
        listings=names.listings,
        fills=data.fills,
        freshness=names.freshness,
        shared=base.task.shared,
        metadata_ttl_s=base.config.metadata_ttl,
        attributes=attributes if base.config.object_attributes == "lookup" else None,
    )
    list_ahead = ListAhead(base.reader, names.listings, base.task.root_prefix, base.config.metadata_ttl)
    filesystem.on_first_use = list_ahead.note_first_use
    writing = _build_writing(base, data, filesystem)
    ahead = _build_ahead(base, data, filesystem)
    long_work = _build_long_work(base, names, data, nursery)
    placement = _build_placement(base, nursery, data, writing, long_work)
    forgetting = Forgetting(
        reader=base.reader,
        writer=base.writer,
        listings=names.listings,
        notifier=base.notifier,
        evicting=placement.evicting,
        jobs=long_work.jobs,
    )
    return Core(base, names, data, filesystem, writing, ahead, long_work, placement, forgetting)


def build_outbound(core: Core, tag: str) -> Outbound:
    """Put together what brings changes to the store, and let those who make them tell it.  tag: see TagVolume."""
    base, writing = core.base, core.writing
    outbound = make_outbound(
        config=base.config,
        backend=base.backend,
        root_prefix=base.task.root_prefix,
        reader=base.reader,
        writer=base.writer,
        files=base.volume.staging,
        staging=writing.staging,
        grace=base.grace,
        listings=core.names.listings,
        jobs=core.long_work.jobs,
        is_held=base.notifier.is_held,
        locate=partial(resolve_path, core.filesystem, base.reader, ROOT_INO),
        book=base.book,
        warming=core.long_work.warming,
        unanswered=base.task.unanswered,
        ownership=base.ownership,
        clock=base.clock,
        tag=tag,
        row=base.row,
    )
    writing.changes.note_made = outbound.uploads.note_dirty
    writing.spares.note_made = outbound.uploads.take_up
    outbound.uploads.catch_up = writing.spares.catch_up
    outbound.uploads.gives_way = partial(_are_readers_first, core.data)
    writing.changes.note_dirty = outbound.note_changed
    writing.changes.note_renamed = outbound.uploads.note_renamed
    writing.changes.is_uploading = outbound.uploads.is_uploading
    writing.staging.note_dirty = outbound.uploads.note_dirty
    writing.room.may_shrink = partial(_may_free_staging, core.data, outbound)
    outbound.publisher.rescue.is_all_cached = partial(_is_all_cached, core.long_work.warming)
    core.filesystem.wait_published = outbound.publisher.wait_idle
    core.placement.policing.hurry = outbound.uploads.hurry
    core.placement.policing.reclass = outbound.classes.change
    core.placement.policing.let_readers_first = core.data.admission.let_readers_first
    base.book.on_change.append(outbound.uploads.note_rules_changed)
    core.placement.tiers.is_uploading = outbound.uploads.is_uploading
    return outbound


def _is_all_cached(warming: Warming, inode: Inode) -> bool:
    """Tell whether all of a file's content is in the cache."""
    return warming.cached_bytes(inode) >= inode.size_bytes


def _may_free_staging(data: Data, outbound: Outbound) -> bool:
    """Tell whether anything that is staged will be uploaded, or was unlinked and not freed yet."""
    return outbound.uploads.may_free_staging() or data.orphans.may_free_staging()


def _are_readers_first(data: Data) -> bool:
    """Tell whether readers wait for the store, and writers are not about to."""
    return data.admission.has_reader_waiting and data.space.staging_room() > data.space.staging_cap_bytes // 2


def _build_names(base: Base, nursery: trio.Nursery) -> Names:
    listings = Listings(
        nursery=nursery,
        backend=base.backend,
        root_prefix=base.task.root_prefix,
        reader=base.reader,
        writer=base.writer,
        notifier=base.notifier,
        grace=base.grace,
        ownership=base.ownership,
        clock=base.clock,
        op_timeout_s=base.config.op_timeout,
        row=base.row,
    )
    freshness = Freshness(
        listings=listings, reader=base.reader, notifier=base.notifier, metadata_ttl_s=base.config.metadata_ttl
    )
    return Names(listings, freshness)


def _build_data(base: Base, nursery: trio.Nursery) -> Data:
    config, volume = base.config, base.volume
    arena = ArenaSlots(base.task.arena, base.grace)
    admission = Admission(config.fill_memory - config.arena_bytes(), config.requests)
    readahead = ReadAhead(min(config.max_readahead, config.fill_memory))
    staged = StagedBytes(base.task.volume_path, partial(base.task.shared.total, Count.WRITER_BYTES))
    reads = Reads(base.task.shared, base.task.volume_path, config.cache_size)
    volume.small.judge = reads.judge_small if config.eviction == LEARNT else reads.judge_small_by_age
    disks = Disks(
        further=base.further,
        files=volume.files,
        environment=volume.environment,
        writer=base.writer,
        grace=base.grace,
        volume=base.task.volume_path,
        floor_bytes=config.free_space_floor,
        inode_floor=config.free_inode_floor,
        cap_bytes=config.cache_size,
        flags=base.task.shared.flags,
        row=base.row,
    )
    space = Space(
        cap_bytes=config.cache_size,
        floor_bytes=config.free_space_floor,
        other_bytes=base.task.other_volumes_bytes,
        environment=volume.environment,
        writer=base.writer,
        files=volume.files,
        small=volume.small,
        grace=base.grace,
        staged=staged,
        reads=reads,
        staging_cap_bytes=config.staging_bytes(),
        grants=Grants([base.task.shared.row(FIRST_FRONT_ROW + front) for front in range(config.front_count())]),
        disks=disks,
        durable=base.durable,
        eviction=config.eviction,
        row=base.row,
    )
    fills = Fills(
        nursery=nursery,
        backend=base.backend,
        reader=base.reader,
        writer=base.writer,
        files=volume.files,
        small=volume.small,
        arena=arena,
        space=space,
        admission=admission,
        readahead=readahead,
        requests=config.requests,
        op_timeout_s=config.op_timeout,
        row=base.row,
    )
    orphans = OrphanReaper(
        environment=volume.environment,
        staging=volume.staging,
        small=volume.small,
        space=space,
        notifier=base.notifier,
        grace=base.grace,
        readahead=readahead,
        clock=base.clock,
        row=base.row,
    )
    trace = Trace(base.task.shared, base.reader)
    return Data(arena, admission, staged, reads, trace, disks, space, fills, orphans)


def _build_writing(base: Base, data: Data, filesystem: FileSystem) -> Writing:
    numbers = Numbers(base.writer)
    fronts, shared = base.config.front_count(), base.task.shared
    spares = Spares(base.volume.staging, numbers, shared.spares, partial(shared.busy_marks, fronts), fronts)
    room = StagingRoom(data.space, data.staged)
    staging = Staging(
        reader=base.reader,
        writer=base.writer,
        staging=base.volume.staging,
        files=base.volume.files,
        small=base.volume.small,
        fills=data.fills,
        arena=data.arena,
        space=data.space,
        room=room,
        grace=base.grace,
        durable=base.durable,
        numbers=numbers,
        spares=spares,
        ownership=base.ownership,
        root_prefix=base.task.root_prefix,
        clock=base.clock,
        op_timeout_s=base.config.op_timeout,
    )
    changes = Changes(
        filesystem=filesystem,
        staging=staging,
        reader=base.reader,
        writer=base.writer,
        numbers=numbers,
        root_prefix=base.task.root_prefix,
        clock=base.clock,
    )
    return Writing(room, staging, changes, spares)


def _build_ahead(base: Base, data: Data, filesystem: FileSystem) -> Ahead:
    config = base.config
    push = Push(base.task.push, base.row)
    plans = Plans(
        reader=base.reader,
        filesystem=filesystem,
        fills=data.fills,
        small=base.volume.small,
        push=push,
        window_bytes=min(config.plan_window, base.small_cache_bytes // 4),
        least_bytes=base.small_cache_bytes // _RUN_SHARE,
        find_idle=data.space.idle_bytes,
        requests=config.requests,
        row=base.row,
    )
    data.space.is_awaited = plans.is_ahead
    data.reads.orders = plans
    prefetch = Prefetch(
        reader=base.reader,
        fills=data.fills,
        root_prefix=base.task.root_prefix,
        requests=config.requests,
        siblings=Siblings(
            max_files=SIBLING_FILES,
            max_bytes=config.max_readahead,
            sweep_bytes=base.small_cache_bytes // 4 if config.max_readahead else 0,
        ),
        plans=plans,
        push=push,
        find_idle=data.space.idle_bytes,
        run_bytes=base.small_cache_bytes // _RUN_SHARE,
        row=base.row,
    )
    return Ahead(plans, prefetch, push)


def _build_long_work(base: Base, names: Names, data: Data, nursery: trio.Nursery) -> LongWork:
    jobs = Jobs(nursery)
    imports = Imports(
        jobs=jobs,
        backend=base.backend,
        root_prefix=base.task.root_prefix,
        reader=base.reader,
        writer=base.writer,
        listings=names.listings,
        ownership=base.ownership,
        clock=base.clock,
        row=base.row,
        has_epoch=base.has_epoch,
    )
    warming = Warming(
        jobs=jobs,
        reader=base.reader,
        listings=names.listings,
        imports=imports,
        fills=data.fills,
        small=base.volume.small,
        metadata_ttl_s=base.config.metadata_ttl,
    )
    return LongWork(jobs, imports, warming)


def _build_placement(base: Base, nursery: trio.Nursery, data: Data, writing: Writing, long_work: LongWork) -> Placement:
    placement = make_placement(
        nursery=nursery,
        config=base.config,
        root_prefix=base.task.root_prefix,
        backend=base.backend,
        book=base.book,
        ownership=base.ownership,
        environment=base.volume.environment,
        reader=base.reader,
        writer=base.writer,
        small=base.volume.small,
        staging=writing.staging,
        warming=long_work.warming,
        space=data.space,
        fills=data.fills,
        arena=data.arena,
        jobs=long_work.jobs,
        clock=base.clock,
        row=base.row,
    )
    writing.changes.virtual_xattr = placement.tiers.xattr
    return placement
