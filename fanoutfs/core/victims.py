"""Which parts of large files to evict: what is worth least by what was learnt of reads, or by announced orders.

Core, under the lock of `space`.  `eviction.choice` decides, `reads` knows what a part is worth; here the parts are
found, and what announced orders say of files (`Reads.find_limits`) goes before what was learnt.
"""

import math
import random
import time
from collections.abc import Callable
from typing import Final

import trio

from fanoutfs.core.reads import Reads
from fanoutfs.eviction.choice import POOL_SHARE
from fanoutfs.eviction.recency import CHOICES, LEARNT, Choice
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import PartId, choose_parts, list_parts, part_bytes
from fanoutfs.records import PART_BYTES

_SAMPLE_PARTS: Final = 64
"""What these hold, all do on average."""
_LOOK_PAUSE: Final = 20
"""Times as long as a look takes pass before the next one, if it is only that orders went on."""
_NO_LIMITS: Final = (0.0, math.inf)
_SHARES: Final = (POOL_SHARE, 4, 1)
"""What one look after the other, for one eviction, chooses of all that is cached.  What is missing after the last one
(of a map too long to be listed, say) is chosen at random."""


class Victims:
    """Chooses among the parts in the block map."""

    def __init__(self, environment: IndexEnvironment, reads: Reads, choice: str = LEARNT) -> None:
        """choice: one of `eviction.recency.CHOICES`."""
        self._environment = environment
        self._reads = reads
        self._chooser: Choice[PartId] = CHOICES[choice](self._judge)
        self._limits: dict[int, tuple[float, float]] = {}
        self._read_before: set[int] = set()
        """Of the files that announced orders came to, at the last look: those read lately in one of them as well."""
        self._revision = 0
        self._looked_at = self._look_s = 0.0
        self._file_bytes = PART_BYTES
        """What files hold on average here, and what announced orders said of them, at the last look."""

    def note_filled(self, part: PartId, since: int) -> None:
        """Note that bytes of a part were cached.  since: the tick at which that was begun."""
        self._reads.note_filled(*part, since=since)
        self._reads.advance()

    def note_settled(self, part: PartId) -> None:
        """Note that a part that was spared as new is spared no more: as a newcomer it is tried once, from now on."""
        self._chooser.note_new(part, self._reads.tick)

    async def choose(self, wanted_bytes: int, is_spared: Callable[[PartId], bool]) -> dict[PartId, int]:
        """Return parts that together hold so much, or what could be found, with the bytes each holds.  Checkpoint.

        None of them is spared at the moment of the return.
        """
        await trio.lowlevel.checkpoint()
        chosen: dict[PartId, int] = {}
        shares = iter(_SHARES)
        held_bytes = 0
        now = self._reads.advance()
        self._reads.large.learn_sometimes()
        is_stale = self._is_stale()
        while held_bytes < wanted_bytes:
            part = self._chooser.next(now)
            if part is None or (is_stale and self._is_due(part)):
                share = next(shares, None)
                if share is None:
                    break
                is_stale = False
                await trio.to_thread.run_sync(self._look, share)
                # Fills went on meanwhile: some may be spared now, and hold more than they did.
                chosen = {part: part_bytes(self._environment, part) for part in chosen if not is_spared(part)}
                held_bytes = sum(chosen.values())
            elif part not in chosen and not is_spared(part):
                size_bytes = part_bytes(self._environment, part)
                if size_bytes:
                    chosen[part] = size_bytes
                    held_bytes += size_bytes
        missing = wanted_bytes - held_bytes
        if missing > 0:
            chosen |= choose_parts(self._environment, missing, lambda part: part in chosen or is_spared(part))
        return chosen

    def _is_due(self, part: PartId) -> bool:
        """Tell whether an announced order came to a file at the last look, or nobody has looked at this order yet."""
        return self._limits.get(part[0], _NO_LIMITS)[0] > 0 or self._revision != self._reads.orders.revision

    def _is_stale(self) -> bool:
        """Tell whether to look again before anything goes that is announced: some may have been read since.

        Looks take a small share of the time.
        """
        is_new = self._revision != self._reads.orders.revision
        return is_new or time.monotonic() - self._looked_at > _LOOK_PAUSE * self._look_s

    def _look(self, share: int) -> None:
        """Look at all that is cached.  Blocking: 2 us for each part."""
        self._looked_at = time.monotonic()
        self._look_at_parts(share)
        self._look_s = time.monotonic() - self._looked_at

    def _look_at_parts(self, share: int) -> None:
        self._revision = self._reads.orders.revision
        parts = list_parts(self._environment)
        self._reads.large.things = len(parts)
        inos = {ino for ino, _part in parts}
        sample = random.sample(parts, min(_SAMPLE_PARTS, len(parts)))
        mean_bytes = sum(part_bytes(self._environment, part) for part in sample) // max(1, len(sample))
        self._file_bytes = max(1, len(parts) * mean_bytes // max(1, len(inos)))
        self._limits = self._reads.find_limits(inos, self._file_bytes)
        due = (ino for ino, (least, _most) in self._limits.items() if least > 0)
        self._read_before = {ino for ino in due if self._reads.worth_after(ino, self._file_bytes) is not None}
        self._chooser.fill(parts, self._reads.tick, share)

    def _judge(self, part: PartId) -> tuple[int, float]:
        tick, worth = self._reads.judge(self._reads.large, *part)
        if part[0] not in self._read_before:
            after = self._reads.worth_after(part[0], self._file_bytes)
            if after is not None:  # read since the last look
                return tick, min(worth, after)
        least, most = self._limits.get(part[0], _NO_LIMITS)
        return tick, min(most, max(least, worth))
