"""What fanoutfs needs of an object store: the protocol every backend and every wrapper speaks.

All calls are synchronous and run in worker threads of the core; implementations are thread-safe, release the GIL
while they wait, and are constructed after fork.  No call retries by itself: the retry wrapper does, once for all.
An iterator that `list` returned belongs to one thread at a time.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from fanoutfs.backend.writing import Writer
from fanoutfs.records import ListPage, ObjectInfo, Version


class Backend(Writer, Protocol):
    """An object store below one prefix-free root (a bucket, a container, a directory); `writing` has how to write."""

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
        Nothing is asked before the first next().  next() after an error asks for the same page again, so that the
        retry wrapper works by the page; hence no implementation is a generator, which would just end there and make
        a listing silently short.
        The pages come in key order or in tree order (see index.merging), as long as the store lists in one of them.
        Raises BucketMissingError, AccessDeniedError, CredentialsError, TransientError.
        """
        ...

    def scan(self, prefix: str, after: str = "", limit: int | None = None) -> Iterator[ListPage]:
        """Yield all objects at any depth below `prefix` ("" or ending with "/"), page by page; no page has prefixes.

        A key that ends with "/" says that there is such a directory: a marker, an empty directory of a file system,
        or one of which only keys that cannot be shown are known (these are counted as hidden).  The same may come
        more than once.  The order is that of `list`; each directory comes in one piece.
        after: only keys behind this one, in the store's order: where to go on.
        limit: stop asking the store after about this many keys.  Errors, and next() after one, as `list`.
        """
        ...

    @property
    def can_seek(self) -> bool:
        """Tell whether a scan that begins in the middle costs no more than what it yields."""
        ...

    def close(self) -> None:
        """Drop connections.  Calls after it are undefined."""
        ...


class Pages:
    """The iterator that `Backend.list` returns: holds its place over an error."""

    def __init__(self, fetch: Callable[[str], tuple[ListPage, str]]) -> None:
        """fetch: returns the page at a continuation token ("" for the first) and the next token, "" at the end."""
        self._fetch = fetch
        self._token: str | None = ""

    def __iter__(self) -> Iterator[ListPage]:
        """Return itself."""
        return self

    def __next__(self) -> ListPage:
        """Return the next page; after an error, ask for the same one again."""
        if self._token is None:
            raise StopIteration
        page, next_token = self._fetch(self._token)
        self._token = next_token or None
        return page


class WrappedPages:
    """The pages of another backend, each asked for through `around`: how wrappers wrap `Backend.list`."""

    def __init__(self, inner: Iterator[ListPage], around: Callable[[Callable[[], ListPage]], ListPage]) -> None:
        """around: called for each page with the call that gets it; lets StopIteration pass."""
        self._inner = inner
        self._around = around

    def __iter__(self) -> Iterator[ListPage]:
        """Return itself."""
        return self

    def __next__(self) -> ListPage:
        """Return the next page; after an error, ask for the same one again."""
        return self._around(self._inner.__next__)
