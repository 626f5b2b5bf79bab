"""Where listings of directories stand: which name each answer to READDIR ended with.

The kernel goes on from the cookie of the last entry it was given.  That entry may be renamed or gone by then (`rm -r`
reads thousands of names, removes the files, and reads on), and the index does not know any more where it stood.  Fronts
note it here, in memory that all of them share: each may be the one that is asked for the rest.

A listing that the kernel took from its own cache of the directory may stand anywhere, not only where an answer ended.
Then the index must still know the entry: it does until the kernel has forgotten the inode.

A table of fixed slots, found by directory and cookie; a newer note replaces an older one.  There are no locks: a slot
carries a checksum of all it says, so that one which two fronts wrote at the same time is not believed.
"""

import struct
from typing import Final

import xxhash

_SLOTS: Final = 4096
# xxh3-64 of directory, cookie and name; length of the name
_HEAD: Final = struct.Struct("<QH")
_KEY: Final = struct.Struct("<QQ")
_SLOT_BYTES: Final = 272
_NAME_BYTES: Final = _SLOT_BYTES - _HEAD.size
POSITIONS_BYTES: Final = _SLOTS * _SLOT_BYTES


class ListingPositions:
    """The table, over memory of POSITIONS_BYTES that all fronts share."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def note(self, directory: int, cookie: int, name: bytes) -> None:
        """Note that a listing of this directory was answered up to this entry."""
        if len(name) > _NAME_BYTES:
            return
        key = _KEY.pack(directory, cookie)
        at = _place(key)
        slot = _HEAD.pack(xxhash.xxh3_64_intdigest(key + name), len(name)) + name
        self._memory[at : at + len(slot)] = slot

    def find(self, directory: int, cookie: int) -> bytes | None:
        """Return the name of the entry that had this cookie; None: it is not known any more."""
        key = _KEY.pack(directory, cookie)
        at = _place(key)
        slot = bytes(self._memory[at : at + _SLOT_BYTES])
        checksum, length = _HEAD.unpack_from(slot)
        name = slot[_HEAD.size : _HEAD.size + length]
        return name if checksum == xxhash.xxh3_64_intdigest(key + name) else None


def _place(key: bytes) -> int:
    return xxhash.xxh3_64_intdigest(key) % _SLOTS * _SLOT_BYTES
