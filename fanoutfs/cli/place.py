"""Which mount a path lies in, and where in it: from the mount table, without touching the mount."""

import os
from pathlib import Path

from fanoutfs.errors import NotMountedError
from fanoutfs.keeper.mountinfo import FSTYPE, read_mounts


def find_place(path: str) -> tuple[Path, str]:
    """Return (mountpoint, path relative to it, "" for the mountpoint itself).

    Symlinks on the way to the mount are followed; the path in the mount need not exist yet for the kernel.
    Raises NotMountedError.
    """
    absolute = Path(os.path.abspath(path))
    mounts = read_mounts()
    for candidate in (absolute, _resolved_parent(absolute)):
        # The deepest mount on the way, and of several on one another the last, is the one that the path reaches.
        found = None
        for info in mounts:
            on_the_way = candidate.is_relative_to(info.mountpoint)
            if on_the_way and (found is None or info.mountpoint.is_relative_to(found.mountpoint)):
                found = info
        if found is not None and found.fstype == FSTYPE:
            relative = candidate.relative_to(found.mountpoint)
            return found.mountpoint, "" if relative == Path() else str(relative)
    raise NotMountedError(f"{path} lies in no fanoutfs mount")


def _resolved_parent(path: Path) -> Path:
    """Resolve symlinks as far as the first directory that is no fanoutfs mount's."""
    return Path(os.path.realpath(path))
