"""Tell the kernel what changed: invalidations of names, attributes and pages.

Core, trio thread only.  The writing is done by a process of its own (front.notifier): the kernel may hold a write
until a request in flight is answered.  Delivery is in order.  For the same reason no request handler may wait here.
"""

import errno
import logging
import socket
from collections import deque
from collections.abc import Iterable
from typing import Final

import trio

from fanoutfs.index.operations import Change, ChangeKind
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.wire.messages import encode_inc_epoch, encode_inval_entry, encode_inval_inode
from fanoutfs.wire.relay import NOTIFY_OUTCOME_BYTES

log = logging.getLogger(__name__)

_EPOCH_ABOVE: Final = 20_000
"""More changed names than this are expired all at once (NOTIFY_INC_EPOCH), where the kernel can."""


class ChangeLog:
    """Changes that the kernel is to be told of: bounded, where the kernel can forget all names at once."""

    def __init__(self, *, has_epoch: bool) -> None:
        self._limit = _EPOCH_ABOVE if has_epoch else None
        self.changes: list[Change] = []
        self.directories: set[int] = set()
        """The parents of changes that are not in the list any more (as many as fit)."""
        self.is_everything = False
        """So many names changed that all of them are to be expired."""
        self.replaced = 0

    def __bool__(self) -> bool:
        """Tell whether anything changed."""
        return self.is_everything or bool(self.changes)

    def add(self, changes: Iterable[Change]) -> None:
        """Note more changes."""
        for change in changes:
            self.replaced += change.kind is ChangeKind.REPLACED
            self.changes.append(change)
        if self._limit is not None and len(self.changes) > self._limit:
            self.is_everything = True
            for change in self.changes:
                if len(self.directories) < self._limit:
                    self.directories.add(change.parent)
            self.changes.clear()


class _Notification:
    """One message under way.  code: 0 or the errno of its delivery, once done."""

    __slots__ = ("code", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.code = errno.EIO


class Notifier:
    """Sends notifications and takes their outcomes."""

    def __init__(self, channel: socket.socket, *, has_epoch: bool, row: memoryview) -> None:
        self._channel = trio.socket.from_stdlib_socket(channel)
        self._has_epoch = has_epoch
        self._row = row
        self._under_way: deque[_Notification] = deque()
        self._sending = trio.Lock()

    @property
    def has_epoch(self) -> bool:
        """Tell whether all names can be expired at once."""
        return self._has_epoch

    async def run(self) -> None:
        """Take outcomes until the notifier process ends; the keeper then replaces this core as well."""
        while packet := await self._channel.recv(NOTIFY_OUTCOME_BYTES):
            self._finish(int.from_bytes(packet, "little"))
        while self._under_way:
            self._finish(errno.EIO)

    async def publish(self, changes: ChangeLog) -> None:
        """Invalidate what the kernel may know wrongly now; return when it was told.  Checkpoint."""
        messages: list[bytes] = []
        directories = dict.fromkeys(changes.directories)
        for change in changes.changes:
            if change.kind is ChangeKind.TOUCHED:
                messages.append(encode_inval_inode(change.ino, offset=-1))
            else:
                messages.append(encode_inval_entry(change.parent, change.name))
                directories[change.parent] = None
        listings = [encode_inval_inode(ino) for ino in directories]  # their cached listings and times
        if changes.is_everything:
            # Once more behind the directories: a listing under way may link old names into the first new epoch.
            messages = [*messages, encode_inc_epoch(), *listings, encode_inc_epoch()]
        else:
            messages += listings
        for notification in [await self._send(message) for message in messages]:
            await notification.done.wait()

    async def expire_all_names(self) -> None:
        """Let the kernel ask for every name again at its next use; pages stay.  Checkpoint."""
        await (await self._send(encode_inc_epoch())).done.wait()

    async def expire_attributes(self, ino: int) -> None:
        """Let the kernel ask for an inode's attributes, and a directory's listing, again.  Checkpoint."""
        await (await self._send(encode_inval_inode(ino))).done.wait()

    async def is_held(self, ino: int) -> bool:
        """Ask whether the kernel still holds an inode, by a notification that changes nothing.  Checkpoint."""
        notification = await self._send(encode_inval_inode(ino, offset=-1))
        await notification.done.wait()
        return notification.code != errno.ENOENT

    async def _send(self, message: bytes) -> _Notification:
        notification = _Notification()
        async with self._sending:
            self._under_way.append(notification)
            try:
                await self._channel.send(message)
            except OSError as error:
                # The process ended, and this core's end is near; nobody may hang meanwhile.
                log.warning("notification not sent: %s", error)
                notification.done.set()
                self._under_way.remove(notification)
        return notification

    def _finish(self, code: int) -> None:
        notification = self._under_way.popleft()
        notification.code = code
        notification.done.set()
        if code == 0:
            bump(self._row, Count.NOTIFICATIONS)
        # ENOENT: the kernel does not know the inode or name; ENODEV, ENOTCONN: unmounted.
        elif code not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN, errno.ENOTDIR):
            log.warning("notification refused errno=%s", errno.errorcode.get(code, code))
