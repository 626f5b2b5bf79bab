"""How many files and bytes are in each tier, counted now and then, for metrics and status.

Core, trio thread only.  Nothing else knows it without looking at every file: where one is depends on policies, pins and
time.  A count takes a fiftieth of the core's time, begins at the earliest _PERIOD_S after the last one ended, and only
if anything was committed since; so what is shown is as old as it says.
"""

import time
from typing import Any, Final

import trio

from fanoutfs.core.tiers import Tiers, add_usage, no_usage
from fanoutfs.core.walking import TreeWalk
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment

_FIRST_S: Final = 5.0
_PERIOD_S: Final = 15.0
_SHARE: Final = 50


class Census:
    """Counts."""

    def __init__(self, environment: IndexEnvironment, reader: IndexReader, tiers: Tiers) -> None:
        self._environment = environment
        self._reader = reader
        self._tiers = tiers
        self._usage: dict[str, dict[str, int]] | None = None
        self._counted_at = 0.0
        self._txnid = -1

    def describe(self) -> dict[str, Any]:
        """Return {"tiers": {tier: {"files", "bytes"}}, "tiers_age_s": seconds}; {} before the first count."""
        if self._usage is None:
            return {}
        return {"tiers": self._usage, "tiers_age_s": round(trio.current_time() - self._counted_at, 1)}

    async def run(self) -> None:
        """Count again and again, for ever."""
        await trio.sleep(_FIRST_S)
        while True:
            txnid = int(self._environment.env.info()["last_txnid"])
            if txnid != self._txnid:
                await self._count()
                self._txnid = txnid
            self._counted_at = trio.current_time()  # or as it was
            await trio.sleep(_PERIOD_S)

    async def _count(self) -> None:
        usage = no_usage()
        walk = TreeWalk(self._reader, "", self._tiers.root())
        while not walk.is_over:
            started = time.monotonic()
            for path, inode in walk.step():
                add_usage(usage, self._tiers.facts(path, inode))
            await trio.sleep((time.monotonic() - started) * _SHARE)
        self._usage = usage
