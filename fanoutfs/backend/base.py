"""What fanoutfs needs of an object store: the protocol every backend and every wrapper speaks.

All calls are synchronous and run in worker threads of the core; implementations are thread-safe, release the GIL
while they wait, and are constructed after fork.  No call retries by itself: the retry wrapper does, once for all.
An iterator that `list` returned belongs to one thread at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from fanoutfs.backend.writing import Writer
from fanoutfs.records import ListPage, ObjectInfo, Version


@dataclass(frozen=True, slots=True)
class Got:
    """The end of one GET of `WholeGets`.  body: None when it is to be asked for through Backend.get_range.

    seconds: since it was asked for.
    """

    tag: object
    body: memoryview | None
    seconds: float


class WholeGets(Protocol):
    """Another way to small objects, where a store has one: many at once, without a thread for each.

    One thread owns it, and none of its methods waits, but for `refresh`.
    """

    def ask(self, key: str, version: Version, tag: object) -> bool:
        """Ask for a whole object in this version.  False: not this way, or not now; use Backend.get_range.

        tag: what the `Got` will say whose it is.
        """
        ...

    def fileno(self) -> int:
        """Return the descriptor that is readable when `step` has something to do."""
        ...

    def step(self) -> list[Got]:
        """Go on with what is under way, and return what ended.  Call it every second or so while something is."""
        ...

    @property
    def under_way(self) -> int:
        """Return how many objects were asked for and not returned yet."""
        ...

    @property
    def needs_refresh(self) -> bool:
        """Tell whether `refresh` is due."""
        ...

    def refresh(self) -> None:
        """Find out where the store is and who we are there.  Blocks; any thread, one at a time.  Raises nothing."""
        ...

    def close(self) -> None:
        """Drop connections, and what is under way."""
        ...


class Landing:
    """Memory that a range is received into from its first byte on; what has arrived may be used before the rest has.

    One thread.
    """

    __slots__ = ("arrived", "memory", "on_arrival")

    def __init__(self, memory: memoryview, on_arrival: Callable[[int], None] | None = None) -> None:
        """memory: as long as the range.  on_arrival: told how many bytes stand there, never to be written again."""
        self.memory = memory
        self.arrived = 0
        self.on_arrival = on_arrival

    @property
    def room(self) -> memoryview:
        """Return the memory behind what has arrived."""
        return self.memory[self.arrived :]

    def arrive(self, count: int) -> None:
        """Note that the next `count` bytes stand there, and are those of the version that was asked for."""
        self.arrived += count
        if self.on_arrival is not None:
            self.on_arrival(self.arrived)

    def put(self, body: memoryview) -> memoryview:
        """Copy what has not arrived yet of a body that begins where the memory does; return what stands there."""
        more = body[self.arrived : len(self.memory)]
        if len(more):
            self.room[: len(more)] = more
            self.arrive(len(more))
        return self.memory[: min(len(body), len(self.memory))]


class Backend(Writer, Protocol):
    """An object store below one prefix-free root (a bucket, a container, a directory); `writing` has how to write."""

    def head(self, key: str) -> ObjectInfo:
        """Return the object's current version.

        Raises ObjectMissingError, AccessDeniedError, CredentialsError, TransientError.
        """
        ...

    def get_range(self, key: str, start: int, end: int, version: Version, into: Landing | None = None) -> memoryview:
        """Return bytes [start, end) of exactly this version (If-Match; end is exclusive, at most version.size_bytes).

        into: where to put them, end - start bytes; what is returned is a view of it then.  What has arrived there is
        right even when an error follows, and is not asked for again by the next call with the same landing.
        The length, the range and the ETag of the answer are checked: a short or wrong body is TransientError.
        Raises VersionGoneError when the object now has another version, ObjectMissingError when it is gone,
        AccessDeniedError, CredentialsError, TransientError.
        """
        ...

    def whole_gets(self) -> WholeGets | None:
        """Return a new way to get many small objects, None where there is none.  The caller closes it."""
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


def put_into(into: Landing | None, body: memoryview) -> memoryview:
    """Return what `get_range` returns: the body, put where the caller wants it, as far as there is room."""
    return body if into is None else into.put(body)
