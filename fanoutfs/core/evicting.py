"""Eviction on request: `fanoutfs evict`, and files whose age a policy limits.  Pins.

Core, trio thread only.  Only bytes that the store has as well are given up, and never one that is pinned: not when it
is asked for by name either, `unpin` comes first.  What stays is counted by its reason.

    {"op": "evict", "paths": […]}            → {"job": id}; result: {"kept": {reason: {"files", "bytes", "examples"}}}
    {"op": "pin", "paths": […], "pinned": true} → {"pins": how many paths are pinned now, "changed": […]}
    {"op": "pins"}                           → {"pins": {path: pinned}}
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.control import Command
from fanoutfs.core.fill import Fills
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.policybook import PolicyBook
from fanoutfs.core.space import Space
from fanoutfs.core.tidying import tidy
from fanoutfs.core.tiers import Tiers, paths_of
from fanoutfs.core.walking import TreeWalk
from fanoutfs.core.warming import Warming
from fanoutfs.errors import CacheFullError, DatabaseError, FanoutError
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.tiering.states import Tier, tier_of

log = logging.getLogger(__name__)

_EXAMPLES: Final = 5
_REASONS: Final = {
    Tier.DIRTY: "not uploaded yet",
    Tier.UPLOADING: "being uploaded",
    Tier.LOCAL: "kept local, the store does not have it",
    Tier.PINNED: "pinned",
    Tier.ARCHIVED: "archived in the store, what is here could not be fetched again",
}


class Evicting:
    """Gives up files."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        small: SmallStore,
        space: Space,
        fills: Fills,
        arena: ArenaSlots,
        book: PolicyBook,
        tiers: Tiers,
        warming: Warming,
        jobs: Jobs,
        row: memoryview,
    ) -> None:
        self._reader = reader
        self._small = small
        self._space = space
        self._fills = fills
        self._arena = arena
        self._book = book
        self._tiers = tiers
        self._warming = warming
        self._jobs = jobs
        self._row = row

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {"evict": self._evict, "pin": self._pin, "pins": self._pins}

    async def _evict(self, request: Mapping[str, Any]) -> dict[str, str]:
        paths = paths_of(request)

        async def work(job: Job) -> None:
            kept: dict[str, dict[str, Any]] = {}
            job.result = {"kept": kept, "failures": []}
            job.progress.update(files=0, freed_files=0, freed_bytes=0)
            for path in paths:
                try:
                    walk = TreeWalk(self._reader, path, await self._warming.locate(path))
                except FanoutError as error:
                    job.result["failures"].append(f"{path}: {error}")
                    job.result["exit_code"] = error.exit_code
                    continue
                while batch := walk.batch():
                    freed_files, freed_bytes = await self.evict_files(batch, kept)
                    job.progress["files"] += len(batch)
                    job.progress["freed_files"] += freed_files
                    job.progress["freed_bytes"] += freed_bytes
            await self.free_dead_bytes()

        return {"job": self._jobs.start("evict", None, work).id}

    async def evict_files(
        self, files: Sequence[tuple[str, Inode]], kept: dict[str, dict[str, Any]] | None = None
    ) -> tuple[int, int]:
        """Evict these, as they are by now; return (files, bytes) that were given up.  Checkpoint.

        kept: gets what stays, by its reason.  Raises DatabaseError, OSError.
        """
        await trio.lowlevel.checkpoint()
        small: dict[int, int] = {}
        freed_files = freed_bytes = 0
        for path, found in files:
            inode = self._warming.inode_or_none(found.ino)
            if inode is None:
                continue
            facts = self._tiers.facts(path, inode)
            tier = tier_of(facts)
            if not facts.cached_bytes or tier is Tier.REMOTE:
                continue
            why = _REASONS.get(tier) or ("being fetched" if self._fills.is_filling(inode.ino) else "")
            if tier is Tier.CACHED and facts.is_archived:
                why = _REASONS[Tier.ARCHIVED]
            if why:
                count_file(kept, why, path, facts.cached_bytes)
            elif inode.is_small:
                small[inode.ino] = facts.cached_bytes
            else:
                freed = await self._space.evict_file(inode.ino)
                self._arena.withdraw_inode(inode.ino)  # what is still in memory is not to be found there, either
                freed_files += bool(freed)
                freed_bytes += freed
                if freed < facts.cached_bytes:
                    count_file(kept, "being fetched", path, facts.cached_bytes - freed)
        if small:
            await self._small.drop_many(list(small))
            bump(self._row, Count.EVICTED_BYTES, sum(small.values()))
        return freed_files + len(small), freed_bytes + sum(small.values())

    async def free_dead_bytes(self) -> None:
        """Give back the space of small files that were evicted: their segments are written anew.  Checkpoint."""
        try:
            await self._small.leave_sparse()
            await tidy(self._small, self._space)
        except (CacheFullError, DatabaseError) as error:
            log.warning("dead bytes of small files stay for now: %s", error)

    # --- pins --------------------------------------------------------------------------------------------------

    async def _pin(self, request: Mapping[str, Any]) -> dict[str, Any]:
        pinned = bool(request.get("pinned", True))
        changed: list[str] = []
        for path in paths_of(request):
            if pinned or not self._book.has_pin_at_or_below(path):
                await self._warming.locate_named(path)  # a misspelt path would go unnoticed
            if await self._book.pin(path, pinned=pinned):
                changed.append(path)
        return {"pins": sum(self._book.pins.values()), "changed": changed}

    async def _pins(self, _request: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
        await trio.lowlevel.checkpoint()
        return {"pins": dict(sorted(self._book.pins.items()))}


def count_file(table: dict[str, dict[str, Any]] | None, name: str, path: str, size_bytes: int) -> None:
    """Count a file under a name of the table: files, bytes, and some examples.  None: nobody wants to know."""
    if table is not None:
        entry = table.setdefault(name, {"files": 0, "bytes": 0, "examples": []})
        entry["files"] += 1
        entry["bytes"] += size_bytes
        if len(entry["examples"]) < _EXAMPLES:
            entry["examples"].append(path)
