"""Further disks of the cache, as the index knows them: numbers, places, and the way out of service.

Values like `operations`; writer thread of the core.  A disk is entered once its folder is empty, and its number is
never given out again, so that no block recorded under a number is looked for among those of another time.

Out of service, whatever the reason: its setting goes, from when on no block gets its number, then the records of what
it held, some at a time.  A core that dies in between leaves "disk_bytes/N" without "disk/N", and the next one goes on.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fanoutfs.index.format import U64, KnownDisk, disk_bytes_setting, disk_setting, unpack_disk
from fanoutfs.index.operations import DropBlocks
from fanoutfs.index.transaction import IndexTransaction

IN_USE: Final = b"disk/"
BYTES: Final = b"disk_bytes/"
MOUNTED_ON: Final = b"disk_at/"
_BATCH: Final = 2000
"""Records looked at in one transaction: a few milliseconds."""


def number_of(name: bytes) -> int:
    """Return the disk that a setting of `IN_USE` or `BYTES` is about."""
    return int(name.rpartition(b"/")[2], 16)


def known_disks(settings: Mapping[bytes, bytes]) -> dict[int, KnownDisk]:
    """Return the disks in settings that begin with `IN_USE`."""
    return {number_of(name): unpack_disk(value) for name, value in settings.items()}


@dataclass(frozen=True, slots=True)
class EnterDisk:
    """Take an empty disk into service; return its number.  mounted_on: the mount point it is on."""

    disk: KnownDisk
    directory: Path
    mounted_on: Path

    def apply(self, txn: IndexTransaction) -> int:
        """Carry it out."""
        number = txn.new_disk()
        txn.set_setting(disk_setting(number), self.disk.pack())
        txn.set_setting(disk_bytes_setting(number), U64.pack(0))
        txn.set_setting(mount_setting(self.directory), bytes(self.mounted_on))
        return number


@dataclass(frozen=True, slots=True)
class MoveDisk:
    """Note that a disk in use is found at another path now."""

    number: int
    disk: KnownDisk

    def apply(self, txn: IndexTransaction) -> None:
        """Carry it out."""
        if txn.has_disk(self.number):
            txn.set_setting(disk_setting(self.number), self.disk.pack())


@dataclass(frozen=True, slots=True)
class CloseDisk:
    """Take a disk out of service: from now on no block gets its number."""

    number: int

    def apply(self, txn: IndexTransaction) -> None:
        """Carry it out."""
        txn.delete_setting(disk_setting(self.number))


@dataclass(frozen=True, slots=True)
class ForgetDisk:
    """Forget some of what a disk held, from a part on; return the part to go on from, None: that was all."""

    number: int
    start: tuple[int, int] = (0, 0)

    def apply(self, txn: IndexTransaction) -> tuple[int, int] | None:
        """Carry it out."""
        found = txn.parts_after(*self.start, _BATCH)
        for ino, part, disk in found:
            if disk == self.number:
                DropBlocks(ino, part, -1).apply(txn)
        if len(found) == _BATCH:
            ino, part, _disk = found[-1]
            return ino, part + 1
        txn.delete_setting(disk_bytes_setting(self.number))
        return None


def mount_setting(directory: Path) -> bytes:
    """Return the name of the setting that says which mount point a cache directory was on."""
    return MOUNTED_ON + hashlib.sha256(bytes(directory)).hexdigest()[:32].encode()


@dataclass(frozen=True, slots=True)
class ForgetMounts:
    """Forget on which mount points directories were that are not named any more."""

    kept: frozenset[bytes]
    """Names of settings."""

    def apply(self, txn: IndexTransaction) -> None:
        """Carry it out."""
        for name in txn.settings_from(MOUNTED_ON):
            if name not in self.kept:
                txn.delete_setting(name)
