"""The process that puts small files into the kernel's page cache ahead of their readers, by NOTIFY_STORE.

A process of its own, because the kernel holds a store to a page whose READ is unanswered (it waits for the page's
lock, fs/fuse/dev.c of 6.18): whoever writes one may hold no request, nor anything an answer could wait for.  So the
contents of a batch are copied and verified first, inside the busy mark that grace periods look at and one
transaction, and written after both have ended.  Nobody ever waits for this process: the core drops what the channel
does not take, and a unmount or a new generation just kills it.

On read-only mounts only: a store replaces pages that were just written, dirty ones too, and nothing tells whether there
are any.

What it pushes is never stale: content does not change under an inode number, and numbers are not used twice.  A
number that the kernel does not hold is refused (ENOENT).  Pushing a content again over pages that are in use writes
the same bytes.  The kernel's size of the inode stays: a content is as long as its object, so the store ends there.
"""

import errno
import logging
import os
import random
import select
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fanoutfs.cache.small import SmallEnvironment, SmallMismatchError, SmallReader
from fanoutfs.config.schema import MountConfig
from fanoutfs.front.pressure import MemoryGauge
from fanoutfs.front.pushpolicy import PushPolicy
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import BUSY, PUSHER_ROW, SharedState
from fanoutfs.records import MIB
from fanoutfs.wire.hints import PACKET_BYTES, HintKind, decode_hints, encode_hints, runs_of
from fanoutfs.wire.messages import encode_store_head

log = logging.getLogger(__name__)

_ARENA_BYTES: Final = MIB
"""Contents copied at a time: they stay in the processor's cache until the kernel takes them."""
_PRESSURE_POLL_S: Final = 1.0
_GONE: Final = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED)


class _UnmountedError(Exception):
    """The mount is gone."""


@dataclass(frozen=True, slots=True)
class PusherTask:
    """What the keeper hands to a pusher.  channel: hints from the core."""

    config: MountConfig
    volume_path: Path
    shared: SharedState
    fuse_fd: int
    channel: socket.socket


def run(task: PusherTask) -> int:
    """Push until the core's end of the channel closes or the mount is gone."""
    row = task.shared.row(PUSHER_ROW)
    policy = PushPolicy(task.config.push_memory, random.Random())
    gauge = MemoryGauge(task.config.push_memory)
    mover = Mover(SmallReader(SmallEnvironment(task.volume_path, writable=False)), task.fuse_fd, policy, row)
    try:
        Pusher(task.channel, policy, gauge, mover, row).run()
    except (_UnmountedError, ConnectionError):
        pass  # (ConnectionError: the core was killed)
    return 0


class Pusher:
    """The loop: hear what readers do, push what the policy says."""

    def __init__(
        self, channel: socket.socket, policy: PushPolicy, gauge: MemoryGauge, mover: "Mover", row: memoryview
    ) -> None:
        self._channel = channel
        self._policy = policy
        self._gauge = gauge
        self._mover = mover
        self._row = row
        self._is_stalled = False

    def run(self) -> None:
        """Return when the core's end closes."""
        poller = select.poll()
        poller.register(self._channel, select.POLLIN)
        while self._hear():
            now_s = time.monotonic()
            self._look_at_memory(now_s)
            if batch := self._policy.next_batch(now_s):
                self._tell(self._mover.push(batch))
                continue
            self._note_stall()
            poller.poll(self._pause_ms(now_s))

    def _hear(self) -> bool:
        """Take what the core sent; False at its end."""
        now_s = time.monotonic()
        while True:
            try:
                packet = self._channel.recv(PACKET_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            if not packet:
                return False
            announced = []
            for hint in decode_hints(packet):
                if hint.kind is HintKind.SMALL_READ:
                    self._policy.note_read(hint.ino, now_s)
                elif hint.kind is HintKind.LISTED:
                    self._policy.note_listed(hint.ino, hint.part, now_s)
                elif hint.kind is HintKind.LEAVE_OUT:
                    self._policy.leave_out(hint.ino)
                elif hint.kind is HintKind.PUSH_AHEAD:
                    announced.append(hint.ino)
            if announced:
                self._policy.announce(announced, now_s)

    def _tell(self, pushed: list[int]) -> None:
        """Tell the core what needs no READ any more."""
        if not pushed:
            return
        try:
            self._channel.send(encode_hints(HintKind.PUSHED, runs_of(pushed)), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._row[Count.HINTS_DROPPED] += 1

    def _look_at_memory(self, now_s: float) -> None:
        limit_bytes = self._gauge.limit_bytes(now_s)
        if not limit_bytes and self._policy.limit_bytes:
            self._row[Count.PUSH_STOPS_PRESSURE] += 1
        self._policy.limit_bytes = limit_bytes

    def _note_stall(self) -> None:
        is_stalled = self._policy.is_stalled and self._policy.limit_bytes > 0
        if is_stalled and not self._is_stalled:
            self._row[Count.PUSH_STOPS_BUDGET] += 1
        self._is_stalled = is_stalled
        self._row[Count.SENTINELS_READ] += self._policy.sentinels_read
        self._row[Count.SENTINELS_UNREAD] += self._policy.sentinels_unread
        self._policy.sentinels_read = self._policy.sentinels_unread = 0

    def _pause_ms(self, now_s: float) -> float | None:
        """Return how long to sleep unless the core sends something; None: until it does."""
        if not self._policy.limit_bytes:
            return _PRESSURE_POLL_S * 1000
        pause_s = self._policy.listed_pause_s(now_s)
        return None if pause_s is None else pause_s * 1000 + 1


class Mover:
    """Copies contents from the store and writes them to the kernel."""

    def __init__(self, small: SmallReader, fuse_fd: int, policy: PushPolicy, row: memoryview) -> None:
        self._small = small
        self._fd = fuse_fd
        self._policy = policy
        self._row = row
        self._arena = memoryview(bytearray(_ARENA_BYTES))

    def push(self, inos: list[int]) -> list[int]:
        """Push these files, as far as they are there and no sentinels, and return which ones the kernel took."""
        at = 0
        pushed: list[int] = []
        while at < len(inos):
            count, contents = self._copy(inos[at:])
            at += count
            pushed += self._write(contents)
        return pushed

    def _copy(self, inos: list[int]) -> tuple[int, list[tuple[int, memoryview]]]:
        """Copy contents until the arena is full; return how many numbers are dealt with, and the copies."""
        policy, arena = self._policy, self._arena
        contents: list[tuple[int, memoryview]] = []
        used = count = 0
        self._row[BUSY] += 1
        try:
            with self._small.begin() as txn:
                for ino in inos:
                    try:
                        content = self._small.get(txn, ino)
                    except SmallMismatchError:
                        content = None  # its reader will have it fetched again
                    if content is None:
                        policy.settle_absent(ino)
                    else:
                        size = len(content)
                        if used and used + size > len(arena):
                            break
                        if size > len(arena):
                            arena = self._arena = memoryview(bytearray(size))
                        copy = arena[used : used + size]
                        copy[:] = content
                        contents.append((ino, copy))
                        used += size
                    count += 1
        finally:
            self._row[BUSY] += 1
        return count, contents

    def _write(self, contents: list[tuple[int, memoryview]]) -> list[int]:
        policy, fd = self._policy, self._fd
        pushed: list[int] = []
        pushed_bytes = refused = 0
        for ino, content in contents:
            size = len(content)
            if policy.is_sentinel():
                policy.settle_sentinel(ino)
                continue
            try:
                os.writev(fd, (encode_store_head(ino, size), content))
            except OSError as error:
                if error.errno in _GONE:
                    raise _UnmountedError from error
                if error.errno != errno.ENOENT:
                    log.warning("push refused ino=%d: %s", ino, error)
                policy.settle_refused(ino, time.monotonic())
                refused += 1
            else:
                policy.settle_pushed(size)
                pushed.append(ino)
                pushed_bytes += size
        row = self._row
        row[Count.PUSHED_FILES] += len(pushed)
        row[Count.PUSHED_BYTES] += pushed_bytes
        row[Count.PUSHES_REFUSED] += refused
        row[Count.BLOCKS_VERIFIED] += len(contents)
        return pushed
