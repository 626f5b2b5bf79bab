"""Which mount a path lies in, and where in it: from the mount table, without touching the mount."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

from fanoutfs.errors import NotMountedError
from fanoutfs.keeper.mountinfo import FSTYPE, MountInfo, read_mounts
from fanoutfs.keeper.paths import resolve


def find_place(path: str) -> tuple[Path, str]:
    """Return (mountpoint, path relative to it, "" for the mountpoint itself).

    Symlinks on the way to the mount are followed; the path in the mount need not exist yet for the kernel.
    Raises NotMountedError.
    """
    absolute = Path(os.path.abspath(path))
    mounts = read_mounts()
    # No mount of ours is touched: the kernel would wait for one that hangs, and nobody could end the command.
    return _locate(absolute, mounts) or _locate(resolve(absolute, is_place=True), mounts) or _refuse(path)


def group_by_mount(paths: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield (mountpoint, paths relative to it) of paths next to each other in one mount.  Raises NotMountedError."""
    for mountpoint, places in groupby((find_place(path) for path in paths), key=itemgetter(0)):
        yield mountpoint, [relative for _mountpoint, relative in places]


def _locate(path: Path, mounts: Sequence[MountInfo]) -> tuple[Path, str] | None:
    """Return the fanoutfs mount that this path reaches, and where in it; None: another file system."""
    found = None
    for info in mounts:
        # The deepest mount on the way, and of several on one another the last, is the one that the path reaches.
        on_the_way = path.is_relative_to(info.mountpoint)
        if on_the_way and (found is None or info.mountpoint.is_relative_to(found.mountpoint)):
            found = info
    if found is None or found.fstype != FSTYPE:
        return None
    relative = path.relative_to(found.mountpoint)
    return found.mountpoint, "" if relative == Path() else str(relative)


def _refuse(path: str) -> NoReturn:
    raise NotMountedError(f"{path} lies in no fanoutfs mount")
