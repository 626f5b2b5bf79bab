"""What the writing model runs on: a mount with processes that die and a bucket that others change, or plain ext4."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from fanoutfs.cli.client import call
from fanoutfs.cli.drain import drain_mount
from fanoutfs.errors import FanoutError
from fanoutfs.records import MIB
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, wait_until
from tests.support.servers import Bucket

BALLAST: Final = "ballast"
"""Directory of large objects: reading them drives everything that is clean out of the cache."""
BALLAST_FILES: Final = 9
BALLAST_BYTES: Final = 9 * MIB
CACHE_SIZE: Final = "64MiB"


class Subject(Protocol):
    """A file system under test and what can befall it.  Paths are relative to `root`."""

    root: Path
    has_bucket: bool
    """Whether others can change what is in it."""

    def kill_core(self, delay_s: float | None) -> None:
        """Kill the core now, or while the next operations run."""
        ...

    def kill_front(self, delay_s: float | None) -> None:
        """Kill a front now, or while the next operations run."""
        ...

    def settle(self) -> None:
        """Return when no kill is outstanding and everything that was killed runs again."""
        ...

    def remount(self) -> None:
        """Unmount and mount."""
        ...

    def evict(self) -> None:
        """Drive what is clean out of the cache and out of memory."""
        ...

    def drain(self) -> None:
        """Return when nothing waits for upload, nor for its deletion."""
        ...

    def put(self, path: str, body: bytes) -> None:
        """Change an object as another client would, and let the mount know."""
        ...

    def delete(self, path: str) -> None:
        """Delete an object as another client would, and let the mount know."""
        ...

    def objects(self, top: str) -> dict[str, bytes]:
        """Return what is in the bucket below a directory: path → body."""
        ...

    def describe(self, top: str) -> list[str]:
        """Return lines that tell how things stand, for whoever has to find out why a step went wrong."""
        ...


class PlainSubject:
    """A directory of ext4: what the model is checked with."""

    has_bucket = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def kill_core(self, delay_s: float | None) -> None:
        """Nothing to kill."""

    def kill_front(self, delay_s: float | None) -> None:
        """Nothing to kill."""

    def settle(self) -> None:
        """Nothing is outstanding."""

    def remount(self) -> None:
        """Nothing to unmount."""

    def evict(self) -> None:
        """Forget what is in memory."""
        drop_page_cache()

    def drain(self) -> None:
        """Nothing waits."""

    def put(self, path: str, body: bytes) -> None:
        """Replace a file by a new one."""
        replace_file(self.root, path, body)

    def delete(self, path: str) -> None:
        """Remove a file."""
        (self.root / path).unlink()

    def objects(self, top: str) -> dict[str, bytes]:
        """There are none."""
        return {}

    def describe(self, top: str) -> list[str]:
        """Nothing that could not be seen."""
        return []


class MountSubject:
    """A mount of a bucket."""

    has_bucket = True

    def __init__(self, mount: Mount, bucket: Bucket) -> None:
        self.root = mount.path
        self.mount = mount
        self.bucket = bucket
        self._timer: threading.Timer | None = None
        self._killed: set[int] = set()

    def fill_bucket(self) -> None:
        """Put the ballast there."""
        for number in range(BALLAST_FILES):
            self.bucket.put(f"{BALLAST}/{number}", bytes([number]) * BALLAST_BYTES)

    def kill_core(self, delay_s: float | None) -> None:
        """See Subject."""
        self._kill(self._status()["core_pid"], delay_s)

    def kill_front(self, delay_s: float | None) -> None:
        """See Subject."""
        self._kill(self._status()["front_pids"][0], delay_s)

    def _kill(self, pid: int, delay_s: float | None) -> None:
        self._killed.add(pid)
        if delay_s is None:
            os.kill(pid, signal.SIGKILL)
            return
        self._timer = threading.Timer(delay_s, os.kill, (pid, signal.SIGKILL))
        self._timer.start()

    def settle(self) -> None:
        """See Subject.  A second kill before would hit the same request, which then counts as poison."""
        if self._timer is not None:
            self._timer.join()
            self._timer = None
        if self._killed:
            wait_until(self._is_whole, f"processes {self._killed} are replaced")
            self._killed.clear()

    def _is_whole(self) -> bool:
        try:
            status = call(self.mount.path, "status")
        except FanoutError:
            return False  # the next core has not taken over the socket yet
        running = {status["core_pid"], *status["front_pids"]}
        return not running & self._killed

    def _status(self) -> dict[str, Any]:
        self.settle()
        return self.mount.status()

    def remount(self) -> None:
        """See Subject."""
        self.settle()
        self.mount.stop()
        self.mount.start()

    def evict(self) -> None:
        """See Subject."""
        self.settle()
        drop_page_cache()
        for number in range(BALLAST_FILES):
            fd = os.open(self.mount.path / BALLAST / str(number), os.O_RDONLY)
            try:
                offset = 0
                while piece := os.pread(fd, MIB, offset):
                    assert piece == bytes([number]) * len(piece), f"wrong bytes in ballast {number} at {offset}"
                    offset += len(piece)
                assert offset == BALLAST_BYTES, f"ballast {number} ends at {offset}"
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)

    def drain(self) -> None:
        """See Subject."""
        self.settle()
        drain_mount(self.mount.path)

    def put(self, path: str, body: bytes) -> None:
        """See Subject."""
        self.bucket.put(path, body)
        self.mount.invalidate(os.path.dirname(path))

    def delete(self, path: str) -> None:
        """See Subject."""
        self.bucket.delete(path)
        self.mount.invalidate(os.path.dirname(path))

    def objects(self, top: str) -> dict[str, bytes]:
        """See Subject."""
        keys = [key for key in self.bucket.keys() if key.startswith(f"{top}/")]  # noqa: SIM118 - a method, not a dict
        return {key.removeprefix(f"{top}/"): self.bucket.get(key) for key in keys}

    def describe(self, top: str) -> list[str]:
        """See Subject."""
        objects = ", ".join(f"{path} {len(body)}" for path, body in sorted(self.objects(top).items()))
        return [f"now {time.strftime('%H:%M:%S')}, objects: {objects}", f"to be done: {self._status()['changes']}"]


def replace_file(root: Path, path: str, body: bytes) -> None:
    """Put a new file under a name, as a new version of an object appears in the mount: a new inode.

    It is written in the root itself, which nobody compares: of the tree only the file's own directory changes.
    """
    aside = root / f".aside-{os.getpid()}"
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.fchmod(fd, 0o644)
        with open(fd, "wb", closefd=False) as stream:
            stream.write(body)
    finally:
        os.close(fd)
    aside.replace(root / path)


@contextlib.contextmanager
def reference_directory() -> Iterator[Path]:
    """Make a directory on ext4 and remove it at the end."""
    base = Path(tempfile.mkdtemp(prefix="fanoutfs-reference-", dir="/var/tmp"))
    try:
        yield base
    finally:
        shutil.rmtree(base)
