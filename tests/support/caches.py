"""The kernel's caches belong to the whole machine: who counts what a mount is asked locks out those who drop them.

The lock is machine-wide (workers of one run, and other runs).  A test that counts holds it shared, `steady_caches`;
dropping takes it exclusively for that moment, or, where a program drops them at will, for the whole test.
"""

import contextlib
import fcntl
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LOCK: Final = "/run/lock/fanoutfs-test-caches"


class _Lock:
    """One lock per process, held in one way at a time."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._way = fcntl.LOCK_UN

    @contextlib.contextmanager
    def held(self, way: int) -> Iterator[None]:
        """Hold it shared or exclusively for a block, and then as before.

        Who changes from one to the other lets go in between (flock(2)), so that two who do so do not wait for each
        other for ever; what others drop meanwhile, the changer drops as well.
        """
        before = self._way
        self._change(way)
        try:
            yield
        finally:
            self._change(before)

    def _change(self, way: int) -> None:
        fcntl.flock(self._fd, way)
        self._way = way


@functools.cache
def _lock() -> _Lock:
    return _Lock(_LOCK)


@contextlib.contextmanager
def steady_caches() -> Iterator[None]:
    """Have no test drop the kernel's caches during a block, other than that block itself."""
    with _lock().held(fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def dropped_at_will() -> Iterator[None]:
    """Let a program drop the kernel's caches at any time during a block."""
    with _lock().held(fcntl.LOCK_EX):
        yield


def drop_clean_caches() -> None:
    """Make the kernel forget clean pages, dentries and inodes (needs root)."""
    with dropped_at_will():
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def drop_page_cache() -> None:
    """Write what is dirty, and make the kernel forget all pages, dentries and inodes (needs root)."""
    os.sync()
    drop_clean_caches()
