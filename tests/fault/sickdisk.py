"""An ext4 that falls ill: it answers EIO or nothing, becomes read-only, has no room, or goes away (needs root)."""

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from fanoutfs.keeper.mountinfo import find_mount
from fanoutfs.records import GIB, MIB
from tests.fault.disks import make_image, shut_down

SIZE: Final = GIB


class Disk:
    """An ext4 in an image, mounted at `path`; `cache` is a directory on it."""

    def __init__(self, base: Path, size_bytes: int = SIZE, *options: str) -> None:
        self.image, self.path = base / "image", base / "disk"
        self.cache = self.path / "cache"
        self.path.mkdir(parents=True)
        make_image(self.image, size_bytes, "mkfs.ext4", "-q", "-m", "0", *options)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop,errors=remount-ro", self.image, self.path)

    def unmount(self, *, lazy: bool = False) -> None:
        run("umount", *(["-l"] if lazy else []), self.path)

    def fail(self) -> None:
        """Have every read and write answered with EIO from now on, until it is mounted anew."""
        shut_down(self.path)

    def make_read_only(self) -> None:
        """Have ext4 find an error, upon which it is read-only."""
        loop = Path(os.path.realpath(find_device(self.path))).name
        (Path("/sys/fs/ext4") / loop / "trigger_fs_error").write_text("test", encoding="ascii")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Have no write to it return (FIFREEZE, FITHAW of <linux/fs.h>)."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, 0xC0045877, 0)
            try:
                yield
            finally:
                fcntl.ioctl(fd, 0xC0045878, 0)
        finally:
            os.close(fd)

    def can_be_unmounted(self) -> bool:
        """Unmount, if nobody holds it."""
        return not subprocess.run(["umount", self.path], check=False, capture_output=True).returncode

    def repair(self) -> None:
        done = subprocess.run(["e2fsck", "-fy", self.image], check=False, capture_output=True)
        assert done.returncode in (0, 1), done  # 1: there were errors, and they are no more

    def fill_up(self) -> Path:
        """Leave no room; return the file that takes it."""
        junk = self.path / "junk"
        with open(junk, "wb", buffering=0) as stream, pytest.raises(OSError, match="space"):
            while stream.write(bytes(MIB)):
                pass
        return junk

    def remove(self) -> None:
        while find_mount(self.path) is not None:
            if subprocess.run(["umount", "-l", self.path], check=False, capture_output=True).returncode:
                break
        self.image.unlink(missing_ok=True)  # pytest keeps directories of three runs, a GiB each


def find_device(path: Path) -> str:
    info = find_mount(path)
    assert info is not None
    return info.source


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
