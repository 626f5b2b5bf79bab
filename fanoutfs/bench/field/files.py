"""The files that are read or written: in a work directory that surely goes, or found where nothing can be made."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import xxhash

from fanoutfs.bench import load
from fanoutfs.bench.data import large_file_chunks, make_large_file, make_small_files
from fanoutfs.bench.field.site import Site
from fanoutfs.bench.program import say
from fanoutfs.bench.scope import without_interrupts
from fanoutfs.errors import UsageError
from fanoutfs.records import MIB

PREFIX: Final = "fanoutfs-bench-"
UPLOAD_LIMIT_S: Final = 120.0
SMALL_BYTES: Final = MIB
"""Files found below this size are small ones."""
_NAMES_LOOKED_AT: Final = 50_000


@dataclass(slots=True)
class Files:
    """Files of one site.  sizes: how much of each is read; the root is what was made, or None."""

    site: Site
    paths: list[Path]
    sizes: list[int]
    made: Path | None = None
    digests: list[int] = field(default_factory=list)
    """xxh3-64 of each MiB of the first file, where asked for."""

    @property
    def size_bytes(self) -> int:
        """The size of the largest, in whole MiB: of what the contrast is to have."""
        return -(-max(self.sizes) // MIB) * MIB

    @property
    def mean_bytes(self) -> int:
        """The mean size, at least 1."""
        return max(1, round(sum(self.sizes) / len(self.sizes)))

    @property
    def names(self) -> list[bytes]:
        """The paths for system calls."""
        return [os.fsencode(path) for path in self.paths]

    def forget(self) -> str:
        """Leave the bytes as far away as they can be, in the store or on the disk; return why some are not, or ""."""
        self.site.wait_for_fills()
        why = self.site.evict([self.made] if self.made else self.paths) if self.site.is_fanoutfs else ""
        self.site.drop_pages(self.paths)
        return why

    def cool(self) -> None:
        """Leave the bytes on the disk only: of the mount's cache, or of the file system."""
        self.site.wait_for_fills()
        self.site.drop_pages(self.paths)


@contextlib.contextmanager
def work_directory(site: Site, need_bytes: int, need_files: int) -> Iterator[Path]:
    """Make a directory below the site and remove it with everything in it, whatever happens.

    Raises UsageError where it cannot be made or the files will not fit.
    """
    if site.is_read_only:
        raise UsageError(f"{site.path} is read-only: nothing can be written there")
    site.check_room(need_bytes, need_files)
    # Named before it is made, and by nobody else: an interrupt leaves it behind at no moment.
    directory = site.path / f"{PREFIX}{secrets.token_hex(8)}"
    departed = site.departed()
    try:
        _make(directory)
        yield directory
        _remove(directory)
        site.wait_for_deletions(departed)  # an interrupted run leaves them to the daemon
    finally:
        with without_interrupts():
            _remove(directory)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise UsageError(f"{directory.parent}: nothing can be made there: {error.strerror}") from None


def _remove(directory: Path) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass  # it could not be made
    except OSError as error:
        say(f"{directory} could not be removed: {error}")


@contextlib.contextmanager
def large_files(site: Site, count: int, size: int, *, is_verified: bool = False) -> Iterator[Files]:
    """Yield large files of about this size: made, or on a read-only site found (at most `size` of each is read).

    is_verified: with the digests of the first one.  On a fanoutfs mount the store has them.
    """
    with contextlib.ExitStack() as scope:
        if site.is_read_only:
            files = _find(site, count, size)
            if is_verified:
                files.digests = list(islice(load.chunk_digests(files.paths[0]), -(-files.sizes[0] // MIB)))
        else:
            root = scope.enter_context(work_directory(site, count * size, count))
            say(f"- {count} x {size // MIB} MiB below {root}")
            paths = [root / f"large-{number:03d}" for number in range(count)]
            for path in paths:
                make_large_file(path, size)
            files = Files(site, paths, [size] * count, root)
            if is_verified:  # of what was written, not of what is read there
                files.digests = [xxhash.xxh3_64_intdigest(chunk) for chunk in large_file_chunks(size)]
        _settle(files)
        yield files


@contextlib.contextmanager
def small_files(site: Site, count: int, size: int) -> Iterator[Files]:
    """Yield small files: made, or on a read-only site found.  On a fanoutfs mount the store has them."""
    with contextlib.ExitStack() as scope:
        if site.is_read_only:
            files = _find(site, count, 0)
        else:
            root = scope.enter_context(work_directory(site, count * size, count))
            say(f"- {count:,} files of {size:,} bytes below {root}")
            names = make_small_files(root, count, size)
            files = Files(site, [root / name for name in names], [size] * count, root)
        _settle(files)
        yield files


def _settle(files: Files) -> None:
    if files.made is not None:
        if files.site.is_fanoutfs:
            say("- uploading them")
        files.site.upload(files.made, UPLOAD_LIMIT_S)


def _find(site: Site, count: int, size: int) -> Files:
    """Choose files that are there.  size: the nearest to it, of large ones; 0: small ones."""
    found = list(_walk(site.path))
    if size:
        large = [each for each in found if each[1] >= SMALL_BYTES]
        chosen = sorted(large, key=lambda each: (abs(each[1] - size), each[0]))[:count]
    else:
        chosen = [each for each in found if 0 < each[1] < SMALL_BYTES][:count]
    wanted = count if size else 1
    if len(chosen) < wanted:
        kind = "at least" if size else "less than"
        raise UsageError(f"{site.path} is read-only, and {len(chosen)} of {wanted} files of {kind} 1 MiB are there")
    total = sum(min(each[1], size or each[1]) for each in chosen)
    site.notes.append(f"{site.path} is read-only: {len(chosen):,} files found there are read, {total:,} bytes of them")
    return Files(site, [path for path, _size in chosen], [min(each[1], size or each[1]) for each in chosen])


def _walk(directory: Path) -> Iterator[tuple[Path, int]]:
    """Yield regular files and their sizes, in sorted order; only so many names are looked at."""
    looked = 0
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    yield path, path.stat().st_size
            looked += 1
            if looked >= _NAMES_LOOKED_AT:
                return
