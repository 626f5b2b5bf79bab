"""`fanoutfs info`: where files are and why."""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from fanoutfs.cli.document import show
from fanoutfs.cli.place import group_by_mount
from fanoutfs.cli.progress import ask
from fanoutfs.config.units import show_size
from fanoutfs.errors import FanoutError

_DEFAULT_CLASS: Final = "the store's default"
_RESTORES: Final = {
    "archived": "needed before what is not cached can be read: fanoutfs tier restore",
    "ongoing": "under way: fanoutfs tier restore --wait returns when it can be read",
    "restored": "done: it can be read for as many days as were asked for",
}
_BATCH: Final = 1
"""Each path may have to be asked for at the store: `info` answers within the time of one command."""


@click.command(epilog="Example:  fanoutfs info /mnt/run/last.pt")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="print one JSON document: a list, an object for each PATH")
def info(paths: tuple[str, ...], as_json: bool) -> int:
    """Tell of each PATH in which tier it is, how much of it is cached, its object, and why it is where it is."""
    found = [
        {**each, "path": os.path.join(mountpoint, each["path"])}
        for mountpoint, relative in group_by_mount(paths)
        for at in range(0, len(relative), _BATCH)
        for each in ask(mountpoint, "info", paths=relative[at : at + _BATCH])["files"]
    ]
    if as_json:
        show(json.dumps(found, indent=2))
    else:
        show("\n".join(line for each in found for line in describe(each)))
    return next((int(each.get("exit_code", FanoutError.exit_code)) for each in found if "error" in each), 0)


def describe(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is known of a file as lines for a person."""
    yield str(found["path"])
    if "error" in found:
        yield _row("error", str(found["error"]))
        return
    if found["tier"] == "directory":
        yield _row("tier", "a directory: see fanoutfs tier du" + ("" if found["is_listed"] else " (not listed yet)"))
        return
    yield _row("tier", f"{found['tier']}: {found['why']}")
    restore = str(found.get("restore", ""))  # (a daemon of an earlier version does not say)
    cached, size = show_size(found["cached_bytes"]), show_size(found["size_bytes"])
    yield _row("cached", f"{cached} of {size} ({found['share_cached']:.0%})")
    rows = (
        ("key", found["object_key"] or f"{found['key']} (no object has the newest content)"),
        ("etag", found["etag"]),
        ("version", found["version_id"]),
        ("class", found["storage_class"] or (_DEFAULT_CLASS if restore and found["object_key"] else "")),
        ("restore", _RESTORES.get(restore, "")),
        ("read last", _when(found["last_access_ns"])),
        ("pin", "" if found["pin"] is None else found["pin"] or "/"),
        ("policy", found["policy"]),
        ("parts", ", ".join(f"{parts} in {place}" for place, parts in found["parts_in"].items())),
    )
    for name, text in rows:
        if text:
            yield _row(name, text)


def _row(name: str, text: str) -> str:
    return f"  {name:<10} {text}"


def _when(at_ns: int | None) -> str:
    if at_ns is None:
        return ""
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="seconds")
