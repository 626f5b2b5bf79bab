"""Logging: one line per event, `event key=value …`, to the stream every process of the mount inherits.

Hot paths count instead of logging.  A message that repeats is written at most once per second per call site; the next
one that is written says how many were dropped.
"""

import logging
import sys
import time
from typing import Final

_REPEAT_S: Final = 1.0


class _RepeatFilter(logging.Filter):
    """Let one record per call site and second through."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        site = (record.pathname, record.lineno)
        last, dropped = self._last.get(site, (0.0, 0))
        now = time.monotonic()
        if now - last < _REPEAT_S:
            self._last[site] = (last, dropped + 1)
            return False
        self._last[site] = (now, 0)
        if dropped:
            record.msg = f"{record.getMessage()} repeats_dropped={dropped}"
            record.args = ()
        return True


def setup(level: str, process: str) -> None:
    """Send this process's log to stderr, every line marked with the process's name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {process}[%(process)d] %(message)s"))
    handler.addFilter(_RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
