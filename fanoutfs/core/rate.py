"""Bytes a second, bounded.  Core, trio thread only."""

from typing import Final

import trio

_BURST_S: Final = 0.5


class Rate:
    """A token bucket: so many bytes a second.  What is larger than what is there goes, and is paid off by the next."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._tokens = 0.0 if bytes_per_s is None else bytes_per_s * _BURST_S
        self._filled_at = trio.current_time()

    async def take(self, size_bytes: int) -> None:
        """Return when the bytes taken before are paid for; take these.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        if self._bytes_per_s is None:
            return
        while True:
            now = trio.current_time()
            earned = (now - self._filled_at) * self._bytes_per_s
            self._tokens = min(self._bytes_per_s * _BURST_S, self._tokens + earned)
            self._filled_at = now
            if self._tokens > 0:
                self._tokens -= size_bytes
                return
            await trio.sleep(-self._tokens / self._bytes_per_s + 0.001)
