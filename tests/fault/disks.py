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
from tests.support.mounts import wait_until

FILE_SYSTEMS: Final = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
IMAGE_BYTES: Final = 3 * GIB
"""Sparse.  Above the free-space floor of a mount, which would read through otherwise."""

# EXT4_IOC_SHUTDOWN (fs/ext4/ext4.h), XFS_IOC_GOINGDOWN (fs/xfs/libxfs/xfs_fs.h): one number, flags alike.
_GOING_DOWN: Final = 0x8004587D
_NO_LOG_FLUSH: Final = 2


def make_image(image: Path, size_bytes: int, *command: str) -> None:
    """Make a sparse file with a file system.  command: the program that makes it, and its options."""
    with image.open("wb") as stream:
        stream.truncate(size_bytes)
    _run(*command, image)


def shut_down(path: Path) -> None:
    """Stop the file system at once: what is in memory only, its journal's included, never reaches the disk.

    From then on it answers EIO, until it is mounted anew.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _GOING_DOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(fd)


class Disk:
    """A mounted image.  path: where."""

    def __init__(self, base: Path, kind: str) -> None:
        self.path = base / "disk"
        self._image = base / "image"
        self.path.mkdir()
        make_image(self._image, IMAGE_BYTES, *FILE_SYSTEMS[kind])
        self.plug_in()

    def cut_power(self) -> None:
        """See `shut_down`."""
        shut_down(self.path)

    def unplug(self) -> None:
        """Unmount.  Nobody may use it any more.

        Another mount namespace may have a copy of the mount (a test of the other worker made one).  As long as it is
        there, so is the file system in memory, and mounting would find that one again, shut down as it is.
        """
        _run("umount", self.path)
        wait_until(lambda: not self._devices(), "the file system is still in use", 60)

    def plug_in(self) -> None:
        """Mount: after a cut the journal is replayed."""
        _run("mount", "-o", "loop", self._image, self.path)

    def remove(self) -> None:
        """Leave no mount and no loop device behind, whatever happened."""
        while find_mount(self.path) is not None:
            if subprocess.run(["umount", "-l", self.path], check=False, capture_output=True).returncode:
                break
        for device in self._devices():
            subprocess.run(["losetup", "-d", device], check=False, capture_output=True)

    def _devices(self) -> list[str]:
        command = ["losetup", "-j", str(self._image), "-O", "NAME", "-n"]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.split()


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


@contextlib.contextmanager
def sized_disk(base: Path, size_bytes: int, *options: str) -> Iterator[Path]:
    """Mount an ext4 of this size at `base`/disk; its image is `base`/image.  options: for mkfs.ext4."""
    image, path = base / "image", base / "disk"
    make_image(image, size_bytes, "mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", *options)
    path.mkdir()
    _run("mount", "-o", "loop", image, path)
    try:
        path.chmod(0o700)
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


@contextlib.contextmanager
def quota_disk(base: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a btrfs at `base`/quota in which no more than this may be used; `statvfs` tells of far more free space.

    Beyond it everybody gets EDQUOT, root as well.
    """
    image, path = base / "quota-image", base / "quota"
    make_image(image, GIB, "mkfs.btrfs", "-q")
    path.mkdir()
    _run("mount", "-o", "loop", image, path)
    try:
        _run("btrfs", "quota", "enable", path)
        (path / "spare").write_bytes(os.urandom(2 << 20))
        _run("btrfs", "qgroup", "limit", size_bytes, path)
        path.chmod(0o700)
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def lift_quota(path: Path) -> None:
    """Take the quota of a `quota_disk` away: a change that needs some room within it, as every other."""
    (path / "spare").unlink()

    def is_lifted() -> bool:
        os.sync()  # the room is there with the file system's next commit
        command = ["btrfs", "qgroup", "limit", "none", str(path)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    wait_until(is_lifted, "the quota is lifted", 60)


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
