"""What fanoutfs needs of an object store: the protocol every backend and every wrapper speaks.

All calls are synchronous and run in worker threads of the core; implementations are thread-safe, release the GIL
while they wait, and are constructed after fork.  No call retries by itself: the retry wrapper does, once for all.
"""

from collections.abc import Iterator
from typing import Protocol

from fanoutfs.records import ListPage, ObjectInfo, Version


class Backend(Protocol):
    """An object store below one prefix-free root (a bucket, a container, a directory)."""

    def head(self, key: str) -> ObjectInfo:
        """Return the object's current version.

        Raises ObjectMissingError, AccessDeniedError, CredentialsError, TransientError.
        """
        ...

    def get_range(self, key: str, start: int, end: int, version: Version) -> memoryview:
        """Return bytes [start, end) of exactly this version (If-Match; end is exclusive, at most version.size_bytes).

        The length, the range and the ETag of the answer are checked: a short or wrong body is TransientError.
        Raises VersionGoneError when the object now has another version, ObjectMissingError when it is gone,
        AccessDeniedError, CredentialsError, TransientError.
        """
        ...

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        """Yield what lies directly below `prefix` ("" or ending with "/"), delimiter "/", page by page.

        limit: stop asking the store after about this many entries (for probes).  A prefix with nothing below it
        yields no entry and no error.  The object whose key equals the prefix (a directory marker) is yielded too.
        Raises BucketMissingError, AccessDeniedError, CredentialsError, TransientError.
        """
        ...

    def close(self) -> None:
        """Drop connections.  Calls after it are undefined."""
        ...
