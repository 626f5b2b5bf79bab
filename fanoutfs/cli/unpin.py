"""`fanoutfs unpin`: let pinned files be evicted again."""

import os

import click

from fanoutfs.cli.document import json_option, print_json, show
from fanoutfs.cli.place import group_by_mount
from fanoutfs.cli.progress import ask


@click.command(epilog="Example:  fanoutfs unpin /mnt/data/validation")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@json_option
def unpin(paths: tuple[str, ...], as_json: bool) -> None:
    """Let the files and trees at PATH be evicted when room is needed, whatever pinned them: a pin or a policy."""
    documents = []
    for mountpoint, relative in group_by_mount(paths):
        result = ask(mountpoint, "pin", paths=relative, pinned=False)
        documents.append({"mountpoint": str(mountpoint), **result})
        changed = result.get("changed", relative)  # (a daemon of an earlier version does not say)
        for path in relative if not as_json else ():
            show(f"{os.path.join(mountpoint, path)}: {'unpinned' if path in changed else 'was not pinned'}")
    if as_json:
        print_json(documents)
