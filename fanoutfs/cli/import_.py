"""`fanoutfs import`: the daemon of a mount learns all names below a path by flat listings; this command watches."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.place import find_place
from fanoutfs.cli.progress import JobLostError, Meter, ask, follow

_RESTARTS: Final = 5
_LOCATE_S: Final = 600.0
"""The directories on the way to the path may have to be listed first."""


@click.command(name="import")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
def import_(paths: tuple[str, ...]) -> None:
    """Learn all names below PATH, the path of a mount or of a directory in one.

    Afterwards no LIST or HEAD is sent for what is below as long as it is fresh (--metadata-ttl).  Called again, it goes
    on where it was broken off; when it was complete it looks for changes.  Ctrl-C stops it.
    """
    for path in paths:
        mountpoint, relative = find_place(path)
        _import(path, mountpoint, relative)


def _import(path: str, mountpoint: Path, relative: str) -> None:
    meter = Meter(f"import {path}", " keys", 0)

    def show(progress: Mapping[str, Any]) -> None:
        if "keys" in progress:
            resumed = progress.get("resumed_keys")
            meter.show(progress["keys"], f"{resumed} from before" if resumed else "")

    try:
        for restart in range(_RESTARTS + 1):
            job = ask(mountpoint, "import", path=relative, timeout_s=_LOCATE_S)["job"]
            try:
                state = follow(mountpoint, job, show, f"fanoutfs import {path} goes on where it was")
                break
            except JobLostError:
                if restart == _RESTARTS:
                    raise
    finally:
        meter.close()
    progress = state["progress"]
    resumed = f", {progress['resumed_keys']:,} of them before it was broken off" if progress.get("resumed_keys") else ""
    hidden = f", {progress['hidden']:,} cannot be shown" if progress.get("hidden") else ""
    print(f"{path}: {progress.get('keys', 0):,} keys{resumed}{hidden}", file=sys.stdout)
