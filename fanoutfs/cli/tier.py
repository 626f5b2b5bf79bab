"""`fanoutfs tier`: show where bytes are, what policy wants, and have it done."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.client import CommandFailedError
from fanoutfs.cli.document import json_option, print_json, show
from fanoutfs.cli.place import find_place, group_by_mount
from fanoutfs.cli.progress import Meter, ask, follow
from fanoutfs.config.schema import RESTORE_SPEEDS
from fanoutfs.config.units import parse_size, show_duration, show_size

EXIT_INCOMPLETE: Final = 29
"""Not everything was done; what was not was printed."""
_UNLISTED: Final = "not listed yet: look into it, or fanoutfs import makes all names below known"
_RESUME: Final = "the same command again goes on"


@click.group()
def tier() -> None:
    """Show and steer where the bytes of files are."""


# --- what is where ----------------------------------------------------------------------------------------------


@tier.command(epilog="Example:  fanoutfs tier ls /mnt/run")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-R", "--recursive", is_flag=True, help="also what is in the directories below")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object a line")
def ls(paths: tuple[str, ...], recursive: bool, as_json: bool) -> None:
    """List files with their tier, the share that is cached, and their size.  Nothing is listed in the store for it."""
    for path in paths:
        mountpoint, relative = find_place(path)
        for entry in _entries(mountpoint, relative, recursive=recursive):
            if as_json:
                show(json.dumps(entry))
                continue
            is_file = entry["tier"] != "directory"
            share = f"{entry['share_cached']:>5.0%}" if is_file else "    -"
            size = show_size(entry["size_bytes"]) if is_file else "-"
            show(f"{entry['tier']:<9} {share} {size:>9}  {os.path.join(mountpoint, entry['path'])}")


def _entries(mountpoint: Path, relative: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
    waiting = [relative]
    while waiting:
        path, after = waiting.pop(), ""
        below: list[str] = []
        while True:
            page = ask(mountpoint, "tier_ls", path=path, after=after)
            if not page["is_listed"] and not after:
                click.echo(f"{os.path.join(mountpoint, path)}: {_UNLISTED}", err=True)
            for entry in page["entries"]:
                yield entry
                if entry["tier"] == "directory" and recursive:
                    below.append(entry["path"])
            if page["after"] is None:
                break
            after = page["after"]
        waiting += reversed(below)


@tier.command(epilog="Example:  fanoutfs tier du /mnt/run")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
def du(paths: tuple[str, ...], as_json: bool) -> None:
    """Count files and bytes in each tier below the PATHs, as far as their names are known.

    What a partly cached file lacks counts as remote.  With several PATHs in one mount, their sum.
    """
    for mountpoint, relative in group_by_mount(paths):
        job = ask(mountpoint, "tier_du", paths=relative)["job"]
        result = _watched(mountpoint, job, "looking")["result"]
        show(json.dumps(result, indent=2) if as_json else "\n".join(_usage(result)))


def _usage(result: Mapping[str, Any]) -> Iterator[str]:
    tiers = result["tiers"]
    for name, usage in tiers.items():
        if usage["files"] or usage["bytes"]:
            yield f"{name:<9} {show_size(usage['bytes']):>9}  {usage['files']:>10,} files"
    total_bytes = sum(usage["bytes"] for usage in tiers.values())
    total_files = sum(usage["files"] for usage in tiers.values())
    yield f"{'total':<9} {show_size(total_bytes):>9}  {total_files:>10,} files"
    yield from _unlisted(result)


def _unlisted(result: Mapping[str, Any]) -> Iterator[str]:
    if count := result.get("unlisted", 0):  # (a daemon of an earlier version does not say it of a plan)
        yield f"{count:,} directories were not listed yet: fanoutfs import makes their names known"


# --- what policy wants ------------------------------------------------------------------------------------------


@tier.command(epilog="Example:  fanoutfs tier explain /mnt/run/last.pt")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--size", help="what would hold for a file of this size there, for example 10MiB")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object a line")
def explain(paths: tuple[str, ...], size: str | None, as_json: bool) -> None:
    """Name the rule that decides over each PATH, and what it says.  The PATH need not exist."""
    size_bytes = None if size is None else parse_size(size)
    for path in paths:
        mountpoint, relative = find_place(path)
        found = ask(mountpoint, "tier_explain", path=relative, size_bytes=size_bytes)
        found["path"] = os.path.join(mountpoint, found["path"])
        show(json.dumps(found) if as_json else "\n".join(_explanation(found)))


def _explanation(found: Mapping[str, Any]) -> Iterator[str]:
    size = show_size(found["size_bytes"])
    yield f"{found['path']} ({size}{'' if found['exists'] else ', does not exist'})"
    patterns = f" ({', '.join(found['patterns'])})" if found["patterns"] else ""
    yield f"  decides   {found['rule']}{patterns}"
    if found["keep_local"]:
        upload = "never: it is kept local"
    elif found["is_excluded"]:
        upload = "never by itself: its name is excluded by --no-upload"
    elif found["upload_after_s"] is None:
        upload = "never by itself: fanoutfs tier push does it"
    else:
        upload = f"{show_duration(found['upload_after_s'])} after the last write"
    yield f"  upload    {upload}"
    if found["storage_class"]:
        after = found["storage_class_after_s"]
        when = "at upload" if after is None else f"when it is {show_duration(after)} old"
        yield f"  class     {found['storage_class']}, {when}"
    if found["pinned"]:
        evict = "never: pinned by " + ("the policy" if found["pin"] is None else f"a pin of {found['pin'] or '/'}")
    elif found["evict_after_s"] is not None:
        evict = f"when it was not read for {show_duration(found['evict_after_s'])}, or room is needed"
    else:
        evict = "when room is needed"
    if found["keep_local"] or found["is_excluded"] or found["upload_after_s"] is None:
        evict += "; never what the store does not have"
    yield f"  evict     {evict}"
    yield f"  kept      {'with other small files, in segments' if found['packed'] else 'in a cache file of its own'}"


@tier.command(epilog="Example:  fanoutfs tier plan /mnt/run")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--dry-run/--now", "is_dry", default=True, help="only tell (the default), or do all of it at once")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
def plan(paths: tuple[str, ...], is_dry: bool, as_json: bool) -> None:
    """Tell what the policies would have moved below the PATHs, and how many bytes."""
    for mountpoint, relative in group_by_mount(paths):
        job = ask(mountpoint, "tier_plan", paths=relative, now=not is_dry)["job"]
        result = _watched(mountpoint, job, "looking")["result"]
        if as_json:
            show(json.dumps(result, indent=2))
            continue
        moves = {name: move for name, move in result["moves"].items() if move["files"]}
        for name, move in moves.items():
            examples = ", ".join(os.path.join(mountpoint, path) for path in move["examples"])
            show(f"{name:<8} {show_size(move['bytes']):>9}  {move['files']:>8,} files, such as {examples}")
        if not moves:
            show("nothing")
        for line in _unlisted(result):
            show(line)
        _check_failures(mountpoint, result)


@tier.command(epilog="Example:  fanoutfs tier reload /mnt/run")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@json_option
def reload(paths: tuple[str, ...], as_json: bool) -> None:
    """Read the policy file of each mount in which a PATH lies again.  A file with a mistake changes nothing."""
    documents = [
        {"mountpoint": str(mountpoint), **ask(mountpoint, "reload")} for mountpoint, _relative in group_by_mount(paths)
    ]
    if as_json:
        print_json(documents)
        return
    for document in documents:
        show(f"{document['mountpoint']}: {document['policies']} policies")


# --- what is asked for by name ----------------------------------------------------------------------------------


@tier.command(epilog="Example:  fanoutfs tier push /mnt/run/checkpoints")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--storage-class", default="", metavar="CLASS", help="put them into this class, for example STANDARD_IA")
@json_option
def push(paths: tuple[str, ...], storage_class: str, as_json: bool) -> None:
    """Upload what is dirty below the PATHs now, and wait until the store has it.

    Also what is not uploaded by itself (upload_after = "never", --no-upload), but not what a policy keeps local.  With
    --storage-class, what the store has already is put into that class, too.  Exits with 29 if something was left.
    """
    for mountpoint, relative in group_by_mount(paths):
        job = ask(mountpoint, "tier_push", paths=relative, storage_class=storage_class)["job"]
        result = _watched(mountpoint, job, "push")["result"]
        if as_json:
            print_json(result)
            _check_failures(mountpoint, {"failures": [*result["refused"], *result["failures"]]})
            continue
        reclassed = f", class changed: {result['reclassed']:,}" if storage_class else ""
        show(f"uploaded: {result['uploaded']:,} files{reclassed}")
        refused = [f"{path}: a policy keeps it local" for path in result["refused"]]
        _check_failures(mountpoint, {"failures": refused + result["failures"]})


@tier.command(epilog="Example:  fanoutfs tier restore /mnt/run/checkpoints/old")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--days", type=click.IntRange(min=1), default=7, show_default=True, help="how long they stay readable")
@click.option("--speed", type=click.Choice(RESTORE_SPEEDS), help="how fast, if not as the store pleases")
@click.option("-w", "--wait", is_flag=True, help="return when all can be read: minutes to days")
@json_option
def restore(paths: tuple[str, ...], days: int, speed: str | None, wait: bool, as_json: bool) -> None:
    """Ask the store to make archived objects below the PATHs readable.  What is readable is left alone."""
    for mountpoint, relative in group_by_mount(paths):
        job = ask(mountpoint, "tier_restore", paths=relative, days=days, speed=speed or "", wait=wait)["job"]
        result = _watched(mountpoint, job, "restore")["result"]
        counts = result["counts"]
        if as_json:
            print_json(result)
        else:
            show(", ".join(f"{name}: {count:,}" for name, count in counts.items()))
        _check_failures(mountpoint, result)


def _watched(mountpoint: Path, job: str, what: str) -> dict[str, Any]:
    """Wait for a job, showing its progress; return its last state."""
    meter = Meter(what, "files", 0, to=sys.stderr)

    def show_progress(progress: Mapping[str, Any]) -> None:
        waiting = f"{progress['waiting']:,} are being restored" if progress.get("waiting") else ""
        meter.show(int(progress.get("files", 0)), waiting)

    try:
        return follow(mountpoint, job, show_progress, _RESUME)
    finally:
        meter.close()


def _check_failures(mountpoint: Path, result: Mapping[str, Any]) -> None:
    """Name what was not done, and raise.  Raises CommandFailedError."""
    failures = result["failures"]
    for failure in failures:
        click.echo(os.fsencode(os.path.join(mountpoint, failure)).decode("utf-8", "backslashreplace"), err=True)
    if failures:
        raise CommandFailedError(f"{len(failures):,} paths were left as they are", EXIT_INCOMPLETE)
