"""One announced order: where its consumer is, and what to fetch next.  Pure policy, no I/O and no time.

A plan is a row of inode numbers, eight bytes each.  Its consumer is a job whose workers overtake each other, so its
*position* is fuzzy: behind the furthest file that was read.  Files before it that were not read yet are waited for, up
to `SLACK_FILES`; then they count as passed over.  What was fetched and not read yet stays within the window, counted
in bytes, so that the fetch stops when the consumer does.

Where the cache is smaller than the data set, what is fetched ahead takes the room of something.  Of what this order has
been through it costs nothing; of what it is still to come to, that must be fetched once more.  So the window begins
small there, and opens as large files are read that had been cached, or were fetched for a reader himself.  Small ones
go by the segment, of which others may still be read: what was read of them makes no room.  This matters in caches of
less than some hundred windows.

Files that were *pushed* into the page cache are read without a sign of it.  A read further on vouches for those before
it.  So that such a read comes while the window is full of them, a file is left out of the push now and then: known
before it is fetched, because the pusher pushes on its own account, too, and is to leave it out then as well.

A reader who comes for a file that lies further on has skipped: the plan goes on from there.  If that is a large file
and the window was full, one of those that were passed over is waited for no longer: they may have been read from the
page cache, without a sign, and a small window would stay full of them.  (Of small files reads are told, but late.)  A
file that occurs twice is fetched twice only if the cache lost it meanwhile.
"""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

SLACK_FILES: Final = 8192
"""What a loader may read out of order: 16 workers with 2 batches of 256 each."""
_AHEAD_FILES: Final = 65536
"""Files fetched and not read yet at most, whatever the window: each takes some 200 bytes of memory."""
_READ_FILES: Final = 8192
"""Files read last that are known as such; of those before them a look through the order tells."""
_SIGNS: Final = 4
"""Files left out of the push per window, so that the window moves on in as many steps."""
_PUSH_LEAD_FILES: Final = 64
"""A push that was overtaken goes on so far ahead of its reader: beside him it would wait for each of his READs."""
_SCAN_FILES: Final = 4096
_LONG_SCAN_FILES: Final = 1 << 20
_LONG_SCAN_EVERY: Final = 256
"""A file that was not expected is looked for this far on (0.1 ms), and every so often a long way (20 ms)."""


@dataclass(slots=True)
class _Ahead:
    """One file fetched ahead.

    fetched_bytes: of it and not read yet, 0 when it was cached; cached_bytes: those that were; read_bytes: up to where.
    is_left_out: of the push.
    """

    index: int
    fetched_bytes: int
    cached_bytes: int = 0
    is_left_out: bool = False
    read_bytes: int = 0


@dataclass(eq=False, slots=True)
class Plan:
    """An order and how far it has come.

    edge: index of the next file to fetch; edge_part: of its parts, when it is large.  push_edge: of the next file to
    push.  is_complete: the announcer has said everything.  window_bytes: most that is fetched ahead; least_bytes: that
    much in any case.  idle_bytes: of the cache nothing was in when it began.  spent_bytes: of large files that were
    read, and not fetched ahead: nobody comes to them any more.
    """

    number: int
    name: str
    window_bytes: int
    least_bytes: int
    idle_bytes: int = 0
    inos: "array[int]" = field(default_factory=lambda: array("Q"))
    is_complete: bool = False
    unknown: int = 0
    position: int = 0
    edge: int = 0
    edge_part: int = 0
    push_edge: int = 0
    ahead: dict[int, _Ahead] = field(default_factory=dict)
    ahead_bytes: int = 0
    used_bytes: int = 0
    wasted_bytes: int = 0
    spent_bytes: int = 0
    unexpected: int = 0
    _told: tuple[int, int] = (0, 0)
    _silent_bytes: int = 0
    """Fetched since the last file that was left out of the push."""
    _pushed: list[tuple[int, int]] = field(default_factory=list)
    """A heap of (index, inode): in the page cache, and nobody is known to have read further on."""
    _read: dict[int, int] = field(default_factory=dict)
    """Files read last, the newest at the end, each with its index."""
    _arrived_bytes: int = 0
    """Of the large file that a reader came to last, and may still be reading."""

    @property
    def is_over(self) -> bool:
        """Tell whether everything was announced and read."""
        return self.is_complete and self.position >= len(self.inos) and not self.ahead

    @property
    def room_bytes(self) -> int:
        """Return how much may be fetched and not read yet."""
        return min(self.window_bytes, max(self.least_bytes, self.idle_bytes + self.spent_bytes))

    @property
    def files_left(self) -> int:
        """Return how many files its consumer is still to come to."""
        return len(self.inos) - self.position

    def has_room(self) -> bool:
        """Tell whether more is to be fetched now."""
        return self.edge < len(self.inos) and self.ahead_bytes < self.room_bytes and len(self.ahead) < _AHEAD_FILES

    def fits(self, size_bytes: int) -> bool:
        """Tell whether there is room for all of the file at the edge, or the next part of it, if that is not cached.

        It may go beyond the whole window, but not beyond a smaller one: something would have to go for it.
        """
        return self.room_bytes == self.window_bytes or self.ahead_bytes + size_bytes <= self.room_bytes

    def extend(self, inos: Iterable[int]) -> None:
        """Append to the order."""
        self.inos.extend(inos)

    def note_fetched(self, ino: int, size_bytes: int, cached_bytes: int = 0) -> bool:
        """Note that bytes of the file at the edge are being fetched, or that they are cached already.

        Tell whether it is to be left out of the push from now on.
        """
        self.ahead_bytes += size_bytes
        self._silent_bytes += size_bytes
        is_last = self.edge + 1 == len(self.inos)
        is_left_out = is_last or _SIGNS * self._silent_bytes > self.room_bytes
        if is_left_out:
            self._silent_bytes = 0
        found = self.ahead.get(ino)
        if found is None:
            self.ahead[ino] = _Ahead(self.edge, size_bytes, cached_bytes, is_left_out)
        else:
            found.fetched_bytes += size_bytes
            found.cached_bytes += cached_bytes
            found.is_left_out |= is_left_out
        return is_left_out

    def step(self) -> None:
        """Go on to the next file."""
        self.edge += 1
        self.edge_part = 0

    def note_read(self, ino: int, *, is_missing: bool) -> bool:
        """Note that a file was read, whole; tell whether it is one of this plan.

        is_missing: it was not cached, so that it is worth looking for further on.
        """
        found = self.ahead.pop(ino, None)
        if found is not None:
            self._take_as_read(ino, found)
            self._move_to(found.index + 1)
            return True
        if not is_missing:
            return False
        index = self._find(ino)
        if index is None:
            return False
        self._note_over(ino, index)
        self._move_to(index + 1)
        return True

    def was_read_lately(self, ino: int) -> bool:
        """Tell whether a file is one of those read last in this order."""
        return ino in self._read

    def _take_as_read(self, ino: int, file: _Ahead) -> None:
        self.ahead_bytes -= file.fetched_bytes
        self.used_bytes += file.fetched_bytes
        self._note_spent(file.cached_bytes)
        self._note_over(ino, file.index)

    def _note_spent(self, size_bytes: int) -> None:
        if size_bytes:
            self.spent_bytes += self._arrived_bytes
            self._arrived_bytes = size_bytes

    def _note_over(self, ino: int, index: int) -> None:
        self._read.pop(ino, None)
        self._read[ino] = index
        if len(self._read) > _READ_FILES:
            del self._read[next(iter(self._read))]

    def take_ready(self, is_under_way: Callable[[int], bool]) -> list[int]:
        """Return the files to be pushed, up to the first one under way, and go past them."""
        if self.push_edge < self.position:
            self.push_edge = self.position + min(_PUSH_LEAD_FILES, (self.edge - self.position) // 2)
        ready: list[int] = []
        while self.push_edge < self.edge:
            ino = self.inos[self.push_edge]
            file = self.ahead.get(ino)
            if file is not None:
                if is_under_way(ino):
                    break
                if not file.is_left_out:
                    ready.append(ino)
            self.push_edge += 1
        return ready

    def note_pushed(self, inos: Iterable[int]) -> bool:
        """Note that files are in the page cache; tell whether some count as read."""
        for ino in inos:
            file = self.ahead.get(ino)
            if file is not None:
                heappush(self._pushed, (file.index, ino))
        return self._take_vouched()

    def _take_vouched(self) -> bool:
        """Take what was pushed and lies before the position as read."""
        is_any = False
        while self._pushed and self._pushed[0][0] < self.position:
            index, ino = heappop(self._pushed)
            file = self.ahead.get(ino)
            if file is not None and file.index == index:
                del self.ahead[ino]
                self._take_as_read(ino, file)
                is_any = True
        return is_any

    def note_part_read(self, ino: int, read_bytes: int, size_bytes: int, *, is_missing: bool = False) -> bool:
        """Note that a large file was read up to here; tell whether it is one of this plan.  is_missing: as above."""
        found = self.ahead.get(ino)
        if found is None or read_bytes >= size_bytes:
            is_planned = self.note_read(ino, is_missing=is_missing)
            if found is None and is_planned:
                self._note_spent(min(read_bytes, size_bytes))
                self._pass_over_one()
            return is_planned
        used = min(found.fetched_bytes, max(0, read_bytes - found.read_bytes))
        found.read_bytes = max(found.read_bytes, read_bytes)
        found.fetched_bytes -= used
        self.ahead_bytes -= used
        self.used_bytes += used
        return True

    def is_ahead(self, ino: int, offset: int = 0) -> bool:
        """Tell whether the reader of this file, or of what lies at this offset of it, is still to come."""
        found = self.ahead.get(ino)
        return found is not None and offset >= found.read_bytes

    def give_up(self) -> None:
        """Forget what was fetched and not read: it was wasted, as far as this plan goes."""
        self.wasted_bytes += self.ahead_bytes
        self.ahead.clear()
        self._pushed.clear()
        self.ahead_bytes = 0

    def take_learnt(self) -> tuple[int, int]:
        """Return (bytes used, bytes wasted) since the last call."""
        learnt = self.used_bytes - self._told[0], self.wasted_bytes - self._told[1]
        self._told = self.used_bytes, self.wasted_bytes
        return learnt

    def _find(self, ino: int) -> int | None:
        self.unexpected += 1
        far = self.unexpected % _LONG_SCAN_EVERY == 0
        end = self.edge + (_LONG_SCAN_FILES if far else _SCAN_FILES)
        read_at = self._read.get(ino)
        if read_at is not None:
            # Another reader of it, or the same one further on: unless as many were read since as lie between its turns.
            end = min(end, 2 * self.position - read_at + 1)
        try:
            return self.inos.index(ino, self.edge, max(self.edge, end))
        except ValueError:
            return None

    def _move_to(self, position: int) -> None:
        self.position = max(self.position, position)
        if self.edge < self.position:
            self.edge, self.edge_part = self.position, 0
        self._take_vouched()
        oldest = next(iter(self.ahead.values()), None)
        if oldest is None or oldest.index >= self.position - SLACK_FILES:
            return
        for ino, file in list(self.ahead.items()):
            if file.index >= self.position - SLACK_FILES:
                break
            self._pass_over(ino, file)

    def _pass_over_one(self) -> None:
        """Wait no longer for one file before the position, if there is no room because of those."""
        ino, file = next(iter(self.ahead.items()), (0, None))
        if file is not None and file.index < self.position and self.ahead_bytes >= self.room_bytes:
            self._pass_over(ino, file)

    def _pass_over(self, ino: int, file: _Ahead) -> None:
        del self.ahead[ino]
        self.ahead_bytes -= file.fetched_bytes
        self.wasted_bytes += file.fetched_bytes
