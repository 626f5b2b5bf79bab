"""What policies pin is brought here in the background, without anybody asking.

Core, trio thread only.  The tree is walked, as far as its names are known, when policies change, soon after files
became known (not so soon if something failed), and every hour.  The walk takes a twentieth of the core's time; fetching
goes behind everybody else (`filling`), within `fetch_bandwidth`.  When the cache has no room left for what is pinned
the round is over.  What `fanoutfs pin` pinned that command has fetched, at the pace it was told.
"""

import logging
import time
from typing import Any, Final

import trio

from fanoutfs.core.policybook import PolicyBook
from fanoutfs.core.rate import Rate
from fanoutfs.core.tiers import Tiers
from fanoutfs.core.walking import TreeWalk
from fanoutfs.core.warming import Warming
from fanoutfs.errors import CacheFullError, FanoutError
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.tiering.moves import bytes_to_fetch

log = logging.getLogger(__name__)

_SHARE: Final = 20
_LOOK_S: Final = 3.0
"""So often it is looked whether files became known."""
_PERIOD_S: Final = 3600.0
_FAILED_PAUSE_S: Final = 600.0
"""Before what failed is tried again because of other files that became known."""


class PinnedFetching:
    """Fetches."""

    def __init__(
        self, *, reader: IndexReader, book: PolicyBook, tiers: Tiers, warming: Warming, bytes_per_s: float | None
    ) -> None:
        self._reader = reader
        self._book = book
        self._tiers = tiers
        self._warming = warming
        self._rate = Rate(bytes_per_s)
        self._changed = trio.Event()
        self._failure: FanoutError | None = None
        self._failed = 0
        self.fetched_bytes = 0
        """What was fetched since this core began."""
        book.on_change.append(self._note_change)

    def describe(self) -> dict[str, Any]:
        """Return how things stand, for status."""
        described: dict[str, Any] = {"pinned_fetched_bytes": self.fetched_bytes}
        return described | ({} if self._failure is None else {"pinned_not_fetched": str(self._failure)})

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            known = self._known()
            if any(policy.is_pinned for policy in self._book.policies):
                await self._round()
            pause_s = _LOOK_S if self._failure is None else _FAILED_PAUSE_S
            with trio.move_on_after(_PERIOD_S):
                while not self._changed.is_set():
                    with trio.move_on_after(pause_s):
                        await self._changed.wait()
                    if self._known() != known:
                        break
            self._changed = trio.Event()

    def _note_change(self) -> None:
        self._changed.set()

    def _known(self) -> tuple[int, int]:
        with self._reader.begin() as txn:
            return self._reader.totals(txn)

    async def _round(self) -> None:
        before, self._failed, self._failure = self.fetched_bytes, 0, None
        filling = self._warming.filling(self._rate, self._note_end)
        walk = TreeWalk(self._reader, "", self._tiers.root())
        while not walk.is_over and not isinstance(self._failure, CacheFullError):
            started = time.monotonic()
            wanted = [(path, inode) for path, inode in walk.step() if self._is_wanted(path, inode)]
            took_s = time.monotonic() - started
            for path, inode in wanted:
                await filling.add(path, inode)
                if isinstance(self._failure, CacheFullError):
                    break
            await trio.sleep(took_s * _SHARE)
        await filling.finish()
        if self._failure is not None:
            log.warning("not all that policies pin is here files=%d: %s", self._failed, self._failure)
        if self.fetched_bytes > before:
            log.info("fetched what policies pin bytes=%d", self.fetched_bytes - before)

    def _is_wanted(self, path: str, inode: Inode) -> bool:
        decision = self._book.decide(path, inode.size_bytes)
        if not decision.is_pinned or decision.pin is not None or inode.is_staged:
            return False
        return bytes_to_fetch(decision, self._tiers.facts(path, inode)) > 0

    def _note_end(self, _path: str, inode: Inode, error: FanoutError | None) -> None:
        if error is None:
            self.fetched_bytes += inode.size_bytes
            return
        self._failed += 1
        if not isinstance(self._failure, CacheFullError):
            self._failure = error
