"""Which slots of the arena are free, in use, or kept for readers until their memory is needed again.

Core, trio thread only; cache.arena has the memory and what fronts see of it.  A slot that was taken belongs to one fill
until it is settled: then its bytes are on disk (or the fill failed) and it stays readable, the longest settled going
first.  The fronts of an earlier core may still read any slot, so at the start all count as settled.
"""

from collections import OrderedDict
from typing import Final

import trio

from fanoutfs.cache.arena import Arena
from fanoutfs.core.grace import Grace

_BATCH: Final = 4
"""Slots withdrawn together: one grace period serves them all.  Ahead of need: it takes as long as a front needs for one
request, 5 to 20 ms on busy cores, in which a fill could have asked the store."""
_IDLE_S: Final = 30.0
"""After so long without a fill the memory goes back to the system."""


class ArenaSlots:
    """Hands out slots."""

    def __init__(self, arena: Arena, grace: Grace) -> None:
        self.arena = arena
        self._grace = grace
        self._free: list[int] = []
        self._settled: OrderedDict[int, None] = OrderedDict.fromkeys(range(arena.slots))
        self._last_use = trio.current_time()
        self._has_memory = False
        self._is_low = trio.Event()
        self._restocking = trio.Lock()

    async def take(self) -> int | None:
        """Return a slot nobody reads any more, or None when all are in use by fills.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        self._last_use = trio.current_time()
        while not self._free:
            if not self._settled and not self._restocking.locked():
                return None
            await self._restock()
        self._has_memory = True
        slot = self._free.pop()
        if not self._free:
            self._is_low.set()
        return slot

    def settle(self, slot: int) -> None:
        """End a fill's use of a slot."""
        self._settled[slot] = None

    def withdraw_inode(self, ino: int) -> None:
        """Let nobody find what the arena has of a file any more: its content is another one now.  No checkpoint."""
        for slot in range(self.arena.slots):
            if self.arena.holder(slot) == ino:
                self.arena.withdraw(slot)

    async def _restock(self) -> None:
        """Have free slots if any is settled.  Checkpoint."""
        async with self._restocking:
            if not self._free:
                await self._withdraw(_BATCH)

    async def _withdraw(self, count: int) -> None:
        """Free so many slots, or all that are settled."""
        slots = [self._settled.popitem(last=False)[0] for _each in range(min(count, len(self._settled)))]
        for slot in slots:
            self.arena.withdraw(slot)
        if slots:
            await self._grace.wait()
        self._free += slots

    async def run(self) -> None:
        """Keep slots free, so that no fill waits for fronts, and give memory back when none came; for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_back)
            while True:
                await self._is_low.wait()
                self._is_low = trio.Event()
                await self._restock()

    async def _give_back(self) -> None:
        while True:
            await trio.sleep(_IDLE_S)
            if self._has_memory and trio.current_time() - self._last_use >= _IDLE_S:
                async with self._restocking:
                    await self._withdraw(len(self._settled))
                    for slot in self._free:
                        self.arena.give_back(slot)
                    self._has_memory = False
