"""Everything about where bytes are and where policy wants them, put together.

Core, trio thread only.  What brings bytes to the store (`outbound`) is not part of it: a read-only mount has all of
this as well.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.clock import Clock
from fanoutfs.config.schema import MountConfig
from fanoutfs.core.access import Accesses
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.census import Census
from fanoutfs.core.control import Command
from fanoutfs.core.evicting import Evicting
from fanoutfs.core.fill import Fills
from fanoutfs.core.jobs import Jobs
from fanoutfs.core.packing import Packing
from fanoutfs.core.pinned import PinnedFetching
from fanoutfs.core.policing import Policing
from fanoutfs.core.policybook import PolicyBook
from fanoutfs.core.restoring import Restoring
from fanoutfs.core.space import Space
from fanoutfs.core.staging import Staging
from fanoutfs.core.tiers import Tiers
from fanoutfs.core.warming import Warming
from fanoutfs.index.format import Ownership
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter


@dataclass(frozen=True, slots=True)
class Placement:
    """The parts, running once `tasks` are started."""

    book: PolicyBook
    accesses: Accesses
    tiers: Tiers
    evicting: Evicting
    policing: Policing
    restoring: Restoring
    pinned: PinnedFetching
    census: Census

    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return the background tasks by name."""
        return {
            "accesses": self.accesses.run,
            "policies": self.policing.run,
            "pinned": self.pinned.run,
            "census": self.census.run,
        }

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {
            "reload": self._reload,
            **self.tiers.commands(),
            **self.evicting.commands(),
            **self.policing.commands(),
            **self.restoring.commands(),
        }

    def describe(self) -> dict[str, Any]:
        """Return how things stand, for status."""
        return {
            "policies": len(self.book.policies),
            "pins": sum(self.book.pins.values()),
            "evicted_by_age_bytes": self.policing.evicted_bytes,
            "reclassed_files": self.policing.reclassed_files,
            "repacked_files": self.policing.repacked_files,
            "archived_files_met": self.restoring.refused,
            **self.pinned.describe(),
            **self.census.describe(),
        }

    def note_small_reads(self, inos: Sequence[int]) -> None:
        """Take a front's word that small files were read.  No checkpoint."""
        self.accesses.note(inos)

    def note_part_read(self, ino: int, _part: int) -> None:
        """Take a front's word that a large file was read.  No checkpoint."""
        self.accesses.note((ino,))

    async def _reload(self, _request: Mapping[str, Any]) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return {"policies": self.book.reload()}


def make_placement(
    *,
    nursery: trio.Nursery,
    config: MountConfig,
    root_prefix: str,
    backend: Backend,
    book: PolicyBook,
    ownership: Ownership,
    environment: IndexEnvironment,
    reader: IndexReader,
    writer: GroupWriter[IndexTransaction],
    small: SmallStore,
    staging: Staging,
    warming: Warming,
    space: Space,
    fills: Fills,
    arena: ArenaSlots,
    jobs: Jobs,
    clock: Clock,
    row: memoryview,
) -> Placement:
    """Build the parts."""
    accesses = Accesses(reader, writer, clock)

    def follow_rules() -> None:
        accesses.grain_s = book.access_grain_s
        small.note_kept_changed(book.is_pinned if book.can_pin else None)

    space.is_pinned = book.is_pinned
    book.on_change.append(follow_rules)
    book.reload_or_keep()
    follow_rules()
    tiers = Tiers(
        reader=reader,
        writer=writer,
        backend=backend,
        staging=staging,
        book=book,
        accesses=accesses,
        warming=warming,
        jobs=jobs,
        root_prefix=root_prefix,
    )
    book.size_of = tiers.size

    def place_of(disk: int) -> str:
        return space.disks.place_of(disk) or ("out of service" if disk else str(config.cache_dir))

    tiers.place_of = place_of
    evicting = Evicting(
        reader=reader,
        small=small,
        space=space,
        fills=fills,
        arena=arena,
        book=book,
        tiers=tiers,
        warming=warming,
        jobs=jobs,
        row=row,
    )
    packing = Packing(
        writer=writer,
        small=small,
        fills=fills,
        arena=arena,
        evicting=evicting,
        warming=warming,
        book=book,
        ownership=ownership,
        root_prefix=root_prefix,
    )
    policing = Policing(
        reader=reader,
        book=book,
        packing=packing,
        tiers=tiers,
        accesses=accesses,
        evicting=evicting,
        warming=warming,
        jobs=jobs,
        clock=clock,
    )
    restoring = Restoring(nursery=nursery, backend=backend, reader=reader, writer=writer, warming=warming, jobs=jobs)
    fills.on_archived = restoring.note_refused
    pinned = PinnedFetching(
        reader=reader, book=book, tiers=tiers, warming=warming, bytes_per_s=config.fetch_bandwidth or None
    )
    census = Census(environment, reader, tiers)
    return Placement(book, accesses, tiers, evicting, policing, restoring, pinned, census)
