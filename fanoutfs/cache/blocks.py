"""Blocks of large files: read with their checksums verified (fronts), stored (worker threads of the core).

What the arena still holds is read from there: those bytes have not left the cache yet.

xxh3-64 of one 256 KiB block takes about 10–25 us; a block is verified whenever bytes of it leave the cache.
The inode number is the seed: bytes filed under a wrong number do not pass either.
"""

import errno
import fcntl
import os
import struct
from typing import Final

import xxhash

from fanoutfs.cache.arena import Run, gaps
from fanoutfs.cache.files import CacheFiles
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES
from fanoutfs.wire.kernel import MAX_READ_BYTES

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
DIRECT_BYTES: Final = 4096
"""Alignment that O_DIRECT asks for on every disk we know."""
_DISK_AT: Final = 4  # offsets in a part record, see index.format: number of the disk that has the blocks
_CHECKSUMS_AT: Final = 8  # ... and the first checksum


class BlockMismatchError(Exception):
    """Cached bytes do not have the checksum the index holds."""


class BlockReader:
    """Verified reads into one reused buffer.  Owned by one front."""

    def __init__(self, files: CacheFiles) -> None:
        self._files = files
        # A READ of 1 MiB may begin and end inside a block.
        self._buffer = memoryview(bytearray(MAX_READ_BYTES + 2 * BLOCK_BYTES))

    @property
    def has_further(self) -> bool:
        """Tell whether any disk but 0 is open."""
        return self._files.has_further

    def close_further(self) -> None:
        """Close what is open on disks other than 0: one of them may be gone."""
        self._files.detach_all()

    def read(self, ino: int, offset: int, end: int, size_bytes: int, parts: dict[int, bytes]) -> tuple[memoryview, int]:
        """Return (bytes [offset, end) of the file, how many blocks were verified).

        parts: the raw block maps of all parts touched, every touched block present.  The bytes are valid until the
        next call.  Raises BlockMismatchError.
        """
        first = offset // BLOCK_BYTES
        start = first * BLOCK_BYTES
        stop = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, size_bytes)
        for last_try in (False, True):
            data = self._pread(ino, start, stop - start, parts)
            if data is not None and self._is_intact(ino, data, first, parts):
                return data[offset - start : end - start], -(-(stop - start) // BLOCK_BYTES)
            if last_try:
                break
            # The descriptor may be of a file that was removed and made anew: once more with a fresh one.
            self._files.forget(ino)
        raise BlockMismatchError

    def read_around(
        self, ino: int, offset: int, end: int, size_bytes: int, parts: dict[int, bytes], runs: list[Run]
    ) -> tuple[list[memoryview | bytes], int]:
        """Return pieces that together are bytes [offset, end) of the file, and how many blocks were verified.

        runs: what the arena holds of the range; the rest comes from the file.  Raises BlockMismatchError.
        """
        pieces: dict[int, memoryview | bytes] = {}
        verified = 0
        for low, high in gaps(runs, offset, end):
            data, count = self.read(ino, low, high, size_bytes, parts)
            pieces[low] = bytes(data)  # the buffer is used again for the next gap
            verified += count
        at = offset
        for run in runs:
            low = max(at, run.start)
            if low < run.end:
                pieces[low] = run.data[low - run.start :]
            at = max(at, run.end)
        return [pieces[low] for low in sorted(pieces)], verified

    def _pread(self, ino: int, start: int, length: int, parts: dict[int, bytes]) -> memoryview | None:
        view = self._buffer[:length]
        part, last_part = start // PART_BYTES, (start + length - 1) // PART_BYTES
        disk = disk_of(parts[part])
        if part != last_part and disk_of(parts[last_part]) != disk:  # (a READ touches two parts at most)
            border = last_part * PART_BYTES - start
            head = self._pread_from(disk, ino, start, view[:border])
            disk = disk_of(parts[last_part])
            return view if head and self._pread_from(disk, ino, start + border, view[border:]) else None
        return view if self._pread_from(disk, ino, start, view) else None

    def _pread_from(self, disk: int, ino: int, start: int, view: memoryview) -> bool:
        try:
            return os.preadv(self._files.descriptor(ino, disk), [view], start) == len(view)
        except OSError:
            return False

    @staticmethod
    def _is_intact(ino: int, data: memoryview, first: int, parts: dict[int, bytes]) -> bool:
        digest = xxhash.xxh3_64_intdigest
        for at in range(0, len(data), BLOCK_BYTES):
            part, block = divmod(first, PART_BLOCKS)
            first += 1
            expected = _U64.unpack_from(parts[part], _CHECKSUMS_AT + 8 * block)[0]
            if digest(data[at : at + BLOCK_BYTES], ino) != expected:
                return False
        return True


def disk_of(value: bytes | memoryview) -> int:
    """Return the number of the disk that has the blocks of a part, from its record."""
    disk: int = _U32.unpack_from(value, _DISK_AT)[0]
    return disk


def missing_blocks(value: bytes | memoryview | None, part: int, first: int, last: int) -> int:
    """Return the mask of blocks of a part that lie within blocks [first, last] of the file and are not cached."""
    low = max(0, first - part * PART_BLOCKS)
    high = min(PART_BLOCKS - 1, last - part * PART_BLOCKS)
    wanted = ((1 << (high - low + 1)) - 1) << low
    present = 0 if value is None else _U32.unpack_from(value)[0]
    return wanted & ~int(present)


def store_blocks(fd: int, ino: int, part: int, first_block: int, data: memoryview) -> dict[int, int]:
    """Write the blocks of one part, beginning at `first_block` of it, and return their checksums.

    data: whole blocks, the file's last one may be short.  Raises OSError when the disk refuses; a part of the bytes
    may then be in the file, but nothing is published.  Blocking; for worker threads.
    """
    _write(fd, data, part * PART_BYTES + first_block * BLOCK_BYTES)
    checksums: dict[int, int] = {}
    add_checksums(checksums, ino, first_block, data, len(data))
    return checksums


def write_directly(fd: int, offset: int, buffer: memoryview, length: int) -> None:
    """Write the first `length` bytes of a page-aligned buffer past the page cache.  Errors as `store_blocks`.

    fd: opened with O_DIRECT.  The buffer is written up to the end of a page, filled up with zeros.
    """
    padded = -(-length // DIRECT_BYTES) * DIRECT_BYTES
    buffer[length:padded] = bytes(padded - length)
    try:
        _write(fd, buffer[:padded], offset)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # The disk wants another alignment than any we have seen: through the page cache then.
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        _write(fd, buffer[:padded], offset)


def add_checksums(checksums: dict[int, int], ino: int, first_block: int, data: memoryview, arrived: int) -> None:
    """Add the checksums of the blocks that are whole now to those of the blocks before them.

    data: all bytes of consecutive blocks, of which the first `arrived` are there; the file's last one may be short.
    """
    at = len(checksums) * BLOCK_BYTES
    while at < arrived and (end := min(at + BLOCK_BYTES, len(data))) <= arrived:
        checksums[first_block + len(checksums)] = xxhash.xxh3_64_intdigest(data[at:end], ino)
        at = end


def _write(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def is_intact(data: memoryview | bytes, ino: int, value: bytes, block: int) -> bool:
    """Tell whether a block of a part has the checksum in the part's record, and is present there."""
    if not _U32.unpack_from(value)[0] >> block & 1:
        return False
    checksum: int = _U64.unpack_from(value, _CHECKSUMS_AT + 8 * block)[0]
    return xxhash.xxh3_64_intdigest(data, ino) == checksum


def find_torn_blocks(fd: int, ino: int, part: int, value: bytes, size_bytes: int) -> int:
    """Return the mask of present blocks of a part whose bytes do not have their checksum.  Blocking."""
    torn = 0
    present = _U32.unpack_from(value)[0]
    for block in range(PART_BLOCKS):
        if not present >> block & 1:
            continue
        start = part * PART_BYTES + block * BLOCK_BYTES
        length = min(BLOCK_BYTES, size_bytes - start)
        data = os.pread(fd, length, start)
        if (
            len(data) != length
            or xxhash.xxh3_64_intdigest(data, ino) != _U64.unpack_from(value, _CHECKSUMS_AT + 8 * block)[0]
        ):
            torn |= 1 << block
    return torn
