"""The small-file store: whole contents end to end in segment files, their places in LMDB.  Its format, its readers.

    segments/NNNNNNNN   contents, nothing between them; the name is the segment's number u32 as 8 hex digits
    small.lmdb          LMDB 0.9.  Keys big-endian, values little-endian:
      (unnamed)  "format"                   → u64 FORMAT_VERSION
                 "next"                     → u32 number of the segment to be begun next; numbers are never reused
      places     inode u64                  → xxh3-64 of the content (seed: the inode) u64, segment u32, offset u32,
                                              length u32
      rosters    segment u32, n u32         → inodes u64 × at most 128: contents appended after n others.  Some may
                                              have been dropped, or stored again elsewhere, since
      segments   segment u32                → end u32, live u32, count u32: bytes appended, bytes of contents that are
                                              still in `places`, contents ever appended

A store of another format is deleted: all of it can be fetched again.  Written by the core (`smallstore`).

LMDB is not synced (MDB_NOSYNC): a sync per group would cost more than the fetch.  After a power cut it may be torn in
ways it does not notice, or hold what a file was before it was changed, so `boot` names the kernel boot and the mount
under which it is in use (`instance_of`, as for the index); found under another one, the store is deleted.  Segments
need no such guard: what a cut took from them fails the checksum, is dropped and fetched again.
A daemon killed with -9 loses nothing: the pages are in the kernel's cache.
"""

import os
import shutil
import struct
from pathlib import Path
from typing import Final

import lmdb
import xxhash

from fanoutfs.cache.segments import FOLDER, SegmentDescriptors
from fanoutfs.index import lockfile
from fanoutfs.index.format import INO_KEY
from fanoutfs.index.savepoint import instance_of
from fanoutfs.index.store import LMDB_ENGINE, MAX_READERS, extend_to_header, occupied_bytes
from fanoutfs.records import MIB

FORMAT_VERSION: Final = 2
FORMAT_VALUE: Final = struct.pack("<Q", FORMAT_VERSION)
FILE_NAME: Final = "small.lmdb"
MAX_CONTENT_BYTES: Final = MIB
PLACE: Final = struct.Struct("<QIII")
ROSTER_KEY: Final = struct.Struct(">II")
SEGMENT_KEY: Final = struct.Struct(">I")
SEGMENT_VALUE: Final = struct.Struct("<III")
U32: Final = struct.Struct("<I")
_MAP_BYTES: Final = 1 << 36
"""64 GiB of address space, for about a thousand million files; `smallstore` bounds what the file takes."""
_BOOT_FILE: Final = "boot"
_DATABASES: Final = (b"places", b"rosters", b"segments")


class SmallFormatError(Exception):
    """The store was written by another version."""


def prepare(volume: Path, share_bytes: int) -> None:
    """Delete a store that a power cut may have torn or whose index outgrew its share, and mark it in use.

    Once, before any process opens it.  LMDB files do not shrink: after the cap was lowered only a new one fits.
    """
    instance = instance_of(volume).hex()
    mark = volume / _BOOT_FILE
    path = volume / FILE_NAME
    if path.exists() and path.stat().st_blocks * 512 > max(MIB, share_bytes // 2):
        remove(volume)
    if mark.exists() and mark.read_text(encoding="ascii").strip() != instance:
        remove(volume)
    with mark.open("w", encoding="ascii") as stream:
        stream.write(instance + "\n")
        stream.flush()
        os.fsync(stream.fileno())  # a power cut must find the mark wherever it finds pages written after it
    folder = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove(volume: Path) -> None:
    """Delete the store's files.  Whoever has them open goes on reading what they hold."""
    (volume / FILE_NAME).unlink(missing_ok=True)
    lockfile.forget(volume / FILE_NAME)
    shutil.rmtree(volume / FOLDER, ignore_errors=True)


def mark_closed(volume: Path) -> None:
    """Note that the store was synced and closed: it may be used under any boot."""
    (volume / _BOOT_FILE).unlink(missing_ok=True)


class SmallEnvironment:
    """The open LMDB file.  Once per process, after fork.  Raises lmdb.Error, SmallFormatError."""

    def __init__(self, volume: Path, *, writable: bool) -> None:
        self.volume = volume
        self._file_bytes = 0
        lockfile.prepare(volume / FILE_NAME, is_owner=writable)
        self.env = lmdb.open(
            os.fspath(volume / FILE_NAME),
            map_size=_MAP_BYTES,
            subdir=False,
            mode=0o600,
            readonly=not writable,
            sync=False,
            metasync=False,
            readahead=False,
            meminit=False,
            max_dbs=len(_DATABASES),
            max_readers=MAX_READERS,
            lib_version=LMDB_ENGINE,
        )
        try:
            if writable:
                extend_to_header(self.env)
                self._check_format()
            self.places, self.rosters, self.segments = (self.env.open_db(name, create=writable) for name in _DATABASES)
        except (lmdb.Error, SmallFormatError):
            self.env.close()
            raise

    def _check_format(self) -> None:
        with self.env.begin(write=True) as txn:
            found = txn.get(b"format")
            if found is None and txn.stat()["entries"] == 0:
                txn.put(b"format", FORMAT_VALUE)
            elif found != FORMAT_VALUE:
                raise SmallFormatError(f"format {found!r} instead of {FORMAT_VALUE!r}")

    def file_bytes(self) -> int:
        """Return what the file occupies on disk."""
        self._file_bytes = occupied_bytes(self.env, self._file_bytes)
        return self._file_bytes

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class SmallMismatchError(Exception):
    """A stored content cannot be read, or does not have its checksum."""


class SmallReader:
    """Verified reads into one reused buffer.  Owned by one thread of a front or of the core.

    No lock: bytes are removed only after every front has been idle once since their places were.  Whoever else reads
    may meet SmallMismatchError then, never wrong bytes.
    """

    def __init__(self, environment: SmallEnvironment) -> None:
        self._env = environment.env
        self._places = environment.places
        self._segments = SegmentDescriptors(environment.volume)
        self._buffer = memoryview(bytearray(MAX_CONTENT_BYTES))

    def begin(self) -> lmdb.Transaction:
        """Begin a transaction for `get`."""
        return self._env.begin(buffers=True)

    def get(self, txn: lmdb.Transaction, ino: int) -> memoryview | None:
        """Return a file's whole content, or None when it is not stored.  Valid until the next call.

        Raises SmallMismatchError, also where the way to the content is damaged: the core will find out.
        """
        try:
            value = txn.get(INO_KEY.pack(ino), db=self._places)
        except lmdb.Error as error:
            raise SmallMismatchError from error
        if value is None:
            return None
        if len(value) != PLACE.size:
            raise SmallMismatchError
        checksum, segment, offset, length = PLACE.unpack(value)
        if length > MAX_CONTENT_BYTES:
            raise SmallMismatchError
        content = self._buffer[:length]
        for _try in range(2):
            if self._segments.read(segment, offset, content) and xxhash.xxh3_64_intdigest(content, ino) == checksum:
                return content
            # The descriptor may be of a store that was removed and begun anew: once more with a fresh one.
            self._segments.forget(segment)
        raise SmallMismatchError

    def close(self) -> None:
        """Close the descriptors; the environment belongs to the caller."""
        self._segments.close()
