"""`fanoutfs warm`: the daemon brings files into its cache; this command names them and watches.

Paths are handed over in batches, each when there is room for it, so that a list of any length takes no memory.
"""

import sys
import threading
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, BinaryIO, Final

import click

from fanoutfs.cli.client import CommandFailedError
from fanoutfs.cli.document import json_option, print_json
from fanoutfs.cli.place import find_place
from fanoutfs.cli.progress import JobLostError, Meter, ask, follow
from fanoutfs.config.units import parse_size, show_size
from fanoutfs.errors import DaemonDiedError, FanoutError, UsageError

EXIT_INCOMPLETE: Final = 26
"""Some files could not be warmed; their names were printed."""
_BATCH: Final = 500
_RESTARTS: Final = 5
_RESUME: Final = "the same command again skips what is cached"


@click.command(epilog="Example:  find /mnt/data -name '*.jpg' | fanoutfs warm --list - --bandwidth 200M")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--list", "list_file", metavar="FILE", help="read paths from FILE (-: stdin), a line each or NUL-separated"
)
@click.option("--order", is_flag=True, help="fetch in the order given (else each batch of a list is sorted)")
@click.option("--check", is_flag=True, help="only tell how much is cached; nothing is fetched")
@click.option("--bandwidth", metavar="SIZE", help="fetch at most so many bytes per second, for example 200M")
@json_option
def warm(
    paths: tuple[str, ...], list_file: str | None, order: bool, check: bool, bandwidth: str | None, as_json: bool
) -> int:
    """Bring the files and trees at PATH (below a mount) into the cache.

    What is cached is skipped, so the same command goes on where an earlier one stopped.  Exits with 26 when files could
    not be fetched, and names them.  Ctrl-C stops it.
    """
    if not paths and list_file is None:
        raise UsageError("warm: name at least one PATH, or --list FILE")
    return warm_paths(paths, bandwidth, list_file=list_file, order=order, check=check, as_json=as_json)


def warm_paths(
    paths: tuple[str, ...],
    bandwidth: str | None,
    *,
    list_file: str | None = None,
    order: bool = False,
    check: bool = False,
    as_json: bool = False,
) -> int:
    """Warm paths of one mount, showing progress; return the exit code."""
    rate = None if bandwidth is None else parse_size(bandwidth)
    if rate == 0:
        raise UsageError("--bandwidth: must be above 0")
    source = _Paths(paths, list_file)
    total = None
    if not check and source.can_repeat and sys.stderr.isatty():
        total = _run(source, {"check": True, "order": order, "bytes_per_s": None}, None, "looking")["progress"]
    state = _run(source, {"check": check, "order": order, "bytes_per_s": rate}, total, "check" if check else "warm")
    return _report(state, source, as_json=as_json)


class _Paths:
    """The paths of one call, relative to the one mount that all lie in."""

    def __init__(self, paths: tuple[str, ...], list_file: str | None) -> None:
        self._paths = paths
        self._list_file = list_file
        self.can_repeat = list_file != "-"
        self._unread: Iterator[str] = _read_list(sys.stdin.buffer) if list_file == "-" else iter(())
        first = paths[0] if paths else next(self._unread if list_file == "-" else self._all(), None)
        if first is None:
            raise UsageError("--list: the list is empty")
        if list_file == "-" and not paths:
            self._unread = chain((first,), self._unread)
        self.mountpoint = find_place(first)[0]

    def batches(self) -> Iterator[list[str]]:
        """Yield relative paths.  Raises UsageError for one in another mount."""
        relative = self._relative()
        while batch := list(islice(relative, _BATCH)):
            yield batch

    def _all(self) -> Iterator[str]:
        yield from self._paths
        if self._list_file == "-":
            yield from self._unread
        elif self._list_file is not None:
            try:
                with open(self._list_file, "rb") as stream:
                    yield from _read_list(stream)
            except OSError as error:
                raise UsageError(f"--list: {self._list_file}: {error.strerror}") from None

    def _relative(self) -> Iterator[str]:
        root = f"{self.mountpoint}/"
        for path in self._all():
            if path.startswith(root) and "/../" not in path:
                yield path[len(root) :]  # the usual case, without reading the mount table for each
                continue
            mountpoint, relative = find_place(path)
            if mountpoint != self.mountpoint:
                raise UsageError(f"{path} lies in another mount than {self.mountpoint}: call warm for each")
            yield relative


def _read_list(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list.  NUL-separated if there is a NUL in its first piece, else one a line."""
    left = b""
    separator = b""
    while chunk := stream.read(1 << 16):
        separator = separator or (b"\0" if b"\0" in chunk else b"\n")
        *names, left = (left + chunk).split(separator)
        yield from (name.decode("utf-8", "surrogateescape") for name in names if name)
    if left:
        yield left.decode("utf-8", "surrogateescape")


def _run(source: _Paths, request: dict[str, Any], total: Mapping[str, int] | None, what: str) -> dict[str, Any]:
    """Run a job over all paths; return its last state."""
    meter = Meter(what, "B", 0 if total is None else total["bytes"], is_bytes=True)

    def show(progress: Mapping[str, Any]) -> None:
        if "files" in progress:
            done = progress["bytes"] if request["check"] else progress["cached_bytes"]
            of = f" of {total['files']}" if total else ""
            meter.show(done, f"{progress['files'] if request['check'] else progress['cached_files']}{of} files")

    try:
        for restart in range(_RESTARTS + 1):
            job = ask(source.mountpoint, "warm", **request)["job"]
            feeder = _Feeder(source, job)
            feeder.start()
            try:
                state = follow(source.mountpoint, job, show, _RESUME)
            except JobLostError:
                if restart == _RESTARTS or not source.can_repeat:
                    raise JobLostError(f"the daemon was restarted; {_RESUME}") from None
                continue
            finally:
                feeder.stop()
            if feeder.error is not None:
                raise feeder.error
            return state
    finally:
        meter.close()
    raise AssertionError("the loop returns or raises")


class _Feeder(threading.Thread):
    """Hands over the paths while the main thread watches (and gets Ctrl-C)."""

    def __init__(self, source: _Paths, job: str) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._job = job
        self._stopped = threading.Event()
        self.error: FanoutError | None = None

    def stop(self) -> None:
        """Hand over no more."""
        self._stopped.set()
        if self._source.can_repeat:
            self.join()  # one that reads a terminal is left to end with the process

    def run(self) -> None:
        """Feed until the end of the paths, or of the job."""
        try:
            for batch in self._source.batches():
                if self._stopped.is_set() or not self._feed(paths=batch):
                    return
        except FanoutError as error:
            self.error = error
        except OSError as error:
            self.error = UsageError(f"--list: {error.strerror}")
        try:
            self._feed(is_last=True)
        except DaemonDiedError as error:
            self.error = self.error or error

    def _feed(self, **arguments: Any) -> bool:
        # A batch may be fetched for longer than an answer usually takes.
        state = ask(self._source.mountpoint, "feed", id=self._job, **arguments)
        while state["state"] == "busy" and not self._stopped.is_set():
            state = ask(self._source.mountpoint, "feed", id=self._job, **arguments)
        return bool(state["state"] == "running")


def _report(state: dict[str, Any], source: _Paths, *, as_json: bool) -> int:
    progress, failures = state["progress"], state["result"]["failures"]
    share = progress["cached_bytes"] / progress["bytes"] if progress["bytes"] else 1.0
    if as_json:
        print_json({"mountpoint": str(source.mountpoint), **progress, "failures": failures})
    else:
        print(
            f"cached: {progress['cached_files']:,} of {progress['files']:,} files, "
            f"{show_size(progress['cached_bytes'])} of {show_size(progress['bytes'])} ({share:.1%})"
        )
    for failure in failures:
        print(failure, file=sys.stderr)
    if progress["failed"]:
        more = f" (the first {len(failures)} are named)" if progress["failed"] > len(failures) else ""
        raise CommandFailedError(f"{progress['failed']:,} paths could not be warmed{more}", EXIT_INCOMPLETE)
    return 0
