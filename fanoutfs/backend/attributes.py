"""What a file system knows about a file, as user metadata of its object.  Pure.

The keys are those of s3fs, of which rclone shares `mtime`, so that both show what we wrote and we what they did:

* `mode`: st_mode with the file type, decimal.  rclone with --metadata writes it octal; the type bits tell the two
  apart (see `_mode`).
* `uid`, `gid`: decimal.
* `mtime`, `ctime`, `atime`: seconds since the epoch, with nine digits of fraction where there is one.
* `xattr`: JSON object of name → base64, percent-encoded.  Names are bytes to Linux; one that is not UTF-8 stays here.
* `rdev`: ours; decimal, for devices.

A symlink is an object whose body is the target and whose mode says S_IFLNK.  What cannot be parsed counts as absent:
anybody may write metadata.
"""

import base64
import binascii
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final
from urllib.parse import quote, unquote

from fanoutfs.errors import MetadataTooLargeError

METADATA_BYTES: Final = 2048
"""What S3 keeps with an object: names (without x-amz-meta-) and values together ("Working with object metadata")."""
RESERVED_BYTES: Final = 256
"""Of these, what is left for everything but xattrs: eight keys and values of ours, and the token."""

_TYPES: Final = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}
)
_MODE_LIMIT: Final = 0o200000
_ID_LIMIT: Final = (1 << 32) - 1
"""uid_t without (uid_t)-1, which means "unchanged" to chown(2)."""
_TIME_LIMIT_S: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class FileAttributes:
    """Attributes of a file; None: not known.  mode: with the file type."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    atime_ns: int | None = None
    rdev: int | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def encode_attributes(attributes: FileAttributes) -> dict[str, str]:
    """Return the metadata of a file.

    Raises MetadataTooLargeError when the xattrs are too large, or one has a name that is not UTF-8.
    """
    metadata: dict[str, str] = {}
    for name in ("mode", "uid", "gid", "rdev"):
        value = getattr(attributes, name)
        if value is not None:
            metadata[name] = str(value)
    for name in ("mtime", "ctime", "atime"):
        time_ns = getattr(attributes, f"{name}_ns")
        if time_ns is not None:
            metadata[name] = _seconds(time_ns)
    if attributes.xattrs:
        metadata["xattr"] = encode_xattrs(attributes.xattrs)
    return metadata


def encode_xattrs(xattrs: Mapping[bytes, bytes]) -> str:
    """Return the value of `xattr`.  Raises MetadataTooLargeError, as setxattr(2) would have ENOSPC."""
    try:
        document = {name.decode(): base64.b64encode(value).decode() for name, value in sorted(xattrs.items())}
    except UnicodeDecodeError as error:
        raise MetadataTooLargeError(f"xattr name {error.object!r} is not UTF-8: no object can hold it") from None
    text = quote(json.dumps(document, separators=(",", ":"), ensure_ascii=False), safe="")
    if len(text) > METADATA_BYTES - RESERVED_BYTES:
        raise MetadataTooLargeError(f"{len(text)} bytes of xattrs: an object holds {METADATA_BYTES - RESERVED_BYTES}")
    return text


def decode_attributes(metadata: Mapping[str, str]) -> FileAttributes:
    """Return what metadata of whatever origin says about a file."""
    return FileAttributes(
        mode=_mode(metadata.get("mode", "")),
        uid=_number(metadata.get("uid", ""), _ID_LIMIT),
        gid=_number(metadata.get("gid", ""), _ID_LIMIT),
        mtime_ns=_nanoseconds(metadata.get("mtime", "")),
        ctime_ns=_nanoseconds(metadata.get("ctime", "")),
        atime_ns=_nanoseconds(metadata.get("atime", "")),
        rdev=_number(metadata.get("rdev", ""), 1 << 32),
        xattrs=_xattrs(metadata.get("xattr", "")),
    )


def _seconds(time_ns: int) -> str:
    seconds, fraction = divmod(abs(time_ns), 1_000_000_000)
    sign = "-" if time_ns < 0 else ""
    return f"{sign}{seconds}.{fraction:09d}" if fraction else f"{sign}{seconds}"


def _nanoseconds(text: str) -> int | None:
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        return None
    if not seconds.is_finite() or abs(seconds) > _TIME_LIMIT_S // 1_000_000_000:
        return None
    return int(seconds * 1_000_000_000)


def _number(text: str, limit: int) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 20:
        return None
    value = int(text)
    return value if value < limit else None


def _mode(text: str) -> int | None:
    """Return st_mode of a decimal or an octal number.

    The file type tells which it is: octal regular files (100644) are beyond 16 bits when read as decimal, octal
    directories (40755) have no type then, or that of a symlink whose permissions are not 0777, which Linux does not
    have.  Only octal fifos and devices can be mistaken, and those nobody writes.
    """
    decimal = _number(text, _MODE_LIMIT)
    is_decimal = decimal is not None and stat.S_IFMT(decimal) in _TYPES
    if decimal is not None and is_decimal and (not stat.S_ISLNK(decimal) or stat.S_IMODE(decimal) == 0o777):
        return decimal
    if _number(text, 1 << 32) is not None and all(digit in "01234567" for digit in text):
        octal = int(text, 8)
        if octal < _MODE_LIMIT and stat.S_IFMT(octal) in _TYPES:
            return octal
    return decimal if is_decimal else None


def _xattrs(text: str) -> dict[bytes, bytes]:
    if not text:
        return {}
    try:
        document = json.loads(unquote(text, errors="strict"))
        return {name.encode(): base64.b64decode(value, validate=True) for name, value in document.items()}
    except (ValueError, AttributeError, TypeError, binascii.Error):
        return {}
