"""Announce an order: tell the daemon of a mount which files will be read, in the order in which they will be.

    import fanoutfs
    fanoutfs.announce(paths)          # any iterable; taken in chunks, never held as a whole

Runs in the job, and loads neither trio nor pyfuse3 nor obstore.  The daemon answers each chunk before the next one is
taken: ten million paths need no more memory here than two thousand.  What a plan does and does not promise is told in
core/plans.py; that a job reads in another order than announced costs speed, never correctness.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fanoutfs.cli.client import Connection
from fanoutfs.errors import DaemonDiedError, NotMountedError, UsageError
from fanoutfs.keeper.mountinfo import FSTYPE, find_mount

_CHUNK_PATHS: Final = 2000
_TIMEOUT_S: Final = 300.0
"""A chunk may name directories that were never listed; they are listed before it is answered."""
_EXAMPLES: Final = 5
_FOLDERS: Final = 65536

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]


@dataclass(frozen=True, slots=True)
class Announced:
    """What became of it.  files: in the plan; unknown: paths that lead to nothing; examples: some of them."""

    files: int
    unknown: int
    examples: tuple[str, ...]


def announce(paths: Iterable[PathLike], mount: PathLike | None = None, *, name: str | None = None) -> Announced:
    """Announce that these files will be read in this order.  Blocks until the daemon knows all of them.

    It begins to fetch with the first chunk.  paths: absolute, or relative to the working directory; duplicates are
    allowed; those that lead to nothing in the mount are counted and skipped.
    mount: the mountpoint; None: where the first path lies.
    name: a plan replaces the one announced before under the same name; None: one name for this process.
    An announcement of nothing withdraws the plan of this name; for that the mount must be given.

    Raises NotMountedError, UsageError (nothing announced), DaemonDiedError (no answer), FanoutError (another process
    replaced the plan, or the daemon restarted meanwhile).
    """
    rest = iter(paths)
    if mount is None:
        first = next(rest, None)
        if first is None:
            raise UsageError("announce: no paths and no mount")
        mountpoint = find_mountpoint(os.fsdecode(first))
        rest = itertools.chain([first], rest)
    else:
        mountpoint = os.path.realpath(os.fsdecode(mount))
    relative = functools.partial(_relative, functools.lru_cache(_FOLDERS)(os.path.realpath), mountpoint)
    unknown = 0
    examples: list[str] = []
    with _connect(Path(mountpoint)) as daemon:
        number = daemon.call("plan_begin", name=f"process {os.getpid()}" if name is None else name)["plan"]
        for chunk in _chunks(rest):
            inside = []
            for path in chunk:
                found = relative(path)
                if found is None:
                    unknown += 1
                    examples.append(path)
                else:
                    inside.append(found)
            answer = daemon.call("plan_add", plan=number, paths=inside)
            unknown += answer["unknown"]
            examples = (examples + answer["examples"])[:_EXAMPLES]
        return Announced(daemon.call("plan_end", plan=number)["files"], unknown, tuple(examples))


def _connect(mountpoint: Path) -> Connection:
    """Return a connection to the daemon of a mount.  Raises DaemonDiedError, NotMountedError."""
    try:
        return Connection(mountpoint, timeout_s=_TIMEOUT_S)
    except DaemonDiedError:
        info = find_mount(mountpoint)
        if info is None or info.fstype != FSTYPE:
            raise NotMountedError(f"what is to be announced lies in no fanoutfs mount but in {mountpoint}") from None
        raise


def find_mountpoint(path: str) -> str:
    """Return the mountpoint that a path lies below, symbolic links resolved."""
    found = os.path.realpath(path)
    while not os.path.ismount(found):
        found = os.path.dirname(found)
    return found


def _chunks(paths: Iterator[PathLike]) -> Iterator[list[str]]:
    while chunk := [os.fsdecode(path) for path in itertools.islice(paths, _CHUNK_PATHS)]:
        yield chunk


def _relative(realpath: "functools._lru_cache_wrapper[str]", mountpoint: str, path: str) -> str | None:
    """Return a path as seen from the mountpoint; None: it lies elsewhere.  Links are resolved once per directory."""
    if "\0" in path:
        return None
    folder, name = os.path.split(path)
    real = os.path.join(realpath(folder), name)
    return real[len(mountpoint) + 1 :] if real.startswith(mountpoint + "/") else None
