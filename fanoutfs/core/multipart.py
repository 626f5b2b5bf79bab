"""Objects in parts: large files, appended ones of which the store has most already, and copies of very large objects.

Core, trio thread only; requests run in worker threads.  An upload is remembered in the index before its first part and
forgotten when it was completed or aborted; what an earlier core left is aborted at the start.

Parts are read from the file while writers may go on; the upload is completed only if the file is as it was before
the first part.  The first error lets the parts under way end (their threads read the descriptor) and no new one begin.
"""

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import Condition, FileRange, Part, Properties, Upload
from fanoutfs.core.content import (
    COPY_RUN_BYTES,
    PlannedPart,
    Stamp,
    part_bytes,
    plan_parts,
    read_checksums,
    sent_ranges,
)
from fanoutfs.core.rate import Rate
from fanoutfs.errors import BackendError, DeadlineError, StaleInodeError, UnsupportedError
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.uploading import UPLOADS, BeginUpload, EndUpload
from fanoutfs.index.writer import GroupWriter
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.records import GIB, ObjectInfo, Version

if TYPE_CHECKING:
    from fanoutfs.core.facts import Facts, StagedContent

log = logging.getLogger(__name__)

T = TypeVar("T")

_COPY_PART_BYTES: Final = GIB


class MultipartUploads:
    """Begins, sends, completes and aborts uploads in parts."""

    def __init__(
        self,
        *,
        backend: Backend,
        reader: IndexReader,
        writer: GroupWriter[IndexTransaction],
        rate: Rate,
        requests: int,
        row: memoryview,
    ) -> None:
        """rate: what uploads may take of the network, single puts included."""
        self._backend = backend
        self._reader = reader
        self._writer = writer
        self.rate = rate
        self._requests = requests
        self._threads = trio.CapacityLimiter(requests)
        self._row = row
        self._numbers = itertools.count(1)

    async def send(
        self,
        facts: "Facts",
        fd: int,
        stamp: Stamp,
        properties: Properties,
        condition: Condition,
        checksums: dict[int, int],
        staging: "StagedContent",
    ) -> Version:
        """Upload a file in parts; what only the base object has is copied.  Checkpoint.

        checksums: filled with those of the blocks that were sent.  Raises StaleInodeError when the file was written to
        meanwhile: nothing was published then.
        """
        abilities = await self._in_thread(self._backend.abilities)
        unit = part_bytes(stamp.size_bytes, abilities.min_part_bytes, abilities.max_parts)
        source = facts.source
        local = facts.local if source is not None and abilities.can_copy_part else None
        copy_bytes = max(unit, min(COPY_RUN_BYTES, abilities.max_part_bytes))
        plan = plan_parts(stamp.size_bytes, unit, facts.base_size, local, copy_bytes)
        if facts.local is not None:
            for offset, size in sent_ranges(plan, facts.base_size):
                await staging.localise(facts.inode.ino, offset, size)
            stamp = await _settled(fd, stamp)
        ino = facts.inode.ino

        def send_part(upload: Upload, part: PlannedPart) -> Part:
            if part.is_copied and source is not None:
                return self._backend.copy_part(upload, part.number, source, part.start, part.end)
            sent = self._backend.upload_part(upload, part.number, FileRange(fd, part.start, part.end))
            checksums.update(read_checksums(fd, ino, part.start, part.end))
            return sent

        def is_same() -> bool:
            return Stamp.of(os.fstat(fd)) == stamp

        return await self._run(facts.key, properties, condition, plan, send_part, is_same)

    async def copy(self, source: ObjectInfo, key: str, properties: Properties, condition: Condition) -> Version:
        """Copy an object that is too large to be copied at once.  Checkpoint."""
        abilities = await self._in_thread(self._backend.abilities)
        if not abilities.can_copy_part:
            raise UnsupportedError(f"{source.key}: too large to be copied inside this store")
        size_bytes = source.version.size_bytes
        unit = max(part_bytes(size_bytes, _COPY_PART_BYTES, abilities.max_parts), abilities.min_part_bytes)
        plan = plan_parts(size_bytes, unit, size_bytes, {}, unit)

        def copy_part(upload: Upload, part: PlannedPart) -> Part:
            return self._backend.copy_part(upload, part.number, source, part.start, part.end)

        return await self._run(key, properties, condition, plan, copy_part, lambda: True)

    async def abort_stale(self) -> None:
        """Abort what an earlier core began and did not end.  Checkpoint.  Raises what the backend raises."""
        with self._reader.begin() as txn:
            stale = self._reader.settings(txn, UPLOADS)
        for name, value in stale.items():
            key, upload_id = json.loads(value)
            await self._in_thread(partial(self._backend.abort_upload, Upload(key, upload_id)))
            await self._writer.run(EndUpload(name.removeprefix(UPLOADS).decode()).apply)
            log.info("upload of an earlier run aborted key=%s", key)

    async def _run(
        self,
        key: str,
        properties: Properties,
        condition: Condition,
        plan: list[PlannedPart],
        do_part: Callable[[Upload, PlannedPart], Part],
        is_same: Callable[[], bool],
    ) -> Version:
        upload = await self._in_thread(partial(self._backend.begin_upload, key, properties))
        # The process number: a core after this one counts from 1 again.
        name = f"{os.getpid()}-{next(self._numbers)}."
        await self._writer.run(BeginUpload(key, upload.upload_id, name).apply)
        try:
            parts = await self._all_parts(upload, plan, do_part, is_same)
            version = await self._in_thread(partial(self._backend.complete_upload, upload, parts, condition))
        except DeadlineError:
            raise  # it may be complete all the same: the next try finds it, and the next core aborts what is left
        except (BackendError, StaleInodeError):
            await self._in_thread(partial(self._backend.abort_upload, upload))
            await self._writer.run(EndUpload(name).apply)
            raise
        await self._writer.run(EndUpload(name).apply)
        return version

    async def _all_parts(
        self,
        upload: Upload,
        plan: list[PlannedPart],
        do_part: Callable[[Upload, PlannedPart], Part],
        is_same: Callable[[], bool],
    ) -> list[Part]:
        done: list[Part] = []
        errors: list[Exception] = []
        left = iter(plan)

        async def work() -> None:
            for part in _until(left, lambda: bool(errors)):
                if not part.is_copied:
                    await self.rate.take(part.end - part.start)
                try:
                    done.append(await self._in_thread(partial(do_part, upload, part)))
                    if not is_same():
                        raise StaleInodeError(f"{upload.key}: written to while it was uploaded")
                except Exception as error:  # noqa: BLE001 - raised below, when no thread reads the file any more
                    errors.append(error)
                bump(self._row, Count.UPLOADED_PARTS)

        async with trio.open_nursery() as nursery:
            for _worker in range(min(self._requests, len(plan))):
                nursery.start_soon(work)
        if errors:
            raise errors[0]
        return sorted(done, key=lambda part: part.number)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)


async def _settled(fd: int, stamp: Stamp) -> Stamp:
    """Return the stamp after blocks were made local: the core writes them and keeps size and mtime.  Checkpoint.

    Raises StaleInodeError when a user wrote meanwhile.
    """
    await trio.lowlevel.checkpoint()
    now = Stamp.of(os.fstat(fd))
    if (now.size_bytes, now.mtime_ns) != (stamp.size_bytes, stamp.mtime_ns):
        raise StaleInodeError("written to while its blocks were brought here")
    return now


def _until(items: Iterable[PlannedPart], is_over: Callable[[], bool]) -> Iterator[PlannedPart]:
    for item in items:
        if is_over():
            return
        yield item
