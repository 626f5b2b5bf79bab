"""What staging files say of themselves, for an index that knows nothing of them.  Core, while it opens the volume.

On a file system without extended attributes they say nothing: each is kept under a name of its own then.
"""

import errno
import json
import os
from dataclasses import replace

from fanoutfs.cache.staging import BASE_XATTR, KEY_XATTR, StagingFiles
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, StagedFile, Version


def find_staged(staging: StagingFiles) -> tuple[StagedFile, ...]:
    """Return all staging files of which somebody may have heard, in order of their inodes.  Raises OSError."""
    found = (_describe(staging, ino, life) for ino, life in sorted(staging.all()))
    return tuple(each for each in found if each is not None)


def _describe(staging: StagingFiles, ino: int, life: int) -> StagedFile | None:
    fd = staging.descriptor(ino, life)
    status = os.fstat(fd)
    staged = StagedFile(ino, life, "", status.st_size, status.st_mtime_ns)
    try:
        key = _get_xattr(fd, KEY_XATTR)
        base = _get_xattr(fd, BASE_XATTR)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return staged
    if key is None:
        return None
    staged = replace(staged, key=key.decode("utf-8", "surrogateescape"))
    if base is None:
        return staged
    base_size, etag, version_id, size_bytes, mtime_ns = json.loads(base)
    # A file is cut short before it says that less of the object counts.
    base_size = min(base_size, status.st_size)
    version = Version(etag, version_id, size_bytes, mtime_ns)
    return replace(staged, base=version, base_size=base_size, local=tuple(_local_blocks(fd, base_size).items()))


def _get_xattr(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


def _local_blocks(fd: int, base_size: int) -> dict[int, int]:
    """Return {part: bits} of the blocks below base_size that are in an overlay's file without a hole.

    A block is put there as a whole before anybody may write to it: one with a hole was never finished.  What is
    appended shares a page of the disk with the end of the last block, which reads as zeros there if it is not local.
    """
    found: dict[int, int] = {}
    at = 0
    while at < base_size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        for block in range(-(-start // BLOCK_BYTES), -(-base_size // BLOCK_BYTES)):
            end = min((block + 1) * BLOCK_BYTES, base_size)
            if end > at or (end % BLOCK_BYTES and not any(os.pread(fd, end % BLOCK_BYTES, block * BLOCK_BYTES))):
                break
            part = block // PART_BLOCKS
            found[part] = found.get(part, 0) | 1 << block % PART_BLOCKS
    return found
