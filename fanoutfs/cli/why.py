"""`fanoutfs why`: what slow requests of a path or of a process waited for, and what to change."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.client import call, call_all
from fanoutfs.cli.document import print_json, show
from fanoutfs.cli.place import find_place
from fanoutfs.config.units import show_size
from fanoutfs.errors import FanoutError, NotMountedError
from fanoutfs.keeper.mountinfo import fanoutfs_mounts
from fanoutfs.observe.explain import WAITS, Advice, Facts, explain, split_of

_SHOWN: Final = 10


@click.command(epilog="Example:  fanoutfs why /mnt/data/train   fanoutfs why 12345")
@click.argument("subject", metavar="PATH|PID")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
def why(subject: str, as_json: bool) -> None:
    """Explain what the last slow requests of PATH (and below it), or of the process PID, waited for.

    Slow is what took 10 ms or longer; each mount remembers the last 2000.  What the kernel answers from its page cache
    never waits, and is not to be seen.
    """
    answers, failures = _ask(subject)
    documents: list[dict[str, Any]] = []
    for mountpoint, answer in answers:
        entries, facts = answer["requests"], Facts(**answer["facts"])
        advice = explain(entries, facts)
        documents.append(
            {
                "mountpoint": str(mountpoint),
                "slow": len(entries),
                "split": split_of(entries),
                "advice": [dataclasses.asdict(one) for one in advice],
                "requests": entries,
            }
        )
        if not as_json and (entries or len(answers) == 1):
            click.echo("\n".join(describe(subject, entries, advice)))
    for mountpoint, failure in failures:
        documents.append(
            {"mountpoint": str(mountpoint), "slow": 0, "split": {}, "advice": [], "requests": [], "error": str(failure)}
        )
        if not as_json:
            show(f"not asked: {failure}")
    if as_json:
        print_json(documents)
    elif len(answers) > 1 and not any(answer["requests"] for _mountpoint, answer in answers):
        click.echo(f"{subject}: nothing slow lately in any mount{' that answers' if failures else ''}")


def describe(subject: str, entries: Sequence[dict[str, Any]], advice: Sequence[Advice]) -> Iterator[str]:
    """Yield lines for a person."""
    if not entries:
        yield f"{subject}: nothing took 10 ms or longer lately"
        return
    total_s = sum(entry["took_ms"] for entry in entries) / 1000
    shares = ", ".join(f"{share:.0%} {wait}" for wait, share in split_of(entries).items())
    yield f"{subject}: {len(entries)} slow requests, {total_s:.3f} s in all: {shares}"
    yield f"  {'when':<8} {'request':<11} {'took ms':>9} {' '.join(f'{wait:>9}' for wait in WAITS)}  who, what"
    for entry in entries[-_SHOWN:]:
        waits = " ".join(f"{entry[f'{wait}_ms']:>9.1f}" for wait in WAITS)
        when = time.strftime("%H:%M:%S", time.localtime(entry["at"]))
        at = f" {show_size(entry['size'])} at {entry['offset']}" if entry["size"] else ""
        end = (" again" if entry["again"] else "") + (f" {entry['error']}" if entry["error"] else "")
        who = f"{entry['command']}[{entry['pid']}] {entry['path'] or entry['ino']}{at}{end}"
        yield f"  {when} {entry['opcode'].lower():<11} {entry['took_ms']:>9.1f} {waits}  {who}"
    if not advice:
        yield "  no single cause stands out"
    for one in advice:
        yield f"  {one.cause}: {one.reason}"
        yield f"    -> {one.change}"


def _ask(subject: str) -> tuple[list[tuple[Path, dict[str, Any]]], list[tuple[Path, FanoutError]]]:
    """Ask the mount of a path, or all mounts about a process; return who said what, and who could not be asked.

    Raises FanoutError when nobody answers.
    """
    if not subject.isdecimal():
        mountpoint, relative = find_place(subject)
        return [(mountpoint, call(mountpoint, "why", path=relative))], []
    mounts = [info.mountpoint for info in fanoutfs_mounts()]
    if not mounts:
        raise NotMountedError("nothing is mounted")
    answers: list[tuple[Path, dict[str, Any]]] = []
    failures: list[tuple[Path, FanoutError]] = []
    for mountpoint, answer in zip(mounts, call_all(mounts, "why", pid=int(subject)), strict=True):
        if isinstance(answer, FanoutError):  # another user's mount, a hung one, an older daemon
            failures.append((mountpoint, answer))
        else:
            answers.append((mountpoint, answer))
    if not answers:
        raise failures[0][1]
    return answers, failures
