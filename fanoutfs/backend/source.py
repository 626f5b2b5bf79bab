"""What a source names: which store, which bucket or directory in it, which keys.  Pure; any process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from fanoutfs.errors import UsageError

SCHEMES: Final = ("s3", "gs", "az", "http", "https", "file", "memory")
_ALIASES: Final = {"s3a": "s3", "gcs": "gs", "azure": "az", "adl": "az"}


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source.

    scheme: one of SCHEMES.  root: the bucket, the container, `host:port`, an absolute directory, or a name ("memory").
    key_prefix: "" or ending with "/"; every key of the mount starts with it.
    """

    scheme: str
    root: str
    key_prefix: str

    def identity(self, endpoint_url: str = "") -> str:
        """Return one line that names this volume and no other; holds no credentials.

        The endpoint is part of it: the same bucket name elsewhere is another bucket.
        """
        base = (
            f"{self.scheme}://{self.root}/{self.key_prefix}"
            if self.scheme != "file"
            else f"file://{self.root}/{self.key_prefix}"
        )
        return f"{base} at {endpoint_url.rstrip('/')}" if endpoint_url else base


def parse_source(source: str, prefix: str = "") -> Source:
    """Parse a source URL and the prefix setting, which goes below the URL's own path.

    S3, GCS and Azure paths are taken literally (`s3://b/a%20b` is the key `a%20b`), as every S3 tool does; http and
    file URLs are percent-decoded, as every browser does.  A plain absolute path is a file source.
    Raises UsageError.
    """
    if source.startswith("/"):
        return Source("file", _directory(source), _key_prefix(prefix))
    scheme, separator, rest = source.partition("://")
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    if not separator or scheme not in SCHEMES:
        raise UsageError(
            f"source {source!r}: write s3://bucket/prefix, gs://, az://, http(s)://, file:///dir or memory://"
        )
    if scheme in ("s3", "gs", "az"):
        bucket, _, path = rest.partition("/")
        if "@" in bucket:
            raise UsageError(f"source {scheme}://...: credentials do not belong into the source")
        if not bucket:
            raise UsageError(f"source {source!r}: the bucket is missing")
        return Source(scheme, bucket, _key_prefix(path, prefix))
    if scheme == "memory":
        return Source(scheme, rest.strip("/") or "memory", _key_prefix(prefix))
    if scheme == "file":
        path = unquote(urlsplit(source).path)
        if not source.startswith(("file:///", "file://localhost/")):
            raise UsageError(f"source {source!r}: write file:///absolute/directory")
        return Source(scheme, _directory(path), _key_prefix(prefix))
    url = urlsplit(source)
    if url.username or url.password:
        raise UsageError(f"source {scheme}://...: credentials do not belong into the source")
    if not url.hostname or url.query or url.fragment:
        raise UsageError(f"source {source!r}: write {scheme}://host[:port]/path")
    return Source(scheme, url.netloc.lower(), _key_prefix(unquote(url.path), prefix))


def source_root(source: str, prefix: str = "", endpoint_url: str = "") -> tuple[str, str]:
    """Return (identity of the volume, key prefix "" or ending with "/")."""
    parsed = parse_source(source, prefix)
    return parsed.identity(endpoint_url), parsed.key_prefix


def _directory(path: str) -> str:
    """Return the directory without symlinks, so that one directory is one volume."""
    resolved = str(Path(path).resolve())
    return "" if resolved == "/" else resolved


def _key_prefix(*paths: str) -> str:
    """Join prefixes: no "/" at the start, exactly one at the end, unless there is nothing."""
    parts = [path.strip("/") for path in paths]
    for part in parts:
        if any(piece in (".", "..") or (not piece and part) for piece in part.split("/")):
            raise UsageError(f"prefix {part!r}: empty, '.' and '..' parts cannot be mounted")
    joined = "/".join(part for part in parts if part)
    return f"{joined}/" if joined else ""
