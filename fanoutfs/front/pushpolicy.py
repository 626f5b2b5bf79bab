"""Which small files to push, and when to stop.  Pure policy: inode numbers and a time in, batches of numbers out.

Files of a directory get consecutive numbers when it is first listed, so the files that follow one in listing order
are the numbers that follow its own, and so they stand in the store.  What may be pushed is what the kernel was given
the entries of: without an entry there is no inode to push to.

Three sources, in this order: what the core announced; *cursors*, which run ahead of the places where files are read
that were not pushed; the *sweep* over what was listed, in the order of listing, which also serves who reads at random.
The latter two are guesses: while orders are announced, they leave half of the window free.

A read of a pushed file is invisible.  Now and then a file is therefore left out of the push, as a *sentinel*: its
READ vouches for the files pushed since the sentinel before it, in a sequence as in a shuffled order.  The core has
signs of its own: files whose READs it waits for are not guessed at.

Flow control resembles TCP's.  `outstanding` bytes (pushed and not vouched for) stay below a window.  It begins small,
doubles with each sentinel that is read, and grows a little with each READ of a file that was not pushed in time: in a
shuffled order sentinels are rare at first.  When it is full and at its limit, and as many READs came as files are
outstanding, the older half of them is given up as wasted and the window halved; from then on only sentinels let it
grow, and each time in a row that it was of no use, twice as many READs must come.  Nobody reads, nothing is pushed.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Final

from fanoutfs.records import MIB

BATCH: Final = 32
"""Files per batch: between batches the pusher looks at what readers do."""
_CHUNK: Final = 64
_MAX_CHUNKS: Final = 1 << 16
"""Four million files; the longest known are forgotten first."""
_MAX_CURSORS: Final = 16
_MAX_ANNOUNCED: Final = 1 << 16
_ANNOUNCED_S: Final = 10.0
"""For so long after it was last heard of, an announced order is taken to go on."""
_FIRST_GAP: Final = 8
"""Files between sentinels.  Few at first, for an early sign; each gap is twice the one before."""
_MAX_GAP: Final = 64
"""A READ costs some ten pushes: one in 64 is hardly felt."""
_FIRST_SHARE: Final = 8
"""An eighth of the limit may be pushed on the strength of a listing alone."""
_MIN_WINDOW: Final = MIB
_EARNED_FILES: Final = 4
"""What a READ lets the window grow by: four pushes cost less than half of a READ."""
_MIN_PATIENCE: Final = 64
_MAX_STRIKES: Final = 10
_MAX_LEAD: Final = 64
_LISTED_PAUSES_S: Final = (0.01, 0.05, 0.25, 1.0)
"""The front tells of a listing when it has answered; the reader's own process then enters it into the kernel, when it
gets a processor.  A file the kernel does not hold yet is tried again, so often, after pauses that long."""
_SETTLED_S: Final = 2.0
"""A READ of a file that was pushed this long before did not cross the push: the kernel gave its pages up."""


class _Chunk:
    """64 numbers in a row.

    listed: the kernel has had their entries; done: pushed, left out or read, at `done_s`; absent: not in the store when
    it was their turn; awaited: left out until they are read, or announced.  due_s: not to be tried before; tries: since
    they were listed, the one to come included.
    """

    __slots__ = ("absent", "awaited", "done", "done_s", "due_s", "listed", "tries")

    def __init__(self) -> None:
        self.listed = 0
        self.absent = 0
        self.awaited = 0
        self.done = 0
        self.done_s = 0.0
        self.due_s = 0.0
        self.tries = 0


class PushPolicy:
    """Owned by the pusher."""

    def __init__(self, limit_bytes: int, chance: random.Random) -> None:
        self.limit_bytes = limit_bytes
        """Upper bound of the window; the owner lowers it when memory is short, to 0 to pause."""
        self.sentinels_read = 0
        self.sentinels_unread = 0
        self._chance = chance
        self._chunks: OrderedDict[int, _Chunk] = OrderedDict()
        self._announced: deque[int] = deque(maxlen=_MAX_ANNOUNCED)
        self._announced_s = -_ANNOUNCED_S
        self._cursors: OrderedDict[int, None] = OrderedDict()
        self._sweep: deque[int] = deque(maxlen=_MAX_CHUNKS)
        self._retries: list[tuple[float, int]] = []
        """A heap of (when due, chunk).  A chunk put off once more has a later entry; the earlier one is no more due."""
        self._reclaimed_s = -1.0
        """What was done before has to be done again: the kernel dropped pages."""
        self._window = max(_MIN_WINDOW, limit_bytes // _FIRST_SHARE)
        self._is_slow_start = True
        self._vouched: OrderedDict[int, int] = OrderedDict()
        """Sentinel → bytes pushed between the one before it and itself, oldest first."""
        self._open_bytes = 0
        self._outstanding_bytes = 0
        self._gap = _FIRST_GAP
        self._until_sentinel = _FIRST_GAP
        self._mean_bytes = 4096
        self._lead = 1
        """Chunks by which a new cursor starts ahead of its reader."""
        self._idle_reads = 0
        self._strikes = 0
        self._hits_since_loss = 0

    @property
    def outstanding_bytes(self) -> int:
        """Return the bytes pushed and not known to be read."""
        return self._outstanding_bytes

    @property
    def window_bytes(self) -> int:
        """Return how many bytes may be outstanding now."""
        return min(self._window, self.limit_bytes)

    @property
    def is_stalled(self) -> bool:
        """Tell whether the window is full."""
        return self._outstanding_bytes >= self.window_bytes

    # --- what the owner hears ----------------------------------------------------------------------------------

    def note_listed(self, first: int, count: int, now_s: float) -> None:
        """The kernel was given the entries of `count` files, numbered from `first` on."""
        end = first + count
        while first < end:
            number, bit = divmod(first, _CHUNK)
            width = min(_CHUNK - bit, end - first)
            chunk = self._chunk(number)
            entries = ((1 << width) - 1) << bit
            chunk.listed |= entries
            chunk.absent &= ~entries
            chunk.tries = 0
            self._put_off(chunk, now_s)
            if not self._sweep or self._sweep[-1] != number:
                self._sweep.append(number)
            first += width

    def note_read(self, ino: int, now_s: float) -> None:
        """A front answered a READ of this file: it was not, or not yet, in the page cache."""
        number, bit = divmod(ino, _CHUNK)
        chunk = self._chunks.get(number)
        if ino in self._vouched:
            self._hit(self._vouched.pop(ino))
        elif chunk is not None and self._done(chunk) >> bit & 1:
            if now_s - chunk.done_s > _SETTLED_S:
                self._reclaimed_s = now_s - _SETTLED_S
                self._window = max(_MIN_WINDOW, self._window // 2)
            else:
                # The push came too late: it must not run beside the reader.
                self._lead = min(_MAX_LEAD, 2 * self._lead)
        else:
            self._missed()
        if chunk is not None:
            chunk.awaited &= ~(1 << bit)
            self._mark_done(chunk, 1 << bit, now_s)
            self._follow(number)

    def announce(self, inos: Iterable[int], now_s: float) -> None:
        """These files are in the store and will be read, in this order."""
        self._announced.extend(inos)
        self._announced_s = now_s

    def leave_out(self, ino: int) -> None:
        """The core waits for a READ of this file, which need not be listed yet."""
        self._chunk(ino // _CHUNK).awaited |= 1 << ino % _CHUNK

    # --- what the owner does -----------------------------------------------------------------------------------

    def next_batch(self, now_s: float) -> list[int]:
        """Return what to push next, in ascending order where nothing was announced; empty: nothing now.

        Each number is to be settled before the next call of anything else.
        """
        if self.is_stalled:
            return []
        if batch := self._take_announced(now_s):
            return batch
        if self._guess_pause_s(now_s):
            return []
        return self._take_at_cursor(now_s) or self._take_swept(now_s) or self._take_retried(now_s)

    def listed_pause_s(self, now_s: float) -> float | None:
        """Return after which time the sweep may go on; None: there is nothing to sweep."""
        if self.is_stalled:
            return None
        due_s = [self._retries[0][0]] if self._retries else []
        if self._sweep:
            chunk = self._chunks.get(self._sweep[0])
            due_s.append(now_s if chunk is None or chunk.tries > 1 else chunk.due_s)
        return max(self._guess_pause_s(now_s), min(due_s) - now_s, 0.0) if due_s else None

    def is_sentinel(self) -> bool:
        """Tell whether the next file is to be left out.  Ask once for each file that could be pushed, in order."""
        self._until_sentinel -= 1
        if self._until_sentinel > 0:
            return False
        self._gap = min(_MAX_GAP, 2 * self._gap)
        # Not at fixed steps: a job that reads every 64th file would read all sentinels, or none.
        self._until_sentinel = self._chance.randint(self._gap // 2 + 1, self._gap + self._gap // 2)
        return True

    def settle_pushed(self, size_bytes: int) -> None:
        """A file's pages are in the kernel."""
        self._mean_bytes += (size_bytes - self._mean_bytes) // 16
        self._open_bytes += size_bytes
        self._outstanding_bytes += size_bytes

    def settle_sentinel(self, ino: int) -> None:
        """The file was left out."""
        if self._open_bytes:
            # (The same file may have been left out before, in a directory read again and again.)
            self._vouched[ino] = self._vouched.pop(ino, 0) + self._open_bytes
            self._open_bytes = 0

    def settle_refused(self, ino: int, now_s: float) -> None:
        """The kernel does not hold the file: not yet, or not any more."""
        number = ino // _CHUNK
        chunk = self._chunks.get(number)
        if chunk is None or (now_s >= chunk.due_s and chunk.tries >= len(_LISTED_PAUSES_S)):
            if chunk is not None:
                chunk.listed &= ~(1 << ino % _CHUNK)
            return
        chunk.done &= ~(1 << ino % _CHUNK)
        if now_s >= chunk.due_s:  # else another file of the chunk was refused a moment ago
            self._put_off(chunk, now_s)
            heappush(self._retries, (chunk.due_s, number))

    def settle_absent(self, ino: int) -> None:
        """The file is not in the store: not to be tried before it is announced, or listed again."""
        chunk = self._chunks.get(ino // _CHUNK)
        if chunk is not None:
            bit = 1 << ino % _CHUNK
            chunk.absent |= bit
            chunk.done &= ~bit

    # --- windows -----------------------------------------------------------------------------------------------

    def _hit(self, vouched_bytes: int) -> None:
        """A sentinel was read."""
        self.sentinels_read += 1
        self._hits_since_loss += 1
        self._outstanding_bytes -= vouched_bytes
        self._lead = max(1, self._lead // 2)
        self._grow(self._window if self._is_slow_start else vouched_bytes)

    def _missed(self) -> None:
        """A file was read that had not been pushed."""
        if not self.is_stalled or self.limit_bytes <= 0:
            return
        if self._is_slow_start and self._window < self.limit_bytes:
            self._grow(_EARNED_FILES * self._mean_bytes)
            return
        self._idle_reads += 1
        outstanding_files = self._outstanding_bytes // max(1, self._mean_bytes)
        if self._idle_reads >= max(_MIN_PATIENCE, outstanding_files) << self._strikes:
            self._give_up_half()

    def _grow(self, more_bytes: int) -> None:
        self._window = max(self._window, min(self.limit_bytes, self._window + more_bytes))

    def _give_up_half(self) -> None:
        """Take the older half of what nobody vouched for as wasted, and be careful from now on."""
        wasted = (len(self._vouched) + 1) // 2
        for _sentinel in range(wasted):
            self._outstanding_bytes -= self._vouched.popitem(last=False)[1]
        if not wasted:
            self._outstanding_bytes -= self._open_bytes
            self._open_bytes = 0
        self.sentinels_unread += wasted
        is_useful = self._hits_since_loss * 4 >= wasted
        self._strikes = 0 if is_useful else min(_MAX_STRIKES, self._strikes + 1)
        self._window = max(_MIN_WINDOW, self._window // 2)
        self._is_slow_start = False
        self._idle_reads = self._hits_since_loss = 0

    # --- what to take ------------------------------------------------------------------------------------------

    def _chunk(self, number: int) -> _Chunk:
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = _Chunk()
            if len(self._chunks) > _MAX_CHUNKS:
                self._chunks.popitem(last=False)
        return chunk

    def _put_off(self, chunk: _Chunk, now_s: float) -> None:
        chunk.due_s = now_s + _LISTED_PAUSES_S[chunk.tries]
        chunk.tries += 1

    def _left(self, number: int) -> int:
        """Return the bits of a chunk that are listed, not done, not known to be absent, and not waited for."""
        chunk = self._chunks.get(number)
        return 0 if chunk is None else chunk.listed & ~self._done(chunk) & ~(chunk.absent | chunk.awaited)

    def _done(self, chunk: _Chunk) -> int:
        return chunk.done if chunk.done_s > self._reclaimed_s else 0

    def _mark_done(self, chunk: _Chunk, bits: int, now_s: float) -> None:
        chunk.done = self._done(chunk) | bits
        chunk.done_s = now_s

    def _follow(self, number: int) -> None:
        """Have a cursor run ahead of a reader that is in this chunk.

        Not in the chunk itself: a push beside its reader waits for every READ it meets.
        """
        number += self._lead
        if number in self._cursors or not self._left(number):
            return  # what follows was pushed: the cursor that did so is further on
        self._cursors[number] = None
        if len(self._cursors) > _MAX_CURSORS:
            self._cursors.popitem(last=False)

    def _guess_pause_s(self, now_s: float) -> float:
        """Return for how long nothing is to be pushed that was not announced."""
        if 2 * self._outstanding_bytes < self.window_bytes:
            return 0.0
        return max(0.0, self._announced_s + _ANNOUNCED_S - now_s)

    def _take_announced(self, now_s: float) -> list[int]:
        batch: list[int] = []
        while self._announced and len(batch) < BATCH:
            ino = self._announced.popleft()
            number, bit = divmod(ino, _CHUNK)
            chunk = self._chunks.get(number)
            if chunk is not None and chunk.listed & ~self._done(chunk) & 1 << bit:
                chunk.absent &= ~(1 << bit)
                chunk.awaited &= ~(1 << bit)
                self._mark_done(chunk, 1 << bit, now_s)
                batch.append(ino)
        return batch

    def _take_at_cursor(self, now_s: float) -> list[int]:
        """Take from the cursor whose turn it is; it moves on, and goes to the end of the row."""
        while self._cursors:
            number, _none = self._cursors.popitem(last=False)
            batch = self._take(number, now_s)
            if not batch:
                continue
            behind = number if self._left(number) else number + 1
            if behind in self._chunks:
                self._cursors[behind] = None
            return batch
        return []

    def _take_swept(self, now_s: float) -> list[int]:
        while self._sweep:
            chunk = self._chunks.get(self._sweep[0])
            if chunk is not None and chunk.tries == 1 and now_s < chunk.due_s:
                return []
            batch = self._take(self._sweep[0], now_s)
            if batch:
                return batch
            self._sweep.popleft()  # done with, or among the retries
        return []

    def _take_retried(self, now_s: float) -> list[int]:
        while self._retries and self._retries[0][0] <= now_s:
            batch = self._take(self._retries[0][1], now_s)
            if batch:
                return batch
            heappop(self._retries)
        return []

    def _take(self, number: int, now_s: float) -> list[int]:
        """Take up to a batch of a chunk that is listed, not put off and not done."""
        chunk = self._chunks.get(number)
        bits = self._left(number) if chunk is not None and now_s >= chunk.due_s else 0
        taken = 0
        batch: list[int] = []
        while bits and len(batch) < BATCH:
            low = bits & -bits
            batch.append(number * _CHUNK + low.bit_length() - 1)
            taken |= low
            bits ^= low
        if taken:
            self._mark_done(self._chunks[number], taken, now_s)
        return batch
