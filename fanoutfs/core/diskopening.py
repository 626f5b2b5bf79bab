"""Open the further cache directories when a core begins, as far as they hold what the index knows of.

Before trio runs.  All others (new ones, such as are not well, such as come back) are taken into service in the
background, by `disks`: they have to be emptied first, and a mount waits for no sick disk.  What was used before and is
not named any more, or not to be had, goes out of service here; what lies there is left alone.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fanoutfs.cache.disks import is_setting_wrong, open_disk, probe
from fanoutfs.cache.volume import Volume
from fanoutfs.config.schema import DiskDirectory
from fanoutfs.core.disks import Further
from fanoutfs.errors import CacheInUseError, CacheUnusableError
from fanoutfs.index.disks import (
    IN_USE,
    MOUNTED_ON,
    CloseDisk,
    ForgetMounts,
    MoveDisk,
    known_disks,
    mount_setting,
)
from fanoutfs.index.format import KnownDisk
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import write_transaction

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 2.0
"""How long the core before this one may still hold a lock."""


def open_further(
    directories: Sequence[DiskDirectory], volume: Volume, volume_path: Path, *, is_first: bool
) -> list[Further]:
    """Return the directories, those in service opened.  Blocks.

    is_first: a mount begins; then a directory that can never be used is an error: raises CacheUnusableError,
    CacheInUseError.
    """
    reader = IndexReader(volume.environment)
    with reader.begin() as txn:
        known = known_disks(reader.settings(txn, IN_USE))
        mounts = reader.settings(txn, MOUNTED_ON)
    further = [Further(directory) for directory in directories]
    try:
        for each in further:
            mounted_on = mounts.get(mount_setting(each.directory.path))
            try:
                where = None if mounted_on is None else Path(os.fsdecode(mounted_on))
                _open(each, known, volume, volume_path, where)
            except CacheInUseError:
                if is_first:
                    raise
            except CacheUnusableError as error:
                if is_first and is_setting_wrong(error):
                    raise
            except OSError:
                pass  # the first try in the background says so
    except BaseException:
        close_further(further)
        raise
    used = {each.number for each in further}
    for number, disk in known.items():
        if number not in used:
            log.warning("cache directory not in use any more, what it holds is forgotten path=%s", disk.folder)
            with write_transaction(volume.environment) as writing:
                CloseDisk(number).apply(writing)
    with write_transaction(volume.environment) as writing:
        ForgetMounts(frozenset(mount_setting(directory.path) for directory in directories)).apply(writing)
    return further


def close_further(further: Sequence[Further]) -> None:
    """Unlock the directories."""
    for each in further:
        if each.opened is not None:
            each.opened.close()
            each.opened = None


def _open(
    each: Further, known: dict[int, KnownDisk], volume: Volume, volume_path: Path, mounted_on: Path | None
) -> None:
    """Take a directory into service if it holds what the index knows of.

    Raises OSError, CacheInUseError, CacheUnusableError.
    """
    opened = open_disk(each.directory.path, volume_path.name, mounted_on, _PATIENCE_S)
    try:
        number = next((number for number, disk in known.items() if opened.token and disk.token == opened.token), 0)
        if not number:
            opened.close()
            return
        probe(opened)
        volume.files.attach(number, opened.folder)
        if known[number].folder != opened.folder:
            with write_transaction(volume.environment) as writing:
                MoveDisk(number, KnownDisk(opened.folder, opened.token)).apply(writing)
    except BaseException:
        opened.close()
        raise
    each.number, each.opened, each.token, each.reason = number, opened, opened.token, ""
