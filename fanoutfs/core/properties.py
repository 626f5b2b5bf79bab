"""What goes along with an object: POSIX attributes (`backend.attributes`) and our token.

Pure.  A token tells whose object this is: volume tag, inode, and what was uploaded.  The same attempt, repeated after a
crash, has the same token, so that an object which arrived although nobody heard of it is recognised instead of taken
for a foreign change.
"""

import hashlib
import logging
import stat
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from fanoutfs.backend.attributes import FileAttributes, encode_attributes
from fanoutfs.backend.writing import TOKEN_KEY, Properties
from fanoutfs.errors import MetadataTooLargeError
from fanoutfs.index.format import Inode
from fanoutfs.wire.kernel import ATTR

log = logging.getLogger(__name__)

_UID_AT: Final = 11
_GID_AT: Final = 12
_RDEV_AT: Final = 13
DIRECTORY_TYPE: Final = "application/x-directory"


def properties_of(
    inode: Inode, mtime_ns: int, xattrs: Mapping[bytes, bytes], token: str, storage_class: str = ""
) -> Properties:
    """Return what an inode's object carries."""
    fields = ATTR.unpack(inode.attr)
    is_device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
    attributes = FileAttributes(
        mode=inode.mode,
        uid=fields[_UID_AT],
        gid=fields[_GID_AT],
        mtime_ns=mtime_ns,
        rdev=fields[_RDEV_AT] if is_device else None,
        xattrs=xattrs,
    )
    try:
        metadata = encode_attributes(attributes)
    except MetadataTooLargeError as error:
        log.warning("extended attributes stay here only ino=%d: %s", inode.ino, error)
        metadata = encode_attributes(replace(attributes, xattrs={}))
    content_type = DIRECTORY_TYPE if inode.is_dir else ""
    return Properties({**metadata, TOKEN_KEY: token}, content_type, storage_class)


def with_token(known: Properties, token: str) -> Properties:
    """Return the properties that an object has, with our token."""
    return replace(known, metadata={**known.metadata, TOKEN_KEY: token})


def make_token(tag: str, ino: int, *facts: int) -> str:
    """Return the token of an upload: facts tell it from others of the same inode."""
    return "-".join((tag, f"{ino:x}", *(f"{fact:x}" for fact in facts)))


def is_ours(properties: Properties, tag: str, ino: int) -> bool:
    """Tell whether an object was put by this volume, for this inode."""
    return properties.metadata.get(TOKEN_KEY, "").startswith(f"{tag}-{ino:x}-")


def owner_of(properties: Properties, tag: str) -> int | None:
    """Return the inode for which this volume put an object; None: somebody else did."""
    known, _, rest = properties.metadata.get(TOKEN_KEY, "").partition("-")
    try:
        return int(rest.partition("-")[0], 16) if known == tag else None
    except ValueError:
        return None


def facts_of(properties: Properties, tag: str, ino: int) -> tuple[int, ...] | None:
    """Return the facts in the token of an object that this volume put for this inode; None: it did not."""
    if not is_ours(properties, tag, ino):
        return None
    try:
        return tuple(int(fact, 16) for fact in properties.metadata[TOKEN_KEY].split("-")[2:])
    except ValueError:
        return None


def is_tagged(properties: Properties, tag: str) -> bool:
    """Tell whether an object was put by this volume."""
    return properties.metadata.get(TOKEN_KEY, "").startswith(f"{tag}-")


def aside_prefix(root_prefix: str, tag: str) -> str:
    """Return what the keys begin with under which objects wait that had to make way for others."""
    return f"{root_prefix}.fanoutfs-{tag}-"


def digest_of(text: str) -> int:
    """Return a number for a text, to be part of a token."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
