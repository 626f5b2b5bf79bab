"""What the writers of the write benchmark do, each in a process of its own, and the upload without a file system.

The bytes are random and made before the clock runs: nothing on the way can compress them or find them equal.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from fanoutfs.bench.data import Bucket
from fanoutfs.bench.load import LoadError, Slot, Work
from fanoutfs.records import MIB

CHUNK_BYTES: Final = 8 * MIB
_POOL_CHUNKS: Final = 8
_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def checkpoint(path: bytes, size: int) -> Work:
    """Write one file from beginning to end and fsync it; the time ends when fsync has returned."""
    pool = [memoryview(os.urandom(CHUNK_BYTES)) for _ in range(_POOL_CHUNKS)]

    def work(_index: int, slot: Slot) -> None:
        fd = os.open(path, _WRITE, 0o644)
        written = 0
        while written < size:
            # Another window of another chunk each time: no two chunks of the file are alike.
            chunk = pool[written // CHUNK_BYTES % _POOL_CHUNKS]
            start = written // (CHUNK_BYTES * _POOL_CHUNKS) * 4096 % CHUNK_BYTES
            written += os.write(fd, chunk[start : start + size - written])
        os.fsync(fd)
        os.close(fd)
        slot.count(1, written)

    return work


def creates(directory: bytes, count: int, size: int) -> Work:
    """Create `count` files in one directory: open with O_EXCL, write once, close."""
    content = os.urandom(size)

    def work(_index: int, slot: Slot) -> None:
        open_, write, close = os.open, os.write, os.close
        for number in range(count):
            fd = open_(b"%s/sample-%06d" % (directory, number), _WRITE, 0o644)
            write(fd, content)
            close(fd)
        slot.count(count, count * size)

    return work


def copy_tree(source: Path, target: Path, deadline_s: float) -> float:
    """Copy a tree with cp -r; return seconds.  Raises LoadError."""
    started = time.monotonic()
    try:
        done = subprocess.run(
            ["cp", "-r", source, target], capture_output=True, text=True, timeout=deadline_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"cp -r did not finish in {deadline_s:.0f} s") from None
    if done.returncode:
        raise LoadError(f"cp -r: {done.stderr[:300]}")
    return time.monotonic() - started


def rename(old: Path, new: Path) -> float:
    """Rename; return seconds."""
    started = time.monotonic()
    os.rename(old, new)
    return time.monotonic() - started


def upload_directly(bucket: Bucket, source: Path, key: str, requests: int) -> float:
    """Put one file with obstore, multipart, as many requests in flight as the daemon has; return seconds."""
    import obstore

    store = bucket.store()
    started = time.monotonic()
    obstore.put(store, key, source, chunk_size=CHUNK_BYTES, max_concurrency=requests)
    return time.monotonic() - started


def remove(path: Path) -> None:
    """Remove a file or a tree, if it is there, and let the disk come to rest."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    os.sync()
