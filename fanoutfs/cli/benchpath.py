"""`fanoutfs bench storm|cold|small|write|meta PATH`: what an operator runs on a new server, and after each change."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from fanoutfs.config.units import parse_duration, parse_size, write_size
from fanoutfs.errors import UsageError

_MIB: Final = 1 << 20
_KIB: Final = 1 << 10
_MAX_SECONDS: Final = 3600.0


def _size(least: int, multiple: int) -> Callable[[click.Context, click.Parameter, str], int]:
    def parse(_context: click.Context, parameter: click.Parameter, text: str) -> int:
        try:
            size = parse_size(text)
        except UsageError as error:
            raise UsageError(f"{parameter.opts[0]}: {error}") from None
        if size < least or size % multiple:
            steps = f", in steps of {write_size(multiple)}" if multiple > 1 else ""
            raise UsageError(f"{parameter.opts[0]}: `{text}`: at least {write_size(least)}{steps}")
        return size

    return parse


def _seconds(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        seconds = parse_duration(text)
    except UsageError as error:
        raise UsageError(f"--seconds: {error}") from None
    if not 0 < seconds <= _MAX_SECONDS:
        raise UsageError(f"--seconds: `{text}`: more than 0, at most 1h")
    return seconds


def _share(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 10:
        raise UsageError(f"--noise: `{text}` is no share: write for example 20% or 0.2")
    return share


_OWN: Final[Mapping[str, Callable[..., Any]]] = {
    "processes": lambda default: click.option(
        "--processes", default=default, show_default=True, type=click.IntRange(1, 4096), help="at the same time"
    ),
    "size_bytes": lambda default: click.option(
        "--size", "size_bytes", metavar="SIZE", default=default, show_default=True, callback=_size(_MIB, _MIB),
        help="of each large file",
    ),
    "seconds": lambda default: click.option(
        "--seconds", metavar="TIME", default=default, show_default=True, callback=_seconds,
        help="how long one measurement of a round may take",
    ),
    "files": lambda default: click.option(
        "--files", default=default, show_default=True, type=click.IntRange(1, 10_000_000), help="how many small files"
    ),
    "file_bytes": lambda default: click.option(
        "--file-size", "file_bytes", metavar="SIZE", default=default, show_default=True, callback=_size(1, 1),
        help="of each small file",
    ),
    "block_bytes": lambda default: click.option(
        "--block", "block_bytes", metavar="SIZE", default=default, show_default=True, callback=_size(512, 512),
        help="of random reads",
    ),
}  # fmt: skip

_COMMON: Final = (
    click.option("--contrast", metavar="DIR", help="measure this directory as well, round by round: without fanoutfs"),
    click.option("--runs", default=3, show_default=True, type=click.IntRange(1, 100), help="rounds; medians count"),
    click.option("--json", "json", metavar="FILE", help="fio's JSON to a file; -: instead of the table"),
    click.option("--html", metavar="FILE", help="a page with plots (pip install 'fanoutfs[bench]')"),
    click.option("--baseline", metavar="FILE", help="compare with a stored run; exit code 40 if something is worse"),
    click.option("--save-baseline", "is_saved", is_flag=True, help="store this run in the --baseline file"),
    click.option(
        "--noise", metavar="SHARE", default="20%", show_default=True, callback=_share,
        help="differences from the baseline that do not count (p99: three times as much)",
    ),
)  # fmt: skip


def _command(name: str, text: str, example: str, **own: Any) -> click.Command:
    """Make a command; own: the options that it has, with their defaults."""

    def measure(path: str, **given: Any) -> None:
        from fanoutfs.bench.field.options import Options  # noqa: PLC0415  help needs none of it
        from fanoutfs.bench.field.program import Wanted, run  # noqa: PLC0415

        used = ("runs", *own)
        options = Options(**{key: given.pop(key) for key in used})
        run(name, Wanted(path, **given), options, used)

    decorators = [
        click.argument("path", metavar="PATH"),
        *(_OWN[key](default) for key, default in own.items()),
        *_COMMON,
    ]
    function: Callable[..., Any] = measure
    for decorator in reversed(decorators):
        function = decorator(function)
    return click.command(name, help=text, epilog=f"Example:  fanoutfs bench {example}")(function)


MEASUREMENTS: Final = (
    _command(
        "storm",
        """Let many processes open one file: while nobody has read it, and again and again once everybody has.

        Cold, each byte is wanted by four processes: "from the store" tells how often it was fetched.  Hot, a fanoutfs
        mount shall hear nothing of it: "messages to the daemon" is 0.  On a read-only mount a file there is taken.
        """,
        "storm /mnt/data --contrast /var/tmp --html storm.html",
        processes=64,
        size_bytes="256MiB",
        seconds="3s",
    ),
    _command(
        "cold",
        """Read large files with a cold page cache, from end to end and at random.

        On a fanoutfs mount from the store (the files are evicted before, nothing else is) and from the local cache.
        Only the pages of these files are dropped.  A large file for each process.
        """,
        "cold /mnt/data --processes 8 --baseline /var/lib/fanoutfs/cold.json",
        processes=4,
        size_bytes="128MiB",
        block_bytes="128KiB",
        seconds="5s",
    ),
    _command(
        "small",
        """Read many small files in a shuffled order, by several processes.

        On a fanoutfs mount from the store, from the page cache and from the local cache; elsewhere from the disk and
        from the page cache.
        """,
        "small /mnt/data --files 5000 --file-size 100KiB",
        processes=4,
        files=1000,
        file_bytes="16KiB",
    ),
    _command(
        "write",
        """Write a checkpoint (write, fsync) and small files; on a fanoutfs mount, wait until the store has them.""",
        "write /mnt/run --size 1GiB --json -",
        processes=4,
        size_bytes="256MiB",
        files=500,
        file_bytes="4KiB",
    ),
    _command(
        "meta",
        """Create, stat, list, rename and unlink empty files, by several processes in a directory each.""",
        "meta /mnt/run --contrast /var/tmp --runs 5",
        processes=4,
        files=1000,
    ),
)
"""The commands that measure a directory; fanoutfs/bench/field/<name>.py says how."""
