"""Values that cross module borders.  Frozen, slotted, without behaviour beyond what follows from their fields."""

from dataclasses import dataclass
from typing import Final

ROOT_INO: Final = 1  # FUSE_ROOT_ID: the kernel looks nothing up to reach it

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

SMALL_FILE_MAX_BYTES: Final = MIB
"""The small-file store takes whole contents up to this size, whatever the mount's options and policies say."""

BLOCK_BYTES: Final = 256 * KIB
"""Checksum and presence unit of large files.  A cold 4 KiB read verifies one block (about 20 us of xxh3), a 1 MiB
READ verifies four; 1 GiB of file needs 32 KiB of checksums."""

PART_BLOCKS: Final = 32
PART_BYTES: Final = BLOCK_BYTES * PART_BLOCKS
"""Unit of a block-map record and the largest ranged GET: 8 MiB.  32 blocks so that presence fits one u32."""


@dataclass(frozen=True, slots=True)
class Version:
    """What tells two states of one object apart.

    etag: as the store sends it, without the surrounding quotes; "" where the store has none.
    version_id: the store's version id, "" without bucket versioning.
    """

    etag: str
    version_id: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing.  key: full key inside the bucket, as the store spells it.

    storage_class: "" where the store does not say, or in its default class.
    """

    key: str
    version: Version
    storage_class: str = ""


@dataclass(frozen=True, slots=True)
class ListPage:
    """Some part of a delimiter listing, in the order the store sends it.

    objects: the objects directly below the prefix; prefixes: "directories", each ending with "/".
    hidden: how many keys the page held that cannot be represented by the client library at all.
    """

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]
    hidden: int = 0


@dataclass(frozen=True, slots=True)
class StagedFile:
    """What a staging file says of itself.

    key: the object key its content shall have, "" when that is not known.
    base: the object it was before it was changed, which fills what the file lacks below base_size; None: it was none.
    local: {part: bits} of the blocks below base_size that the file has.
    """

    ino: int
    life: int
    key: str
    size_bytes: int
    mtime_ns: int
    base: Version | None = None
    base_size: int = 0
    local: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Waits:
    """What a request waited for in the core.  is_again: for bytes that had been in the cache before."""

    backend_ns: int
    queue_ns: int
    disk_ns: int
    is_again: bool = False

    def plus(self, other: "Waits") -> "Waits":
        """Return both together."""
        return Waits(
            self.backend_ns + other.backend_ns,
            self.queue_ns + other.queue_ns,
            self.disk_ns + other.disk_ns,
            is_again=self.is_again or other.is_again,
        )


NO_WAITS: Final = Waits(0, 0, 0)
