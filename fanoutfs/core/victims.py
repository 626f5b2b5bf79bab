"""Which parts of large files to evict: what is worth least by what was learnt of reads, or by announced orders.

Core, under the lock of `space`.  `eviction.choice` decides, `reads` knows what a part is worth; here the parts are
found and what announced orders say is added: a file that a job will read after n others is worth a hit after so many
bytes as those hold, however it was read before (as Belady's choice, for as far as the order goes).
"""

from collections.abc import Callable
from typing import Final

import trio

from fanoutfs.core.reads import Reads
from fanoutfs.eviction.choice import POOL_SHARE
from fanoutfs.eviction.recency import CHOICES, LEARNT, Choice
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import PartId, choose_parts, list_parts, part_bytes
from fanoutfs.records import PART_BYTES

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
        self._due: dict[int, float] = {}
        """What announced orders say that files are worth."""

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
        while held_bytes < wanted_bytes:
            part = self._chooser.next(now)
            if part is None:
                share = next(shares, None)
                if share is None:
                    break
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

    def _look(self, share: int) -> None:
        """Look at all that is cached.  Blocking: 2 us for each part."""
        parts = list_parts(self._environment)
        self._reads.large.things = len(parts)
        inos = {ino for ino, _part in parts}
        # A file is taken to hold what files hold here on average.
        file_bytes = len(parts) * PART_BYTES // max(1, len(inos))
        self._due = {
            ino: self._reads.worth_of_due(files * file_bytes) for ino, files in self._reads.find_due(inos).items()
        }
        self._chooser.fill(parts, self._reads.tick, share)

    def _judge(self, part: PartId) -> tuple[int, float]:
        tick, worth = self._reads.judge(self._reads.large, *part)
        return tick, max(worth, self._due.get(part[0], 0.0))
