"""A disk of a test's own, whose power can be cut: a file system in a loop-mounted image (needs root)."""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fanoutfs.keeper.mountinfo import find_mount
from fanoutfs.records import GIB

FILE_SYSTEMS: Final = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
IMAGE_BYTES: Final = 3 * GIB
"""Sparse.  Above the free-space floor of a mount, which would read through otherwise."""

# EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h), XFS_IOC_GOINGDOWN (fs/xfs/libxfs/xfs_fs.h): one number, flags alike.
_GOING_DOWN: Final = 0x8004587D
_NO_LOG_FLUSH: Final = 2


class Disk:
    """A mounted image.  path: where."""

    def __init__(self, base: Path, kind: str) -> None:
        self.path = base / "disk"
        self._image = base / "image"
        self.path.mkdir()
        with self._image.open("wb") as stream:
            stream.truncate(IMAGE_BYTES)
        _run(*FILE_SYSTEMS[kind], self._image)
        self.plug_in()

    def cut_power(self) -> None:
        """Stop the file system at once: what is in memory only, its journal's included, never reaches the image."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _GOING_DOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def unplug(self) -> None:
        """Unmount.  Nobody may use it any more."""
        _run("umount", self.path)

    def plug_in(self) -> None:
        """Mount: after a cut the journal is replayed."""
        _run("mount", "-o", "loop", self._image, self.path)

    def remove(self) -> None:
        """Leave no mount and no loop device behind, whatever happened."""
        while find_mount(self.path) is not None:
            if subprocess.run(["umount", "-l", self.path], check=False, capture_output=True).returncode:
                break
        command = ["losetup", "-j", str(self._image), "-O", "NAME", "-n"]
        for device in subprocess.run(command, check=False, capture_output=True, text=True).stdout.split():
            subprocess.run(["losetup", "-d", device], check=False, capture_output=True)


@contextlib.contextmanager
def power_disk(kind: str) -> Iterator[Disk]:
    """Make a disk with a file system of this kind and remove it at the end."""
    base = Path(tempfile.mkdtemp(prefix="fanoutfs-disk-", dir="/var/tmp"))
    disk = None
    try:
        disk = Disk(base, kind)
        yield disk
    finally:
        if disk is not None:
            disk.remove()
        shutil.rmtree(base, ignore_errors=True)


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
