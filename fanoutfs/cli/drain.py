"""`fanoutfs drain`: upload what is dirty now, and wait until the object store has it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.place import find_place
from fanoutfs.cli.progress import JobLostError, Meter, ask, follow
from fanoutfs.errors import FanoutError, NotMountedError, UsageError
from fanoutfs.keeper.mountinfo import fanoutfs_mounts

_RESTARTS: Final = 5
_RESUME: Final = "uploads go on in the background"


@click.command()
@click.argument("path", required=False)
@click.option("-w", "--wait", is_flag=True, help="return when the object store has everything")
def drain(path: str | None, wait: bool) -> None:
    """Upload what is dirty below PATH (or in the only mount) without delay.

    With --wait, return once the object store has everything that was dirty when the command began, or fail with what
    the store says when it refuses.
    """
    if path is None:
        mounts = fanoutfs_mounts()
        if not mounts:
            raise NotMountedError("nothing is mounted")
        if len(mounts) > 1:
            raise UsageError("drain: several mounts, name a PATH")
        path = str(mounts[0].mountpoint)
    mountpoint, relative = find_place(path)
    if wait:
        drain_mount(mountpoint, relative)
    else:
        click.echo(f"{ask(mountpoint, 'drain', path=relative)['files']} files are being uploaded")


def drain_mount(mountpoint: Path, relative: str = "") -> None:
    """Drain and wait, also over restarts of the core.  Raises FanoutError, KeyboardInterrupt."""
    for _start in range(_RESTARTS):
        started = ask(mountpoint, "drain", path=relative)
        meter = Meter("drain", "files", started["files"], to=sys.stderr)

        def show(progress: Mapping[str, Any], meter: Meter = meter) -> None:
            text = "moving objects" if progress.get("moving") else ""
            meter.show(int(progress.get("done", 0)), text)

        try:
            follow(mountpoint, started["job"], show, _RESUME)
            return
        except JobLostError:
            continue
        finally:
            meter.close()
    raise FanoutError(f"{mountpoint}: the daemon was restarted again and again; {_RESUME}")
