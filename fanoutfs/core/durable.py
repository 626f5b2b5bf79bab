"""Make what was committed survive a power cut: one sync for all who wait.

Core, trio thread only.  The index is committed without its meta page being forced out (`index.store`), so after a power
cut the last commits may be missing.  Whoever needs them to stay waits here: a sync that begins after the call covers
them.  While one runs, the next one collects.
"""

import errno
import os

import trio

from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter


class Durable:
    """Syncs of the index."""

    def __init__(self, environment: IndexEnvironment, writer: GroupWriter[IndexTransaction]) -> None:
        self._environment = environment
        self._writer = writer
        self._lock = trio.Lock()
        self._wanted = 0
        self._done = 0
        self._has_failed = False

    async def sync(self) -> None:
        """Return when everything submitted before the call is on disk.  Checkpoint.  Raises OSError, DatabaseError.

        After a failure all further calls fail: the kernel has dropped the pages, and the next sync would say nothing.
        """
        self._wanted += 1
        mine = self._wanted
        async with self._lock:
            if self._done >= mine:
                return
            covered = self._wanted
            await self._writer.run(_commit)
            try:
                if self._has_failed:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                await trio.to_thread.run_sync(self._environment.sync)
            except OSError:
                self._has_failed = True
                raise
            self._done = covered


def _commit(_txn: IndexTransaction) -> None:
    """Change nothing: what was submitted before is committed with it or earlier."""
