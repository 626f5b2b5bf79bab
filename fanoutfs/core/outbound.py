"""Everything that brings changes to the object store, put together: publisher, queue, moves, drain.

Core, trio thread only.  A read-only mount has none of it.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from fanoutfs.backend.base import Backend
from fanoutfs.backend.unanswered import LATE_S, Unanswered
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.clock import Clock
from fanoutfs.config.schema import MountConfig
from fanoutfs.core.classes import StorageClasses
from fanoutfs.core.conflicts import Conflicts
from fanoutfs.core.control import Command
from fanoutfs.core.deletions import Deletions
from fanoutfs.core.drain import Drains
from fanoutfs.core.facts import StagedContent
from fanoutfs.core.grace import Grace
from fanoutfs.core.handing import Handing
from fanoutfs.core.jobs import Jobs
from fanoutfs.core.late import LateRequests
from fanoutfs.core.listing import Listings
from fanoutfs.core.moves import Moves
from fanoutfs.core.multipart import MultipartUploads
from fanoutfs.core.notify import ChangeLog
from fanoutfs.core.policybook import PolicyBook
from fanoutfs.core.publishing import Publisher
from fanoutfs.core.rate import Rate
from fanoutfs.core.unlinked import Unlinked
from fanoutfs.core.uploads import Uploads
from fanoutfs.core.warming import Warming
from fanoutfs.errors import FanoutError, UsageError
from fanoutfs.index.format import Ownership
from fanoutfs.index.operations import Change
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import ObjectInfo

log = logging.getLogger(__name__)

_RETRY_S: Final = 30.0
_SOON_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Outbound:
    """The parts, running once `tasks` are started."""

    publisher: Publisher
    uploads: Uploads
    moves: Moves
    drains: Drains
    multipart: MultipartUploads
    classes: StorageClasses
    handing: Handing

    def note_changed(self, ino: int) -> None:
        """An inode was changed, renamed, linked or unlinked.  No checkpoint."""
        self.uploads.note_changed(ino)
        self.moves.note_departed()

    def tasks(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return the background tasks by name."""
        return {
            "uploads": self.uploads.run,
            "moves": self.moves.run,
            "stale uploads": self._abort_stale,
            "intents": self._resolve_intents,
        }

    def commands(self) -> dict[str, Command]:
        """Return the control commands."""
        return {"drain": self.drains.drain, **self.handing.commands()}

    def describe(self) -> dict[str, Any]:
        """Return how things stand, for status."""
        described = self.uploads.describe() | self.moves.describe()
        conflicts = self.uploads.conflicts()
        return described | {"conflicts": len(conflicts), "last_conflicts": conflicts[-5:]}

    async def _abort_stale(self) -> None:
        """Abort the uploads that an earlier core left, as soon as the store lets us."""
        while True:
            try:
                await self.multipart.abort_stale()
                return
            except FanoutError as error:
                log.info("uploads of an earlier run are not aborted yet: %s", error)
            await trio.sleep(_RETRY_S)

    async def _resolve_intents(self) -> None:
        """Find out, now and then, what came of requests whose answers nobody heard."""
        while True:
            failure = await self.publisher.resolve_intents(self.uploads.is_queued)
            if failure is not None:
                log.debug("unanswered requests are not looked into yet: %s", failure)
            await trio.sleep(_RETRY_S if failure is None else _SOON_S)


async def refuse_read_only(_request: Mapping[str, Any]) -> None:
    """Answer, on a mount without this part, the commands that it has.  Raises UsageError."""
    await trio.lowlevel.checkpoint()
    raise UsageError("the mount is read-only: it uploads nothing")


READ_ONLY_COMMANDS: Final[dict[str, Command]] = {"drain": refuse_read_only, "tier_push": refuse_read_only}


def make_outbound(
    *,
    config: MountConfig,
    backend: Backend,
    root_prefix: str,
    reader: IndexReader,
    writer: GroupWriter[IndexTransaction],
    files: StagingFiles,
    staging: StagedContent,
    grace: Grace,
    listings: Listings,
    jobs: Jobs,
    is_held: Callable[[int], Awaitable[bool]],
    locate: Callable[[bytes], int],
    book: PolicyBook,
    warming: Warming,
    unanswered: Unanswered,
    ownership: Ownership,
    clock: Clock,
    tag: str,
    row: memoryview,
    late_s: float = LATE_S,
) -> Outbound:
    """Build the parts.

    is_held: asks the kernel whether it holds an inode.  locate: finds the inode of a path.  book: the policies.
    tag: of the volume, see `index.uploading.TagVolume`.  unanswered, late_s: see `late`.
    """

    async def tell_kernel(changes: list[Change]) -> None:
        told = ChangeLog(has_epoch=False)
        told.add(changes)
        await listings.publish(told)

    late = LateRequests(reader, unanswered, late_s)
    multipart = MultipartUploads(
        backend=backend,
        reader=reader,
        writer=writer,
        rate=Rate(config.upload_bandwidth or None),
        requests=config.upload_requests,
        row=row,
    )
    conflicts = Conflicts(
        backend=backend,
        writer=writer,
        ownership=ownership,
        clock=clock,
        root_prefix=root_prefix,
        tag=tag,
        publish=tell_kernel,
        is_needed=partial(_is_needed, reader),
        row=row,
    )
    publisher = Publisher(
        backend=backend,
        root_prefix=root_prefix,
        reader=reader,
        writer=writer,
        files=files,
        staging=staging,
        grace=grace,
        conflicts=conflicts,
        multipart=multipart,
        settle=listings.settle,
        rules=book,
        late=late,
        requests=config.upload_requests,
        tag=tag,
        row=row,
    )
    uploads = Uploads(
        publisher=publisher,
        reader=reader,
        writer=writer,
        clock=clock,
        delay_of=book.inode_delay_s,
        deadline_s=config.upload_deadline,
        requests=config.upload_requests,
        op_timeout_s=config.op_timeout,
        row=row,
    )
    deletions = Deletions(
        backend=backend,
        root_prefix=root_prefix,
        reader=reader,
        writer=writer,
        listings=listings,
        publisher=publisher,
        late=late,
        make_durable=staging.sync_names,
        tag=tag,
        row=row,
    )
    moves = Moves(
        backend=backend,
        root_prefix=root_prefix,
        reader=reader,
        writer=writer,
        clock=clock,
        listings=listings,
        publisher=publisher,
        uploads=uploads,
        deletions=deletions,
        late=late,
        make_durable=staging.sync_names,
        requests=config.upload_requests,
        delay_s=config.upload_delay,
        tag=tag,
        row=row,
    )
    unlinked = Unlinked(reader=reader, staging=staging, is_held=is_held)
    publisher.keep_unlinked = unlinked.keep
    drains = Drains(
        jobs=jobs,
        publisher=publisher,
        uploads=uploads,
        moves=moves,
        unlinked=unlinked,
        reader=reader,
        root_prefix=root_prefix,
        locate=locate,
    )
    classes = StorageClasses(
        backend=backend,
        publisher=publisher,
        multipart=multipart,
        reader=reader,
        writer=writer,
        requests=config.upload_requests,
    )
    handing = Handing(reader=reader, uploads=uploads, classes=classes, warming=warming, jobs=jobs)
    return Outbound(publisher, uploads, moves, drains, multipart, classes, handing)


def _is_needed(reader: IndexReader, ino: int, found: ObjectInfo) -> bool:
    """Tell whether an inode that has a name holds this very object."""
    with reader.begin() as txn:
        inode = reader.inode(txn, ino)
        is_orphan = reader.is_orphan(txn, ino)
    return inode is not None and not is_orphan and (inode.key, inode.etag) == (found.key, found.version.etag)
