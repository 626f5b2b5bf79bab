"""`fanoutfs top`: what a mount does now, second by second."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.client import call
from fanoutfs.cli.place import find_place
from fanoutfs.cli.target import find_only_mount
from fanoutfs.cli.topview import View, compare
from fanoutfs.errors import DaemonDiedError, UsageError
from fanoutfs.keeper.mountinfo import fanoutfs_mounts

_PATIENCE_S: Final = 30.0
"""How long a daemon that has answered before may be silent: its core is being replaced, or hangs and soon will be."""


@click.command(epilog="Example: fanoutfs top /mnt/data --once --json | jq .processes")
@click.argument("mountpoint", required=False)
@click.option(
    "--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="seconds between looks"
)
@click.option("--once", is_flag=True, help="show one interval and end")
@click.option("--json", "as_json", is_flag=True, help="with --once: print one JSON document")
def top(mountpoint: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Watch the mount at MOUNTPOINT (or the only one): throughput, hits by layer, uploads, and who waits for what.

    Reads that the kernel answers from its page cache are invisible to the daemon: a job that reads from there seems to
    read nothing.  Ctrl-C ends it.
    """
    if as_json and not once:
        raise UsageError("top: --json goes with --once")
    where = _mount_of(mountpoint)
    if once:
        before, asked_at = call(where, "top"), time.monotonic()
        show = _as_document if as_json else _screen()  # which takes 60 ms to load, of the interval
        show(_look(where, asked_at + interval - time.monotonic(), before)[1])
        return
    _watch(where, interval)


def _watch(where: Path, interval_s: float) -> None:
    from rich.live import Live  # noqa: PLC0415  60 ms

    from fanoutfs.cli.topscreen import render  # noqa: PLC0415

    before: dict[str, Any] | None = None
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            before, view = _look(where, interval_s, before)
            live.update(render(view), refresh=True)


def _as_document(view: View) -> None:
    click.echo(json.dumps(view.as_json(), indent=2))


def _screen() -> Callable[[View], None]:
    """Return what prints a view."""
    from rich.console import Console  # noqa: PLC0415

    from fanoutfs.cli.topscreen import render  # noqa: PLC0415

    console = Console(width=None if sys.stdout.isatty() else 130)
    return lambda view: console.print(render(view))


def _look(where: Path, interval_s: float, before: dict[str, Any] | None) -> tuple[dict[str, Any], View]:
    """Return the mount's state after an interval, and what happened in it."""
    if before is None:
        before = call(where, "top")
    time.sleep(max(0.0, interval_s))
    after = _ask(where, _PATIENCE_S)
    return after, compare(before, after)


def _ask(where: Path, patience_s: float) -> dict[str, Any]:
    """Ask the daemon; a core that is being replaced is waited for."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return call(where, "top")
        except DaemonDiedError:
            is_gone = not any(info.mountpoint == where for info in fanoutfs_mounts())
            if is_gone or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _mount_of(mountpoint: str | None) -> Path:
    return find_only_mount() if mountpoint is None else find_place(mountpoint)[0]
