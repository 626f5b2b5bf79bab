"""Counts what goes over the wire.  Sits inside the retry wrapper, so that every attempt counts.

Names, all of them whole numbers that only grow:
  backend_heads, backend_gets, backend_lists       requests (a listing: pages)
  backend_head_ns, backend_get_ns, backend_list_ns time spent waiting for them, answered or not
  backend_bytes                                    object data received
  backend_hidden_keys                              keys that listings left out
  backend_errors                                   requests that failed because of the store or the way to it
  backend_missing                                  requests answered "no such object" or "another version"
  backend_puts, backend_copies, backend_deletes    requests that change something; each of the calls of an upload in
                                                   parts is a put, copied parts are copies (ns: backend_put_ns ...)
  backend_sent_bytes                               object data sent, of requests that succeeded
  backend_conflicts                                changes refused because the object was not what was expected
  backend_retries                                  objects to be asked for once more after their way of `WholeGets`
                                                   failed, and what the retry wrapper repeats
and from the retry wrapper: backend_deadlines.
"""

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias, TypeVar

from fanoutfs.backend.base import Backend, Got, Landing, WholeGets, WrappedPages
from fanoutfs.backend.writing import Body, Condition, Part, PassedWrites, Properties, Upload
from fanoutfs.clock import Clock, SystemClock
from fanoutfs.errors import BackendError, ObjectMissingError, PreconditionFailedError, VersionGoneError
from fanoutfs.records import ListPage, ObjectInfo, Version

T = TypeVar("T")

_WRITE_KINDS: Final = {
    "details": "head",
    "put": "put",
    "begin_upload": "put",
    "upload_part": "put",
    "complete_upload": "put",
    "copy": "copy",
    "copy_part": "copy",
    "restore": "copy",
    "delete": "delete",
    "delete_many": "delete",
    "abort_upload": "delete",
    "list_uploads": "list",
}
_PLURALS: Final = {"copy": "copies"}

Counter: TypeAlias = Callable[[str, int], None]
"""count(name, value): adds value to the named number; called from many threads."""


def ignore(name: str, value: int) -> None:
    """Count nothing."""


class MeasuringBackend(PassedWrites):
    """Counts the calls of another backend."""

    def __init__(self, inner: Backend, count: Counter, clock: Clock | None = None) -> None:
        """clock: None for the kernel's."""
        super().__init__(inner)
        self._inner = inner
        self._count = count
        self._clock = clock or SystemClock()

    def head(self, key: str) -> ObjectInfo:
        """See Backend.head."""
        return self._run("head", lambda: self._inner.head(key))

    def get_range(self, key: str, start: int, end: int, version: Version, into: Landing | None = None) -> memoryview:
        """See Backend.get_range."""
        body = self._run("get", lambda: self._inner.get_range(key, start, end, version, into))
        self._count("backend_bytes", len(body))
        return body

    def whole_gets(self) -> WholeGets | None:
        """See Backend.whole_gets."""
        inner = self._inner.whole_gets()
        return None if inner is None else _MeasuredGets(inner, self._count)

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.list."""
        return WrappedPages(self._inner.list(prefix, limit), self._page)

    def scan(self, prefix: str, after: str = "", limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.scan; its pages count as those of a listing."""
        return WrappedPages(self._inner.scan(prefix, after, limit), self._page)

    @property
    def can_seek(self) -> bool:
        """See Backend.can_seek."""
        return self._inner.can_seek

    def close(self) -> None:
        """See Backend.close."""
        self._inner.close()

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        """See Writer.put."""
        version = super().put(key, body, condition, properties)
        self._count("backend_sent_bytes", len(body))
        return version

    def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """See Writer.upload_part."""
        part = super().upload_part(upload, number, body)
        self._count("backend_sent_bytes", len(body))
        return part

    def _around(self, kind: str, call: Callable[[], T]) -> T:
        # What the store can do is asked with requests of the backend's own.
        return self._run(_WRITE_KINDS[kind], call) if kind in _WRITE_KINDS else call()

    def _page(self, call: Callable[[], ListPage]) -> ListPage:
        page = self._run("list", call)
        if page.hidden:
            self._count("backend_hidden_keys", page.hidden)
        return page

    def _run(self, kind: str, call: Callable[[], T]) -> T:
        start_ns = self._clock.monotonic_ns()
        try:
            answer = call()
        except StopIteration:
            raise  # the end of a listing asks nobody
        except PreconditionFailedError:
            self._count_request(kind, start_ns)
            self._count("backend_conflicts", 1)
            raise
        except (ObjectMissingError, VersionGoneError):
            self._count_request(kind, start_ns)
            self._count("backend_missing", 1)
            raise
        except BackendError:
            self._count_request(kind, start_ns)
            self._count("backend_errors", 1)
            raise
        self._count_request(kind, start_ns)
        return answer

    def _count_request(self, kind: str, start_ns: int) -> None:
        self._count(f"backend_{_PLURALS.get(kind, f'{kind}s')}", 1)
        self._count(f"backend_{kind}_ns", self._clock.monotonic_ns() - start_ns)


class _MeasuredGets:
    """Counts the GETs of another `WholeGets`: all of one step at once."""

    def __init__(self, inner: WholeGets, count: Counter) -> None:
        self._inner = inner
        self._count = count
        self.ask = inner.ask
        self.fileno = inner.fileno
        self.refresh = inner.refresh
        self.close = inner.close

    @property
    def under_way(self) -> int:
        """See WholeGets.under_way."""
        return self._inner.under_way

    @property
    def needs_refresh(self) -> bool:
        """See WholeGets.needs_refresh."""
        return self._inner.needs_refresh

    def step(self) -> list[Got]:
        """See WholeGets.step."""
        over = self._inner.step()
        if over:
            self._count("backend_gets", len(over))
            for got in over:  # each by itself: they are latencies, too
                self._count("backend_get_ns", int(got.seconds * 1e9))
            bodies = [got.body for got in over if got.body is not None]
            self._count("backend_bytes", sum(map(len, bodies)))
            if len(bodies) < len(over):
                self._count("backend_errors", len(over) - len(bodies))
                self._count("backend_retries", len(over) - len(bodies))  # as get_range
        return over
