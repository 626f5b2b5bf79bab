"""`fanoutfs tier push`: hand files over to the store now, by name, in the class that is asked for.

Core, trio thread only.  What is dirty below the paths is uploaded without delay, also what is not uploaded by itself
(`upload_after = "never"`, `--no-upload`), save what a policy keeps local.  With a class, what is in the store already
is put into it as well (`classes`).

    {"op": "tier_push", "paths": […], "storage_class": ""} → {"job": id}; result: {"refused": […], "failures": […]}
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

import trio

from fanoutfs.core.awaited import Awaited
from fanoutfs.core.classes import StorageClasses
from fanoutfs.core.control import Command
from fanoutfs.core.facts import Asked
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.tiers import paths_of
from fanoutfs.core.uploads import Uploads
from fanoutfs.core.walking import TreeWalk
from fanoutfs.core.warming import Warming
from fanoutfs.errors import FanoutError, ObjectMissingError, UsageError
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.05
_NAMED: Final = 100
_PARALLEL: Final = 8


class Handing:
    """Pushes."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        uploads: Uploads,
        classes: StorageClasses,
        warming: Warming,
        jobs: Jobs,
    ) -> None:
        self._reader = reader
        self._uploads = uploads
        self._classes = classes
        self._warming = warming
        self._jobs = jobs

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {"tier_push": self._push}

    async def _push(self, request: Mapping[str, Any]) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        paths = paths_of(request)
        storage_class = request.get("storage_class", "")
        if not isinstance(storage_class, str):
            raise UsageError("storage_class: write a text")

        async def work(job: Job) -> None:
            job.progress.update(files=0, done=0)
            job.result = {"refused": [], "failures": [], "uploaded": 0, "reclassed": 0}
            for path in paths:
                await self._push_path(job, path, storage_class)

        return {"job": self._jobs.start("tier push", None, work).id}

    async def _push_path(self, job: Job, path: str, storage_class: str) -> None:
        try:
            walk = TreeWalk(self._reader, path, await self._warming.locate_named(path))
        except ObjectMissingError as error:
            _add(job.result["failures"], str(error))
            return
        while batch := walk.batch():
            dirty = {inode.ino: found for found, inode in batch if self._is_dirty(inode)}
            job.progress["files"] += len(dirty)
            await self._upload(job, dirty, storage_class)
            if storage_class:
                clean = [(found, inode) for found, inode in batch if inode.ino not in dirty]
                await self._reclass(job, iter(clean), len(clean), storage_class)
            await trio.lowlevel.checkpoint()

    def _is_dirty(self, inode: Inode) -> bool:
        with self._reader.begin() as txn:
            records = self._reader.changed(txn)
            names = (inode.ino, *(records.links(inode.ino) if inode.links > 1 else ()))
            return any(records.dirty(each) is not None for each in names)

    async def _upload(self, job: Job, dirty: Mapping[int, str], storage_class: str) -> None:
        """Upload these and wait.  Raises what the store says when it refuses all that is left."""
        awaited = Awaited(self._uploads, dirty, Asked(storage_class))
        while awaited.left:
            left = awaited.left & dirty.keys()
            refused = {ino for ino in left if self._uploads.is_refused(ino)}
            for ino in refused:
                _add(job.result["refused"], dirty[ino])
            awaited.look()
            uploaded = len(left - refused - awaited.left)
            job.result["uploaded"] += uploaded
            job.progress["done"] += uploaded + len(refused)
            if not awaited.left:
                return
            if (refusal := awaited.refusal()) is not None:
                raise refusal
            await trio.sleep(_LOOK_S)

    async def _reclass(self, job: Job, files: Iterator[tuple[str, Inode]], count: int, storage_class: str) -> None:
        job.progress["files"] += count

        async def work() -> None:
            for path, inode in files:
                try:
                    changed = await self._classes.change(inode.ino, storage_class)
                    job.result["reclassed"] += changed  # (not read before the await: others count meanwhile)
                except FanoutError as error:
                    _add(job.result["failures"], f"{path}: {error}")
                job.progress["done"] += 1

        async with trio.open_nursery() as nursery:
            for _worker in range(min(_PARALLEL, count)):
                nursery.start_soon(work)


def _add(named: list[str], text: str) -> None:
    if len(named) < _NAMED:
        named.append(text)
