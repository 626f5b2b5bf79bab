"""Which small files to fetch ahead, from which ones were read.  Pure policy: numbers in, numbers out, no I/O, no time.

Two habits of readers are recognised, per directory:

* *In order*: a file shortly behind one that was read, or the first of its directory, begins a **run**.  It fetches the
  files that follow in listing order, at most a window ahead of its reader.  The window doubles when a reader had to
  wait for a file of it (so it grows with the latency of the store, and no further than it takes) and halves when its
  files are passed over.
* *At random*: files far apart, forward and back, begin a **sweep** of the whole directory in listing order, from its
  first file.  It may be ahead of what was read by a fixed factor: who reads a few files costs a few times as many.

What was fetched ahead is remembered until it is read (then it was useful), or passed over, forgotten, or found to have
been evicted meanwhile (then it was wasted).  A reader who stops leaves at most a window behind him.

Files in the page cache are read without a sign of it.  A run goes on over those that were cached before it came, as far
as the push does: nothing was fetched for them.  What it fetched, and was pushed, counts as read once a file further on
is; of a sweep, which has no order, at once.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from typing import Final

_START_FILES: Final = 16
_NEAR: Final = 8
"""A step forward by so many inode numbers is still "in order": workers of a loader overtake each other, and inodes are
numbered in listing order."""
_RANDOM_AFTER: Final = 4
"""Lonely reads in a directory before it is swept."""
_COINCIDENCE: Final = 8
"""Where less than one read in so many would be near another by chance, the first one is taken for a reader in order."""
_SWEEP_FACTOR: Final = 16
_BEHIND_FILES: Final = 256
"""A run's files this far behind its reader are given up: a loader with 8 workers and batches of 32 reads that mixed."""
_LOST_LIMIT: Final = 64
"""A sweep whose files are evicted before they are read, this many more than are read, ends: the cache is too small."""
_MAX_PENALTY_READS: Final = 4096
_RUNS: Final = 64
_DIRECTORIES: Final = 4096
_STEP_FILES: Final = 256
"""Fetched in one go at most, so that one wake-up of the core does not take milliseconds."""


@dataclass(eq=False, slots=True)
class Run:
    """One reader's way through a directory, or a sweep of it.

    edge: the entry up to which everything was looked at (b"": none).  position, ordinal: counted in small files of the
    directory from where the run began: behind the last file read, behind the last one fetched.  A sweep has no reader
    to follow: its position is the number of reads in the directory that it does not count.
    """

    directory: str
    is_sweep: bool
    edge: bytes
    edge_ino: int
    window: int
    position: int = 0
    ordinal: int = 0
    used: int = 0
    wasted: int = 0
    lost: int = 0
    grown_at: int = 0
    ahead_bytes: int = 0
    has_ended: bool = False
    """Nothing is fetched any more: the end of the directory was reached, or it was not worth it."""
    ahead: OrderedDict[int, tuple[int, int]] = field(default_factory=OrderedDict)
    """Inode → (ordinal, bytes fetched) of files not read yet, in the order of ordinals."""
    pushed: list[tuple[int, int]] = field(default_factory=list)
    """A heap of (ordinal, inode): in the page cache, and nobody is known to have read further on."""


@dataclass(eq=False, slots=True)
class _Directory:
    reads: int = 0
    lonely: int = 0
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=16))
    were_near: deque[bool] = field(default_factory=lambda: deque(maxlen=16))
    """Of each of these, whether it came shortly behind one before."""
    runs: list[Run] = field(default_factory=list)
    patience: int = _RANDOM_AFTER
    """Lonely reads until the next sweep: each needs more of a reason than the one before."""
    penalty: int = 0
    quiet_until: int = 0
    """Nothing is begun before so many reads: what was begun last was a waste.  Longer each time."""


@dataclass(slots=True)
class Verdict:
    """What the policy learnt.  used_bytes, wasted_bytes: of what had been fetched ahead."""

    used_bytes: int = 0
    wasted_bytes: int = 0


class Siblings:
    """Turns reads into runs, and runs into numbers of files to fetch."""

    def __init__(self, max_files: int, max_bytes: int, sweep_bytes: int) -> None:
        """max_files, max_bytes: of one run's window.  sweep_bytes: of what all sweeps together are ahead."""
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._sweep_bytes = sweep_bytes
        self._swept_bytes = 0
        self._directories: OrderedDict[str, _Directory] = OrderedDict()
        self._owners: dict[int, Run] = {}
        self._runs: OrderedDict[int, Run] = OrderedDict()
        self._inherited: tuple[str, int] = ("", 0)
        self.learnt = Verdict()
        """Sums, for the mover to count."""

    def is_ahead(self, ino: int) -> bool:
        """Tell whether this file was fetched ahead and not read yet."""
        return ino in self._owners

    # --- reads -------------------------------------------------------------------------------------------------

    def note_hit(self, ino: int, *, is_late: bool = False) -> Run | None:
        """Note that a file was read, and return its run if it was fetched ahead.  is_late: the reader had to wait."""
        run = self._owners.pop(ino, None)
        if run is None:
            return None
        ordinal, size_bytes = self._take(run, ino)
        self.learnt.used_bytes += size_bytes
        run.used += 1
        self._directory(run.directory).reads += 1
        self._runs.move_to_end(id(run))
        if run.is_sweep:
            return run
        run.position = max(run.position, ordinal + 1)
        self._take_vouched(run)
        if is_late and run.position - run.grown_at >= run.window // 2:
            run.window = min(2 * run.window, self._max_files)
            run.grown_at = run.position
        self._give_up_behind(run)
        return None if run.has_ended else run

    def note_pushed(self, ino: int) -> Run | None:
        """Note that a file is in the page cache, and return its run if that may go on for it."""
        run = self._owners.get(ino)
        if run is None:
            return None
        ordinal, size_bytes = run.ahead[ino]
        heappush(run.pushed, (ordinal, ino))
        if not size_bytes:
            run.position = max(run.position, ordinal + 1)
        self._take_vouched(run)
        return None if run.has_ended else run

    def _take_vouched(self, run: Run) -> None:
        """Take what was pushed and lies before the position as read."""
        while run.pushed and (run.is_sweep or run.pushed[0][0] < run.position):
            ordinal, ino = heappop(run.pushed)
            if self._owners.get(ino) is run and run.ahead[ino][0] == ordinal:
                del self._owners[ino]
                self.learnt.used_bytes += self._take(run, ino)[1]
                run.used += 1
                self._directory(run.directory).reads += 1

    def note_miss(self, directory: str, ino: int, name: bytes, *, is_first: bool) -> Run | None:
        """Note that a file was read which nobody had fetched, and return the run that this begins or moves on.

        is_first: it is the first small file of its directory.
        """
        lost = self._owners.pop(ino, None)
        if lost is not None:
            self._note_lost(lost, ino)
        here = self._directory(directory)
        here.reads += 1
        sweep = None
        for run in reversed(here.runs):
            if run.has_ended:
                continue
            if run.is_sweep:
                sweep = run
            elif 0 <= ino - run.edge_ino <= max(2 * _NEAR, run.window):  # the reader overtook us
                self._move_to(run, ino, name)
                return None if run.has_ended else run
        if sweep is not None:
            return sweep
        if here.reads < here.quiet_until:
            return None
        is_near = _note_recent(here, ino)
        if is_first or (is_near and _is_in_order(here)):
            parent, window = self._inherited
            start = window if is_first and parent == _parent(directory) else 0
            return self._begin(here, Run(directory, False, name, ino, max(_START_FILES, start)))
        here.lonely += 1
        if here.lonely < here.patience or not _is_random(here.recent):
            return None
        here.lonely = 0
        here.patience *= 4
        return self._begin(here, Run(directory, True, b"", 0, 0, position=here.reads - _RANDOM_AFTER))

    def _note_lost(self, run: Run, ino: int) -> None:
        self.learnt.wasted_bytes += self._take(run, ino)[1]
        run.lost += 1
        if run.lost > run.used + (_LOST_LIMIT if run.is_sweep else run.window):
            self._fail(run)

    def _take(self, run: Run, ino: int) -> tuple[int, int]:
        """Take a file off what a run is ahead; return (ordinal, bytes)."""
        ordinal, size_bytes = run.ahead.pop(ino)
        run.ahead_bytes -= size_bytes
        if run.is_sweep:
            self._swept_bytes -= size_bytes
        return ordinal, size_bytes

    def _move_to(self, run: Run, ino: int, name: bytes) -> None:
        run.edge, run.edge_ino = name, ino
        run.position = run.ordinal = run.ordinal + 1
        run.grown_at = run.position
        self._take_vouched(run)
        self._runs.move_to_end(id(run))
        if len(run.ahead) > max(run.window // 2, _START_FILES):  # over most of it, not through it
            self._slow_down(run)
        else:
            run.window = min(2 * run.window, self._max_files)

    # --- what to fetch -----------------------------------------------------------------------------------------

    def wanted(self, run: Run) -> int:
        """Return how many small files behind the run's edge to fetch now."""
        if run.has_ended:
            return 0
        if run.is_sweep:
            allowed = _SWEEP_FACTOR * (self._directory(run.directory).reads - run.position) - run.ordinal
            if self._swept_bytes >= self._sweep_bytes:
                return 0
            return min(allowed, _STEP_FILES) if allowed >= _SWEEP_FACTOR else 0
        distance = run.ordinal - run.position
        if distance > run.window // 2 or run.ahead_bytes >= self._max_bytes:
            return 0  # far enough ahead: extend in large steps
        return min(run.window - distance, _STEP_FILES)

    def note_fetched(self, run: Run, edge: bytes, files: Iterable[tuple[int, int]], *, is_end: bool) -> None:
        """Note what was found behind the edge: (inode, bytes to fetch: 0 when cached) of small files, in order.

        edge: the last entry looked at.  is_end: there is no further one.
        """
        run.edge = edge
        for ino, size_bytes in files:
            run.edge_ino = ino
            if size_bytes and (owner := self._owners.pop(ino, None)) is not None:
                self.learnt.wasted_bytes += self._take(owner, ino)[1]  # evicted before it was read
            # A run follows its reader over cached files, too; a sweep has nothing to learn from them.
            if ino not in self._owners and (size_bytes or not run.is_sweep):
                self._owners[ino] = run
                run.ahead[ino] = (run.ordinal, size_bytes)
                run.ahead_bytes += size_bytes
                if run.is_sweep:
                    self._swept_bytes += size_bytes
            run.ordinal += 1
        if is_end:
            run.has_ended = True
            if run.is_sweep:
                self._directory(run.directory).lonely = 0
            else:
                self._inherited = (_parent(run.directory), run.window)

    # --- ends --------------------------------------------------------------------------------------------------

    def _give_up_behind(self, run: Run) -> None:
        """Forget files that the reader passed over long ago; slow down if they are many."""
        limit = run.position - max(_BEHIND_FILES, run.window)
        before = run.wasted
        while run.ahead:
            ino, (ordinal, _size_bytes) = next(iter(run.ahead.items()))
            if ordinal >= limit:
                break
            del self._owners[ino]
            run.wasted += 1
            self.learnt.wasted_bytes += self._take(run, ino)[1]
        if run.wasted > before and run.wasted > run.used:
            run.used = run.wasted = 0
            self._slow_down(run)

    def _slow_down(self, run: Run) -> None:
        run.window //= 2
        if run.window < _NEAR:
            self._fail(run)

    def _fail(self, run: Run) -> None:
        """End a run that was of no use, and let its directory be for a while."""
        directory = self._directory(run.directory)
        directory.penalty = min(_MAX_PENALTY_READS, max(_START_FILES, 2 * directory.penalty))
        directory.quiet_until = directory.reads + directory.penalty
        self._end(run)

    def _begin(self, here: _Directory, run: Run) -> Run:
        here.runs.append(run)
        self._runs[id(run)] = run
        while len(self._runs) > _RUNS:
            self._end(next(iter(self._runs.values())))
        return run

    def _end(self, run: Run) -> None:
        """Forget a run.  What it fetched and nobody read was wasted."""
        run.has_ended = True
        for ino in list(run.ahead):
            del self._owners[ino]
            self.learnt.wasted_bytes += self._take(run, ino)[1]
        self._runs.pop(id(run), None)
        directory = self._directories.get(run.directory)
        if directory is not None and run in directory.runs:
            directory.runs.remove(run)

    def _directory(self, key: str) -> _Directory:
        found = self._directories.get(key)
        if found is None:
            found = self._directories[key] = _Directory()
            while len(self._directories) > _DIRECTORIES:
                for run in list(self._directories.popitem(last=False)[1].runs):
                    self._end(run)
        else:
            self._directories.move_to_end(key)
        return found


def _note_recent(here: _Directory, ino: int) -> bool:
    """Note a lonely read; tell whether it is shortly behind another."""
    is_near = any(0 < ino - other <= _NEAR for other in here.recent)
    here.recent.append(ino)
    here.were_near.append(is_near)
    return is_near


def _is_in_order(here: _Directory) -> bool:
    """Tell whether files read shortly behind others are no coincidence: in a small directory they often are."""
    span = max(here.recent) - min(here.recent) + 1
    is_unlikely = len(here.recent) * _NEAR * _COINCIDENCE <= span
    return is_unlikely or 2 * sum(here.were_near) >= len(here.were_near)


def _is_random(inos: Sequence[int]) -> bool:
    """Tell whether reads jump back far, too: who takes every tenth file goes forward only, but for his workers."""
    span = max(inos) - min(inos)
    return any(before - after > span // 2 for before, after in pairwise(inos))


def _parent(directory: str) -> str:
    return directory.rstrip("/").rpartition("/")[0]
