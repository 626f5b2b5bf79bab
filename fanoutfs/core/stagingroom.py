"""Room in staging: who writes waits for it at the cap, and is told where no waiting helps.

Core, trio thread only.  What is staged goes by being uploaded, so at the cap a writer waits, however long the store
takes: nothing that was acknowledged is given up, and no write fails that will succeed.  Two things end the wait:
* Nothing that is staged will ever be uploaded, because policies keep it here (`keep_local`, `upload_after = "never"`,
  `--no-upload`).  Waiting would be for ever: CacheFullError (ENOSPC), as any full disk says, and one log line.
* Nobody waits any more: a process that is killed leaves only when its request is answered, and only fronts look
  for that (`front.killed`).  So a front's request is not kept here for longer than a moment at a time; it asks again.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import trio

from fanoutfs.config.units import show_size
from fanoutfs.core.space import Space
from fanoutfs.core.staged import StagedBytes
from fanoutfs.errors import CacheFullError

log = logging.getLogger(__name__)

_READERS_WAIT_S: Final = 5.0
"""So long nothing that was written before has gone when a writer takes of the readers' quota: what is staged is known a
little more than exactly while much is written."""
_POLL_S: Final = 0.5
"""Uploads wake those who wait; other programs that free the disk, and policies that change, do not."""
_LOG_PAUSE_S: Final = 60.0


class StagingRoom:
    """Lets writers wait."""

    def __init__(self, space: Space, staged: StagedBytes) -> None:
        self._space = space
        self._staged = staged
        self._grants = space.grants
        self._said_at = self._refused_at = float("-inf")
        self._refused_bytes = 0
        self.may_shrink: Callable[[], bool] = _always
        """Tells whether anything that is staged will be uploaded, or was removed just now.  No checkpoint."""

    async def wait(self, size_bytes: int, disk_timeout_s: float, *, at_most_s: float = float("inf")) -> bool:
        """Return True when so many bytes may be staged; clean bytes make way first.  Checkpoint.

        False: it waited at_most_s at the cap, for uploads.  CacheFullError: nothing there will be uploaded; or it is
        the disk that has no room, or the rest of the cache cannot make way, and nothing became free for disk_timeout_s.
        """
        await trio.lowlevel.checkpoint()
        cap_bytes = self._space.staging_cap_bytes
        began = trio.current_time()
        deadline, patient_until = began + disk_timeout_s, began + _READERS_WAIT_S
        while True:
            staged = self._staged.total
            if staged and staged + size_bytes > cap_bytes:
                await self._staged.measure()
                staged = self._staged.total
            if staged + self._grants.outstanding + size_bytes > cap_bytes:
                self._grants.grant(0)  # whoever asks goes before what nobody has asked for
            # One write larger than the cap must not wait for ever.
            if not staged or staged + self._grants.outstanding + size_bytes <= cap_bytes:
                try:
                    takes_readers = trio.current_time() >= min(patient_until, deadline)
                    async with self._space.reserved(size_bytes, takes_readers=takes_readers):
                        self._grants.note_asked(size_bytes)
                        return True
                except CacheFullError:
                    if trio.current_time() >= deadline:
                        raise
                await self._staged.wait_changed(_POLL_S)
            else:
                await self._staged.wait_changed(_POLL_S)
                deadline = trio.current_time() + disk_timeout_s
                if self._staged.total >= staged:
                    self._refuse_what_never_fits(staged)
                if trio.current_time() >= began + at_most_s:
                    return False
            if self._staged.total < staged:
                deadline = trio.current_time() + disk_timeout_s
                patient_until = trio.current_time() + _READERS_WAIT_S

    def describe(self) -> dict[str, Any]:
        """Return how things stand, for status."""
        described: dict[str, Any] = {
            "staged_bytes": self._space.staged_bytes,
            "staging_cap_bytes": self._space.staging_cap_bytes,
        }
        if trio.current_time() < self._refused_at + _LOG_PAUSE_S and self._staged.total >= self._refused_bytes:
            described["writes_refused"] = "staging is full, and nothing that is staged will be uploaded"
        return described

    def _refuse_what_never_fits(self, staged_bytes: int) -> None:
        if self.may_shrink():
            return
        self._refused_at = now = trio.current_time()
        self._refused_bytes = staged_bytes
        if now >= self._said_at + _LOG_PAUSE_S:
            self._said_at = now
            log.warning(
                "no room for writes: what is staged is kept local by policies and will never be uploaded "
                "staged_bytes=%d; raise --staging-size (%s), change the policies (tier reload), or remove files",
                staged_bytes,
                show_size(self._space.staging_cap_bytes),
            )
        raise CacheFullError("staging is full of files that policies keep local")


def _always() -> bool:
    """All of it is."""
    return True
