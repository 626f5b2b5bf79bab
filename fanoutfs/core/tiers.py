"""Where files are and why, for people: `fanoutfs info`, `tier ls`, `tier du`, and the attributes `user.fanoutfs.*`.

Core, trio thread only.  Everything but the storage class comes from the index; `info` asks the store for that.

    {"op": "info", "paths": ["rel/ative", …]}               → {"files": [{…}, …]}
    {"op": "tier_ls", "path": "rel/ative", "after": "name"} → {"entries": [{…}, …], "after": name to go on, or null}
    {"op": "tier_du", "paths": […]}                         → {"job": id}; its result: {"tiers": {tier: {…}}, …}
"""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any, Final

import trio

from fanoutfs.backend.archive import Restore
from fanoutfs.backend.base import Backend
from fanoutfs.core.access import Accesses
from fanoutfs.core.control import Command
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.policybook import PolicyBook
from fanoutfs.core.staging import Staging
from fanoutfs.core.walking import TreeWalk
from fanoutfs.core.warming import Warming
from fanoutfs.errors import BackendError, FanoutError, StaleInodeError, UsageError
from fanoutfs.index.format import DirtyRecord, Inode
from fanoutfs.index.operations import blocks_bytes
from fanoutfs.index.places import Places
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.tiering import NoteStored
from fanoutfs.index.tiers import StoredAs
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import ROOT_INO
from fanoutfs.tiering.policy import Decision, describe_rule
from fanoutfs.tiering.states import Tier, TierFacts, reason, share_cached, tier_of

log = logging.getLogger(__name__)

_LISTED: Final = 500
_STORE_PATIENCE_S: Final = 3.0
"""`info` waits so long for what only the store knows; the client waits a little longer for `info`."""
_XATTRS: Final = ("tier", "cached", "etag", "version", "class", "accessed", "pinned", "policy")


class Tiers:
    """Looks files up."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        backend: Backend,
        staging: Staging,
        book: PolicyBook,
        accesses: Accesses,
        warming: Warming,
        jobs: Jobs,
        root_prefix: str,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._backend = backend
        self._staging = staging
        self._book = book
        self._accesses = accesses
        self._warming = warming
        self._jobs = jobs
        self._root_prefix = root_prefix
        self.is_uploading: Callable[[int], bool] = _is_never
        """Tells whether an inode is being uploaded."""
        self.place_of: Callable[[int], str] = str
        """Returns the cache directory that a disk is."""

    # --- one file ----------------------------------------------------------------------------------------------

    def facts(self, path: str, inode: Inode) -> TierFacts:
        """Return what decides where a file is."""
        with self._reader.begin() as txn:
            dirty = self._reader.changed(txn).dirty(inode.ino)
            stored = self._reader.tiers(txn).stored_as(inode.ino)
        size_bytes = self.size(inode)
        decision = self._book.decide(path, size_bytes)
        return TierFacts(
            size_bytes=size_bytes,
            cached_bytes=self._local_bytes(inode, size_bytes),
            has_object=not inode.is_staged and not (inode.is_local and not inode.etag),
            what=None if dirty is None else dirty.what,
            is_uploading=self.is_uploading(inode.ino),
            is_never=not decision.is_uploaded or self._book.is_excluded(path),
            is_pinned=decision.is_pinned,
            is_archived=stored.is_archived,
        )

    def size(self, inode: Inode) -> int:
        """Return a file's size as users see it."""
        try:
            return self._staging.shown(inode).size_bytes
        except (StaleInodeError, OSError):
            return inode.size_bytes

    def _local_bytes(self, inode: Inode, size_bytes: int) -> int:
        if not inode.is_staged:
            return self._warming.cached_bytes(inode)
        if inode.is_whole:
            return size_bytes
        with self._reader.begin() as txn:
            records = self._reader.changed(txn)
            base_size = min(records.base_size(inode.ino) or 0, size_bytes)
            masks = dict(self._reader.parts(txn, inode.ino))
            for part, mask in records.local_parts(inode.ino).items():
                masks[part] = masks.get(part, 0) | mask
        local_bytes = sum(blocks_bytes(base_size, part, mask) for part, mask in masks.items())
        return min(local_bytes, base_size) + size_bytes - base_size

    def root(self) -> Inode:
        """Return the record of the mount's root."""
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ROOT_INO)
        if inode is None:
            raise StaleInodeError("the index has no root")
        return inode

    def describe(self, path: str, inode: Inode) -> dict[str, Any]:
        """Return what is known of a file without asking the store, ready for JSON."""
        facts = self.facts(path, inode)
        decision = self._book.decide(path, facts.size_bytes)
        with self._reader.begin() as txn:
            dirty = self._reader.changed(txn).dirty(inode.ino)
            stored = self._reader.tiers(txn).stored_as(inode.ino)
            key = Places.of_reader(self._reader, txn, self._root_prefix).key(inode.ino)
            parts_in = {self.place_of(disk): parts for disk, parts in self._reader.disks(txn, inode.ino).items()}
        return {
            "path": path,
            "tier": str(tier_of(facts)),
            "size_bytes": facts.size_bytes,
            "cached_bytes": facts.cached_bytes,
            "share_cached": round(share_cached(facts), 4),
            "key": key or "",
            "object_key": inode.key if facts.has_object else "",
            "etag": inode.etag if facts.has_object else "",
            "version_id": inode.version_id if facts.has_object else "",
            "mtime_ns": inode.version.mtime_ns,
            "storage_class": stored.storage_class,
            "last_access_ns": self._accesses.last_ns(inode.ino),
            "pin": decision.pin,
            "policy": decision.rule,
            "packed": inode.is_small,
            "parts_in": parts_in,
            "why": self._why(facts, decision, dirty),
        }

    @staticmethod
    def _why(facts: TierFacts, decision: Decision, dirty: DirtyRecord | None) -> str:
        rule = describe_rule(decision)
        if facts.is_never and decision.is_uploaded:
            rule = "its name is excluded by --no-upload"
        return reason(facts, rule=rule, pin=decision.pin, error="" if dirty is None else dirty.error)

    def xattr(self, ino: int, name: str) -> bytes | None:
        """Return an attribute `user.fanoutfs.NAME` that is made up here; None: there is none of this name."""
        if name not in _XATTRS:
            return None
        with self._reader.begin() as txn:
            inode = self._reader.inode(txn, ino)
            path = None if inode is None else self._book.path_in(txn, ino)
        if inode is None or inode.is_dir:
            return None
        found = self.describe(path or "", inode)
        accessed_ns = found["last_access_ns"]
        text = {
            "tier": found["tier"],
            "cached": f"{found['cached_bytes']}/{found['size_bytes']}",
            "etag": found["etag"],
            "version": found["version_id"],
            "class": found["storage_class"],
            "accessed": "" if accessed_ns is None else str(accessed_ns // 1_000_000_000),
            "pinned": "" if found["pin"] is None else str(found["pin"] or "/"),
            "policy": found["policy"],
        }[name]
        return str(text).encode("utf-8", "surrogateescape") if text else None

    # --- commands ----------------------------------------------------------------------------------------------

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {"info": self._info, "tier_ls": self._ls, "tier_du": self._du}

    async def _info(self, request: Mapping[str, Any]) -> dict[str, Any]:
        files: list[dict[str, Any]] = []
        for path in paths_of(request):
            try:
                files.append(await self._info_of(path))
            except FanoutError as error:
                files.append({"path": path, "error": str(error), "exit_code": error.exit_code})
        return {"files": files}

    async def _info_of(self, path: str) -> dict[str, Any]:
        inode = await self._warming.locate(path)
        if inode.is_dir:
            return {"path": path, "tier": "directory", "key": inode.key, "is_listed": inode.is_listed}
        found: Restore | None = None
        if inode.etag and not inode.is_staged:
            found = await self._learn_class(inode)
        return self.describe(path, inode) | {"restore": "" if found is None else found.value}

    async def _learn_class(self, inode: Inode) -> Restore | None:
        """Ask the store in which class an object is; return whether it can be read.

        None: it does not answer now; what it said before stands.  Checkpoint.
        """
        ask = partial(self._backend.details, inode.key)
        with trio.move_on_after(_STORE_PATIENCE_S):
            try:
                details = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
            except BackendError as error:
                log.debug("storage class not learnt key=%s: %s", inode.key, error)
                return None
            if details.info.version.etag == inode.etag:
                found = StoredAs(details.properties.storage_class, details.restore.is_archived)
                await self._writer.run(NoteStored(inode.ino, inode.etag, found).apply)
                return details.restore
        return None

    async def _ls(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path = str(request.get("path", ""))
        inode = await self._warming.locate_named(path)
        if not inode.is_dir:
            return {"entries": [self._entry(path, inode)], "after": None, "is_listed": True}
        after = os.fsencode(str(request.get("after", "")))
        with self._reader.begin() as txn:
            children = list(islice(self._reader.children(txn, inode.ino, after), _LISTED))
            inodes = [(name, self._reader.inode(txn, ino)) for name, ino, _dtype, _cookie in children]
        entries = [
            self._entry(f"{path}/{os.fsdecode(name)}".lstrip("/"), child) for name, child in inodes if child is not None
        ]
        further = os.fsdecode(children[-1][0]) if len(children) == _LISTED else None
        return {"entries": entries, "after": further, "is_listed": inode.is_listed}

    def _entry(self, path: str, inode: Inode) -> dict[str, Any]:
        if inode.is_dir:
            return {"path": path, "tier": "directory"}
        facts = self.facts(path, inode)
        return {
            "path": path,
            "tier": str(tier_of(facts)),
            "share_cached": round(share_cached(facts), 4),
            "size_bytes": facts.size_bytes,
        }

    async def _du(self, request: Mapping[str, Any]) -> dict[str, str]:
        paths = paths_of(request)

        async def work(job: Job) -> None:
            tiers = no_usage()
            job.result = {"tiers": tiers, "unlisted": 0}
            job.progress.update(files=0, bytes=0)
            for path in paths:
                walk = TreeWalk(self._reader, path, await self._warming.locate_named(path))
                while batch := walk.batch():
                    for found, inode in batch:
                        facts = self.facts(found, inode)
                        add_usage(tiers, facts)
                        job.progress["files"] += 1
                        job.progress["bytes"] += facts.size_bytes
                    await trio.lowlevel.checkpoint()
                job.result["unlisted"] += walk.unlisted

        return {"job": self._jobs.start("tier du", None, work).id}


def no_usage() -> dict[str, dict[str, int]]:
    """Return a table for `add_usage`."""
    return {str(tier): {"files": 0, "bytes": 0} for tier in Tier}


def add_usage(tiers: dict[str, dict[str, int]], facts: TierFacts) -> None:
    """Count a file under its tier; what a cached or pinned one lacks here is remote."""
    tier = tier_of(facts)
    tiers[tier]["files"] += 1
    here = min(facts.cached_bytes, facts.size_bytes) if tier in (Tier.CACHED, Tier.PINNED) else facts.size_bytes
    tiers[tier]["bytes"] += here
    tiers[Tier.REMOTE]["bytes"] += facts.size_bytes - here


def paths_of(request: Mapping[str, Any]) -> list[str]:
    """Return the paths that a request names, relative to the mountpoint.  Raises UsageError."""
    paths = request.get("paths", [])
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise UsageError("paths must be a list of texts")
    return ["/".join(part for part in path.split("/") if part not in ("", ".")) for path in paths]


def _is_never(_ino: int) -> bool:
    """Nothing is uploaded."""
    return False
