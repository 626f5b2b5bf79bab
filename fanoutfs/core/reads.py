"""Who was read when: what fronts mark, the core looks at, and the choice of what to evict is learnt from.

Fronts answer reads from the cache without a word to the core.  All they leave is a mark: the tick of the last read, in
shared memory (`observe.shared`), one store per READ.  The core looks at a mark when it chooses victims and when a part
is filled; how long ago the one before was is what `eviction.reuse` learns from.  Marks are there for what is not
cached, too.  Reads that the kernel answers from its page cache leave none.

Core; the trio thread, and worker threads one at a time (`space` holds its lock, the small store its own: the two use
different marks and different models).  Time goes on with bytes that moved, to readers and from the backend.

What is known is kept in a file, now and then and at the end, for the next mount; a mark lost, or wrong, costs no more
than a worse choice.  Format, little-endian, then compressed by zlib (whose checksum guards it):
    "fanoutR1", tick u32, entries u32, numbers u32, entries × (mark's index u32, tick u32, kind u8),
    numbers × f64: of the model of large files, and then as many of the model of small ones
"""

import contextlib
import logging
import math
import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Collection
from heapq import nlargest
from pathlib import Path
from typing import Final

import trio

from fanoutfs.core.turns import NoOrders, Orders
from fanoutfs.eviction.reuse import ONCE, SAME_USE_TICKS, TICKS, UNREAD, ReuseModel
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import READ_MARKS, TICK, SharedState, mark_of
from fanoutfs.records import KIB, MIB

log = logging.getLogger(__name__)

_FILE: Final = "reads"
_MAGIC: Final = b"fanoutR1"
_HEAD: Final = struct.Struct("<8sIII")
_ENTRY: Final = struct.Struct("<IIB")
_CAP_PER_ENTRY: Final = 64 * KIB
"""The file stays at a few thousandths of the cache: that many of the newest marks are kept."""
_NUMBERS_BYTES: Final = 64 * KIB
_LEAST_KEPT_BYTES: Final = 64 * MIB
"""A smaller cache has better use for the space."""
_MOST_AHEAD: Final = 1 << 18
_SOON_WORTH: Final = 4 / TICKS
"""What is due while a quarter of the cache moves counts alike in a segment: it is one hit, however soon, and many later
ones beside it are more."""
_ADVANCE_S: Final = 0.2
_SAVE_S: Final = 300.0


class Reads:
    """Marks, and what is learnt from them."""

    def __init__(self, shared: SharedState, volume: Path, cache_bytes: int) -> None:
        self._shared = shared
        self._marks = shared.read_marks
        self._flags = shared.flags
        self._path = volume / _FILE
        self._most_entries = min(READ_MARKS, max(256, cache_bytes // _CAP_PER_ENTRY))
        self._is_kept = cache_bytes >= _LEAST_KEPT_BYTES
        self._tick_bytes = max(1, cache_bytes // TICKS)
        self._seen = memoryview(mmap.mmap(-1, READ_MARKS * 4)).cast("I")
        """The tick of each mark when it was last looked at; 0: never."""
        self._ahead: dict[int, int] = {}
        """Mark -> tick of the fill, of what was fetched and is not known to be read yet."""
        self._kinds = memoryview(mmap.mmap(-1, READ_MARKS))
        self.orders: Orders = NoOrders()
        self.large = ReuseModel()
        self.small = ReuseModel()
        self._saved_tick = self._load()
        self._first_tick = max(1, self._saved_tick, self._flags[TICK])
        self._first_bytes = self._moved_bytes()
        self._flags[TICK] = self._first_tick

    @property
    def most_file_bytes(self) -> int:
        """Return what the file takes at most, while a new one replaces it as well."""
        return 2 * (self._most_entries * _ENTRY.size + _NUMBERS_BYTES) if self._is_kept else 0

    @property
    def tick(self) -> int:
        """Return the present tick."""
        return self._flags[TICK]

    def _moved_bytes(self) -> int:
        return self._shared.total(Count.READER_BYTES) + self._shared.total(Count.BACKEND_BYTES)

    def advance(self) -> int:
        """Let time go on as far as bytes moved; return the tick."""
        tick = self._first_tick + (self._moved_bytes() - self._first_bytes) // self._tick_bytes
        self._flags[TICK] = min(tick, 0xFFFF_FFFF)
        return self._flags[TICK]

    async def run(self) -> None:
        """Let time go on, and keep what is known now and then, for ever."""
        next_save_s = trio.current_time() + _SAVE_S
        while True:
            self.advance()
            if trio.current_time() >= next_save_s:
                next_save_s = trio.current_time() + _SAVE_S
                if self.tick != self._saved_tick:
                    await trio.to_thread.run_sync(self.save)
            await trio.sleep(_ADVANCE_S)

    # --- looking -----------------------------------------------------------------------------------------------

    def note_filled(self, ino: int, part: int = 0, since: int | None = None) -> None:
        """Note that something was fetched, and waits for its reader now.  Trio thread.

        since: a reader who came after this tick is the one that it waited for; None: after the present one.
        """
        self._ahead[mark_of(ino, part)] = self.tick if since is None else since
        if len(self._ahead) > _MOST_AHEAD:
            self._ahead.pop(next(iter(self._ahead)), None)

    def judge_small(self, inos: Collection[int], *, stored: int, mean_bytes: int) -> dict[int, float]:
        """Return what small files are worth: see `cache.smallstore.Judge`."""
        self.small.things = stored
        self.small.learn_sometimes()
        found = {ino: self.judge(self.small, ino)[1] for ino in inos}
        for ino, (least, most) in self.find_limits(inos, mean_bytes).items():
            found[ino] = min(most, max(min(least, _SOON_WORTH), found[ino]))
        return found

    def judge_small_by_age(self, inos: Collection[int], *, stored: int, mean_bytes: int) -> dict[int, float]:  # noqa: ARG002
        """Return for small files when they were last read, for choices that look at nothing else."""
        return {ino: float(self.judge(self.small, ino)[0]) for ino in inos}

    def find_limits(self, inos: Collection[int], mean_bytes: int) -> dict[int, tuple[float, float]]:
        """Return what announced orders say files are worth, of which they say anything: (at least, at most).

        What an order comes to is worth a hit after as many bytes as lie before it; what one has been through is worth
        less than all that, however much is known of it: nobody reads it before (as Belady's choice, for as far as the
        order goes).
        """
        turns = self.orders.find_turns(inos)
        return {
            **{ino: (0.0, self.worth_of_due(files * mean_bytes)) for ino, files in turns.over.items()},
            **{ino: (self.worth_of_due(files * mean_bytes), math.inf) for ino, files in turns.due.items()},
        }

    def worth_after(self, ino: int, mean_bytes: int) -> float | None:
        """Return what a file is worth at most that was lately read in an announced order; None: it was not."""
        files = self.orders.files_left_after(ino)
        return None if files is None else self.worth_of_due(files * mean_bytes)

    def worth_of_due(self, ahead_bytes: int) -> float:
        """Return what it is worth to keep what is read after so many bytes."""
        return 1 / max(1, ahead_bytes // self._tick_bytes)

    def judge(self, model: ReuseModel, ino: int, part: int = 0) -> tuple[int, float]:
        """Look at a mark; return the tick of the last use and what it is worth to keep what it stands for."""
        at = mark_of(ino, part)
        mark, seen, kind = self._marks[at], self._seen[at], self._kinds[at]
        filled = self._ahead.get(at)
        if filled is not None:
            # However long ago it was read before: its reader is to come soon, or never.
            waited = max(mark, self._flags[TICK]) - filled
            if mark < filled and waited <= TICKS:
                return filled, model.worth(UNREAD, waited)
            self._ahead.pop(at, None)
            model.note_first(UNREAD)
            if mark >= filled:
                model.note_reuse(UNREAD, mark - filled)
            elif not seen:
                self._seen[at], self._kinds[at] = filled, ONCE
                seen, kind = filled, ONCE
        if mark > seen:
            if not seen:
                kind = ONCE
                model.note_first(ONCE)
            elif mark - seen > SAME_USE_TICKS:
                kind = model.note_reuse(kind, mark - seen)
            self._kinds[at] = kind
            self._seen[at] = seen = mark
        return seen, model.worth(kind, max(0, self._flags[TICK] - seen))

    # --- kept over a restart -----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write down what is known.  Blocks.  Losing it is no harm: no error, no sync."""
        tick = self.tick
        if not self._is_kept or tick == self._saved_tick:
            return
        newest = nlargest(self._most_entries, ((mark, at) for at, mark in enumerate(self._marks) if mark))
        numbers = array("d", [*self.large.dump(), *self.small.dump()])
        data = bytearray(_HEAD.pack(_MAGIC, tick, len(newest), len(numbers)))
        for mark, at in newest:
            data += _ENTRY.pack(at, mark, self._kinds[at] or ONCE)
        data += numbers.tobytes()
        new = self._path.with_name(_FILE + ".new")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as stream:
                stream.write(zlib.compress(data, 1))
            new.replace(self._path)
            self._saved_tick = tick
        except OSError as error:
            log.warning("cannot keep what is known of reads: %s", error)
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)

    def _load(self) -> int:
        """Take over what an earlier mount, or the core before this one, knew; return its tick, 0: nothing."""
        try:
            data = zlib.decompress(self._path.read_bytes())
            magic, tick, entries, numbers = _HEAD.unpack_from(data)
            end = _HEAD.size + entries * _ENTRY.size
            values = array("d")
            values.frombytes(data[end:])
            half = numbers // 2
            is_ours = magic == _MAGIC and len(values) == numbers
            if not (is_ours and self.large.restore(values[:half]) and self.small.restore(values[half:])):
                raise ValueError("of another version")
            for at, mark, kind in _ENTRY.iter_unpack(data[_HEAD.size : end]):
                self._kinds[at] = kind
                # Fronts may have marked it since; or this is a mount's first core, and nobody has.
                self._seen[at] = mark
                self._marks[at] = max(mark, self._marks[at])
        except FileNotFoundError:
            return 0
        except (OSError, zlib.error, struct.error, ValueError, IndexError) as error:
            log.warning("what was known of reads is lost path=%s: %s", self._path, error)
            return 0
        return int(tick)
