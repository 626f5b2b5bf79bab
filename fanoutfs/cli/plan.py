"""`fanoutfs plan`: announce an order from a file of paths."""

import os
from collections.abc import Iterator
from typing import BinaryIO

import click

from fanoutfs.cli.document import json_option, print_json
from fanoutfs.cli.plans import announce
from fanoutfs.errors import UsageError


@click.command(epilog="Example:  shuf files.txt > epoch1.txt && fanoutfs plan epoch1.txt")
@click.argument("file", type=click.File("rb"))
@click.option("--mount", metavar="DIR", help="the mountpoint (default: where the first path lies)")
@click.option("--name", default="command line", show_default=True, help="a plan replaces the one of the same name")
@click.option("-0", "--null", is_flag=True, help="paths end with NUL instead of a newline")
@json_option
def plan(file: BinaryIO, mount: str | None, name: str, null: bool, as_json: bool) -> None:
    """Announce that the files named in FILE ("-": standard input) will be read in this order.

    The daemon fetches them just ahead of their reader.  One path a line, absolute or relative to the working
    directory.  An empty FILE with --mount withdraws the plan.
    """
    announced = announce(_paths(file, b"\0" if null else b"\n"), mount, name=name)
    if as_json:
        print_json({"name": name, "files": announced.files, "unknown": announced.unknown})
    else:
        click.echo(f"{announced.files} files announced")
    if announced.unknown and announced.files:
        shown = ", ".join(os.fsencode(path).decode("utf-8", "backslashreplace") for path in announced.examples)
        click.echo(f"fanoutfs: {announced.unknown} paths lead to nothing in the mount, for example {shown}", err=True)
    if announced.unknown and not announced.files:
        raise UsageError(f"none of the paths leads to a file of the mount, for example {announced.examples[0]}")


def _paths(file: BinaryIO, end: bytes) -> Iterator[bytes]:
    """Yield the paths, a piece of the file at a time."""
    rest = b""
    while piece := file.read(1 << 16):
        *paths, rest = (rest + piece).split(end)
        yield from filter(None, paths)
    if rest:
        yield rest
