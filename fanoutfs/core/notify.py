"""Tell the kernel what changed: invalidations of names, attributes and pages.

Core.  A thread of its own writes to /dev/fuse: the kernel may block such a write on a lock that a request in flight
holds, so it must never happen in a request handler or in a front.  Delivery is in order; a task can wait for it.
"""

import errno
import logging
import os
import queue
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Final

import trio

from fanoutfs.index.operations import Change, ChangeKind
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.wire.messages import encode_inc_epoch, encode_inval_entry, encode_inval_inode

log = logging.getLogger(__name__)

_EPOCH_ABOVE: Final = 20_000
"""More changed names than this are expired all at once (NOTIFY_INC_EPOCH), where the kernel can."""


class Notifier:
    """Queue and thread in front of /dev/fuse."""

    def __init__(self, fuse_fd: int, *, has_epoch: bool, row: memoryview) -> None:
        self._fd = fuse_fd
        self._has_epoch = has_epoch
        self._row = row
        self._queue: queue.SimpleQueue[tuple[bytes, Future[int]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._thread.start()

    @property
    def has_epoch(self) -> bool:
        """Tell whether all names can be expired at once."""
        return self._has_epoch

    async def publish(self, changes: Iterable[Change]) -> None:
        """Invalidate what the kernel may know wrongly now; return when it was told.  Checkpoint."""
        messages: list[bytes] = []
        directories: dict[int, None] = {}
        for change in changes:
            if change.kind is ChangeKind.TOUCHED:
                messages.append(encode_inval_inode(change.ino, offset=-1))
            else:
                messages.append(encode_inval_entry(change.parent, change.name))
                directories[change.parent] = None
        if len(messages) > _EPOCH_ABOVE and self._has_epoch:
            messages = [encode_inc_epoch()]
        messages += [encode_inval_inode(ino) for ino in directories]  # its cached listing and times
        for future in [self._submit(message) for message in messages]:
            await self._wait(future)

    async def expire_all_names(self) -> None:
        """Let the kernel ask for every name again at its next use; pages stay.  Checkpoint."""
        await self._wait(self._submit(encode_inc_epoch()))

    async def is_held(self, ino: int) -> bool:
        """Ask whether the kernel still holds an inode, by a notification that changes nothing.  Checkpoint."""
        return await self._wait(self._submit(encode_inval_inode(ino, offset=-1))) != errno.ENOENT

    def stop(self) -> None:
        """Deliver what is queued and end the thread; does not wait: a write may be stuck in the kernel."""
        self._queue.put(None)

    def _submit(self, message: bytes) -> "Future[int]":
        future: Future[int] = Future()
        self._queue.put((message, future))
        return future

    @staticmethod
    async def _wait(future: "Future[int]") -> int:
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()

        def wake(_future: "Future[int]") -> None:
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                pass  # the core ended while the kernel held the thread

        future.add_done_callback(wake)
        await done.wait()
        return future.result()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            message, future = item
            code = 0
            try:
                os.write(self._fd, message)
                bump(self._row, Count.NOTIFICATIONS)
            except OSError as error:
                code = error.errno or errno.EIO
                # ENOENT: the kernel does not know the inode or name; ENODEV, ENOTCONN: unmounted.
                if code not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ENOTDIR):
                    log.warning("notification refused errno=%s", errno.errorcode.get(code, code))
            future.set_result(code)
