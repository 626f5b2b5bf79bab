"""Logging: one line per event, `event key=value …`, to the stream every process of the mount inherits.

Hot paths count instead of logging.  A message that repeats is written at most once per second per call site; the next
one that is written says how many were dropped.  As text, or as one JSON object a line.

The level may change while the mount lives: it stands in shared memory, and SIGUSR2 has each process take it.
"""

import json
import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

from fanoutfs.errors import CacheUnusableError
from fanoutfs.observe.shared import LOG_LEVEL

log = logging.getLogger(__name__)

LEVEL_SIGNAL: Final = signal.SIGUSR2
_REPEAT_S: Final = 1.0
_MAX_LOG_BYTES: Final = 8 << 20


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


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines to stderr; on a full disk one is lost, and a traceback for each would say nothing more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def setup(level: str, form: str, flags: memoryview, process: str) -> None:
    """Send this process's log to stderr, every line marked with the process's name.

    form: text or json.  flags: of the shared memory; a level that stands there counts instead of `level`, and is taken
    again whenever LEVEL_SIGNAL arrives.  Main thread only.
    """
    handler = _LineHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(_JsonFormatter(process))
    else:
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {process}[%(process)d] %(message)s"))
    handler.addFilter(_RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(flags[LOG_LEVEL] or level.upper())
    signal.signal(LEVEL_SIGNAL, lambda _number, _frame: take_level(flags))


def take_level(flags: memoryview) -> None:
    """Log from now on what the level in shared memory says."""
    if flags[LOG_LEVEL]:
        logging.getLogger().setLevel(flags[LOG_LEVEL])
        log.log(flags[LOG_LEVEL], "log level is %s now", logging.getLevelName(flags[LOG_LEVEL]).lower())


def level_number(name: str) -> int:
    """Return what stands in shared memory for a level's name; KeyError."""
    return logging.getLevelNamesMapping()[name.upper()]


def open_log(path: Path) -> None:
    """Send stdout and stderr to the log file; a large one from earlier mounts is kept as .1.

    Raises CacheUnusableError.
    """
    try:
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CacheUnusableError(f"cannot write the log {path}: {error.strerror}") from error
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
