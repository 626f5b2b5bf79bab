"""Which parts of the block map to evict: chosen at random, the simplest choice that survives scans.

Core only.  Logarithmic in the size of the map; no bookkeeping per access.
"""

import random
from collections.abc import Callable
from typing import Final

import lmdb

from fanoutfs.index.format import INO_KEY, PART_KEY, PART_VALUE
from fanoutfs.index.operations import blocks_bytes
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import MIB

PartId = tuple[int, int]
"""(inode, index of the part)."""

_TRIES: Final = 256
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


def present_blocks(environment: IndexEnvironment, part: PartId) -> int:
    """Return the mask of a part's blocks that the index has."""
    with environment.env.begin() as txn:
        value = txn.get(PART_KEY.pack(*part), db=environment.blocks)
    return 0 if value is None else int(PART_VALUE.unpack(value)[0])


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
