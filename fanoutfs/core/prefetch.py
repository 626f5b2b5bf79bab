"""Small files fetched ahead of their readers: carries out what `siblings` decides, for files that no plan covers.

Core, trio thread only; no checkpoint anywhere: it walks a bounded number of index entries at a time.

It learns of reads in two ways: fronts tell which cached files they served (hints, in batches, sometimes lost), and a
reader that has to wait for a file passes through `Fills`.  Of files in the page cache nobody tells when they are read,
but the pusher which files it put there.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fanoutfs.core.fill import Fills
from fanoutfs.core.listahead import find_directory
from fanoutfs.core.plans import Plans
from fanoutfs.core.push import Push
from fanoutfs.core.siblings import Run, Siblings
from fanoutfs.index.format import DT_DIR, Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump

log = logging.getLogger(__name__)

_QUEUED_SHARE: Final = 4
"""Small files under way, per request in flight, above which nothing more is fetched ahead."""
_LOOK_AT: Final = 4
"""Entries looked at for one that is wanted: directories, large and empty files lie between small ones."""
_FIRST_ENTRIES: Final = 64


class Prefetch:
    """Takes note of reads and starts fills ahead of them."""

    def __init__(
        self,
        *,
        reader: IndexReader,
        fills: Fills,
        root_prefix: str,
        requests: int,
        siblings: Siblings,
        plans: Plans,
        push: Push,
        find_idle: Callable[[], int],
        run_bytes: int,
        row: memoryview,
    ) -> None:
        """Take the parts.  find_idle: returns how many bytes may be cached with nothing evicted for them.

        run_bytes: how far a run may be ahead of its reader where something must be evicted for it.
        """
        self._reader = reader
        self._find_idle = find_idle
        self._run_bytes = run_bytes
        self._fills = fills
        self._root_prefix = root_prefix
        self._most_under_way = _QUEUED_SHARE * requests
        self._siblings = siblings
        self._plans = plans
        self._push = push
        self._row = row
        fills.on_small_miss = self.note_miss

    def note_reads(self, inos: Sequence[int]) -> None:
        """Take the fronts' word that these small files were read from the cache, in this order."""
        runs = {}
        for ino in inos:
            if self._plans.note_read(ino, is_missing=False):
                continue
            run = self._siblings.note_hit(ino)
            if run is not None:
                runs[id(run)] = run
        self._fetch_ahead(runs.values())

    def note_miss(self, inode: Inode, is_under_way: bool) -> None:
        """Note that a reader waits for a file.  is_under_way: it was being fetched already."""
        self._push.note_reads([inode.ino])
        if self._plans.note_read(inode.ino, is_missing=True):
            return
        if is_under_way:
            run = self._siblings.note_hit(inode.ino, is_late=True)
        else:
            directory, slash, name = inode.key.rpartition("/")
            raw_name = name.encode("utf-8", "surrogateescape")
            is_first = self._is_first(directory + slash, inode.ino)
            run = self._siblings.note_miss(directory + slash, inode.ino, raw_name, is_first=is_first)
        if run is not None:
            self._fetch_ahead([run])

    def note_pushed(self, pushed: Sequence[tuple[int, int]]) -> None:
        """Note that the page cache answers for these small files: (first inode, how many)."""
        runs = {}
        for first, count in pushed:
            for ino in range(first, first + count):
                run = self._siblings.note_pushed(ino)
                if run is not None:
                    runs[id(run)] = run
        self._fetch_ahead(runs.values())

    def _fetch_ahead(self, runs: Iterable[Run]) -> None:
        for run in runs:
            wanted = self._siblings.wanted(run)
            if wanted and self._fills.small_under_way < self._most_under_way:
                self._extend(run, wanted)
        learnt = self._siblings.learnt
        bump(self._row, Count.PREFETCH_USED_BYTES, learnt.used_bytes)
        bump(self._row, Count.PREFETCH_WASTED_BYTES, learnt.wasted_bytes)
        learnt.used_bytes = learnt.wasted_bytes = 0

    def _room(self, run: Run) -> int:
        """Return how many bytes a run may fetch now.

        A sweep guesses that all will be read some time.  So it is with what would have to go for it: over twice the
        cache, in new shuffles, sweeps that evicted cost 1.6 times the data in GETs each epoch instead of 0.6.  What a
        run fetches will be read at once; but a window of it held what else would have been hit.
        """
        idle_bytes = self._find_idle()
        if run.is_sweep:
            return idle_bytes
        own_bytes = self._run_bytes - run.ahead_bytes
        # Nearly as far ahead as it may be: later, in a larger step.
        return max(idle_bytes, own_bytes if own_bytes > self._run_bytes // 2 else 0)

    def _extend(self, run: Run, wanted: int) -> None:
        """Fetch the next files of a directory."""
        left_bytes = self._room(run)
        if left_bytes <= 0:
            return
        inodes: list[Inode] = []
        edge = run.edge
        is_end = False
        with self._reader.begin() as txn:
            parent = find_directory(self._reader, self._root_prefix, run.directory)
            for looked_at, (name, ino, dtype, _cookie) in enumerate(self._reader.children(txn, parent, edge), 1):
                inode = None if dtype == DT_DIR else self._reader.inode(txn, ino)
                if inode is not None and inode.is_small and inode.size_bytes:
                    left_bytes -= inode.size_bytes
                    if left_bytes < 0:
                        break
                    inodes.append(inode)
                edge = name
                if len(inodes) >= wanted or looked_at >= _LOOK_AT * wanted:
                    break
            else:
                directory = self._reader.inode(txn, parent)
                is_end = directory is None or directory.is_listed  # else more entries are on their way
        started = {fill.inode.ino for fill in self._fills.fetch_small_ahead(inodes)}
        files = [(inode.ino, inode.size_bytes if inode.ino in started else 0) for inode in inodes]
        self._siblings.note_fetched(run, edge, files, is_end=is_end)

    def _is_first(self, directory: str, ino: int) -> bool:
        with self._reader.begin() as txn:
            children = self._reader.children(txn, find_directory(self._reader, self._root_prefix, directory), b"")
            for _n, (_name, child, dtype, _cookie) in zip(range(_FIRST_ENTRIES), children, strict=False):
                if dtype != DT_DIR:
                    return child == ino
        return False
