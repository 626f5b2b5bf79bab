"""`fanoutfs evict`: free the local bytes of files that the object store has as well."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.client import CommandFailedError
from fanoutfs.cli.document import json_option, print_json, show
from fanoutfs.cli.place import group_by_mount
from fanoutfs.cli.progress import Meter, ask, follow
from fanoutfs.config.units import show_size
from fanoutfs.errors import FanoutError

EXIT_KEPT: Final = 28
"""Some files keep bytes here; why was printed."""
_RESUME: Final = "the same command again goes on"


@click.command(epilog="Example:  fanoutfs evict /mnt/run/checkpoints/old")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@json_option
def evict(paths: tuple[str, ...], as_json: bool) -> int:
    """Free the cached bytes of the files and trees at PATH now.  They are read from the store again when asked for.

    What is not uploaded, pinned or in use stays: it is counted by reason, with examples, and the exit code is 28.
    """
    documents = []
    for mountpoint, relative in group_by_mount(paths):
        job = ask(mountpoint, "evict", paths=relative)["job"]
        meter = Meter("evict", "files", 0, to=sys.stderr)

        def show_progress(progress: Mapping[str, Any], meter: Meter = meter) -> None:
            meter.show(int(progress.get("files", 0)))

        try:
            state = follow(mountpoint, job, show_progress, _RESUME)
        finally:
            meter.close()
        freed = {name: state["progress"][name] for name in ("freed_files", "freed_bytes")}
        documents.append({"mountpoint": str(mountpoint), **freed, **state["result"]})
        if not as_json:
            show(f"freed: {show_size(freed['freed_bytes'])} of {freed['freed_files']:,} files")
            for line in kept_lines(mountpoint, state["result"]["kept"]):
                show(line)
    if as_json:
        print_json(documents)
    has_kept = any(document["kept"] for document in documents)
    check_failures(documents, EXIT_KEPT if has_kept else None)
    return EXIT_KEPT if has_kept else 0


def check_failures(documents: Sequence[Mapping[str, Any]], exit_code: int | None = None) -> None:
    """Raise CommandFailedError if some paths could not be looked at.  exit_code: None for that of the first reason."""
    failed = [document for document in documents if document["failures"]]
    if failed:
        failures = [os.path.join(each["mountpoint"], failure) for each in failed for failure in each["failures"]]
        code = failed[0].get("exit_code", FanoutError.exit_code)  # (earlier daemons do not say)
        raise CommandFailedError("; ".join(failures), int(code) if exit_code is None else exit_code)


def kept_lines(mountpoint: Path, kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield what stays and why as lines for a person."""
    for why, found in kept.items():
        examples = ", ".join(os.path.join(mountpoint, path) for path in found["examples"])
        yield f"kept: {show_size(found['bytes'])} of {found['files']:,} files: {why} (such as {examples})"
