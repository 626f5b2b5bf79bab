"""`fanoutfs pin`: keep files in the cache."""

import click

from fanoutfs.cli.document import json_option, print_json, show
from fanoutfs.cli.place import find_place, group_by_mount
from fanoutfs.cli.progress import ask
from fanoutfs.cli.warm import warm_paths
from fanoutfs.errors import UsageError


@click.command(epilog="Example:  fanoutfs pin /mnt/data/validation")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--no-fetch", is_flag=True, help="keep what is cached, do not fetch what is missing")
@click.option("--bandwidth", metavar="SIZE", help="fetch at most so many bytes per second, for example 200M")
@click.option("--list", "only_list", is_flag=True, help="show the pins of the mount in which PATH lies")
@json_option
def pin(paths: tuple[str, ...], no_fetch: bool, bandwidth: str | None, only_list: bool, as_json: bool) -> int:
    """Pin the files and trees at PATH: fetch what is missing, and never evict any of it.

    A pin belongs to the path.  It holds over restarts, for all that is below it later, and for new versions of its
    files.  Exits with 26 when not all could be fetched.
    """
    if only_list:
        if no_fetch or bandwidth is not None:
            raise UsageError("--list: shows the pins, and fetches nothing anyway")
        return _list(paths, as_json=as_json)
    documents = [
        {"mountpoint": str(mountpoint), **ask(mountpoint, "pin", paths=relative, pinned=True)}
        for mountpoint, relative in group_by_mount(paths)
    ]
    if no_fetch:
        if as_json:
            print_json(documents)
        return 0
    return max(
        warm_paths(tuple(str(mountpoint / each) for each in relative), bandwidth, as_json=as_json)
        for mountpoint, relative in group_by_mount(paths)
    )


def _list(paths: tuple[str, ...], *, as_json: bool) -> int:
    mounts = {find_place(path)[0] for path in paths}
    pins = [
        {"path": str(mountpoint / each), "pinned": pinned}
        for mountpoint in sorted(mounts)
        for each, pinned in ask(mountpoint, "pins")["pins"].items()
    ]
    if as_json:
        print_json(pins)
    else:
        for each in pins:
            show(f"{'pinned  ' if each['pinned'] else 'unpinned'}  {each['path']}")
        if not pins:
            show("no pins; what policies pin: fanoutfs tier explain")
    return 0
