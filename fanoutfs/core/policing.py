"""Policy carried out: unread files are evicted, objects change their class with age, small files where they are kept.

Core, trio thread only.  One way to find out what is to be done (`tiering.moves`), walked in three ways: in the
background, as far as a policy asks for it, at a twentieth of the core's time; by `fanoutfs tier plan`, which tells; and
by `fanoutfs tier plan --now`, which does all of it at once.  Uploads have a queue of their own that follows the
policies; here they are told, and hurried by --now.

A cached file of which no access is known counts as read when it is met for the first time.

    {"op": "tier_explain", "path": "rel/ative", "size_bytes": null} → {…}
    {"op": "tier_plan", "paths": […], "now": false} → {"job": id}; result: {"moves": {move: {"files", "bytes"}}, …}
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import trio

from fanoutfs.clock import Clock
from fanoutfs.core.access import Accesses
from fanoutfs.core.control import Command
from fanoutfs.core.evicting import Evicting, count_file
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.packing import Packing
from fanoutfs.core.policybook import PolicyBook
from fanoutfs.core.rate import Rate
from fanoutfs.core.tiers import Tiers, paths_of
from fanoutfs.core.walking import TreeWalk
from fanoutfs.core.warming import Warming
from fanoutfs.errors import FanoutError, ObjectMissingError, UsageError
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.tiering.moves import Ages, Move, moves_of
from fanoutfs.tiering.policy import describe_rule

log = logging.getLogger(__name__)

_SHARE: Final = 20
_PERIODS: Final = 8
"""Looks within the shortest age that a policy asks for."""
_MIN_PERIOD_S: Final = 1.0
_MAX_PERIOD_S: Final = 3600.0
_FAILURES_NAMED: Final = 100
_READERS_FIRST_S: Final = 5.0
"""So long a change of class is put off while readers wait for their turn at the store."""

Found = tuple[str, Inode, dict[Move, int]]


class Policing:
    """Looks what is to be done, and does it."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        book: PolicyBook,
        packing: Packing,
        tiers: Tiers,
        accesses: Accesses,
        evicting: Evicting,
        warming: Warming,
        jobs: Jobs,
        clock: Clock,
    ) -> None:
        self._reader = reader
        self._book = book
        self._packing = packing
        self._tiers = tiers
        self._accesses = accesses
        self._evicting = evicting
        self._warming = warming
        self._jobs = jobs
        self._clock = clock
        self._changed = trio.Event()
        self.evicted_bytes = self.reclassed_files = self.repacked_files = 0
        """What policies have moved in the background since this core began."""
        self.hurry: Callable[[Sequence[int]], None] = _nothing
        """Uploads these without waiting any longer."""
        self.reclass: Callable[[int, str], Awaitable[bool]] | None = None
        """Puts an inode's object into a storage class; None: this mount changes nothing in the store."""
        self.let_readers_first: Callable[[float], Awaitable[None]] = _wait_for_nobody
        """Returns when no reader waits for the store, at the latest after so many seconds."""
        book.on_change.append(self._note_change)

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {"tier_explain": self._explain, "tier_plan": self._plan}

    # --- what is to be done ------------------------------------------------------------------------------------

    def _moves(self, path: str, inode: Inode) -> dict[Move, int]:
        facts = self._tiers.facts(path, inode)
        now_ns = self._clock.wall_ns()
        decision = self._book.decide(path, facts.size_bytes)
        accessed_ns = None
        if decision.evict_after_s is not None and facts.cached_bytes and facts.has_object:
            accessed_ns = self._accesses.last_ns(inode.ino)
            if accessed_ns is None:
                self._accesses.note((inode.ino,))
        with self._reader.begin() as txn:
            stored_class = self._reader.tiers(txn).stored_as(inode.ino).storage_class or None
        ages = Ages(
            None if accessed_ns is None else (now_ns - accessed_ns) / 1e9, (now_ns - inode.version.mtime_ns) / 1e9
        )
        moves = moves_of(decision, facts, ages, stored_class, is_misplaced=self._packing.is_misplaced(inode))
        if self.reclass is None:
            moves.pop(Move.RECLASS, None)
        return moves

    # --- in the background -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Evict and change classes as policies say, for ever."""
        while True:
            period_s = self._period_s()
            if period_s is not None:
                await self._round()
            with trio.move_on_after(float("inf") if period_s is None else period_s):
                await self._changed.wait()
            self._changed = trio.Event()

    def _note_change(self) -> None:
        self._changed.set()

    def _period_s(self) -> float | None:
        """Return how often to look; None: no policy asks for anything."""
        ages = [policy.evict_after_s for policy in self._book.policies]
        if self.reclass is not None:
            ages += [policy.storage_class_after_s for policy in self._book.policies]
        known = [age_s for age_s in ages if age_s is not None]
        if any(policy.is_packed is not None for policy in self._book.policies):
            known.append(_PERIODS * _MAX_PERIOD_S)  # once after a change; and what was in use then, now and then
        return min(_MAX_PERIOD_S, max(_MIN_PERIOD_S, min(known) / _PERIODS)) if known else None

    async def _round(self) -> None:
        freed = reclassed = repacked = 0
        walk = TreeWalk(self._reader, "", self._tiers.root())
        while True:
            started = time.monotonic()
            batch = walk.batch()
            if not batch:
                break
            found = [(path, inode, self._moves(path, inode)) for path, inode in batch]
            took_s = time.monotonic() - started
            try:
                freed += (await self._evict(found))[1]
                reclassed += await self._reclass(found, [])
                repacked += await self._repack(found)
            except (FanoutError, OSError) as error:
                log.warning("policies not carried out for now: %s", error)
                return
            await trio.sleep(took_s * _SHARE)
        if freed or repacked:
            await self._evicting.free_dead_bytes()
        self.evicted_bytes += freed
        self.reclassed_files += reclassed
        self.repacked_files += repacked
        if freed or reclassed or repacked:
            log.info("policies carried out freed_bytes=%d reclassed=%d repacked=%d", freed, reclassed, repacked)

    async def _evict(self, found: Sequence[Found]) -> tuple[int, int]:
        files = [(path, inode) for path, inode, moves in found if Move.EVICT in moves]
        return await self._evicting.evict_files(files) if files else (0, 0)

    async def _reclass(self, found: Sequence[Found], failures: list[str]) -> int:
        """Change the classes of these one by one: it is no hurry.  Returns how many were."""
        changed = 0
        for path, inode, moves in found:
            if Move.RECLASS in moves and self.reclass is not None:
                await self.let_readers_first(_READERS_FIRST_S)
                try:
                    decision = self._book.decide(path, inode.size_bytes)
                    changed += await self.reclass(inode.ino, decision.storage_class)
                except FanoutError as error:
                    log.warning("storage class not changed path=%s: %s", path, error)
                    failures.append(f"{path}: {error}")
        return changed

    async def _repack(self, found: Sequence[Found]) -> int:
        repacked = 0
        for path, inode, moves in found:
            if Move.REPACK in moves:
                repacked += await self._packing.repack(path, inode)
        return repacked

    # --- commands ----------------------------------------------------------------------------------------------

    async def _explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        (path,) = paths_of({"paths": [str(request.get("path", ""))]})
        size_bytes = request.get("size_bytes")
        try:
            inode: Inode | None = await self._warming.locate(path)
        except ObjectMissingError:
            inode = None  # what would become of it, if it were there
        if size_bytes is None:
            size_bytes = 0 if inode is None or inode.is_dir else self._tiers.size(inode)
        if not isinstance(size_bytes, int):
            raise UsageError("size_bytes: write a number")
        decision = self._book.decide(path, size_bytes)
        policy = self._book.matches(path, size_bytes)
        is_never = self._book.is_never(path, size_bytes, is_asked=False)
        return {
            "path": path,
            "size_bytes": size_bytes,
            "exists": inode is not None,
            "rule": describe_rule(decision),
            "patterns": [] if policy is None else list(policy.paths),
            "upload_after_s": None if is_never else decision.upload_after_s,
            "is_excluded": is_never and decision.is_uploaded,
            "keep_local": decision.is_kept_local,
            "evict_after_s": decision.evict_after_s,
            "pinned": decision.is_pinned,
            "pin": decision.pin,
            "storage_class": decision.storage_class,
            "storage_class_after_s": decision.storage_class_after_s,
            "packed": self._packing.is_packed(path, size_bytes),
        }

    async def _plan(self, request: Mapping[str, Any]) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        paths, is_now = paths_of(request), bool(request.get("now"))

        async def work(job: Job) -> None:
            moves: dict[str, dict[str, Any]] = {str(move): {"files": 0, "bytes": 0, "examples": []} for move in Move}
            failures: list[str] = []
            job.result = {"moves": moves, "failures": failures, "unlisted": 0}
            job.progress.update(files=0, bytes=0)
            for path in paths:
                walk = TreeWalk(self._reader, path, await self._warming.locate_named(path))
                while batch := walk.batch():
                    found = [(each, inode, self._moves(each, inode)) for each, inode in batch]
                    for each, _inode, wanted in found:
                        for move, size_bytes in wanted.items():
                            count_file(moves, str(move), each, size_bytes)
                    job.progress["files"] += len(batch)
                    if is_now:
                        await self._do(found, failures)
                        del failures[_FAILURES_NAMED:]
                    await trio.lowlevel.checkpoint()
                job.result["unlisted"] += walk.unlisted
            if is_now:
                await self._evicting.free_dead_bytes()

        return {"job": self._jobs.start("tier plan", None, work).id}

    async def _do(self, found: Sequence[Found], failures: list[str]) -> None:
        """Do all of it.  What is fetched is waited for, uploads are not: `drain --wait` does that."""

        def note_end(path: str, _inode: Inode, error: FanoutError | None) -> None:
            if error is not None:
                failures.append(f"{path}: {error}")

        await self._evict(found)
        await self._reclass(found, failures)
        self.repacked_files += await self._repack(found)
        self.hurry([inode.ino for _path, inode, moves in found if Move.UPLOAD in moves])
        filling = self._warming.filling(Rate(None), note_end)
        for path, inode, moves in found:
            if Move.FETCH in moves:
                await filling.add(path, inode)
        await filling.finish()


def _nothing(_inos: Sequence[int]) -> None:
    """Nothing is uploaded."""


async def _wait_for_nobody(_at_most_s: float) -> None:
    """Go on at once."""
