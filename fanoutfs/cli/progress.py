"""Follow a job of the daemon: a bar with rate and ETA on a terminal, one line every ten seconds elsewhere.

Everything is written to stderr, so that stdout stays for results.
"""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from fanoutfs.cli.client import CommandFailedError, SilentDaemonError, call, has_keeper
from fanoutfs.config.units import show_duration
from fanoutfs.errors import DaemonDiedError, FanoutError

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_S: Final = 10.0
_WAIT_S: Final = 0.5
_AWAY_S: Final = 30.0
"""How long a daemon may be silent (its core is being replaced) before the command gives up."""
_DEAD_S: Final = 5.0
"""The same when there is no keeper either: a service is started again a second after it died."""
_RETRY_S: Final = 0.3


class JobLostError(FanoutError):
    """The core was restarted and knows the job no more: start it again."""


class Meter:
    """Shows how far something has come.  total 0: unknown."""

    def __init__(self, what: str, unit: str, total: int, *, is_bytes: bool = False, to: TextIO | None = None) -> None:
        self._to = to or sys.stderr
        self._what = what
        self._unit = unit
        self._total = total
        self._is_bytes = is_bytes
        self._started_at = self._told_at = time.monotonic()
        self._first: int | None = None
        self._bar = self._make_bar() if self._to.isatty() else None

    def _make_bar(self) -> "tqdm[Any]":
        from tqdm import tqdm  # noqa: PLC0415  a third of the time of a command that shows no bar

        return tqdm(
            total=self._total or None, desc=self._what, unit=self._unit, unit_scale=True,
            unit_divisor=1024 if self._is_bytes else 1000, file=self._to, dynamic_ncols=True, smoothing=0.1,
        )  # fmt: skip

    def show(self, done: int, text: str = "") -> None:
        """Show the state."""
        if self._first is None:
            self._first = done
            if self._bar is not None:
                self._bar.initial = self._bar.n = done  # what was there before is no rate
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._told_at >= LINE_S:
            self._told_at = time.monotonic()
            print(self._line(done, text), file=self._to, flush=True)

    def close(self) -> None:
        """Leave the last state standing."""
        if self._bar is not None:
            self._bar.close()

    def _line(self, done: int, text: str) -> str:
        from tqdm import tqdm  # noqa: PLC0415  likewise

        rate = (done - (self._first or 0)) / max(1e-9, time.monotonic() - self._started_at)
        divisor = 1024 if self._is_bytes else 1000
        shown = tqdm.format_sizeof(done, self._unit, divisor)
        if self._total:
            eta = show_duration(round((self._total - done) / rate)) if rate > 0 else "?"
            shown += (
                f" of {tqdm.format_sizeof(self._total, self._unit, divisor)} ({done / self._total:.0%}), {eta} left"
            )
        parts = [f"{self._what}: {shown}", f"{tqdm.format_sizeof(rate, self._unit, divisor)}/s", text]
        return ", ".join(part for part in parts if part)


def ask(mountpoint: Path, op: str, *, is_under_way: bool = False, **arguments: Any) -> dict[str, Any]:
    """Send a command, for a while also to a daemon whose core is just being replaced.

    is_under_way: of a job that the daemon works on: wait as long for one that hangs and will be replaced.
    """
    began = time.monotonic()
    while True:
        try:
            return call(mountpoint, op, **arguments)
        except DaemonDiedError as error:
            if isinstance(error, SilentDaemonError) and not (error.is_starting or is_under_way):
                raise
            patience_s = _AWAY_S if has_keeper(mountpoint) else _DEAD_S
            if time.monotonic() - began > patience_s:
                raise
            time.sleep(_RETRY_S)


def follow(mountpoint: Path, job: str, show: Callable[[Mapping[str, Any]], None], resume: str) -> dict[str, Any]:
    """Wait until a job has ended, showing its progress; return its last state.

    Ctrl-C cancels the job and raises KeyboardInterrupt after `resume` was printed.  Raises JobLostError,
    CommandFailedError, DaemonDiedError.
    """
    try:
        while True:
            state = ask(mountpoint, "job", is_under_way=True, id=job, wait_s=_WAIT_S)
            if state["state"] == "unknown":
                raise JobLostError("the daemon was restarted meanwhile")
            show(state["progress"])
            if state["state"] == "done":
                return state
            if state["state"] == "failed":
                raise CommandFailedError(f"{mountpoint}: {state['error']}", state["exit_code"])
            if state["state"] == "cancelled":
                raise CommandFailedError(f"{mountpoint}: cancelled by somebody else; {resume}", FanoutError.exit_code)
    except KeyboardInterrupt:
        ask(mountpoint, "cancel", id=job)
        print(f"\nstopped; {resume}", file=sys.stderr)
        raise
