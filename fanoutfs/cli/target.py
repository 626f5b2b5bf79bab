"""Which mount a command is about: a mountpoint, the name of a configuration, or the only mount there is."""

import os
from pathlib import Path

from fanoutfs.errors import NotMountedError, UsageError
from fanoutfs.keeper.mountinfo import FSTYPE, fanoutfs_mounts, find_mount
from fanoutfs.keeper.paths import resolve


def own_mounts() -> list[Path]:
    """Return the mountpoints of this user's mounts: daemons of others do not listen to him, not even to root."""
    return [info.mountpoint for info in fanoutfs_mounts() if info.owner_uid in (None, os.geteuid())]


def find_only_mount(otherwise: str = "name one of") -> Path:
    """Return this user's only mount.  otherwise: what to do when there are several.

    Raises NotMountedError, UsageError.
    """
    mounts = own_mounts()
    if not mounts:
        raise NotMountedError("nothing is mounted")
    if len(mounts) > 1:
        raise UsageError(f"several mounts, {otherwise}: {', '.join(str(mountpoint) for mountpoint in mounts)}")
    return mounts[0]


def find_mount_by_name(name: str | None) -> Path:
    """Return the mountpoint that is meant by a path, by the name of a configuration, or as the only one (None).

    Raises NotMountedError, UsageError.
    """
    if name is None:
        return find_only_mount()
    if "/" not in name and not os.path.exists(name):
        from fanoutfs.config.files import find_file, read_file  # noqa: PLC0415  20 ms, and names are mostly paths
        from fanoutfs.config.layers import place_in_file  # noqa: PLC0415

        file = read_file(find_file(name))
        name = place_in_file(file, "mountpoint")
        if not name:
            raise UsageError(f"{file.path}: has no mountpoint")
    path = resolve(Path(name))
    info = find_mount(path)
    if info is None or info.fstype != FSTYPE:
        raise NotMountedError(f"no fanoutfs is mounted at {path}")
    return path
