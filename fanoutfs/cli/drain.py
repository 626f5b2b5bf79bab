"""`fanoutfs drain`: upload what is dirty now, and wait until the object store has it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.document import json_option, print_json
from fanoutfs.cli.place import find_place
from fanoutfs.cli.progress import JobLostError, Meter, ask, follow
from fanoutfs.cli.target import find_only_mount
from fanoutfs.errors import FanoutError

_RESTARTS: Final = 5
_RESUME: Final = "uploads go on in the background"


@click.command(epilog="Example:  fanoutfs drain --wait /mnt/run/checkpoints")
@click.argument("path", required=False)
@click.option("-w", "--wait", is_flag=True, help="return when the object store has everything")
@json_option
def drain(path: str | None, wait: bool, as_json: bool) -> None:
    """Upload what is dirty below PATH (or in the only mount) without delay.

    With --wait, return once the object store has everything that was dirty when the command began, or fail with what
    the store says when it refuses.
    """
    if path is None:
        path = str(find_only_mount("name a PATH in one of"))
    mountpoint, relative = find_place(path)
    files = drain_mount(mountpoint, relative) if wait else int(ask(mountpoint, "drain", path=relative)["files"])
    if as_json:
        print_json({"mountpoint": str(mountpoint), "files": files, "is_done": wait})
    elif not wait:
        click.echo(f"{files} files are being uploaded")


def drain_mount(mountpoint: Path, relative: str = "") -> int:
    """Drain and wait, also over restarts of the core; return how many files were to be uploaded.

    Raises FanoutError, KeyboardInterrupt.
    """
    files = 0
    for _start in range(_RESTARTS):
        started = ask(mountpoint, "drain", path=relative)
        files = max(files, int(started["files"]))
        meter = Meter("drain", "files", started["files"], to=sys.stderr)

        def show(progress: Mapping[str, Any], meter: Meter = meter) -> None:
            text = "moving objects" if progress.get("moving") else ""
            meter.show(int(progress.get("done", 0)), text)

        try:
            follow(mountpoint, started["job"], show, _RESUME)
            return files
        except JobLostError:
            continue
        finally:
            meter.close()
    raise FanoutError(f"{mountpoint}: the daemon was restarted again and again; {_RESUME}")
