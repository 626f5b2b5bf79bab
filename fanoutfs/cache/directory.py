"""The cache directory: who may use it, where each volume's state lies.

    <cache-dir>/                 0700, owned by the daemon's user, no symbolic link
      lock                       flock held by the keeper; contains its pid
      volumes/<id>/              one per source and prefix; id: first 16 hex digits of SHA-256 of the identity
        volume                   the identity as text, for people
        index.lmdb index.lmdb-points small.lmdb segments/ objects/ staging/
        disks                    further directories that the volume ever used; see `disks`
        boot                     kernel boot id while small.lmdb is in use; see `small`

A volume may be deleted by hand when no daemon runs and nothing in it waits for upload: all of it can be fetched again.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Final

from fanoutfs.cache.unsaved import holds_unsaved
from fanoutfs.errors import CacheInUseError, CacheUnusableError

log = logging.getLogger(__name__)

_LOCK_POLL_S: Final = 0.02
_COUNTED_ELSEWHERE: Final = ("index.lmdb", "small.lmdb", "segments", "objects")


class CacheDirectory:
    """An opened and locked cache directory.  The lock lasts as long as a process holds the descriptor."""

    def __init__(self, path: Path, *, lock_fd: int = -1, patience_s: float = 0.0) -> None:
        """lock_fd: the lock itself, from the daemon before this one.  patience_s: how long to wait for it."""
        self.path = path
        make_private(path, "cache directory")
        self.lock_fd = lock_fd if lock_fd >= 0 else self._lock(time.monotonic() + patience_s)

    def _lock(self, deadline: float) -> int:
        path = self.path / "lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise CacheUnusableError(f"cannot write to cache directory {self.path}: {error.strerror}") from error
        while not _is_locked(fd):
            if time.monotonic() < deadline:
                time.sleep(_LOCK_POLL_S)
                continue
            owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise CacheInUseError(
                f"cache directory {self.path} is in use by another daemon (pid {owner}); "
                "give this mount its own --cache-dir"
            )
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def volume(self, identity: str) -> Path:
        """Return the folder of a volume, made if need be."""
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        path = self.path / "volumes" / digest
        # Each by itself: mkdir(parents) would leave them 0755.
        for folder in (path.parent, path, path / "objects", path / "segments"):
            make_private(folder, "cache directory")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(path / "volume", flags, 0o600), "w", encoding="utf-8") as stream:
                stream.write(identity + "\n")
        except OSError as error:
            raise CacheUnusableError(f"cannot write {path / 'volume'}: {error.strerror}") from error
        return path

    def other_volumes_bytes(self, own: Path) -> int:
        """Return what other volumes in this directory occupy, and what lies beside our own data: logs, broken files."""
        others = sum(_occupied_bytes(path) for path in (self.path / "volumes").iterdir() if path != own)
        beside = (path for path in own.iterdir() if path.name not in _COUNTED_ELSEWHERE)
        return others + sum(path.lstat().st_blocks * 512 for path in beside)

    def remove_other_volumes(self, own: Path, at_most_bytes: int) -> None:
        """Delete other volumes, longest unused first, until they occupy no more than this.

        The lock says that no daemon uses them.  One that has what the store lacks stays, whatever it occupies.
        """
        others = [path for path in (self.path / "volumes").iterdir() if path != own]
        others.sort(key=lambda path: path.stat().st_mtime)
        total = sum(_occupied_bytes(path) for path in others)
        for path in others:
            if total <= at_most_bytes:
                return
            if holds_unsaved(path):
                log.warning("another volume holds what is not uploaded, and stays: mount it again path=%s", path)
                continue
            total -= _occupied_bytes(path)
            shutil.rmtree(path)

    def close(self) -> None:
        """Release the lock."""
        os.close(self.lock_fd)


def make_private(path: Path, what: str) -> None:
    """Create the directory 0700, or check that an existing one is ours alone."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise CacheUnusableError(f"cannot create {what} {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise CacheUnusableError(f"{what} {path} is not a directory (symbolic links are refused)")
    if found.st_uid != os.geteuid():
        raise CacheUnusableError(f"{what} {path} belongs to uid {found.st_uid}, not to us ({os.geteuid()})")
    if found.st_mode & 0o022:
        raise CacheUnusableError(f"{what} {path} is writable by others: chmod go-w {path}")


def _is_locked(fd: int) -> bool:
    """Take the lock if it is free; tell whether it is ours."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _occupied_bytes(path: Path) -> int:
    """Return what a tree occupies on disk."""
    total = 0
    for folder, _subfolders, names in os.walk(path):
        for name in names:
            total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
