"""Blocks of large files: read with their checksums verified (fronts), stored (worker threads of the core).

xxh3-64 of one 256 KiB block takes about 10–25 us; a block is verified whenever bytes of it leave the cache.
The inode number is the seed: bytes filed under a wrong number do not pass either.
"""

import os
import struct
from typing import Final

import xxhash

from fanoutfs.cache.files import CacheFiles
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES
from fanoutfs.wire.kernel import MAX_READ_BYTES

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_CHECKSUMS_AT: Final = 8  # offset of the first checksum in a part record, see index.format


class BlockMismatchError(Exception):
    """Cached bytes do not have the checksum the index holds."""


class BlockReader:
    """Verified reads into one reused buffer.  Owned by one front."""

    def __init__(self, files: CacheFiles) -> None:
        self._files = files
        # A READ of 1 MiB may begin and end inside a block.
        self._buffer = memoryview(bytearray(MAX_READ_BYTES + 2 * BLOCK_BYTES))

    def read(self, ino: int, offset: int, end: int, size_bytes: int, parts: dict[int, bytes]) -> tuple[memoryview, int]:
        """Return (bytes [offset, end) of the file, how many blocks were verified).

        parts: the raw block maps of all parts touched, every touched block present.  The bytes are valid until the
        next call.  Raises BlockMismatchError.
        """
        first = offset // BLOCK_BYTES
        start = first * BLOCK_BYTES
        stop = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, size_bytes)
        for last_try in (False, True):
            data = self._pread(ino, start, stop - start)
            if data is not None and self._is_intact(ino, data, first, parts):
                return data[offset - start : end - start], -(-(stop - start) // BLOCK_BYTES)
            if last_try:
                break
            # The descriptor may be of a file that was removed and made anew: once more with a fresh one.
            self._files.forget(ino)
        raise BlockMismatchError

    def _pread(self, ino: int, start: int, length: int) -> memoryview | None:
        view = self._buffer[:length]
        try:
            got = os.preadv(self._files.descriptor(ino), [view], start)
        except OSError:
            return None
        return view if got == length else None

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
    offset = part * PART_BYTES + first_block * BLOCK_BYTES
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
    return {
        first_block + index: xxhash.xxh3_64_intdigest(data[at : at + BLOCK_BYTES], ino)
        for index, at in enumerate(range(0, len(data), BLOCK_BYTES))
    }


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
