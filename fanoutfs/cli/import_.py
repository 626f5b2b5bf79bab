"""`fanoutfs import`: the daemon of a mount learns all names below a path by flat listings; this command watches."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.document import json_option, print_json
from fanoutfs.cli.place import find_place
from fanoutfs.cli.progress import JobLostError, Meter, ask, follow

_RESTARTS: Final = 5
_LOCATE_S: Final = 600.0
"""The directories on the way to the path may have to be listed first."""


@click.command(name="import", epilog="Example:  fanoutfs import /mnt/data")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@json_option
def import_(paths: tuple[str, ...], as_json: bool) -> None:
    """Learn all names below PATH, the path of a mount or of a directory in one.

    Afterwards no LIST or HEAD is sent for what is below as long as it is fresh (--metadata-ttl).  Called again, it goes
    on where it was broken off; when it was complete it looks for changes.  Ctrl-C stops it.
    """
    documents = []
    for path in paths:
        mountpoint, relative = find_place(path)
        progress = _import(path, mountpoint, relative)
        documents.append({"path": path, **progress})
        if not as_json:
            print(_line(path, progress), file=sys.stdout)
    if as_json:
        print_json(documents)


def _import(path: str, mountpoint: Path, relative: str) -> dict[str, Any]:
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
                return {"keys": 0, **state["progress"]}
            except JobLostError:
                if restart == _RESTARTS:
                    raise
    finally:
        meter.close()
    raise AssertionError("the loop returns or raises")


def _line(path: str, progress: Mapping[str, Any]) -> str:
    resumed = f", {progress['resumed_keys']:,} of them before it was broken off" if progress.get("resumed_keys") else ""
    hidden = f", {progress['hidden']:,} cannot be shown" if progress.get("hidden") else ""
    return f"{path}: {progress['keys']:,} keys{resumed}{hidden}"
