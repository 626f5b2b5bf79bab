"""What the core tells the pusher (front.pusher).  Trio thread only; never waits.

The pusher may be held by the kernel, or dead, at any time: what its channel does not take at once is dropped.  Only
speed depends on it.
"""

import logging
import socket
from collections.abc import Sequence

from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import bump
from fanoutfs.wire.hints import HintKind, packets

log = logging.getLogger(__name__)


class Push:
    """The core's end of the channel.  channel: None when nothing is to be pushed."""

    def __init__(self, channel: socket.socket | None, row: memoryview) -> None:
        self._channel = channel
        self._row = row

    def note_reads(self, inos: Sequence[int]) -> None:
        """Fronts answered READs of these small files, in this order."""
        self._send(HintKind.SMALL_READ, [(ino, 0) for ino in inos])

    def note_listed(self, runs: Sequence[tuple[int, int]]) -> None:
        """The kernel was given the entries of these files: (first inode, how many)."""
        self._send(HintKind.LISTED, runs)

    def push_ahead(self, inos: Sequence[int]) -> None:
        """These files will be read, in this order: push those that are in the store and that the kernel holds."""
        self._send(HintKind.PUSH_AHEAD, [(ino, 0) for ino in inos])

    def _send(self, kind: HintKind, items: Sequence[tuple[int, int]]) -> None:
        if self._channel is None:
            return
        for packet in packets(kind, items):
            try:
                self._channel.send(packet, socket.MSG_DONTWAIT)
            except OSError:  # full, or the pusher is being replaced
                bump(self._row, Count.HINTS_DROPPED)
