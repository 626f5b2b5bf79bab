"""What goes along with an object: POSIX attributes under the keys of s3fs (and rclone's `mtime`), and our token.

Pure.  Values are ASCII: `mode` st_mode in decimal, `uid`, `gid`, `mtime` seconds with a fraction, `rdev` for device
nodes, `xattr` URL-encoded JSON of {name: base64}.

A token tells whose object this is: volume tag, inode, and what was uploaded.  The same attempt, repeated after a crash,
has the same token, so that an object which arrived although nobody heard of it is recognised instead of taken for a
foreign change.
"""

import base64
import json
import logging
import stat
import urllib.parse
from collections.abc import Mapping
from typing import Final

from fanoutfs.backend.writing import TOKEN_KEY, Properties
from fanoutfs.index.format import Inode
from fanoutfs.wire.kernel import ATTR

log = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_XATTR_MAX_BYTES: Final = 1600
"""S3 takes 2 KB of user metadata with all its names; the rest of ours is below 300."""
_MODE_AT: Final = 9
_UID_AT: Final = 11
_GID_AT: Final = 12
_RDEV_AT: Final = 13


def properties_of(inode: Inode, mtime_ns: int, xattrs: Mapping[bytes, bytes], token: str) -> Properties:
    """Return what an inode's object carries."""
    fields = ATTR.unpack(inode.attr)
    mode = fields[_MODE_AT]
    seconds, nanoseconds = divmod(mtime_ns, _NS)
    metadata = {
        "mode": str(mode),
        "uid": str(fields[_UID_AT]),
        "gid": str(fields[_GID_AT]),
        "mtime": f"{seconds}.{nanoseconds:09d}",
        TOKEN_KEY: token,
    }
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        metadata["rdev"] = str(fields[_RDEV_AT])
    if xattrs:
        encoded = _encode_xattrs(xattrs)
        if len(encoded) <= _XATTR_MAX_BYTES:
            metadata["xattr"] = encoded
        else:
            log.warning("extended attributes stay here only: too large for the store ino=%d", inode.ino)
    return Properties(metadata, content_type="application/x-directory" if inode.is_dir else "")


def make_token(tag: str, ino: int, *facts: int) -> str:
    """Return the token of an upload: facts tell it from others of the same inode."""
    return "-".join((tag, f"{ino:x}", *(f"{fact:x}" for fact in facts)))


def is_ours(properties: Properties, tag: str, ino: int) -> bool:
    """Tell whether an object was put by this volume, for this inode."""
    return properties.metadata.get(TOKEN_KEY, "").startswith(f"{tag}-{ino:x}-")


def is_tagged(properties: Properties, tag: str) -> bool:
    """Tell whether an object was put by this volume."""
    return properties.metadata.get(TOKEN_KEY, "").startswith(f"{tag}-")


def _encode_xattrs(xattrs: Mapping[bytes, bytes]) -> str:
    values = {name.decode("utf-8", "replace"): base64.b64encode(value).decode() for name, value in xattrs.items()}
    return urllib.parse.quote(json.dumps(values, separators=(",", ":"), sort_keys=True), safe="")
