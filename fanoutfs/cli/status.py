"""`fanoutfs status`: the mounts of this machine, or one mount in detail.

Whatever the daemon reports is shown, known or not: a new counter needs no change here.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from fanoutfs.cli.client import call, call_all
from fanoutfs.config.units import show_duration, show_size
from fanoutfs.errors import DaemonDiedError, FanoutError, NotMountedError
from fanoutfs.keeper.mountinfo import FSTYPE, MountInfo, fanoutfs_mounts, find_mount
from fanoutfs.observe.derived import fan_out


@click.command(epilog="Example:  fanoutfs status /mnt/data --json")
@click.argument("mountpoint", required=False)
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
def status(mountpoint: str | None, as_json: bool) -> None:
    """List all fanoutfs mounts, or show what the one at MOUNTPOINT is doing."""
    if mountpoint is None:
        _list(as_json)
        return
    result = _ask(mountpoint)
    _print(json.dumps(result, indent=2, sort_keys=True) if as_json else "\n".join(describe(result)))


def describe(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a status as lines for a person.  `result` is what the control socket answers to {"op": "status"}."""
    yield f"{result.get('mountpoint', '?')}  from  {result.get('source', '?')}"
    fronts = " ".join(str(pid) for pid in result.get("front_pids", ()))
    uptime = show_duration(float(result.get("uptime_s", 0)))
    yield _row("running", f"for {uptime}, generation {result.get('generation', '?')}")
    yield _row(
        "processes",
        f"keeper {result.get('keeper_pid', '?')}, core {result.get('core_pid', '?')}, fronts {fronts or '-'}",
    )
    kernel = result.get("kernel") or {}
    if kernel:
        yield _row("kernel", _value("kernel", kernel))
    cache = result.get("cache") or {}
    if cache:
        yield from _cache_rows(cache)
    counters = result.get("counters") or {}
    yield from _traffic_rows(counters)
    known = {
        "mountpoint",
        "source",
        "uptime_s",
        "generation",
        "keeper_pid",
        "core_pid",
        "front_pids",
        "kernel",
        "cache",
        "counters",
    }
    tiering = dict(result.get("tiering") or {})
    if tiers := tiering.pop("tiers", None):
        age = show_duration(tiering.pop("tiers_age_s"))
        held = [f"{name} {use['files']:,} ({show_size(use['bytes'])})" for name, use in tiers.items() if use["files"]]
        yield _row("files in", ", ".join(held or ["no tier: none are known"]) + f", {age} ago")
    for name in sorted(set(result) - known):
        yield _row(name, str(_value(name, tiering if name == "tiering" else result[name])))
    if counters:
        yield "counters"
        width = max(len(name) for name in counters)
        for name, value in sorted(counters.items()):
            shown = f"  {name:<{width}}  {value:>15,}"
            yield f"{shown}  ({show_size(value)})" if name.endswith("_bytes") and value >= 1024 else shown


def _cache_rows(cache: Mapping[str, Any]) -> Iterator[str]:
    used, cap = cache.get("used_bytes", 0), cache.get("cap_bytes", 0)
    share = f" ({used / cap:.0%})" if cap else ""
    yield _row("cache", f"{show_size(used)} of {show_size(cap)}{share}")
    parts = [
        f"{name.removesuffix('_bytes')} {_value(name, value)}"
        for name, value in cache.items()
        if name not in ("used_bytes", "cap_bytes", "disks")
    ]
    if parts:
        yield _row("", ", ".join(parts))
    for disk in cache.get("disks", ()):
        yield _row("", f"further directory {disk['directory']}: {_describe_disk(disk)}")


def _describe_disk(disk: Mapping[str, Any]) -> str:
    if disk["state"] == "out":
        return f"out of service, next try in {show_duration(disk['retry_in_s'])}: {disk['reason']}"
    limit = f" of {show_size(disk['limit_bytes'])}" if disk["limit_bytes"] else ""
    return f"{disk['state']}, {show_size(disk['large_bytes'])}{limit}"


def _traffic_rows(counters: Mapping[str, int]) -> Iterator[str]:
    read, fetched = show_size(counters.get("reader_bytes", 0)), show_size(counters.get("backend_bytes", 0))
    ratio = fan_out(counters)
    yield _row(
        "reads", f"{read} handed out, {fetched} fetched" + (f": fan-out {ratio:.2f}" if ratio is not None else "")
    )
    yield _row("", "reads that the kernel answers from its page cache are invisible to the daemon and not counted")


def _row(name: str, text: str) -> str:
    return f"  {name:<10} {text}"


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(key, inner)}" for key, inner in value.items())
    is_size = isinstance(value, int) and (name == "bytes" or name.endswith("_bytes"))
    return show_size(value) if is_size else value


def _list(as_json: bool) -> None:
    found = fanoutfs_mounts()
    answers = call_all([info.mountpoint for info in found], "status")
    mounts = [_summary(info, answer) for info, answer in zip(found, answers, strict=True)]
    if as_json:
        _print(json.dumps(mounts, indent=2))
    elif not mounts:
        _print("no fanoutfs mounts")
    for mount in mounts if not as_json else ():
        _print(f"{mount['mountpoint']}  from  {mount['source']}  {mount['state']}")


def _summary(info: MountInfo, answer: dict[str, Any] | FanoutError) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "mountpoint": str(info.mountpoint),
        "source": info.source,
        "connection": info.connection_id,
    }
    if isinstance(answer, FanoutError):
        return summary | {"alive": False, "state": f"no answer: {answer}"}
    uptime = show_duration(float(answer.get("uptime_s", 0)))
    return summary | {"alive": True, "state": f"running for {uptime}, keeper {answer.get('keeper_pid', '?')}"}


def _ask(mountpoint: str) -> dict[str, Any]:
    """Ask the daemon; when it cannot be reached, let the mount table say whether there should be one."""
    path = Path(mountpoint)
    try:
        return call(_absolute(path), "status")
    except DaemonDiedError as error:
        info = find_mount(_absolute(path))
        if info is None:
            raise NotMountedError(f"nothing is mounted at {path}") from None
        if info.fstype != FSTYPE:
            raise NotMountedError(f"{path} is no fanoutfs mount but {info.fstype} from {info.source}") from None
        raise error from None


def _absolute(path: Path) -> Path:
    from fanoutfs.keeper.paths import resolve  # noqa: PLC0415  ctypes and subprocess, only needed here

    return resolve(path)


def _print(text: str) -> None:
    # Paths may hold bytes that are not UTF-8; stdout would refuse them.
    click.echo(os.fsencode(text).decode("utf-8", "backslashreplace"))
