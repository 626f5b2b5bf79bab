"""The arena: memory that core and fronts share, where fresh bytes of large files are read before they reach the disk.

Without it a fetched byte is copied into the page cache of the cache file and out again, and stays there a second time
beside the page cache of the mounted file: measured in a cold sequential read, that copy alone was a fifth of all CPU
time and doubled the memory the file takes.  With it the core receives a part into a slot, the fronts answer from what
has arrived there, and the disk is written past its page cache (O_DIRECT).

Made by the keeper before it forks.  Slots hold one run of blocks each, always of one part; slot s begins at
s * PART_BYTES.  The directory is three arrays of u64, one word per slot:

    ino      0: empty.  Written last when a slot is published, first when it is withdrawn
    first    the run's first block, counted from the beginning of the file
    length   bytes of the run, from its beginning on; grows while they arrive, and may end anywhere

Writer: the core.  A slot is written to only after it was withdrawn and a grace period is over (see core.arena), so
what a front finds published during one request stays as it is until the request is answered.  What has arrived is not
received again: after a cut the rest is asked for (backend.base.Landing).
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fanoutfs.records import BLOCK_BYTES, PART_BYTES

_WORDS: Final = 3
_PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes [start, start + len(data)) of a file."""

    start: int
    data: memoryview

    @property
    def end(self) -> int:
        """Return the offset behind the last byte."""
        return self.start + len(self.data)


class Arena:
    """The memory and its directory."""

    def __init__(self, size_bytes: int) -> None:
        self.slots = max(1, size_bytes // PART_BYTES)
        directory_bytes = -(-self.slots * _WORDS * 8 // _PAGE_BYTES) * _PAGE_BYTES
        self._data_at = directory_bytes
        self._map = mmap.mmap(-1, directory_bytes + self.slots * PART_BYTES)
        self._bytes = memoryview(self._map)
        words = self._bytes[: self.slots * _WORDS * 8].cast("Q")
        self._inos = words[: self.slots]
        self._firsts = words[self.slots : 2 * self.slots]
        self._lengths = words[2 * self.slots :]

    # --- fronts ------------------------------------------------------------------------------------------------

    def runs(self, ino: int, start: int, end: int) -> list[Run]:
        """Return what is published of bytes [start, end) of a file, sorted, cut to the range, overlaps possible.

        Valid until the front's request ends.
        """
        inos = self._inos.tolist()
        if ino not in inos:
            return []
        found = []
        for slot, holder in enumerate(inos):
            if holder != ino:
                continue
            run_start, length = self._firsts[slot] * BLOCK_BYTES, self._lengths[slot]
            low, high = max(start, run_start), min(end, run_start + length)
            if low < high:
                base = self._data_at + slot * PART_BYTES - run_start
                found.append(Run(low, self._bytes[base + low : base + high]))
        found.sort(key=_by_start)
        return found

    # --- core --------------------------------------------------------------------------------------------------

    def buffer(self, slot: int) -> memoryview:
        """Return a slot's memory, page-aligned, PART_BYTES long."""
        at = self._data_at + slot * PART_BYTES
        return self._bytes[at : at + PART_BYTES]

    def publish(self, slot: int, ino: int, first_block: int, length: int) -> None:
        """Let fronts find the first `length` bytes of a slot as a run of this file.  Any thread of its fill."""
        self._firsts[slot] = first_block
        self._lengths[slot] = length
        self._inos[slot] = ino

    def holder(self, slot: int) -> int:
        """Return the inode whose bytes a slot shows; 0: none."""
        return self._inos[slot]

    def withdraw(self, slot: int) -> None:
        """Let no further request find a slot."""
        self._inos[slot] = 0

    def give_back(self, slot: int) -> None:
        """Return a withdrawn slot's memory to the system until it is written again."""
        self._map.madvise(mmap.MADV_REMOVE, self._data_at + slot * PART_BYTES, PART_BYTES)


def gaps(runs: list[Run], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of [start, end) that no run covers."""
    at = start
    for run in runs:
        if run.start > at:
            yield at, run.start
        at = max(at, run.end)
    if at < end:
        yield at, end


def _by_start(run: Run) -> int:
    return run.start
