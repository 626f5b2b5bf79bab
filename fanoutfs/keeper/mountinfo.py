"""The kernel's mount table, and what hangs on a mount's device number.  Reads /proc and /sys, never the mount itself.

A stat of a mount whose daemon hangs can block for ever and cannot always be killed, so everything that must not hang
asks this table first.  Any process may use it; nothing is kept between calls.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FSTYPE: Final = "fuse.fanoutfs"

MOUNTINFO = Path("/proc/self/mountinfo")
BDI_DIR = Path("/sys/class/bdi")

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountInfo:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5)).

    device: "major:minor", the name of the mount's directory under /sys/class/bdi.
    options: of this mount (ro, nosuid, ...); super_options: of the file system (user_id=0, allow_other, ...).
    """

    mount_id: int
    parent_id: int
    device: str
    mountpoint: Path
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def connection_id(self) -> int:
        """Return the name of the mount's directory in /sys/fs/fuse/connections.

        The kernel prints s_dev there; anonymous devices have major 0, which leaves the minor.
        """
        return int(self.device.partition(":")[2])

    @property
    def is_fuse(self) -> bool:
        """Tell whether a FUSE file system is mounted here."""
        return self.fstype in ("fuse", "fuseblk") or self.fstype.startswith(("fuse.", "fuseblk."))

    @property
    def owner_uid(self) -> int | None:
        """Return the user that mounted a FUSE file system (super option user_id=), None for other file systems."""
        for option in self.super_options:
            key, _, value = option.partition("=")
            if key == "user_id" and value.isdecimal():
                return int(value)
        return None


def read_mounts(table: Path | None = None) -> list[MountInfo]:
    """Return the mount table of this process' mount namespace (or another table), in the order of mounting."""
    return list(_parse((table or MOUNTINFO).read_bytes()))


def find_mount(mountpoint: Path) -> MountInfo | None:
    """Return what is mounted exactly at this absolute, symlink-free path; the topmost of several, None if nothing."""
    found = None
    for info in read_mounts():
        if info.mountpoint == mountpoint:
            found = info
    return found


def fanoutfs_mounts() -> list[MountInfo]:
    """Return every fanoutfs mount of the table, in the order of mounting."""
    return [info for info in read_mounts() if info.fstype == FSTYPE]


def set_read_ahead(device: str, kib: int) -> bool:
    """Set the kernel's read-ahead of the mount with this "major:minor"; return False when not permitted.

    The INIT reply can only lower read-ahead below the default of 128 KiB; this file raises it (root only).
    """
    try:
        with open(BDI_DIR / device / "read_ahead_kb", "w", encoding="ascii") as stream:
            stream.write(str(kib))
    except OSError:
        return False
    return True


def _parse(table: bytes) -> Iterator[MountInfo]:
    for line in table.split(b"\n"):
        # A variable number of optional fields stands before the lone hyphen.
        left, hyphen, right = line.partition(b" - ")
        head, tail = left.split(b" "), right.split(b" ")
        if not hyphen or len(head) < 6 or len(tail) < 3:
            continue
        yield MountInfo(
            mount_id=int(head[0]),
            parent_id=int(head[1]),
            device=head[2].decode("ascii"),
            mountpoint=Path(_unescape(head[4])),
            options=tuple(_unescape(head[5]).split(",")),
            fstype=_unescape(tail[0]),
            source=_unescape(tail[1]),
            super_options=tuple(_unescape(tail[2]).split(",")),
        )


def _unescape(field: bytes) -> str:
    """Undo the kernel's \\ooo escapes; bytes that are not UTF-8 survive as surrogates (os.fsencode gives them back)."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))
