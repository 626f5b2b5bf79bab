"""Life of a front: open the index and the cache for reading, serve until the mount is gone."""

import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fanoutfs.cache.arena import Arena
from fanoutfs.cache.blocks import BlockReader
from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.small import SmallEnvironment, SmallReader
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.config.schema import MountConfig
from fanoutfs.front.accounting import Accounting
from fanoutfs.front.dispatch import rules_of
from fanoutfs.front.handlers import Handlers
from fanoutfs.front.hints import HintSender
from fanoutfs.front.kernel import KernelChannel, UnmountedError
from fanoutfs.front.refusing import refuse
from fanoutfs.front.relay import Relay
from fanoutfs.front.worker import Worker
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import UNUSABLE, IndexEnvironment
from fanoutfs.observe.shared import BUSY, FIRST_FRONT_ROW, REFUSING, SharedState

log = logging.getLogger(__name__)

EXIT_UNMOUNTED: Final = 86
"""Exit code of a front that ended because the mount is gone."""


@dataclass(frozen=True, slots=True)
class FrontTask:
    """What the keeper hands to a front.  All sockets are non-blocking."""

    config: MountConfig
    volume_path: Path
    shared: SharedState
    arena: Arena
    number: int
    fuse_fd: int
    relay: socket.socket
    hints: socket.socket
    entry_valid_s: int
    root_prefix: str


def run(task: FrontTask) -> int:
    """Live as a front and return the process's exit code."""
    row = task.shared.row(FIRST_FRONT_ROW + task.number)
    kernel = KernelChannel(task.fuse_fd, row)
    try:
        try:
            worker = _open(task, kernel, row)
        except UNUSABLE as error:
            is_refusing = task.shared.flags[REFUSING]
            log.log(logging.DEBUG if is_refusing else logging.ERROR, "the cache cannot be opened: %s", error)
            refuse(task.fuse_fd, kernel, row, task.shared.flags, read_only=task.config.read_only)
            return 1
        worker.run()
        log.warning("the index has to be opened anew: a new front begins")
    except UnmountedError:
        row[BUSY] += row[BUSY] & 1  # nobody shall wait for this one
        return EXIT_UNMOUNTED
    return 0


def _open(task: FrontTask, kernel: KernelChannel, row: memoryview) -> Worker:
    """Open index and cache and put the front together.  Raises what index.store calls UNUSABLE."""
    relay = Relay(task.relay, task.shared, task.number, row, fronts=task.config.front_count())
    hints = HintSender(task.hints, row, task.config.metadata_ttl, has_pusher=task.config.has_push())
    # The kernel refuses changes of a read-only mount by itself.
    environment = IndexEnvironment(task.volume_path, writable=not task.config.read_only, is_owner=False)
    index = IndexReader(environment)
    handlers = Handlers(
        kernel=kernel,
        relay=relay,
        index=index,
        small=SmallReader(SmallEnvironment(task.volume_path, writable=False)),
        blocks=BlockReader(CacheFiles(task.volume_path, writable=False, find=index.disk_folder)),
        arena=task.arena,
        staging=StagingFiles(task.volume_path),
        hints=hints,
        shared=task.shared,
        row=row,
        metadata_ttl_s=task.config.metadata_ttl,
        entry_valid_s=task.entry_valid_s,
        environment=environment,
        front=task.number,
        root_prefix=task.root_prefix,
        needs_attributes=task.config.object_attributes == "lookup",
    )
    handlers.creating.settle()
    return Worker(
        fuse_fd=task.fuse_fd,
        relay_channel=task.relay,
        kernel=kernel,
        relay=relay,
        handlers=handlers,
        hints=hints,
        shared=task.shared,
        row=row,
        accounting=Accounting(
            row, task.shared.latencies.row(FIRST_FRONT_ROW + task.number), task.shared.slow.writer(task.number)
        ),
        rules=rules_of(read_only=task.config.read_only),
    )
