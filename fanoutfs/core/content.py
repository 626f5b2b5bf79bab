"""What of a staged file goes into its object: a state that was whole at one moment.

Core.  Writers may go on while a file is uploaded.  That what was read is one state follows from the file's status
before and after: equal status, nothing was written in between.  For that the first look must see every write that is
under way, therefore: status, a grace period (each front has finished its write), status again, both equal; and the
last change older than a tick of the clock that the kernel stamps files with.
A file that is never left alone for as long as its upload takes is copied under a seal: writers wait for a local copy
(a reflink where the file system has them), not for the upload.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import xxhash

from fanoutfs.records import BLOCK_BYTES, MIB, PART_BLOCKS, PART_BYTES

TICK_NS: Final = 20_000_000
"""Longer than a tick of any kernel (10 ms at CONFIG_HZ=100): a later change cannot have the same time."""
_COPY_BYTES: Final = 64 * MIB
_READ_BYTES: Final = 8 * MIB
COPY_RUN_BYTES: Final = 512 * MIB
"""A copied part at most: larger ones keep a store busy for long without an answer."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """By which status two states of a file are told apart."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """Return the stamp in a status."""
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def age_ns(self) -> int:
        """Return how long ago the file was changed; never negative, whatever the clock did."""
        return max(0, time.time_ns() - self.ctime_ns)


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """One part of an upload: bytes [start, end) of the file, from the staging file or copied from the base object."""

    number: int
    start: int
    end: int
    is_copied: bool


def read_all(fd: int, size_bytes: int) -> bytearray:
    """Read a whole file; shorter than asked when it was truncated meanwhile.  Blocking."""
    data = bytearray(size_bytes)
    view = memoryview(data)
    done = 0
    while done < size_bytes:
        got = os.preadv(fd, [view[done : done + _READ_BYTES]], done)
        if not got:
            del view
            return data[:done]
        done += got
    return data


def copy_file(source: int, target: int, size_bytes: int) -> None:
    """Copy the data of a file, holes left out; the file system shares the blocks where it can.  Blocking.

    Raises OSError.
    """
    os.ftruncate(target, size_bytes)
    for start, end in _data_ranges(source, size_bytes):
        at = start
        while at < end:
            done = os.copy_file_range(source, target, min(_COPY_BYTES, end - at), at, at)
            if not done:
                return
            at += done


def _data_ranges(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size_bytes:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole up to the end
            return
        at = min(size_bytes, os.lseek(fd, start, os.SEEK_HOLE))
        yield start, at


def checksums_of(ino: int, start: int, data: memoryview | bytearray | bytes) -> dict[int, int]:
    """Return the checksums of the blocks of a file that begin at `start`: block of the file → xxh3."""
    view = memoryview(data)
    first = start // BLOCK_BYTES
    return {
        first + index: xxhash.xxh3_64_intdigest(view[at : at + BLOCK_BYTES], ino)
        for index, at in enumerate(range(0, len(view), BLOCK_BYTES))
    }


def read_checksums(fd: int, ino: int, start: int, end: int) -> dict[int, int]:
    """Return the checksums of the blocks in a range of an open file.  Blocking."""
    found: dict[int, int] = {}
    for at in range(start, end, _READ_BYTES):
        found |= checksums_of(ino, at, os.pread(fd, min(_READ_BYTES, end - at), at))
    return found


def part_bytes(size_bytes: int, least: int, max_parts: int) -> int:
    """Return how large the parts of an upload are: whole cache parts, so many that `max_parts` suffice."""
    wanted = max(16 * MIB, least, -(-size_bytes // max(1, max_parts * 9 // 10)))
    return -(-wanted // PART_BYTES) * PART_BYTES


def plan_parts(
    size_bytes: int, unit_bytes: int, base_size: int, local: dict[int, int] | None, copy_bytes: int
) -> list[PlannedPart]:
    """Return the parts of an upload.  local: part of the file → its blocks in the staging file; None: all are.

    Units of which the base object has everything are copied, as many at once as `copy_bytes` allows.
    """
    parts: list[PlannedPart] = []
    for start in range(0, size_bytes, unit_bytes):
        end = min(size_bytes, start + unit_bytes)
        is_copied = local is not None and end <= base_size and not _has_local(local, start, end)
        last = parts[-1] if parts else None
        if is_copied and last is not None and last.is_copied and end - last.start <= copy_bytes:
            parts[-1] = PlannedPart(last.number, last.start, end, is_copied=True)
        else:
            parts.append(PlannedPart(len(parts) + 1, start, end, is_copied))
    return parts


def sent_ranges(parts: list[PlannedPart], base_size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of what must be local below the base size before the parts can be sent."""
    for part in parts:
        if not part.is_copied and part.start < base_size:
            yield part.start, min(part.end, base_size) - part.start


def _has_local(local: dict[int, int], start: int, end: int) -> bool:
    for part in range(start // PART_BYTES, (end - 1) // PART_BYTES + 1):
        mask = local.get(part, 0)
        low = max(0, (start - part * PART_BYTES) // BLOCK_BYTES)
        high = min(PART_BLOCKS, -(-(end - part * PART_BYTES) // BLOCK_BYTES))
        if mask >> low & ((1 << (high - low)) - 1):
            return True
    return False
