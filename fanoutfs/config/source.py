"""What a source names, `scheme://bucket/prefix`: which store, which bucket or directory in it, which keys.

Pure form: whether it exists is the backend's word.  The source is shown in the mount table to everybody, so it never
holds credentials, and a refusal does not repeat what may be one.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from fanoutfs.errors import UsageError

SCHEMES: Final = ("s3", "gs", "az", "http", "https", "file", "memory")
MAX_SOURCE_BYTES: Final = 2048  # mount(2) takes a page for it, the mount table escapes up to fourfold

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,221}")  # the widest of the stores' rules


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source.

    scheme: one of SCHEMES.  root: the bucket, the container, `host:port`, an absolute directory without symlinks ("":
    the root directory), or a name ("memory").
    key_prefix: "" or ending with "/"; every key of the mount starts with it.
    """

    scheme: str
    root: str
    key_prefix: str

    def identity(self, endpoint_url: str = "") -> str:
        """Return one line that names this volume and no other; holds no credentials.

        The endpoint is part of it: the same bucket name elsewhere is another bucket.
        """
        base = f"{self.scheme}://{self.root}/{self.key_prefix}"
        return f"{base} at {endpoint_url.rstrip('/')}" if endpoint_url else base


def is_source(text: str) -> bool:
    """Return whether the text starts like a source."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def parse_source(source: str, prefix: str = "") -> Source:
    """Parse a source and the prefix setting, which goes below the source's own path.

    S3, GCS and Azure paths are taken literally (`s3://b/a%20b` is the key `a%20b`), as every S3 tool does; http and
    file URLs are percent-decoded, as every browser does.
    Raises UsageError with what to write instead.
    """
    if _CONTROL.search(source) or len(source.encode("utf-8", "surrogateescape")) > MAX_SOURCE_BYTES:
        raise UsageError(f"source: control characters or more than {MAX_SOURCE_BYTES} bytes")
    scheme, separator, rest = source.partition("://")
    if not separator:
        raise UsageError(_without_scheme(source))
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise UsageError(f"source: unknown scheme `{scheme}://`; known are {known}")
    root, _, path = rest.partition("/")
    if "@" in root:
        raise UsageError("source: user names and keys do not belong into it; use the environment, a profile or a role")
    if scheme == "memory":
        return Source(scheme, rest.strip("/") or "memory", _key_prefix(prefix))
    if scheme == "file":
        return Source(scheme, _directory(source, root, path), _key_prefix(prefix))
    if scheme in ("http", "https"):
        url = _checked_url(source)
        return Source(scheme, url.netloc.lower(), _key_prefix(unquote(url.path), prefix))
    if not _BUCKET.fullmatch(root):
        raise UsageError(f"source `{source}`: `{root}` cannot be a bucket's name; write {scheme}://BUCKET/PREFIX")
    return Source(scheme, root, _key_prefix(path, prefix))


def _without_scheme(source: str) -> str:
    if source.startswith(("/", "./", "../")):
        return f"source `{source}`: for a directory write file://{source if source[0] == '/' else '/DIR'}"
    return f"source `{source}`: for a bucket write s3://{source}"


def _checked_url(source: str) -> SplitResult:
    try:
        url = urlsplit(source)
        named = url.hostname
    except ValueError as error:
        raise UsageError(f"source `{source}`: {error}") from None
    if not named:
        raise UsageError(f"source `{source}`: names no host")
    if url.query or url.fragment or source.endswith(("?", "#")):
        raise UsageError("source: a query (?...) may hold a signature and cannot be shown in the mount table")
    return url


def _directory(source: str, host: str, path: str) -> str:
    """Return the directory without symlinks, so that one directory is one volume."""
    if host not in ("", "localhost") or not source.startswith(("file:///", "file://localhost/")):
        raise UsageError(f"source `{source}`: a directory is written file:///DIR, with an absolute path")
    resolved = str(Path("/" + unquote(path)).resolve())
    return "" if resolved == "/" else resolved


def _key_prefix(*paths: str) -> str:
    """Join prefixes: no "/" at the start, exactly one at the end, unless there is nothing."""
    parts = [path.strip("/") for path in paths]
    for part in parts:
        if any(piece in (".", "..") or (not piece and part) for piece in part.split("/")):
            raise UsageError(f"prefix {part!r}: empty, '.' and '..' parts cannot be mounted")
    joined = "/".join(part for part in parts if part)
    return f"{joined}/" if joined else ""
