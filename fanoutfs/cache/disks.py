"""A further cache directory, on a disk of its own: opening it, emptying it, and finding out that it is not well.

    <directory>/                 0700, locked by the core that uses it, as a first cache directory is by its keeper
      lock
      volumes/<id>/              id: that of the volume in the first directory
        disk                     marker: a token that no other disk has
        objects/                 cache files of parts of large files, see `files`

The core uses it; everything here blocks and is for worker threads.  What is on such a disk can be fetched again, so
one that was away comes back empty.  A directory whose disk is not mounted is not used: the disk below would fill up.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fanoutfs.cache.directory import CacheDirectory, make_private
from fanoutfs.errors import CacheUnusableError

MARKER: Final = "disk"
USED: Final = "disks"
"""In the volume's folder in the first directory: the further directories it ever used, a line each."""
_PROBE_BYTES: Final = 64 << 10
_TOKEN_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """A directory that is locked.  folder: the volume's place in it.  token: what its marker says; "": it has none."""

    directory: CacheDirectory
    folder: Path
    mounted_on: Path
    identity: tuple[int, int]
    """Device and inode of the folder."""
    token: str

    def close(self) -> None:
        """Unlock it."""
        self.directory.close()


def open_disk(path: Path, volume: str, mounted_on: Path | None = None, patience_s: float = 0.0) -> OpenDisk:
    """Lock a directory and make the volume's folder in it, if need be.

    mounted_on: what it was mounted on when it was used last.  Raises OSError, CacheUnusableError, CacheInUseError.
    """
    if mounted_on is not None and not os.path.ismount(mounted_on):
        raise OSError(f"nothing is mounted on {mounted_on}")
    directory = CacheDirectory(path, patience_s=patience_s)
    try:
        folder = path / "volumes" / volume
        for each in (folder.parent, folder, folder / "objects"):
            make_private(each, "cache directory")
        found = folder.stat()
        return OpenDisk(directory, folder, mount_point(path), (found.st_dev, found.st_ino), read_token(folder))
    except BaseException:
        directory.close()
        raise


def begin_anew(disk: OpenDisk) -> str:
    """Empty the folder and mark it; return the new token.  Raises OSError."""
    marker, objects = disk.folder / MARKER, disk.folder / "objects"
    marker.unlink(missing_ok=True)
    shutil.rmtree(objects)
    objects.mkdir(mode=0o700)
    token = secrets.token_hex(16)
    fd = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, token.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    _sync_directory(disk.folder)
    return token


def read_token(folder: Path) -> str:
    """Return what the marker in a volume's folder says; "": there is none.  Raises OSError."""
    try:
        fd = os.open(folder / MARKER, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, _TOKEN_BYTES).decode(errors="replace").strip()
    finally:
        os.close(fd)


def probe(disk: OpenDisk) -> None:
    """Write, sync, read and remove a file.  Raises OSError."""
    content = secrets.token_bytes(_PROBE_BYTES)
    with tempfile.TemporaryFile(dir=disk.folder, buffering=0) as stream:
        fd = stream.fileno()
        if os.pwrite(fd, content, 0) != len(content):
            raise OSError("the disk takes a part of what is written only")
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what is read is to come from the disk
        if os.pread(fd, len(content), 0) != content:
            raise OSError("the disk returns other bytes than were written")


def check_alive(disk: OpenDisk, token: str) -> None:
    """Make sure that the directory is the one that was opened, and may be written to.  Raises OSError."""
    found = disk.folder.stat()
    if (found.st_dev, found.st_ino) != disk.identity:
        raise OSError("the directory was replaced, or its disk unmounted")
    if read_token(disk.folder) != token:
        raise OSError(f"the marker {disk.folder / MARKER} is gone or another one")
    if os.statvfs(disk.folder).f_flag & os.ST_RDONLY:
        raise OSError("the disk is read-only")


def is_setting_wrong(error: CacheUnusableError) -> bool:
    """Tell whether a directory cannot be used because of what it is, not because its disk is not well."""
    cause = error.__cause__
    return not isinstance(cause, OSError) or isinstance(cause, PermissionError | NotADirectoryError | FileExistsError)


def mount_point(path: Path) -> Path:
    """Return the mount point that a path is on."""
    at = Path(os.path.realpath(path))
    while not os.path.ismount(at):
        at = at.parent
    return at


def trim_others(disk: OpenDisk, at_most_bytes: int) -> int:
    """Delete what other volumes left in the directory, longest unused first, until it is no more than this.

    Return what is left of it.  No daemon uses it: the directory is ours alone.  Raises OSError.
    """
    others = [(folder.stat().st_mtime, folder, size) for folder, size in left_behind(disk.directory.path)
              if folder != disk.folder]  # fmt: skip
    total = sum(size for _mtime, _folder, size in others)
    for _mtime, folder, size in sorted(others):
        if total <= at_most_bytes:
            break
        shutil.rmtree(folder)
        total -= size
    return total


def note_used(volume: Path, directory: Path) -> None:
    """Write down, for people and `doctor`, that a volume used a further directory.  Raises OSError."""
    path = volume / USED
    known = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.exists() else []
    if str(directory) not in known:
        text = "".join(f"{line}\n" for line in (*known, directory))
        path.write_text(text, encoding="utf-8", errors="surrogateescape")


def used_directories(cache_dir: Path) -> list[Path]:
    """Return the further directories that volumes of a first cache directory ever used, as far as one may look."""
    found: dict[Path, None] = {}
    for path in sorted(cache_dir.glob(f"volumes/*/{USED}")):
        with contextlib.suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            found.update((Path(line), None) for line in lines)
    return list(found)


def left_behind(directory: Path) -> list[tuple[Path, int]]:
    """Return (folder, bytes on disk) of what volumes left in a further cache directory."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted((directory / "volumes").iterdir()):
            if (folder / MARKER).exists():
                found.append((folder, occupied_bytes(folder)))
    return found


def occupied_bytes(path: Path) -> int:
    """Return what a tree occupies on disk."""
    total = 0
    for folder, _subfolders, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
