"""What a front knows of an inode whose newest content is a staging file: attributes, and which ranges are in it.

Everything is decided inside one LMDB read transaction and the same busy mark in which the file is then read or
written: the core changes a record first and waits for a grace period before it relies on no front using the file.
"""

import stat

from fanoutfs.cache.staging import StagingFiles, staged_attr
from fanoutfs.index.changed import ChangedRecords
from fanoutfs.index.format import FLAG_ATTRS, FLAG_LOCAL, FLAG_STAGED, FLAG_WHOLE
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS
from fanoutfs.wire.kernel import ATTR_SIZE


def flags_of(value: bytes | memoryview) -> int:
    """Return the flags of a raw inode record."""
    return int.from_bytes(value[ATTR_SIZE + 8 : ATTR_SIZE + 10], "little")


def life_of(value: bytes | memoryview) -> int:
    """Return which staging file a raw inode record means; staged inodes only."""
    return int.from_bytes(value[ATTR_SIZE : ATTR_SIZE + 8], "little")


def mode_of(value: bytes | memoryview) -> int:
    """Return st_mode of a raw inode record."""
    return int.from_bytes(value[60:64], "little")


def lacks_attributes(value: bytes | memoryview) -> bool:
    """Tell whether a raw inode record is of a file that has the mount's attributes, not its object's."""
    return not flags_of(value) & (FLAG_ATTRS | FLAG_STAGED | FLAG_LOCAL) and stat.S_ISREG(mode_of(value))


def without_set_id(mode: int) -> int:
    """Return a mode as it is after a change by somebody who may not keep set-ID bits (inode(7), chown(2)).

    The kernel lets members of the file's group keep set-group-ID without group execution (setattr_should_drop_sgid,
    since 6.2); who they are no request says.  Directories keep theirs.
    """
    return mode & ~(stat.S_ISUID | stat.S_ISGID) if stat.S_ISREG(mode) else mode


def without_set_id_after_chown(mode: int) -> int:
    """Return a mode as it is after root has given a file to somebody: what is not executable keeps set-group-ID."""
    return without_set_id(mode) | (0 if mode & stat.S_IXGRP else mode & stat.S_ISGID)


def current_attr(files: StagingFiles, ino: int, value: bytes | memoryview) -> bytes | memoryview | None:
    """Return an inode's fuse_attr as it is now, from its raw record.

    None: the staging file is not there.  That is so while a core starts that has yet to make it again after a power
    cut; the core knows better then.
    """
    flags = flags_of(value)
    if not flags & FLAG_STAGED:
        return value[:ATTR_SIZE]
    try:
        status = files.stat(ino, life_of(value))
    except FileNotFoundError:
        return None
    return staged_attr(value, status, is_whole=bool(flags & FLAG_WHOLE))


def first_absent(records: ChangedRecords, ino: int, start: int, end: int) -> int | None:
    """Return where in [start, end) the first byte lies that an overlay's staging file does not have; None: nowhere.

    Behind the base size everything is in the staging file.
    """
    base_size = records.base_size(ino) or 0
    stop = min(end, base_size)
    if start >= stop:
        return None
    first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
    for part in range(first // PART_BLOCKS, last // PART_BLOCKS + 1):
        low = max(first - part * PART_BLOCKS, 0)
        high = min(last - part * PART_BLOCKS, PART_BLOCKS - 1)
        wanted = ((1 << (high - low + 1)) - 1) << low
        absent = wanted & ~records.local_blocks(ino, part)
        if absent:
            block = part * PART_BLOCKS + (absent & -absent).bit_length() - 1
            return max(start, block * BLOCK_BYTES)
    return None
