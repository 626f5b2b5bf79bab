"""What one front tells the core of use that the core does not see: see wire.hints.

Reads of small files are frequent and told in packets of many, at the latest before the front sleeps; files written in
packets of many within half a second.  The others are rare (one per directory and period, one per 8 MiB) and sent at
once.
"""

import socket
import time
from collections.abc import Iterable
from typing import Final

from fanoutfs.observe.catalog import Count
from fanoutfs.wire.hints import HINTS_PER_PACKET, Hint, HintKind, encode_hints, encode_small_reads, runs_of

_TABLE: Final = 8192
_WRITTEN_PERIOD_S: Final = 1.0
_WRITTEN_DELAY_S: Final = 0.5
_MADE_AT_ONCE: Final = 32
_PART_PERIOD_S: Final = 60.0
"""A part that is read on and on is told of again: when a file was last read decides over its eviction by age."""
_PASS_PERIOD_S: Final = 1.0
"""One that is read from its start again is told of sooner: it may be the next pass through an announced order."""


class HintSender:
    """Sends hints, never blocking.  Owned by one front."""

    def __init__(self, channel: socket.socket, row: memoryview, metadata_ttl_s: float, *, has_pusher: bool) -> None:
        self._channel = channel
        self._has_pusher = has_pusher
        self._row = row
        self._tracks_use = metadata_ttl_s != float("inf")
        self._period_s = min(metadata_ttl_s, 10.0)
        self._hinted: dict[int, float] = {}
        self._last_part: dict[int, tuple[int, float]] = {}
        self._last_access = (0, 0)
        self._small_reads: list[int] = []
        self._written: dict[int, float] = {}
        self._unsaid: list[tuple[int, int]] = []
        self._unsaid_since_s = 0.0
        self._made = 0
        self._made_since_s = 0.0

    def note_directory(self, ino: int) -> None:
        """Tell that a directory is in use, once per period."""
        if not self._tracks_use:
            return
        now = time.monotonic()
        if now - self._hinted.get(ino, 0.0) < self._period_s:
            return
        if len(self._hinted) >= _TABLE:
            self._hinted.clear()
        if self._send(Hint(HintKind.DIRECTORY_USED, ino).encode()):
            self._hinted[ino] = now

    def note_part(self, ino: int, part: int, *, is_start: bool) -> None:
        """Tell that a reader of a large file arrived at a part, begins it once more, or is still there a minute later.

        is_start: he reads from the part's first byte on.
        """
        now = time.monotonic()
        last_part, told_at = self._last_part.get(ino, (-1, 0.0))
        if last_part == part and now - told_at < (_PASS_PERIOD_S if is_start else _PART_PERIOD_S):
            return
        if len(self._last_part) >= _TABLE:
            self._last_part.clear()
        self._last_part[ino] = part, now
        self._send(Hint(HintKind.PART_READ, ino, part).encode())

    def note_access(self, ino: int, part: int) -> None:
        """Tell of a READ in a part, unless it follows another one in the same: for a trace that is being recorded."""
        if self._last_access != (ino, part):
            self._last_access = ino, part
            self._send(Hint(HintKind.ACCESS, ino, part).encode())

    def note_written(self, ino: int) -> None:
        """Tell, within half a second, that a staging file was written; the same file at most once a second.

        Not at once: each new file is written, and a packet for each would cost the core more than the file's creation.
        """
        now = time.monotonic()
        if now - self._written.get(ino, float("-inf")) < _WRITTEN_PERIOD_S:
            return
        if len(self._written) >= _TABLE:
            self._written.clear()
        self._written[ino] = now
        if not self._unsaid:
            self._unsaid_since_s = now
        self._unsaid.append((ino, 0))
        if len(self._unsaid) >= HINTS_PER_PACKET:
            self._say_written()

    def note_made(self, left: int) -> None:
        """Tell, within half a second, that this front has made a file; at once when few numbers are left for more.

        The packet only wakes the core (see observe.spares), and is sent until the socket takes it.
        """
        if not self._made:
            self._made_since_s = time.monotonic()
        self._made += 1
        if self._made >= _MADE_AT_ONCE or left < self._made:
            self._say_made()

    def _say_made(self) -> None:
        if self._send(Hint(HintKind.MADE, 0, self._made).encode()):
            self._made = 0
        else:
            self._made_since_s = time.monotonic()

    @property
    def pause_s(self) -> float | None:
        """How long the front may sleep before `flush` has something to do; None: for ever."""
        if not self._unsaid and not self._made:
            return None
        since_s = self._unsaid_since_s if self._unsaid else self._made_since_s
        if self._made:
            since_s = min(since_s, self._made_since_s)
        return max(0.0, since_s + _WRITTEN_DELAY_S - time.monotonic())

    def _say_written(self) -> None:
        self._send(encode_hints(HintKind.WRITTEN, self._unsaid))
        self._unsaid.clear()

    def note_small_read(self, ino: int) -> None:
        """Tell, with the next packet, that a small file was read from its beginning."""
        self._small_reads.append(ino)
        if len(self._small_reads) >= HINTS_PER_PACKET:
            self.flush()

    def note_listed(self, inos: Iterable[int]) -> None:
        """Tell that the kernel was given the entries of these files."""
        if not self._has_pusher:
            return
        runs = runs_of(inos)
        for at in range(0, len(runs), HINTS_PER_PACKET):
            self._send(encode_hints(HintKind.LISTED, runs[at : at + HINTS_PER_PACKET]))

    def flush(self) -> None:
        """Send what waits for a full packet."""
        if self._small_reads:
            self._send(encode_small_reads(self._small_reads))
            self._small_reads.clear()
        if not self._unsaid and not self._made:
            return
        now = time.monotonic()
        if self._unsaid and now - self._unsaid_since_s >= _WRITTEN_DELAY_S:
            self._say_written()
        if self._made and now - self._made_since_s >= _WRITTEN_DELAY_S:
            self._say_made()

    def _send(self, packet: bytes) -> bool:
        try:
            self._channel.send(packet)
        except OSError:  # full, or the core is being replaced
            self._row[Count.HINTS_DROPPED] += 1
            return False
        return True
