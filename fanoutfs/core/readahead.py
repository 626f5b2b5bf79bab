"""How far ahead of a reader to fetch.  Pure policy: blocks in, blocks out, no I/O and no time.

There are no file handles to tell readers apart (opens are answered by the kernel), so a reader is an *offset run*:
accesses that go on where an earlier one ended.  Several runs of one inode live side by side.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from fanoutfs.records import BLOCK_BYTES, MIB, PART_BLOCKS

_RUNS_PER_INODE: Final = 16
_INODES: Final = 4096
_START_BLOCKS: Final = MIB // BLOCK_BYTES
_START_AT_ZERO_BLOCKS: Final = 8 * MIB // BLOCK_BYTES
"""Who begins at offset 0 most often reads on: three doublings fewer, each a round trip."""
_GROWTH: Final = 2
"""Times the window, whenever the reader has come near its end."""
_BACK_SLACK_BLOCKS: Final = 8 * MIB // BLOCK_BYTES
"""Several fronts serve one reader's READs out of order; a step back by this much is still the same run."""
_RANDOM_AFTER: Final = 4
"""New runs in a row that nobody went on with: the file is read at random, so fetch only what is asked."""
_WHOLE_FILE_BYTES: Final = 64 * MIB
_WHOLE_FILE_READERS: Final = 3
_NOWHERE: Final = -2


@dataclass(slots=True)
class _Run:
    """One reader: `position` is the block behind its last access, `edge` the block behind the last one fetched."""

    position: int
    edge: int
    window: int


class _Reader:
    """Runs of one inode, most recently used last."""

    __slots__ = ("lonely", "part", "runs")

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.lonely = 0
        self.part = _NOWHERE
        """The last one that a reader was said to have arrived in."""


class ReadAhead:
    """Turns accesses into ranges to prefetch."""

    def __init__(self, max_bytes: int) -> None:
        self._max_blocks = max(0, max_bytes // BLOCK_BYTES)
        self._inodes: OrderedDict[int, _Reader] = OrderedDict()

    def access(self, ino: int, first: int, last: int, size_blocks: int) -> range:
        """Note an access to blocks [first, last] and return the blocks to fetch ahead (may be empty, may be cached)."""
        reader = self._reader(ino)
        if self._max_blocks == 0:
            return range(0)
        run = self._continued(reader, first)
        if run is None:
            return self._begin(reader, first, last, size_blocks)
        reader.lonely = 0
        run.position = max(run.position, last + 1)
        run.edge = max(run.edge, run.position)
        if run.edge - run.position > run.window - min(run.window // 2, PART_BLOCKS):
            return range(0)  # far enough ahead: extend by whole parts, a small window by half of itself
        run.window = min(max(_GROWTH * run.window, _START_BLOCKS), self._max_blocks)
        return self._extend(run, size_blocks)

    def follow(self, ino: int, part: int, size_blocks: int) -> range:
        """Note that a reader arrived somewhere in a part, of which all that he read was cached; return as `access`.

        A run goes on by it.  One begins only if he comes from the part before: else he may be anywhere in this one, and
        read at random.
        """
        reader = self._reader(ino)
        first = part * PART_BLOCKS
        is_next = reader.part == part - 1
        reader.part = part
        if self._continued(reader, first) is None and not is_next:
            return range(0)
        return self.access(ino, first, first, size_blocks)

    def _reader(self, ino: int) -> _Reader:
        reader = self._inodes.get(ino)
        if reader is None:
            reader = self._inodes[ino] = _Reader()
            if len(self._inodes) > _INODES:
                self._inodes.popitem(last=False)
        else:
            self._inodes.move_to_end(ino)
        return reader

    @staticmethod
    def _continued(reader: _Reader, first: int) -> _Run | None:
        for index in range(len(reader.runs) - 1, -1, -1):
            run = reader.runs[index]
            if run.position - min(_BACK_SLACK_BLOCKS, max(1, run.window)) <= first <= run.edge:
                reader.runs.append(reader.runs.pop(index))
                return run
        return None

    def _begin(self, reader: _Reader, first: int, last: int, size_blocks: int) -> range:
        reader.lonely += 1
        start = _START_AT_ZERO_BLOCKS if first == 0 else _START_BLOCKS
        window = min(start, self._max_blocks) if reader.lonely <= _RANDOM_AFTER else 0
        run = _Run(last + 1, last + 1, window)
        reader.runs.append(run)
        if len(reader.runs) > _RUNS_PER_INODE:
            reader.runs.pop(0)
        small_enough = size_blocks * BLOCK_BYTES <= min(_WHOLE_FILE_BYTES, self._max_blocks * BLOCK_BYTES)
        if small_enough and len(reader.runs) >= _WHOLE_FILE_READERS:
            reader.runs.clear()
            return range(size_blocks)
        return self._extend(run, size_blocks)

    @staticmethod
    def _extend(run: _Run, size_blocks: int) -> range:
        start = run.edge
        end = run.position + run.window
        border = end - end % PART_BLOCKS
        if start < border and run.window >= PART_BLOCKS and end < size_blocks:
            end = border  # parts are fetched: what ends inside of one costs a request more for the rest
        run.edge = max(start, min(size_blocks, end))
        return range(start, run.edge)

    def forget(self, ino: int) -> None:
        """Drop what is known of an inode."""
        self._inodes.pop(ino, None)
