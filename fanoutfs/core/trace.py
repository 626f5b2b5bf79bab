"""A trace of what is read, for `fanoutfs bench eviction --record`.

Core, trio thread only.  Fronts tell of reads as hints while a trace is recorded (some may be lost: a full socket drops
them); who records comes for them now and then, and who does not come for long ends the recording.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from fanoutfs.core.control import Command
from fanoutfs.index.reader import IndexReader
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import TRACING, SharedState
from fanoutfs.records import PART_BYTES

_MOST: Final = 50_000
"""Kept between two visits; an answer of so many is some 2 MB."""
_PATIENCE_S: Final = 30.0


class Trace:
    """What was read since somebody asked last."""

    def __init__(self, shared: SharedState, reader: IndexReader) -> None:
        self._shared = shared
        self._reader = reader
        self._accesses: list[tuple[int, int]] = []
        self._dropped = 0
        self._lost_before = 0
        self._visited_s = 0.0
        shared.flags[TRACING] = 0

    def commands(self) -> Mapping[str, Command]:
        """Return what the control socket understands of traces."""
        return {"trace_begin": self._begin, "trace_take": self._take, "trace_end": self._end}

    def note(self, ino: int, part: int) -> None:
        """Note that a part of a large file was read.  No checkpoint."""
        if not self._shared.flags[TRACING]:
            return
        if trio.current_time() - self._visited_s > _PATIENCE_S:
            self._shared.flags[TRACING] = 0
            self._accesses.clear()
        elif len(self._accesses) < _MOST:
            self._accesses.append((ino, part))
        else:
            self._dropped += 1

    def note_small(self, inos: Sequence[int]) -> None:
        """Note that small files were read.  No checkpoint."""
        if self._shared.flags[TRACING]:
            for ino in inos:
                self.note(ino, 0)

    async def _begin(self, _request: Mapping[str, Any]) -> None:
        self._accesses.clear()
        self._dropped = 0
        self._lost_before = self._shared.total(Count.HINTS_DROPPED)
        self._visited_s = trio.current_time()
        self._shared.flags[TRACING] = 1

    async def _take(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        self._visited_s = trio.current_time()
        taken, self._accesses = self._accesses, []
        dropped_hints = self._shared.total(Count.HINTS_DROPPED)
        lost = self._dropped + dropped_hints - self._lost_before
        self._dropped, self._lost_before = 0, dropped_hints
        with self._reader.begin() as txn:
            sizes = {
                ino: 0 if (inode := self._reader.inode(txn, ino)) is None else inode.size_bytes for ino, _ in taken
            }
        return {
            "accesses": [
                (f"{ino}.{part}", min(PART_BYTES, sizes[ino] - part * PART_BYTES))
                for ino, part in taken
                if sizes[ino] > part * PART_BYTES
            ],
            "lost": lost,
        }

    async def _end(self, _request: Mapping[str, Any]) -> None:
        self._shared.flags[TRACING] = 0
        self._accesses.clear()
