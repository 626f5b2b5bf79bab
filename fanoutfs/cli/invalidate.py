"""`fanoutfs invalidate`: forget what is known of names, and of content, so that the store is asked again."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.document import json_option, print_json, show
from fanoutfs.cli.evict import EXIT_KEPT, check_failures, kept_lines
from fanoutfs.cli.place import group_by_mount
from fanoutfs.cli.progress import Meter, ask, follow
from fanoutfs.config.units import show_size

_RESUME: Final = "the same command again begins anew"


@click.command(epilog="Example:  fanoutfs invalidate /mnt/data/train")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--content", is_flag=True, help="also free the cached bytes, which are then fetched again")
@json_option
def invalidate(paths: tuple[str, ...], content: bool, as_json: bool) -> int:
    """Ask the object store again for everything at and below PATH, at its next use, however fresh the listing.

    PATH need not be known to the mount: a name that was just put into the bucket is then found.  What was changed here
    and is not uploaded yet is never lost.  With --content, files that stay in the cache (dirty, pinned, in use) are
    counted by reason, and the exit code is 28.
    """
    documents = []
    for mountpoint, relative in group_by_mount(paths):
        job = ask(mountpoint, "forget", paths=relative, content=content)["job"]
        state = _follow(mountpoint, job)
        document = {"mountpoint": str(mountpoint), **state["result"]}
        if content:
            document |= {name: state["progress"][name] for name in ("freed_files", "freed_bytes")}
        documents.append(document)
        if not as_json:
            show("\n".join(_lines(mountpoint, document)))
    if as_json:
        print_json(documents)
    check_failures(documents)
    return EXIT_KEPT if any(document["kept"] for document in documents) else 0


def _follow(mountpoint: Path, job: str) -> dict[str, Any]:
    meter = Meter("invalidate", "files", 0, to=sys.stderr)
    try:
        return follow(mountpoint, job, lambda progress: meter.show(int(progress.get("files", 0))), _RESUME)
    finally:
        meter.close()


def _lines(mountpoint: Path, done: Mapping[str, Any]) -> Iterator[str]:
    yield f"{os.fspath(mountpoint)}: {done['directories']:,} directories are listed again at their next use"
    if done["kept_directories"]:
        kept = done["kept_directories"]
        yield f"left as they are: {kept:,} directories that were made or renamed here and are not in the store yet"
    if "freed_bytes" in done:
        yield f"freed: {show_size(done['freed_bytes'])} of {done['freed_files']:,} files"
        yield from kept_lines(mountpoint, done["kept"])
