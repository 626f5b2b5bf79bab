"""One group of changes to the small-file store: an LMDB transaction and the contents that are appended with it.

Core, the store's writer thread only.  Order, so that `small.lmdb` never promises bytes that are not in a file:
  1. the contents of the whole group are appended, one pwritev for as many as lie end to end
  2. their places, and what the segments hold now, are committed
  3. whoever waits is told
A kill between 1 and 2 leaves bytes behind a segment's end that nobody knows; the next ones follow behind them.
"""

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Final

import lmdb
import xxhash

from fanoutfs.cache.segments import SegmentDescriptors, SegmentFiles
from fanoutfs.cache.small import MAX_CONTENT_BYTES, PLACE, ROSTER_KEY, SEGMENT_KEY, SEGMENT_VALUE, U32, SmallEnvironment
from fanoutfs.index.format import INO_KEY

MAX_SEGMENT_BYTES: Final = 64 << 20
_MAX_CONTENTS: Final = 1 << 16
"""Of a segment: bounds how long it takes to evict one."""
_ROSTER: Final = 128
"""Inodes of a roster: 1 KiB, well below what LMDB would put on a page of its own."""
_U32_MAX: Final = 0xFFFFFFFF
SPARSE_SHARE: Final = 0.75
"""A segment with less of it live is written anew: three bytes copied for each one won at worst, and dead bytes take no
more than a third of what is live."""


@dataclass(slots=True)
class Segment:
    """What a segment holds, see `small`."""

    end: int = 0
    live: int = 0
    count: int = 0

    @property
    def is_sparse(self) -> bool:
        """Tell whether it is worth writing anew."""
        return self.live < self.end * SPARSE_SHARE


@dataclass(slots=True)
class Table:
    """The segments as committed.  Changed by the writer thread; others take a copy at once and look at that."""

    segments: dict[int, Segment] = field(default_factory=dict)
    active: int | None = None
    """The one that is appended to."""
    is_suspect: bool = False
    """A content was damaged: its file may be gone from under its name.  The next contents go to a new one."""
    next: int = 0
    retired: set[int] = field(default_factory=set)
    """Not in LMDB any more, but on disk: readers may still be at them."""
    index_bytes: int = 0
    """Pages of LMDB that are in use."""

    def find_victims(self, spared: Set[int] = frozenset()) -> list[int]:
        """Return the segments among which to choose one to give up: one that holds little anyway, else all.

        spared: none of these.
        """
        segments = dict(self.segments)
        if len(segments) > 1 and self.active is not None:
            segments.pop(self.active, None)
        for number in spared:
            segments.pop(number, None)
        if not segments:
            return []
        least = min(segments, key=lambda number: segments[number].live / max(1, segments[number].end))
        return [least] if segments[least].is_sparse else list(segments)

    def find_sparse(self) -> tuple[int, int] | None:
        """Return (segment, live bytes) of the one that is most worth writing anew, if any is."""
        found = [
            (each.live / max(1, each.end), number, each.live)
            for number, each in dict(self.segments).items()
            if number != self.active and each.is_sparse
        ]
        return min(found)[1:] if found else None


def load_table(environment: SmallEnvironment, files: SegmentFiles, segment_bytes: int) -> Table:
    """Read what the segments hold, and remove files that nothing leads to.

    Takes as long as there are segments, not contents.  Raises lmdb.Error, OSError, struct.error (damaged records).
    """
    table = Table()
    lengths = files.scan()
    with environment.env.begin() as txn:
        table.next = U32.unpack(txn.get(b"next", U32.pack(0)))[0]
        for key, value in txn.cursor(db=environment.segments):
            table.segments[SEGMENT_KEY.unpack(key)[0]] = Segment(*SEGMENT_VALUE.unpack(value))
    for number, length in lengths.items():
        if number in table.segments:
            # What was appended and never published stays as it is: nothing is written twice.
            table.segments[number].end = max(table.segments[number].end, length)
        else:
            files.remove(number)
    last = max(table.segments, default=None)
    if last is not None and last in lengths and table.segments[last].end < segment_bytes:
        table.active = last
    return table


class SmallGroup:
    """Changes that are committed together."""

    def __init__(
        self,
        environment: SmallEnvironment,
        txn: lmdb.Transaction,
        files: SegmentFiles,
        source: SegmentDescriptors,
        table: Table,
        segment_bytes: int,
    ) -> None:
        self._places = environment.places
        self._rosters = environment.rosters
        self._segments = environment.segments
        self._txn = txn
        self._files = files
        self._source = source
        self._table = table
        self._segment_bytes = segment_bytes
        self._contents: list[memoryview] = []
        self._inos: list[int] = []
        self._planned_end = 0
        self._touched: set[int] = set()
        self._live: dict[int, int] = {}
        """Changes to the live bytes of segments, counted when they are committed."""
        self._retired: set[int] = set()

    def add(self, ino: int, content: memoryview) -> None:
        """Store a content; an older one of the inode is dead from then on."""
        self._leave(ino)
        number = self._begin_content(len(content))
        checksum = xxhash.xxh3_64_intdigest(content, ino)
        place = PLACE.pack(checksum, number, self._planned_end, len(content))
        self._txn.put(INO_KEY.pack(ino), place, db=self._places)
        self._contents.append(content)
        self._inos.append(ino)
        self._planned_end += len(content)
        self._live[number] = self._live.get(number, 0) + len(content)

    def _begin_content(self, length: int) -> int:
        """Return the segment to append to, a new one if need be: one longer than segments are fills it alone."""
        table = self._table
        active = None if table.active is None else table.segments[table.active]
        if active is not None:
            if not self._contents:
                self._planned_end = active.end
            is_full = self._planned_end > 0 and self._planned_end + length > self._segment_bytes
            if is_full or active.count + len(self._contents) >= _MAX_CONTENTS or table.is_suspect:
                self.write_out()
                table.active = None
                table.is_suspect = False
        if table.active is None:
            # Stays if the transaction fails: then the next one goes on with it.
            table.active = table.next
            table.next += 1
            table.segments[table.active] = Segment()
            self._planned_end = 0
        return table.active

    def drop(self, ino: int) -> None:
        """Remove a content, if there is one."""
        if self._leave(ino):
            self._txn.delete(INO_KEY.pack(ino), db=self._places)

    def _leave(self, ino: int) -> bool:
        """Note that an inode's present place holds dead bytes; tell whether it has one."""
        value = self._txn.get(INO_KEY.pack(ino), db=self._places)
        if value is None:
            return False
        if len(value) == PLACE.size:
            _checksum, number, _offset, length = PLACE.unpack(value)
            self._live[number] = self._live.get(number, 0) - length
        return True

    def move(self, number: int, after: int, most_bytes: int) -> int:
        """Append the live contents of a segment anew, about so many bytes of them; damaged ones stay behind.

        after: how many contents to pass over.  Returns that of the next call, -1 when all were looked at.
        """
        moved = 0
        for first, held in self._held(number, after):
            if moved >= most_bytes:
                return first
            for ino, checksum, offset, length in held:
                if self._append_anew(number, ino, checksum, offset, length):
                    moved += length
        return -1

    def _append_anew(self, number: int, ino: int, checksum: int, offset: int, length: int) -> bool:
        """Append a content of a segment anew; False: it is damaged."""
        content = memoryview(bytearray(min(length, MAX_CONTENT_BYTES)))
        if self._source.read(number, offset, content) and xxhash.xxh3_64_intdigest(content, ino) == checksum:
            self.add(ino, content)
            return True
        return False

    def clear(
        self, number: int, after: int, most: int, is_kept: Callable[[int], bool] | None = None
    ) -> tuple[int, int]:
        """Drop the contents of a segment, looking at about so many of them; nothing is appended to it any more.

        after: how many contents to pass over.  is_kept: tells of an inode whether its content is to be appended anew
        instead.  Returns (that of the next call or -1, how many were dropped).
        """
        if number == self._table.active:
            self.write_out()
            self._files.seal()
            self._table.active = None
        dropped = looked = 0
        for first, held in self._held(number, after):
            if looked >= most:
                return first, dropped
            looked += len(held)
            for ino, checksum, offset, length in held:
                if is_kept is not None and is_kept(ino) and self._append_anew(number, ino, checksum, offset, length):
                    continue
                self._txn.delete(INO_KEY.pack(ino), db=self._places)
                self._live[number] = self._live.get(number, 0) - length
                dropped += 1
        return -1, dropped

    def leave_sparse(self) -> None:
        """Append to another segment from now on if the present one holds little: it can be written anew then."""
        number = self._table.active
        if number is not None and self._table.segments[number].is_sparse:
            self.write_out()
            self._files.seal()
            self._table.active = None

    def retire(self, number: int) -> None:
        """Give up a segment that was cleared.  The file goes when nobody can be reading it any more."""
        with self._txn.cursor(db=self._rosters) as cursor:
            more = cursor.set_range(ROSTER_KEY.pack(number, 0))
            while more and ROSTER_KEY.unpack(cursor.key())[0] == number:
                more = cursor.delete() and bool(cursor.key())
        self._txn.delete(SEGMENT_KEY.pack(number), db=self._segments)
        self._retired.add(number)

    def kept_bytes(self, number: int, is_kept: Callable[[int], bool]) -> int:
        """Return how many bytes of a segment's contents are to stay."""
        return sum(length for _first, held in self._held(number, 0) for ino, _sum, _at, length in held if is_kept(ino))

    def _held(self, number: int, after: int) -> Iterator[tuple[int, list[tuple[int, int, int, int]]]]:
        """Yield (how many contents before, (inode, checksum, offset, length) of what is still there) of a segment."""
        for first, inos in list(self._roster(number, after)):
            held = []
            for ino in inos:
                value = self._txn.get(INO_KEY.pack(ino), db=self._places) or b""
                if len(value) == PLACE.size:
                    checksum, where, offset, length = PLACE.unpack(value)
                    if where == number:
                        held.append((ino, checksum, offset, length))
            yield first, held

    def _roster(self, number: int, after: int) -> Iterator[tuple[int, list[int]]]:
        """Yield (how many before, inodes) of what was ever appended to a segment, from the `after`-th content on."""
        with self._txn.cursor(db=self._rosters) as cursor:
            more = cursor.set_range(ROSTER_KEY.pack(number, after))
            while more:
                found, first = ROSTER_KEY.unpack(cursor.key())
                if found != number:
                    return
                value = cursor.value()
                yield first, [int.from_bytes(value[at : at + 8], "little") for at in range(0, len(value), 8)]
                more = cursor.next()

    def write_out(self) -> None:
        """Append the contents so far.  Raises OSError."""
        number = self._table.active
        if number is None or not self._contents:
            return
        segment = self._table.segments[number]
        self._files.append(number, segment.end, self._contents)
        segment.end = self._planned_end  # whatever becomes of the transaction: nothing is written twice
        for at in range(0, len(self._inos), _ROSTER):
            roster = b"".join(ino.to_bytes(8, "little") for ino in self._inos[at : at + _ROSTER])
            self._txn.put(ROSTER_KEY.pack(number, segment.count + at), roster, db=self._rosters)
        segment.count += len(self._contents)
        self._touched.add(number)
        self._contents, self._inos = [], []

    def finish(self) -> None:
        """Append, and note what the segments hold: last step before the commit.  Raises OSError, lmdb.Error."""
        self.write_out()
        for number in (self._touched | self._live.keys()) - self._retired:
            segment = self._table.segments.get(number)
            if segment is not None:
                live = min(max(0, segment.live + self._live.get(number, 0)), _U32_MAX)
                value = SEGMENT_VALUE.pack(segment.end, live, segment.count)
                self._txn.put(SEGMENT_KEY.pack(number), value, db=self._segments)
        self._txn.put(b"next", U32.pack(self._table.next))
        pages = 0
        for database in (self._places, self._rosters, self._segments):
            stat = self._txn.stat(database)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        self._table.index_bytes = pages * self._txn.stat(self._places)["psize"]

    def committed(self) -> None:
        """Take note that the transaction was committed."""
        table = self._table
        for number, change in self._live.items():
            if number in table.segments:
                table.segments[number].live = max(0, table.segments[number].live + change)
        for number in self._retired:
            table.segments.pop(number, None)
            table.retired.add(number)
