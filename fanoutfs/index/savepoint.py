"""Where the index goes back to after a power cut: what allows commits that wait for no disk.

LMDB without syncs (MDB_NOSYNC) survives the death of processes, since the kernel has what they wrote, but not a power
cut: the disk may have got a newer header page without the pages that it leads to.  Two things make it whole again:

* a *pin*: a read transaction of the last state that was synced, S.  As long as it is open, LMDB reuses no page that S
  leads to (mdb_find_oldest), so S stays on the disk whatever else arrives there, in whatever order;
* a *save point*: the header of S, in a file beside the index, since LMDB overwrites its own with the next but one
  commit.  It is written after S was synced, and synced itself before the pin moves on.

At a start the header of S is put back if what was written since may be lost: if the machine, or the file system, was
started anew since (`instance_of`).  Else the kernel still has everything, and the newest commit is the right one.

index.lmdb-points: two slots of 4,096 bytes; the valid one with the higher sequence counts.  Little-endian:
   0  4  CRC-32 of bytes 4 to 208
   4  4  1, the version of this format
   8  8  sequence u64
  16  8  inode number of the index file u64; 0: an index is about to be made, and is nothing before its first point
  24 16  instance
  40  8  txnid of S u64
  48 160 the first bytes of LMDB's header page (the page header and MDB_meta of 0.9)

Core only; blocks.
"""

import contextlib
import ctypes
import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

from fanoutfs.errors import NO_ROOM

FILE_NAME: Final = "index.lmdb-points"
_SLOT_BYTES: Final = 4096
_VERSION: Final = 1
_RECORD: Final = struct.Struct("<IIQQ16sQ160s")
_HEADER_BYTES: Final = 160

# MDB_page (mp_pgno u64, mp_pad u16, mp_flags u16, mp_lower u16, mp_upper u16), then MDB_meta of LMDB 0.9 on 64 bits:
# magic u32, version u32, address u64, map size u64, two MDB_db of 48 bytes, last page u64, txnid u64.
_PGNO: Final = struct.Struct("<Q")
_MAGIC: Final = struct.Struct("<II")
_MAGIC_AT: Final = 16
_MAGIC_VALUE: Final = (0xBEEFC0DE, 1)
_PAGE_BYTES_AT: Final = 40  # the first field of the first MDB_db, in which LMDB keeps it
_PAGE_BYTES: Final = struct.Struct("<I")
_TXNID_AT: Final = 144
_TXNID: Final = struct.Struct("<Q")

_STATX_MNT_ID: Final = 0x1000  # <linux/stat.h>
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STATX_BYTES: Final = 256
_STX_MNT_ID_AT: Final = 144
_AT_FDCWD: Final = -100


@dataclass(frozen=True, slots=True)
class SavePoint:
    """A synced state.  index_ino: 0 if the index was only about to be made.  header: of LMDB's page."""

    index_ino: int
    instance: bytes
    txnid: int
    header: bytes


class NoRoomError(OSError):
    """The disk has no room for a save point."""


class SavePoints:
    """The file of save points."""

    def __init__(self, directory: Path) -> None:
        """Open or make it.  Raises OSError."""
        self._directory = directory
        self._fd = os.open(directory / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._sequence = 0
        self.last: SavePoint | None = None
        for slot in (0, 1):
            self._take(os.pread(self._fd, _RECORD.size, slot * _SLOT_BYTES))

    def _take(self, value: bytes) -> None:
        if len(value) < _RECORD.size:
            return
        checksum, version, sequence, index_ino, instance, txnid, header = _RECORD.unpack(value)
        if checksum == zlib.crc32(value[4:]) and version == _VERSION and sequence > self._sequence:
            self._sequence = sequence
            self.last = SavePoint(index_ino, instance, txnid, header)

    def begin(self) -> None:
        """Note that an index is about to be made.  Raises OSError."""
        self.write(SavePoint(0, bytes(16), 0, bytes(_HEADER_BYTES)))
        self.sync_names()

    def sync_names(self) -> None:
        """Make the names of the file and of the index durable.  Raises OSError."""
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def write(self, point: SavePoint) -> None:
        """Let another state be the one to go back to; when this returns it is on the disk.

        Raises NoRoomError: nothing was written, and it may be tried again.  OSError.
        """
        sequence = self._sequence + 1
        body = _RECORD.pack(
            0, _VERSION, sequence, point.index_ino, point.instance, point.txnid, point.header[:_HEADER_BYTES]
        )
        slot = zlib.crc32(body[4:]).to_bytes(4, "little") + body[4:]
        try:
            os.pwrite(self._fd, slot, sequence % 2 * _SLOT_BYTES)
        except OSError as error:
            if error.errno in NO_ROOM:  # where each write takes a new block
                raise NoRoomError(error.errno, error.strerror) from error
            raise
        os.fdatasync(self._fd)
        self._sequence = sequence
        self.last = point

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def header_of(index: Path, page_bytes: int, txnid: int) -> bytes:
    """Return the header by which LMDB finds the state of a transaction.  Nothing may be committed meanwhile.

    Raises lmdb.CorruptedError, OSError.
    """
    with index.open("rb") as stream:
        header = os.pread(stream.fileno(), _HEADER_BYTES, txnid % 2 * page_bytes)
    if _is_header(header) and _TXNID.unpack_from(header, _TXNID_AT)[0] == txnid:
        return header
    raise lmdb.CorruptedError(f"{index}: no header of transaction {txnid}")


def go_back(index: Path, point: SavePoint) -> bool:
    """Let LMDB find the state of a save point when it opens the index next; tell whether it would have found another.

    Nobody may have it open.  A file that has no header at all is left as it is: LMDB will refuse it.  Raises OSError.
    """
    page_bytes = _PAGE_BYTES.unpack_from(point.header, _PAGE_BYTES_AT)[0]
    fd = os.open(index, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        headers = [os.pread(fd, _HEADER_BYTES, slot * page_bytes) for slot in (0, 1)]
        if not any(_is_header(header) for header in headers):
            return False
        if _is_header(headers[point.txnid % 2]) and headers[point.txnid % 2] == point.header:
            other = headers[1 - point.txnid % 2]
            if _is_header(other) and _TXNID.unpack_from(other, _TXNID_AT)[0] <= point.txnid:
                return False
        for slot in (0, 1):
            header = bytearray(point.header)
            _PGNO.pack_into(header, 0, slot)
            if slot != point.txnid % 2:
                _TXNID.pack_into(header, _TXNID_AT, max(0, point.txnid - 1))
            os.pwrite(fd, header, slot * page_bytes)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    return True


def _is_header(value: bytes) -> bool:
    return len(value) == _HEADER_BYTES and _MAGIC.unpack_from(value, _MAGIC_AT) == _MAGIC_VALUE


def instance_of(directory: Path) -> bytes:
    """Return what changes whenever the kernel may have forgotten what was written below a directory.

    The boot, and the mount: its number is never used again on Linux 6.8 and later.  (A power cut that is only played,
    by shutting down one file system, is followed by a mount; a real one by a boot.)  That a directory is reached
    through another mount of the same file system is taken for the same.
    """
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    text = b"%s %d %d" % (boot_id.strip(), os.stat(directory).st_dev, _mount_of(directory))
    return hashlib.blake2b(text, digest_size=16).digest()


def _mount_of(directory: Path) -> int:
    """Return the number of the mount that a directory lies on; 0 where the kernel does not tell."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = ctypes.create_string_buffer(_STATX_BYTES)
    with contextlib.suppress(AttributeError):  # a C library without statx
        for mask in (_STATX_MNT_ID_UNIQUE, _STATX_MNT_ID):
            done = libc.statx(_AT_FDCWD, os.fsencode(directory), 0, mask, found)
            if not done and int.from_bytes(found.raw[:4], "little") & mask:
                return int.from_bytes(found.raw[_STX_MNT_ID_AT : _STX_MNT_ID_AT + 8], "little")
    return 0
