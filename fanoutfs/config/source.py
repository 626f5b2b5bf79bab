"""What a source may look like: `scheme://bucket/prefix`.  Only the form: whether it exists is the backend's word.

The source is shown in the mount table to everybody, so it never holds credentials.
"""

import re
from typing import Final

from fanoutfs.errors import UsageError

SCHEMES: Final = ("s3", "gs", "az", "http", "https", "file", "memory")
MAX_SOURCE_BYTES: Final = 2048  # mount(2) takes a page for it, the mount table escapes up to fourfold

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")  # the widest of the stores' rules


def is_source(text: str) -> bool:
    """Return whether the text starts like a source."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def check_source(source: str) -> str:
    """Return the source as it is to be used; UsageError with what to write instead."""
    if _CONTROL.search(source) or len(source.encode("utf-8", "surrogateescape")) > MAX_SOURCE_BYTES:
        raise UsageError(f"source: control characters or more than {MAX_SOURCE_BYTES} bytes")
    scheme, separator, rest = source.partition("://")
    if not separator:
        if source.startswith(("/", "./", "../")):
            raise UsageError(
                f"source `{source}`: for a directory write file://{source if source[0] == '/' else '/DIR'}"
            )
        raise UsageError(f"source `{source}`: for a bucket write s3://{source}")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"source: unknown scheme `{scheme}://`; known are {known}")
    bucket, _, path = rest.partition("/")
    if "@" in bucket:
        # The text itself is not repeated: error messages end up in logs.
        raise UsageError("source: user names and keys do not belong into it; use the environment, a profile or a role")
    if scheme == "memory":
        return source
    if scheme == "file":
        if bucket or not path:
            raise UsageError(f"source `{source}`: a directory is written file:///DIR, with an absolute path")
        return source
    if scheme in ("http", "https"):
        if not bucket:
            raise UsageError(f"source `{source}`: names no host")
        if "?" in rest:
            raise UsageError("source: a query (?...) may hold a signature and cannot be shown in the mount table")
        return source
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"source `{source}`: `{bucket}` cannot be a bucket's name; write {scheme}://BUCKET/PREFIX")
    return source
