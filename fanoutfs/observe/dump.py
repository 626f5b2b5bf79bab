"""SIGUSR1: each process writes into the log what it is doing; the keeper begins, and says what the kernel thinks.

A process that the kernel holds cannot run its handler: what the keeper reads of it in /proc (its state, and where in
the kernel it sleeps) is all there is to see then.
"""

import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

DUMP_SIGNAL: Final = signal.SIGUSR1
_FRAMES: Final = 16
"""The innermost ones: the outer half of every stack is the command that mounted."""


def follow_dumps(more: Callable[[], str] | None = None) -> None:
    """Write the stacks of all threads into the log whenever DUMP_SIGNAL arrives.  Main thread only.

    more: called in the handler; what only this kind of process has to say.
    """

    def dump(_number: int, _frame: object) -> None:
        try:
            log.info("dump of this process\n%s%s", stacks(), more() if more is not None else "")
        except Exception:  # a look must not end the process
            log.exception("dump failed")

    signal.signal(DUMP_SIGNAL, dump)


def stacks() -> str:
    """Return the stacks of all threads of this process, without the dump's own frames."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():
        lines.append(f"thread {names.get(ident, ident)}:\n")
        lines += [line for line in traceback.format_stack(frame, _FRAMES) if __file__ not in line]
    return "".join(lines)


def kernel_view(pid: int) -> str:
    """Return what the kernel says of a process: state, and where it sleeps (root only)."""
    folder = Path("/proc") / str(pid)
    try:
        state = next(
            line.split(None, 1)[1].strip()
            for line in (folder / "status").read_text(encoding="ascii", errors="replace").splitlines()
            if line.startswith("State:")
        )
        sleeping = (folder / "wchan").read_text(encoding="ascii", errors="replace").strip("0\n") or "-"
    except (OSError, StopIteration):
        return "gone"
    return f"state={state} wchan={sleeping}"
