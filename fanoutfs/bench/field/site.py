"""A directory that is measured: on a fanoutfs mount, whose daemon is asked what it does, or on any other file system.

The daemon is asked over its control socket.  Another user's answers nobody: such a mount is measured as any other
file system is, and a note says so.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fanoutfs.bench import machine
from fanoutfs.bench.counters import Counters, counters, settled_counters, status
from fanoutfs.cli.place import find_place
from fanoutfs.cli.progress import ask, follow
from fanoutfs.errors import DaemonDiedError, FanoutError, NotMountedError, UsageError

HERE: Final = "here"
CONTRAST: Final = "contrast"
_SETTLE_S: Final = 5.0
"""A mount that somebody else uses is never quiet: what its other users ask for counts as well."""
_DELETIONS_S: Final = 30.0
_LOOK_S: Final = 0.05
_PATHS_PER_REQUEST: Final = 1000


@dataclass(slots=True)
class Seen:
    """What a daemon did in a phase.  messages: of the kernel; None where nobody can say."""

    messages: int | None = None
    backend_bytes: int | None = None


class Site:
    """One directory.  role: HERE (what is measured) or CONTRAST."""

    def __init__(self, directory: str, role: str) -> None:
        """Raise UsageError where nothing can be measured."""
        self.path = Path(os.path.abspath(directory))
        self.role = role
        self.notes: list[str] = []
        try:
            if not self.path.is_dir():
                raise UsageError(f"{directory} is no directory")
            self.is_read_only = bool(os.statvfs(self.path).f_flag & os.ST_RDONLY) or not os.access(self.path, os.W_OK)
        except OSError as error:
            raise UsageError(f"{directory}: {error.strerror}") from None
        self.mountpoint: Path | None = None
        self._cache: dict[str, Any] = {}
        self._pages: machine.PageWatch | None = None
        with contextlib.suppress(NotMountedError):
            self._ask_daemon(find_place(directory)[0])

    @property
    def is_fanoutfs(self) -> bool:
        """Whether there is a daemon that answers."""
        return self.mountpoint is not None

    @property
    def description(self) -> str:
        """What it is, for a person."""
        mode = ", read-only" if self.is_read_only else ""
        return f"{self.path}: {machine.file_system(self.path.resolve())}{mode}"

    def _ask_daemon(self, mountpoint: Path) -> None:
        try:
            self._cache = status(mountpoint)["cache"]
            self.mountpoint = mountpoint
            self._pages = machine.PageWatch()
        except DaemonDiedError as error:
            self.notes.append(f"{self.path}: measured like any other file system: {error}")

    # --- what the daemon counts --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watched(self) -> Iterator[Seen]:
        """Yield an object that tells, once the block was left, what the daemon did in it; begins with a quiet mount."""
        seen = Seen()
        if self.mountpoint is None:
            yield seen
            return
        before = self._settled()
        yield seen
        after = counters(self.mountpoint)
        # Where it counted none, the kernel's own count is the witness: a front that gets no message never reads.
        counted = sum(after.messages_since(before).values())
        seen.messages = counted or after.front_reads - before.front_reads
        self.wait_for_fills()  # what was fetched ahead counts as well
        now = counters(self.mountpoint)
        seen.backend_bytes = now.values.get("backend_bytes", 0) - before.values.get("backend_bytes", 0)

    def pages_lost(self) -> str:
        """Return who took pages from the page cache since this mount was looked at first, in words; "": nobody."""
        return "" if self._pages is None else self._pages.lost()

    def _settled(self) -> Counters:
        assert self.mountpoint is not None  # noqa: S101  the callers looked
        self.wait_for_fills()
        return settled_counters(self.mountpoint, _SETTLE_S)

    def wait_for_fills(self) -> None:
        """Return when what was fetched is on the disk (readers have it earlier), or when that takes too long."""
        end = time.monotonic() + _SETTLE_S
        while self.mountpoint is not None and time.monotonic() < end:
            if not status(self.mountpoint)["in_flight"]["fill_bytes"]:
                return
            time.sleep(_LOOK_S)

    # --- from the store, from the cache, from memory -----------------------------------------------------------

    def upload(self, directory: Path, limit_s: float) -> float | None:
        """Have the daemon upload what is dirty below a directory; return seconds, None where there is no daemon."""
        if self.mountpoint is None:
            return None
        started = time.monotonic()

        def look(_progress: object) -> None:
            if time.monotonic() > started + limit_s:
                raise FanoutError(f"the store has not taken the files in {limit_s:.0f} s: choose fewer or smaller ones")

        job = ask(self.mountpoint, "drain", path=self._relative(directory))["job"]
        follow(self.mountpoint, job, look, "uploads go on in the background")
        return time.monotonic() - started

    def departed(self) -> int:
        """Return how many objects the daemon has still to delete or move because their files are gone."""
        return 0 if self.mountpoint is None else int(status(self.mountpoint)["changes"].get("departed", 0))

    def wait_for_deletions(self, before: int) -> None:
        """Return when no more are left than there were before, or when that takes too long, which a note tells."""
        end = time.monotonic() + _DELETIONS_S
        while (left := self.departed() - before) > 0:
            if time.monotonic() > end:
                self.notes.append(f"{self.path}: the daemon is still deleting {left:,} objects of removed files")
                return
            time.sleep(_LOOK_S)

    def evict(self, paths: Sequence[Path]) -> str:
        """Have the daemon forget the bytes of files or trees; return why some stay, "" if none do."""
        if self.mountpoint is None:
            raise AssertionError("nothing to evict from")
        kept: dict[str, int] = {}
        for start in range(0, len(paths), _PATHS_PER_REQUEST):
            batch = [self._relative(path) for path in paths[start : start + _PATHS_PER_REQUEST]]
            job = ask(self.mountpoint, "evict", paths=batch)["job"]
            result = follow(
                self.mountpoint, job, lambda _progress: None, "what was evicted is fetched again when read"
            )["result"]
            for why, files in result["kept"].items():
                kept[why] = kept.get(why, 0) + files["files"]
            for failure in result["failures"]:
                kept[failure] = 1
        return "; ".join(f"kept in the cache: {why} (files: {files:,})" for why, files in kept.items())

    def drop_pages(self, paths: Iterable[Path]) -> None:
        """Have the kernel forget the pages of these files, and of the cache files in which a daemon keeps them."""
        small = False
        for path in paths:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if self.mountpoint is None and not self.is_read_only:
                    os.fdatasync(fd)  # dirty pages cannot be dropped; a FUSE mount of ours has none
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                found = os.fstat(fd)
            finally:
                os.close(fd)
            if self.mountpoint is not None:
                small |= not self._drop(f"*/objects/{found.st_ino & 0xFF:02x}/{found.st_ino:x}")
        if small:
            self._drop("*/segments/*")

    def _drop(self, pattern: str) -> bool:
        """Drop the pages of cache files; return whether there are any.  Another user's cannot be opened."""
        has_any = False
        for path in (Path(self._cache["directory"]) / "volumes").glob(pattern):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(fd)  # segments are written through the page cache
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(fd)
                has_any = True
        return has_any

    def _relative(self, path: Path) -> str:
        return find_place(os.fspath(path))[1]

    # --- room --------------------------------------------------------------------------------------------------

    def check_room(self, need_bytes: int, need_files: int) -> None:
        """Raise UsageError where so much does not fit.  The cache of a mount takes it first, half of it at most."""
        places = [(self.path, "")]
        if self.mountpoint is not None:
            places = [(Path(self._cache["directory"]), "the cache in ")]
            cap_bytes = self._cache["cap_bytes"]
            if need_bytes > cap_bytes // 2:
                raise UsageError(
                    f"{need_bytes:,} bytes are needed; the cache of {self.mountpoint} takes {cap_bytes:,},"
                    " half of that may wait for uploads: choose a smaller --size or fewer --files"
                )
        for place, what in places:
            try:
                found = os.statvfs(place)
            except OSError:
                continue  # another user's cache directory
            free = found.f_bavail * found.f_frsize
            if need_bytes > free * 0.95:
                raise UsageError(f"{what}{place} has {free:,} bytes free, {need_bytes:,} are needed: a smaller --size")
            if found.f_files and need_files > found.f_favail * 0.95:
                raise UsageError(f"{what}{place} has room for {found.f_favail:,} more files: choose fewer --files")
