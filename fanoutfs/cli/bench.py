"""`fanoutfs bench`: measure a directory, on a mount or not (`benchpath`), and eviction policies on traces."""

import time
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.benchpath import MEASUREMENTS
from fanoutfs.cli.client import call
from fanoutfs.cli.place import find_place
from fanoutfs.config.units import parse_duration
from fanoutfs.errors import UsageError

_FILES: Final = 1000
_PULL_S: Final = 0.5


@click.group()
def bench() -> None:
    """Measure what a server, a mount or a directory can do; compare eviction policies.

    storm, cold, small, write and meta measure a directory: on a fanoutfs mount, or any other, also beside it
    (--contrast).  What they write they write below that directory, and remove.
    """


for command in MEASUREMENTS:
    bench.add_command(command)


@bench.command(epilog="Example:  fanoutfs bench eviction --files 2000")
@click.option(
    "--trace", "trace_file", metavar="FILE", help="a trace instead of the built-in ones: lines of `key bytes`"
)
@click.option("--record", metavar="MOUNT", help="record what is read in a mount to --trace FILE instead of simulating")
@click.option("--for", "how_long", metavar="DURATION", default="60s", show_default=True, help="how long to record")
@click.option("--files", default=_FILES, show_default=True, type=click.IntRange(20), help="in the built-in traces")
@click.option("--svg", metavar="FILE", type=click.Path(path_type=Path), help="draw the result as well")
@click.option(
    "--live", metavar="FILE", type=click.Path(path_type=Path), help="into the drawing: JSON of scripts/bench-eviction"
)
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of a table")
def eviction(
    trace_file: str | None,
    record: str | None,
    how_long: str,
    files: int,
    svg: Path | None,
    live: Path | None,
    as_json: bool,
) -> None:
    """Compare eviction policies by their hit rates, beside the best possible.

    A recorded trace shows what reached the daemon: reads that the kernel answers from its page cache are not in it.
    """
    from fanoutfs.bench import eviction as bench_eviction  # noqa: PLC0415
    from fanoutfs.bench import eviction_plot  # noqa: PLC0415
    from fanoutfs.eviction.traces import parse_trace  # noqa: PLC0415

    if record is not None:
        if trace_file is None:
            raise UsageError("--record: say where to with --trace FILE")
        click.echo(_record(record, Path(trace_file), parse_duration(how_long)))
        return
    if trace_file is None:
        rows = bench_eviction.made_up_rows(files)
    else:
        try:
            trace = parse_trace(Path(trace_file).read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            raise UsageError(f"--trace: {trace_file}: {error}") from None
        if not trace:
            raise UsageError(f"--trace: {trace_file}: no access in it")
        rows = bench_eviction.trace_rows(Path(trace_file).name, trace)
    if svg is not None:
        svg.write_text(eviction_plot.draw(rows, {} if live is None else bench_eviction.live_points(live.read_text())))
    click.echo(bench_eviction.to_json(rows) if as_json else bench_eviction.to_text(rows), nl=False)


def _record(place: str, file: Path, duration_s: float) -> str:
    """Have the daemon note what is read, and write it down."""
    mountpoint = find_place(place)[0]
    accesses = lost = 0
    end = time.monotonic() + duration_s
    try:
        stream = file.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--trace: {file}: {error.strerror}") from None
    with stream:
        stream.write("# inode.part bytes: what reached the daemon (page cache hits do not)\n")
        call(mountpoint, "trace_begin")
        try:
            while True:
                is_last = time.monotonic() >= end
                found: dict[str, Any] = call(mountpoint, "trace_take")
                lost += found["lost"]
                accesses += len(found["accesses"])
                stream.writelines(f"{key} {size_bytes}\n" for key, size_bytes in found["accesses"])
                if is_last:
                    break
                time.sleep(min(_PULL_S, max(0.0, end - time.monotonic())))
        except KeyboardInterrupt:
            pass
        finally:
            call(mountpoint, "trace_end")
    return f"{accesses} accesses recorded" + (f", {lost} lost" if lost else "")
