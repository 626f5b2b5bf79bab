"""Small-file stores to work on, and a look behind them."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from fanoutfs.cache.smallstore import SmallStore


def open_store(
    path: Path, share_bytes: int, wait_for_readers: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
) -> SmallStore:
    """Open a store that nobody else reads."""
    return SmallStore(path, share_bytes, wait_for_readers)


def content_of(store: SmallStore, ino: int) -> bytes | None:
    """Return what a reader gets.  Raises SmallMismatchError."""
    with store.reader.begin() as txn:
        found = store.reader.get(txn, ino)
        return None if found is None else bytes(found)


def segments_of(path: Path) -> list[Path]:
    """Return the segment files in the order of their numbers."""
    return sorted((path / "segments").iterdir())


def occupied_bytes(path: Path) -> int:
    """Return what the store's files take from the disk."""
    return sum(file.stat().st_blocks * 512 for file in (path / "small.lmdb", *segments_of(path)))
