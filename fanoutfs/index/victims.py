"""The parts in the block map, from which `core.victims` chooses what to evict: all of them, one of them, any of them.

Core only.  No bookkeeping per access.
"""

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import lmdb

from fanoutfs.index.format import INO_KEY, PART_HEAD, PART_KEY, PART_VALUE
from fanoutfs.index.operations import blocks_bytes
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import MIB

PartId = tuple[int, int]
"""(inode, index of the part)."""

_TRIES: Final = 256
MOST_LISTED: Final = 200_000
"""1.6 TB of full parts; a look at so many takes about half a second, of a worker thread."""
_RUN: Final = 256
_TRIES_PER_MIB: Final = 8
"""Files just above the small limit hold 128 KiB and a little, one to a part: 8 make a MiB."""


def choose_parts(
    environment: IndexEnvironment, wanted_bytes: int, is_spared: Callable[[PartId], bool]
) -> dict[PartId, int]:
    """Return parts that together hold at least this much, or what could be found, with the bytes each holds."""
    chosen: dict[PartId, int] = {}
    found_bytes = 0
    with environment.env.begin() as txn, txn.cursor(db=environment.blocks) as cursor:
        for _try in range(_TRIES + _TRIES_PER_MIB * wanted_bytes // MIB):
            if found_bytes >= wanted_bytes:
                break
            key = random_part(cursor)
            if key is None:
                break
            if key in chosen or is_spared(key):
                continue
            attr = txn.get(INO_KEY.pack(key[0]), db=environment.inodes) or b""
            size_bytes = int.from_bytes(attr[8:16], "little")
            chosen[key] = blocks_bytes(size_bytes, key[1], PART_VALUE.unpack(cursor.value())[0])
            found_bytes += chosen[key]
    return chosen


def list_parts(environment: IndexEnvironment, most: int = MOST_LISTED) -> list[PartId]:
    """Return the parts in the map, or so many of a larger one: runs of neighbours, begun at random.

    A run that comes to the end goes on at the beginning, so that it finds as many, and the first parts as often, as any
    other.  Two may overlap.  0.5 us for each part.
    """
    found: dict[PartId, None] = {}
    with environment.env.begin() as txn, txn.cursor(db=environment.blocks) as cursor:
        if txn.stat(environment.blocks)["entries"] <= most:
            return [PART_KEY.unpack(key) for key in cursor.iternext(keys=True, values=False)]
        for _run in range(most // _RUN):
            if random_part(cursor) is None:
                break
            found.update((PART_KEY.unpack(key), None) for key in islice(_around(cursor), _RUN))
    return list(found)


def _around(cursor: lmdb.Cursor) -> Iterator[bytes | memoryview]:
    """Yield the keys from the cursor's on, and after the last those from the first on."""
    yield from cursor.iternext(values=False)
    cursor.first()
    yield from cursor.iternext(values=False)


def part_bytes(environment: IndexEnvironment, part: PartId) -> int:
    """Return how many bytes of a part are cached."""
    with environment.env.begin() as txn:
        value = txn.get(PART_KEY.pack(*part), db=environment.blocks)
        attr = txn.get(INO_KEY.pack(part[0]), db=environment.inodes) or b""
    if value is None:
        return 0
    return blocks_bytes(int.from_bytes(attr[8:16], "little"), part[1], PART_VALUE.unpack(value)[0])


def present_blocks(environment: IndexEnvironment, part: PartId, disk: int = -1) -> int:
    """Return the mask of a part's blocks that the index has; disk: of those on this one, -1: wherever they are."""
    with environment.env.begin() as txn:
        value = txn.get(PART_KEY.pack(*part), db=environment.blocks)
        present, on_disk = (0, 0) if value is None else PART_HEAD.unpack_from(value)
    return int(present) if disk in (-1, on_disk) else 0


def disk_of_part(environment: IndexEnvironment, part: PartId) -> int | None:
    """Return the disk that has a part; None: nothing of it is cached."""
    with environment.env.begin() as txn:
        value = txn.get(PART_KEY.pack(*part), db=environment.blocks)
        return None if value is None else int(PART_HEAD.unpack_from(value)[1])


def parts_on(environment: IndexEnvironment, ino: int, disk: int) -> dict[int, int]:
    """Return the parts of a file that the index has on a disk, with the masks of their blocks."""
    with environment.env.begin() as txn:
        return {part: present for part, present, on_disk in _parts_of(environment, txn, ino) if on_disk == disk}


def cached_parts(environment: IndexEnvironment, ino: int) -> dict[PartId, int]:
    """Return the parts of a file of which something is cached, with the bytes each holds."""
    return {part: size_bytes for part, (size_bytes, _disk) in held_parts(environment, ino).items()}


def held_parts(environment: IndexEnvironment, ino: int) -> dict[PartId, tuple[int, int]]:
    """Return the same, with the bytes each part holds and its disk."""
    with environment.env.begin() as txn:
        attr = txn.get(INO_KEY.pack(ino), db=environment.inodes) or b""
        size_bytes = int.from_bytes(attr[8:16], "little")
        parts = _parts_of(environment, txn, ino)
        return {(ino, part): (blocks_bytes(size_bytes, part, present), disk) for part, present, disk in parts}


def _parts_of(environment: IndexEnvironment, txn: lmdb.Transaction, ino: int) -> Iterator[tuple[int, int, int]]:
    """Yield the parts of a file, each with the mask of its blocks and its disk."""
    prefix = INO_KEY.pack(ino)
    with txn.cursor(db=environment.blocks) as cursor:
        more = cursor.set_range(prefix)
        while more and bytes(cursor.key()).startswith(prefix):
            present, disk = PART_HEAD.unpack_from(cursor.value())
            yield PART_KEY.unpack(cursor.key())[1], int(present), int(disk)
            more = cursor.next()


def random_part(cursor: lmdb.Cursor) -> PartId | None:
    """Return (inode, part) of some record of the block map and leave the cursor there; None when the map is empty.

    A random inode between the first and the last, then a random part of the file found there: each file is about
    equally likely, and within a file each part, as far as numbers have no gaps.
    """
    if not cursor.first():
        return None
    low = PART_KEY.unpack(cursor.key())[0]
    cursor.last()
    high = PART_KEY.unpack(cursor.key())[0]
    if not cursor.set_range(PART_KEY.pack(random.randint(low, high), 0)):
        cursor.last()
    ino = PART_KEY.unpack(cursor.key())[0]
    step: Callable[[], bool] = cursor.prev if cursor.set_range(PART_KEY.pack(ino + 1, 0)) else cursor.last
    step()
    last_part = PART_KEY.unpack(cursor.key())[1]
    cursor.set_range(PART_KEY.pack(ino, random.randint(0, last_part)))
    found_ino, found_part = PART_KEY.unpack(cursor.key())
    return found_ino, found_part
