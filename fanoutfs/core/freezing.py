"""Freezing: get hold of one state of a staged file, for an upload that takes time.

Core, trio thread only; what blocks runs in worker threads.  How one state is told from two: see `content`.
"""

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import trio

from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.content import TICK_NS, Stamp, copy_file, read_all
from fanoutfs.core.facts import Facts, StagedContent
from fanoutfs.core.grace import Grace
from fanoutfs.errors import StaleInodeError
from fanoutfs.records import MIB

SINGLE_PUT_BYTES: Final = 64 * MIB


@dataclass(frozen=True, slots=True)
class Frozen:
    """A state of a staged file.  content: in memory; None: read it from the descriptor."""

    stamp: Stamp
    fd: int
    content: bytearray | None
    is_copy: bool


class Freezer:
    """Freezes staged files."""

    def __init__(
        self,
        files: StagingFiles,
        staging: StagedContent,
        grace: Grace,
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        """in_thread: runs a call in a worker thread."""
        self._files = files
        self._staging = staging
        self._grace = grace
        self._in_thread = in_thread

    @contextlib.contextmanager
    def descriptor(self, ino: int, life: int) -> Iterator[int]:
        """Hold a descriptor of a staging file.  After a cancellation a worker thread may still read: it stays open.

        Raises StaleInodeError.
        """
        try:
            fd = self._files.duplicate(ino, life)
        except OSError as error:
            raise StaleInodeError(f"inode {ino} has no staging file: {error}") from error
        try:
            yield fd
        except trio.Cancelled:
            raise
        except BaseException:
            os.close(fd)
            raise
        else:
            os.close(fd)

    async def freeze(self, facts: Facts, fd: int, *, is_overdue: bool, is_single: bool) -> Frozen | None:
        """Return the content as it was at one moment; None: it is being written.  Checkpoint.  Raises OSError.

        is_overdue: do not wait until it is left alone.  is_single: it is sent as a whole.
        """
        stamp = Stamp.of(os.fstat(fd))
        if stamp.age_ns() <= TICK_NS:
            await trio.sleep((TICK_NS - stamp.age_ns()) / 1e9)
        await self._grace.wait()
        if Stamp.of(os.fstat(fd)) == stamp:
            if not is_single or stamp.size_bytes > SINGLE_PUT_BYTES:
                if is_single:
                    return await self._copy_sealed(facts, fd)
                return Frozen(stamp, fd, None, is_copy=False)
            content = await self._in_thread(partial(read_all, fd, stamp.size_bytes))
            if Stamp.of(os.fstat(fd)) == stamp and len(content) == stamp.size_bytes:
                return Frozen(stamp, fd, content, is_copy=False)
        return await self._copy_sealed(facts, fd) if is_overdue else None

    async def _copy_sealed(self, facts: Facts, fd: int) -> Frozen | None:
        """Copy the content while nobody may write.  Checkpoint.  Raises OSError when there is no room for a copy."""
        if not await self._staging.seal(facts.inode.ino):
            return None
        try:
            stamp = Stamp.of(os.fstat(fd))
            if stamp.size_bytes <= SINGLE_PUT_BYTES:
                return Frozen(stamp, fd, await self._in_thread(partial(read_all, fd, stamp.size_bytes)), is_copy=False)
            copy = self._files.scratch()
            try:
                await trio.to_thread.run_sync(partial(copy_file, fd, copy, stamp.size_bytes))
            except BaseException:
                os.close(copy)
                raise
            return Frozen(stamp, copy, None, is_copy=True)
        finally:
            with trio.CancelScope(shield=True):
                await self._staging.unseal(facts.inode.ino)
