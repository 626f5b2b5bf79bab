"""Which keys the store client can name, and how versions are spelled.  Pure; any process.

object_store (the Rust library under obstore) holds every key as a `Path`: parts joined by "/", none of them empty,
"." or "..", no ASCII control character.  It *parses* what it is given and percent-encodes only on the wire, so `%`,
`#`, `?`, `*`, spaces, `~`, brackets, backslash and all of Unicode are byte-exact (measured with obstore 0.12 against
moto and SeaweedFS; tests/contract holds it to that).  What it cannot hold it refuses, or worse, bends: a leading
and a trailing "/" are silently dropped, so that GET of `t/` asks for `t`.
"""

import re
import secrets
from datetime import UTC, datetime
from typing import Final

from fanoutfs.records import Version

SCRATCH_PREFIX: Final = ".fanoutfs-scratch-"
_SCRATCH: Final = re.compile(rf"(?:.*/)?{re.escape(SCRATCH_PREFIX)}[0-9a-f]{{16}}(?:-copy)?", re.DOTALL)


def is_addressable(key: str) -> bool:
    """Return whether a GET of this key asks the store for exactly this key.

    A surrogate stands for bytes that are not UTF-8 (os.fsdecode, "surrogateescape"): no store can be sent those.
    """
    if not key:
        return False
    for part in key.split("/"):
        if part in ("", ".", ".."):
            return False
    # str.isprintable() is False for each of them and quick for the usual key.
    return key.isprintable() or not any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in key)


def is_listable(key: str) -> bool:
    """Return whether a listing may name this key: an addressable one, or the marker `dir/` of a directory."""
    return is_addressable(key.removesuffix("/"))


def listable_directory(key: str) -> str:
    """Return the deepest directory above an object that can be named, "" or ending with "/"."""
    above = ""
    for part in key.split("/")[:-1]:
        if not is_addressable(part):
            break
        above += part + "/"
    return above


def scratch_key(prefix: str) -> str:
    """Return a new key below a prefix for an object that only tries something out (`s3probe`)."""
    return f"{prefix}{SCRATCH_PREFIX}{secrets.token_hex(8)}"


def is_scratch(key: str) -> bool:
    """Return whether this is such a key: no listing shows it."""
    return SCRATCH_PREFIX in key and _SCRATCH.fullmatch(key) is not None


def bare_etag(etag: str | None) -> str:
    """Return the ETag without its quotes.

    A weak one (`W/"x"`) keeps its spelling: it compares, but must not be sent as If-Match, where it never matches.
    """
    if not etag:
        return ""
    if len(etag) >= 2 and etag[0] == etag[-1] == '"':
        return etag[1:-1]
    return etag


def is_strong(etag: str) -> bool:
    """Return whether the (bare) ETag can be a condition of a GET."""
    return bool(etag) and not etag.startswith("W/")


def whole_second_ns(moment: datetime) -> int:
    """Return nanoseconds since the epoch, cut to the second.

    A listing carries milliseconds, the Last-Modified header of GET and HEAD whole seconds: uncut, one version
    would look like two.
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1_000_000_000


def is_same_version(asked: Version, etag: str, size_bytes: int, mtime_ns: int) -> bool:
    """Return whether an answer belongs to the version asked for.

    By ETag where both have one; else by size and modification time, the best an http server without ETag offers.
    """
    if size_bytes != asked.size_bytes:
        return False
    if asked.etag and etag:
        return asked.etag == etag
    return asked.mtime_ns == mtime_ns
