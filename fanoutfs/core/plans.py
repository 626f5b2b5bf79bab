"""Announced orders: takes them over the control socket and fetches just ahead of their consumers.

Core, trio thread only.  `plan` decides, this module moves.

* A plan has a name; one that begins under the name of another replaces it (the next epoch).  Several live side by
  side, each with a window of its own; of more than `_PLANS` the one begun first is forgotten.
* Paths are resolved when they are announced; a directory not listed yet is listed for it.  Paths that lead nowhere
  are counted, named to the announcer, and skipped.  An object that changes later is a new inode: the plan skips it,
  and its reader waits.
* Plans live in this process.  A core that is restarted has forgotten them: readers are served all the same, and the
  next epoch announces itself anew.
* Where the cache is smaller than the data set, what a plan still comes to is worth keeping, the sooner the more, and
  what it has been through goes before that (`find_turns`); parts of large files already fetched for it are spared from
  eviction.
* Small files that have arrived are handed to the pusher, in the order of the plan.  A file it has pushed counts as read
  once one further on is.  Which ones it is to leave out, for a sign of the reader, it is told before they arrive.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import trio

from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.control import Command
from fanoutfs.core.filesystem import FileSystem
from fanoutfs.core.fill import Fills
from fanoutfs.core.plan import Plan
from fanoutfs.core.push import Push
from fanoutfs.core.turns import Turns
from fanoutfs.errors import FanoutError, UsageError
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import PART_BYTES, ROOT_INO

log = logging.getLogger(__name__)

_PLANS: Final = 16
_STEP_FILES: Final = 256
"""Looked at in one go, and resolved in one go: about 2 ms of the core's time."""
_FULL_PAUSE_S: Final = 0.005
"""Between two looks whether enough small files have arrived to fetch more."""
_EXAMPLES: Final = 5
_FOLDERS: Final = 8192


class Plans:
    """The plans of a mount."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        filesystem: FileSystem,
        fills: Fills,
        small: SmallStore,
        push: Push,
        window_bytes: int,
        least_bytes: int,
        find_idle: Callable[[], int],
        requests: int,
        row: memoryview,
    ) -> None:
        """Take the parts.

        window_bytes: of one plan at most; least_bytes: in any case, though something must be evicted for it.
        find_idle: returns how many bytes of the cache nothing was ever put into.
        """
        self._reader = reader
        self._filesystem = filesystem
        self._fills = fills
        self._small = small
        self._push = push
        self._window_bytes = window_bytes
        self._least_bytes = min(window_bytes, least_bytes)
        self._find_idle = find_idle
        self._most_under_way = 4 * requests
        self._row = row
        self._plans: dict[str, Plan] = {}
        self._numbers = itertools.count(1)
        self._revision = 0
        self._wanted = trio.Event()
        self._folders: dict[bytes, int] = {}
        fills.on_large_read = self.note_large_read
        if push.is_active:
            fills.on_small_end = self._push_ready

    # --- commands ----------------------------------------------------------------------------------------------

    def commands(self) -> Mapping[str, Command]:
        """Return what the control socket understands of plans."""
        return {"plan_begin": self._begin, "plan_add": self._add, "plan_end": self._end}

    async def _begin(self, request: Mapping[str, Any]) -> dict[str, int]:
        name = str(request.get("name", ""))
        self._remove(name)
        while len(self._plans) >= _PLANS:
            self._remove(next(iter(self._plans)))
        self._folders.clear()
        number = next(self._numbers)
        self._revision += 1
        self._plans[name] = Plan(number, name, self._window_bytes, self._least_bytes, self._find_idle())
        log.info("plan begun number=%d name=%r", number, name)
        return {"plan": number}

    async def _add(self, request: Mapping[str, Any]) -> dict[str, Any]:
        number, paths = request.get("plan"), request.get("paths")
        if not isinstance(paths, list):
            raise UsageError("plan_add: `paths` is to be a list")
        examples: list[str] = []
        unknown = 0
        for at in range(0, len(paths), _STEP_FILES):
            plan = self._find(number)
            inos = []
            for path in paths[at : at + _STEP_FILES]:
                ino = await self._resolve(str(path).encode("utf-8", "surrogateescape"))
                if ino is None:
                    unknown += 1
                    examples += [str(path)] * (len(examples) < _EXAMPLES)
                else:
                    inos.append(ino)
            plan.extend(inos)
            self._wanted.set()
            await trio.lowlevel.checkpoint()
        self._find(number).unknown += unknown
        return {"unknown": unknown, "examples": examples}

    async def _end(self, request: Mapping[str, Any]) -> dict[str, Any]:
        plan = self._find(request.get("plan"))
        plan.is_complete = True
        self._revision += 1
        self._wanted.set()
        return {"files": len(plan.inos), "unknown": plan.unknown}

    def _find(self, number: object) -> Plan:
        for plan in self._plans.values():
            if plan.number == number:
                return plan
        raise FanoutError(f"plan {number} is not known any more: it was replaced, or the daemon restarted")

    def describe(self) -> list[dict[str, Any]]:
        """Return the state of all plans, for status."""
        return [
            {
                "name": plan.name,
                "files": len(plan.inos),
                "unknown": plan.unknown,
                "position": plan.position,
                "fetched": plan.edge,
                "ahead_bytes": plan.ahead_bytes,
                "used_bytes": plan.used_bytes,
                "wasted_bytes": plan.wasted_bytes,
            }
            for plan in self._plans.values()
        ]

    async def _resolve(self, path: bytes) -> int | None:
        folder, _slash, name = path.rpartition(b"/")
        parent = self._folders.get(folder)
        if parent is None:
            parent = await self._resolve_folder(folder)
            if parent is None:
                return None
            if len(self._folders) >= _FOLDERS:
                self._folders.clear()
            self._folders[folder] = parent
        with self._reader.begin() as txn:
            return self._reader.child(txn, parent, name)

    async def _resolve_folder(self, folder: bytes) -> int | None:
        ino: int | None = ROOT_INO
        for name in folder.split(b"/"):
            if name in (b"", b"."):
                continue
            if not await self._list(ino):
                return None
            with self._reader.begin() as txn:
                ino = self._reader.child(txn, ino or 0, name)
            if ino is None:
                return None
        return ino if await self._list(ino) else None

    async def _list(self, ino: int | None) -> bool:
        """Make sure that names in a directory are known; tell whether it is one."""
        if ino is None:
            return False
        try:
            directory = self._filesystem.inode(ino)
            if directory.is_dir and not directory.is_listed:
                await self._filesystem.make_listed(ino)
        except FanoutError as error:
            log.warning("plan: directory cannot be listed ino=%d: %s", ino, error)
            return False
        return directory.is_dir

    def _remove(self, name: str) -> None:
        plan = self._plans.pop(name, None)
        if plan is not None:
            plan.give_up()
            self._count(plan)

    # --- reads -------------------------------------------------------------------------------------------------

    def note_read(self, ino: int, *, is_missing: bool) -> bool:
        """Note that a small file was read; tell whether a plan takes care of it.  is_missing: it was not cached."""
        is_planned = False
        for plan in self._plans.values():
            if plan.note_read(ino, is_missing=is_missing):
                is_planned = True
                self._count(plan)
        if is_planned:
            self._wanted.set()
        return is_planned

    def note_pushed(self, runs: Sequence[tuple[int, int]]) -> None:
        """Note that the page cache answers for these small files: (first inode, how many)."""
        for plan in self._plans.values():
            for first, count in runs:
                if plan.note_pushed(range(first, first + count)):
                    self._count(plan)
                    self._wanted.set()

    def _push_ready(self) -> None:
        """Have the pusher push what arrived."""
        for plan in self._plans.values():
            self._push.push_ahead(plan.take_ready(self._fills.is_small_under_way))

    def note_large_read(self, inode: Inode, end: int, is_missing: bool) -> None:
        """Note that a reader of a large file arrived in the part which ends there.  is_missing: as `note_read`.

        What one plan has fetched ahead the others do not look for: of the plans of many jobs that takes milliseconds.
        """
        is_missing = is_missing and not any(inode.ino in plan.ahead for plan in self._plans.values())
        for plan in self._plans.values():
            if plan.note_part_read(inode.ino, end, inode.size_bytes, is_missing=is_missing):
                self._count(plan)
                self._wanted.set()

    def is_ahead(self, ino: int, offset: int = 0) -> bool:
        """Tell whether a plan has fetched what lies at this offset of a file and its reader is still to come."""
        return any(plan.is_ahead(ino, offset) for plan in self._plans.values())

    @property
    def revision(self) -> int:
        """Return another number when an order has begun, or is complete, since."""
        return self._revision

    def find_turns(self, inos: Collection[int]) -> Turns:
        """Return when plans come to these inodes.  Any thread; 40 ns for each file announced."""
        due: dict[int, int] = {}
        over: dict[int, int] = {}
        for plan in list(self._plans.values()):
            position, left = plan.position, plan.files_left
            for ahead, ino in enumerate(plan.inos[position:]):
                if ino in inos and ahead < due.get(ino, ahead + 1):
                    due[ino] = ahead
            for ino in plan.inos[:position]:
                if ino not in inos:
                    continue
                if plan.is_ahead(ino):  # fetched for a worker that others have overtaken
                    due[ino] = 0
                elif left < over.get(ino, left + 1):
                    over[ino] = left
        return Turns(due, {ino: left for ino, left in over.items() if ino not in due})

    def files_left_after(self, ino: int) -> int | None:
        """Return how many files a plan still comes to that read this one lately; None: none did.  Any thread."""
        plans = list(self._plans.values())
        return min((plan.files_left for plan in plans if plan.was_read_lately(ino)), default=None)

    def _count(self, plan: Plan) -> None:
        used, wasted = plan.take_learnt()
        bump(self._row, Count.PREFETCH_USED_BYTES, used)
        bump(self._row, Count.PREFETCH_WASTED_BYTES, wasted)

    # --- fetching ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch ahead of all consumers, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            for plan in list(self._plans.values()):
                if plan.is_over and self._plans.get(plan.name) is plan:  # not its successor
                    self._remove(plan.name)
                while plan.has_room() and plan in self._plans.values():
                    if self._fills.small_under_way >= self._most_under_way:
                        await trio.sleep(_FULL_PAUSE_S)
                        continue
                    has_more = self._fetch_some(plan)
                    if self._push.is_active:
                        self._push_ready()  # (what was cached already)
                    await trio.lowlevel.checkpoint()
                    if not has_more:
                        break

    def _fetch_some(self, plan: Plan) -> bool:
        """Start fetching some of what comes next; tell whether there is room for more.  No checkpoint."""
        is_full = False
        small: list[Inode] = []
        left_out: list[int] = []
        with self._reader.begin() as txn:
            for _n in range(_STEP_FILES):
                if not plan.has_room():
                    break
                inode = self._reader.inode(txn, plan.inos[plan.edge])
                if inode is None or inode.is_dir or not inode.size_bytes:
                    plan.step()
                elif inode.is_small:
                    is_cached = self._small.has(inode.ino)
                    if not is_cached and not plan.fits(inode.size_bytes):
                        is_full = True
                        break
                    if plan.note_fetched(inode.ino, 0 if is_cached else inode.size_bytes):
                        left_out.append(inode.ino)
                    small += [] if is_cached else [inode]
                    plan.step()
                elif not self._fetch_part(plan, inode):
                    is_full = True
                    break
        self._push.leave_out(left_out)
        self._fills.fetch_small_ahead(small)
        return not is_full

    def _fetch_part(self, plan: Plan, inode: Inode) -> bool:
        """Start fetching the next part of the large file at the edge, if there is room."""
        start = plan.edge_part * PART_BYTES
        if start >= inode.size_bytes:  # it became shorter meanwhile
            plan.step()
            return True
        size_bytes = min(PART_BYTES, inode.size_bytes - start)
        if not plan.fits(size_bytes) and self._fills.is_part_missing(inode, plan.edge_part):
            return False
        fills = self._fills.fetch_part_ahead(inode, plan.edge_part)
        fetched_bytes = min(size_bytes, sum([fill.size_bytes for fill in fills]))
        plan.note_fetched(inode.ino, fetched_bytes, size_bytes - fetched_bytes)
        if start + PART_BYTES >= inode.size_bytes:
            plan.step()
        else:
            plan.edge_part += 1
        return True
