"""The backend over obstore: s3, gs, az, http(s) and memory; storewrite.py and s3write.py have its other half.

Together with storewrite.py, translate.py (exceptions) and connect.py (constructors) the only place that knows obstore.

Facts of obstore 0.12 that shape this module, each held by tests/contract or tests/unit/backend:

* Keys are byte-exact for all keys with keys.is_addressable(); others are never sent, because they would be bent.
* `get(range=...)` checks the status (206) and the Content-Range of the answer, but neither the body's length nor the
  ETag: both are checked here.
* A HEAD that fails has no body, so a rejected signature looks like a denied object; one GET of a byte tells.
* A missing bucket on HEAD looks like a missing object: only LIST and GET can tell.
* The body arrives in chunks that obstore joins once in Rust; the memoryview over the result copies nothing.

If-Match: RFC 9110 wants the ETag quoted; SeaweedFS and moto take it quoted and bare (measured), Ceph RGW 16 is known to
answer 412 to the quoted form and to take it bare (tested here only with that 412 played by the proxy).  So the quoted
form is tried first; when a 412 contradicts a HEAD that still shows the very ETag asked for, the next form is used from
then on (quoted, bare, none).  Whatever is sent, the answer's ETag and size decide.
"""

from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol

import obstore
import obstore.exceptions
from obstore.store import ObjectStore

from fanoutfs.backend.base import Landing, Pages, WholeGets, put_into
from fanoutfs.backend.keys import bare_etag, is_addressable, is_listable, is_same_version, is_strong, whole_second_ns
from fanoutfs.backend.s3client import S3Answer, S3Client
from fanoutfs.backend.s3messages import answer_time_ns, parse_range
from fanoutfs.backend.storewrite import StoreWriter
from fanoutfs.backend.translate import error_from_obstore, error_from_text
from fanoutfs.backend.writing import PassedWrites, Writer
from fanoutfs.errors import (
    AccessDeniedError,
    BackendError,
    ObjectMissingError,
    TransientError,
    VersionGoneError,
)
from fanoutfs.records import ListPage, ObjectInfo, Version

if TYPE_CHECKING:  # obstore declares these in its stubs only
    from obstore import GetOptions, GetResult, ObjectMeta

# What obstore raises: its own classes, FileNotFoundError and friends, ValueError for keys and arguments.
_FOREIGN: Final = (obstore.exceptions.BaseError, OSError, ValueError)

_IF_MATCH_FORMS: Final = ("quoted", "bare", "none")
_SCAN_KEYS: Final = 1000
_RANGE_REFUSALS: Final = 3
"""After so many answers with 200 instead of 206, and none with 206, the server does not do ranges at all."""


class Lister(Protocol):
    """What lists in place of obstore where obstore's own listing falls short."""

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.list."""
        ...

    def scan(self, prefix: str, after: str = "", limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.scan."""
        ...

    def close(self) -> None:
        """Drop connections."""
        ...


class StoreBackend(PassedWrites):
    """One bucket, container or server, through obstore.

    Thread-safe: `_form` and `_refusals` are hints, written without a lock; a lost update costs one more request.
    """

    def __init__(
        self,
        store: ObjectStore,
        lister: Lister | None = None,
        if_match_form: str = "quoted",
        writer: Writer | None = None,
        open_gets: Callable[[], WholeGets | None] = lambda: None,
        ranges: S3Client | None = None,
        patience_s: float = 30.0,
    ) -> None:
        """lister: None to list with obstore (gs, az, http, memory), whose listing fails on keys it cannot represent.

        writer: None to write with obstore.  open_gets: makes the other way to small objects, if there is one.

        ranges: gets ranges into the caller's memory, each within patience_s; None to copy what obstore brings.
        """
        super().__init__(writer or StoreWriter(store))
        self._store = store
        self._lister = lister
        self._open_gets = open_gets
        self._ranges = ranges
        self._patience_s = patience_s
        self._form = _IF_MATCH_FORMS.index(if_match_form)
        self._refusals = 0
        self._has_ranges = False

    def head(self, key: str) -> ObjectInfo:
        """See Backend.head."""
        self._check_key(key)
        try:
            return _info(key, obstore.head(self._store, key))
        except _FOREIGN as error:
            failure = error_from_obstore(error, f"HEAD {key}")
        # Raised out here, and below: inside the except clause obstore's text would ride along as context.
        if isinstance(failure, AccessDeniedError):
            failure = self._explain_denial(key, failure)
        raise failure

    def get_range(self, key: str, start: int, end: int, version: Version, into: Landing | None = None) -> memoryview:
        """See Backend.get_range."""
        self._check_key(key)
        if into is not None and self._ranges is not None and start < end:
            self._receive(key, start, end, version, into)
            return into.memory[: end - start]
        if start >= end:
            # No server can be asked for nothing; the version is still checked.
            self._check_version(key, version, self.head(key).version)
            return put_into(into, memoryview(b""))
        what = f"GET {key} [{start}, {end})"
        while True:
            form = self._form
            try:
                result = self._get(key, start, end, version, _IF_MATCH_FORMS[form])
                break
            except _FOREIGN as error:
                failure = error_from_obstore(error, what)
            if not isinstance(failure, VersionGoneError) or not self._is_form_refused(key, version, form):
                raise self._count_refusal(failure)
            self._form = max(self._form, form + 1)
        meta = result.meta
        self._check_version(key, version, _info(key, meta).version)
        if tuple(result.range) != (start, end):
            raise TransientError(f"{what}: the answer holds {tuple(result.range)}")
        try:
            body = memoryview(result.bytes())
        except _FOREIGN as error:
            raise error_from_obstore(error, what) from None
        if len(body) != end - start:
            raise TransientError(f"{what}: {len(body)} bytes came instead of {end - start}")
        self._has_ranges = True
        return put_into(into, body)

    def _receive(self, key: str, start: int, end: int, version: Version, into: Landing) -> None:
        """Do what get_range does, without a copy: obstore would hand the body over in memory of its own."""
        assert self._ranges is not None  # noqa: S101 - asked before
        what = f"GET {key} [{start}, {end})"

        def check(answer: S3Answer) -> None:
            found = parse_range(answer.headers.get("content-range", ""))
            if found is None or found[:2] != (asked, end):
                raise TransientError(f"{what}: the answer holds {found[:2] if found else 'an unknown range'}")
            mtime_ns = answer_time_ns(answer.headers)
            self._check_version(key, version, Version(bare_etag(answer.headers.get("etag")), "", found[2], mtime_ns))
            size = answer.headers.get("content-length", str(end - asked))
            if size != str(end - asked):
                raise TransientError(f"{what}: {size} bytes come instead of {end - asked}")

        while (asked := start + into.arrived) < end:
            form = self._form
            headers = {"range": f"bytes={asked}-{end - 1}"}
            if (condition := _if_match(version, _IF_MATCH_FORMS[form])) is not None:
                headers["if-match"] = condition
            answer = self._ranges.receive(key, what, headers, check, into, self._patience_s)
            if answer.status == HTTPStatus.PARTIAL_CONTENT:
                self._has_ranges = True
                return
            if answer.status == HTTPStatus.OK:
                raise self._count_refusal(error_from_text("non-partial response", what))
            failure = answer.error(what)
            if not isinstance(failure, VersionGoneError) or not self._is_form_refused(key, version, form):
                raise failure
            self._form = max(self._form, form + 1)

    def whole_gets(self) -> WholeGets | None:
        """See Backend.whole_gets."""
        return self._open_gets()

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.list; obstore has no limit and brings a directory as one page."""
        if self._lister is not None:
            return self._lister.list(prefix, limit)
        return Pages(lambda _token: (self._list_all(prefix), ""))

    def scan(self, prefix: str, after: str = "", limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.scan; obstore's stream is begun anew behind the last page after an error."""
        if self._lister is not None:
            return self._lister.scan(prefix, after, limit)
        return Pages(_Stream(self._store, prefix, after, limit).fetch)

    @property
    def can_seek(self) -> bool:
        """See Backend.can_seek: obstore may skip keys only after it received them (Azure)."""
        return self._lister is not None

    def close(self) -> None:
        """See Backend.close; obstore drops its connections when the store is collected."""
        if self._lister is not None:
            self._lister.close()
        if self._ranges is not None:
            self._ranges.close()

    def _get(self, key: str, start: int, end: int, version: Version, form: str) -> "GetResult":
        options: GetOptions = {"range": (start, end)}
        if (condition := _if_match(version, form)) is not None:
            options["if_match"] = condition
        return obstore.get(self._store, key, options=options)

    def _list_all(self, prefix: str) -> ListPage:
        try:
            listing = obstore.list_with_delimiter(self._store, prefix.removesuffix("/") or None)
        except FileNotFoundError:
            return ListPage((), ())
        except _FOREIGN as error:
            raise error_from_obstore(error, f"LIST {prefix or '/'}") from None
        # A leading "/" has been dropped from the paths already: such keys show up outside the prefix.
        objects = tuple(_info(meta["path"], meta) for meta in listing["objects"] if meta["path"].startswith(prefix))
        named = [f"{path}/" for path in listing["common_prefixes"]]
        prefixes = tuple(name for name in named if is_listable(name) and name.startswith(prefix))
        hidden = len(listing["objects"]) - len(objects) + len(named) - len(prefixes)
        return ListPage(objects, prefixes, hidden)

    def _check_key(self, key: str) -> None:
        if not is_addressable(key):
            raise ObjectMissingError(f"{key!r}: no object under this key can be addressed")

    def _check_version(self, key: str, asked: Version, got: Version) -> None:
        if not is_same_version(asked, got.etag, got.size_bytes, got.mtime_ns):
            raise VersionGoneError(
                f"{key}: version {asked.etag or asked.mtime_ns} was asked for, {got.etag or got.mtime_ns} is there"
            )

    def _is_form_refused(self, key: str, version: Version, form: int) -> bool:
        """Return whether a 412 came although the version is there: the store dislikes how the ETag was spelled."""
        if _IF_MATCH_FORMS[form] == "none" or not is_strong(version.etag):
            return False
        now = self.head(key).version
        return bool(now.etag) and is_same_version(version, now.etag, now.size_bytes, now.mtime_ns)

    def _count_refusal(self, failure: BackendError) -> BackendError:
        if "ignored the range" not in str(failure) or self._has_ranges:
            return failure
        self._refusals += 1
        if self._refusals < _RANGE_REFUSALS:
            return failure
        return BackendError(f"{failure}; it never answered a range: this server cannot be mounted")

    def _explain_denial(self, key: str, denial: BackendError) -> BackendError:
        try:
            obstore.get(self._store, key, options={"range": (0, 1)})
        except _FOREIGN as error:
            failure = error_from_obstore(error, f"HEAD {key}")
            return failure if not isinstance(failure, TransientError) else denial
        return denial


def _if_match(version: Version, form: str) -> str | None:
    """Return the condition to send, None for none."""
    if form == "none" or not is_strong(version.etag):
        return None
    return f'"{version.etag}"' if form == "quoted" else version.etag


class _Stream:
    """A scan under way.  One thread at a time."""

    def __init__(self, store: ObjectStore, prefix: str, after: str, limit: int | None) -> None:
        self._store = store
        self._prefix = prefix
        self._after = after
        self._left = limit
        self._stream: Iterator[Sequence[ObjectMeta]] | None = None

    def fetch(self, _token: str) -> tuple[ListPage, str]:
        """Return the next page, and "" as the next token at the end."""
        what = f"LIST {self._prefix or '/'} after {self._after or 'nothing'}"
        try:
            if self._stream is None:
                self._stream = iter(
                    obstore.list(
                        self._store,
                        self._prefix.removesuffix("/") or None,
                        offset=self._after or None,
                        chunk_size=_SCAN_KEYS if self._left is None else max(1, min(_SCAN_KEYS, self._left)),
                    )
                )
            found = next(self._stream, None)
        except FileNotFoundError:
            found = None
        except _FOREIGN as error:
            self._stream = None
            raise error_from_obstore(error, what) from None
        if not found:
            return ListPage((), ()), ""
        self._after = found[-1]["path"]
        objects = tuple(_info(meta["path"], meta) for meta in found if meta["path"].startswith(self._prefix))
        if self._left is not None:
            self._left -= len(found)
        return ListPage(objects, (), len(found) - len(objects)), "more" if self._left is None or self._left > 0 else ""


def _info(key: str, meta: "ObjectMeta") -> ObjectInfo:
    version = Version(
        bare_etag(meta["e_tag"]), meta["version"] or "", meta["size"], whole_second_ns(meta["last_modified"])
    )
    return ObjectInfo(key, version)
