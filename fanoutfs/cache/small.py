"""The small-file store: whole contents in LMDB, so that one lookup answers a READ.  Its format and its readers.

small.lmdb, LMDB 0.9, one unnamed database: inode u64 big-endian → xxh3-64 of the content (seed: the
inode) u64 little-endian, content.

Written by the core (`smallstore`) in groups without syncing (MDB_NOSYNC): content can be fetched again, and a sync per
group would cost more than the fetch.  After a power cut such a file may be torn in ways LMDB does not notice, so `boot`
names the kernel boot under which the file is in use; found under another boot, the file is deleted.  A daemon killed
with -9 loses nothing: the pages are in the kernel's cache.

Its space is bounded by LMDB's map size (`small_cache_share` of the cap).  Evicted contents leave free pages that the
next ones use; the file does not shrink.
"""

import os
import struct
from pathlib import Path
from typing import Final

import lmdb
import xxhash

from fanoutfs.index.format import INO_KEY
from fanoutfs.index.store import LMDB_ENGINE, MAX_READERS

FILE_NAME: Final = "small.lmdb"
_BOOT_FILE: Final = "boot"
CHECKSUM: Final = struct.Struct("<Q")
MIN_MAP_BYTES: Final = 1 << 20


def prepare(volume: Path, map_bytes: int) -> None:
    """Delete a store that a power cut may have torn or that outgrew its share, and mark it in use.

    Once, before any process opens it.  LMDB files do not shrink: after the cap was lowered only a new one fits.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    mark = volume / _BOOT_FILE
    path = volume / FILE_NAME
    if path.exists() and path.stat().st_blocks * 512 > max(MIN_MAP_BYTES, map_bytes):
        remove(volume)
    if mark.exists() and mark.read_text(encoding="ascii").strip() != boot_id:
        remove(volume)
    with mark.open("w", encoding="ascii") as stream:
        stream.write(boot_id + "\n")
        stream.flush()
        os.fsync(stream.fileno())  # a power cut must find the mark wherever it finds pages written after it
    folder = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove(volume: Path) -> None:
    """Delete the store's files.  No process may have them open."""
    for suffix in ("", "-lock"):
        (volume / (FILE_NAME + suffix)).unlink(missing_ok=True)


def mark_closed(volume: Path) -> None:
    """Note that the store was synced and closed: it may be used under any boot."""
    (volume / _BOOT_FILE).unlink(missing_ok=True)


def open_small(volume: Path, map_bytes: int, *, writable: bool, in_order: bool = False) -> lmdb.Environment:
    """Open the environment.  Once per process, after fork.  in_order: the kernel may read ahead."""
    return lmdb.open(
        os.fspath(volume / FILE_NAME),
        map_size=max(MIN_MAP_BYTES, map_bytes),
        subdir=False,
        mode=0o600,
        readonly=not writable,
        sync=False,
        metasync=False,
        readahead=in_order,
        meminit=False,
        max_readers=MAX_READERS,
        lib_version=LMDB_ENGINE,
    )


class SmallMismatchError(Exception):
    """A stored content does not have its checksum."""


class SmallReader:
    """Verified reads.  Owned by one front, or by the pusher, which reads in the order of numbers.

    in_order: have the kernel read ahead in the file.  Contents stored one after the other lie so in it; without, each
    4 KiB of it are a disk access of their own.
    """

    def __init__(self, volume: Path, map_bytes: int, *, in_order: bool = False) -> None:
        self._env = open_small(volume, map_bytes, writable=False, in_order=in_order)

    def begin(self) -> lmdb.Transaction:
        """Begin the transaction within which `get` results are valid."""
        return self._env.begin(buffers=True)

    @staticmethod
    def get(txn: lmdb.Transaction, ino: int) -> memoryview | None:
        """Return a file's whole content, in the map, or None when it is not stored.

        Raises SmallMismatchError, also where the way to the content is damaged: the core will find out.
        """
        try:
            value = txn.get(INO_KEY.pack(ino))
        except lmdb.Error as error:
            raise SmallMismatchError from error
        if value is None:
            return None
        if len(value) < CHECKSUM.size:
            raise SmallMismatchError
        content = memoryview(value)[CHECKSUM.size :]
        if xxhash.xxh3_64_intdigest(content, ino) != CHECKSUM.unpack_from(value)[0]:
            raise SmallMismatchError
        return content
