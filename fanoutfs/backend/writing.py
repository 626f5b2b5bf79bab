"""What fanoutfs needs of an object store to write: the second half of the `Backend` protocol, and its values.

As in `base`: synchronous, thread-safe, no retry inside, constructed after fork.  What every implementation keeps:

* An object appears whole or not at all: readers of the store never see part of a body.
* A condition (`Condition`) is kept by the store itself where it can (see `Abilities`), so that of two writers one loses
  and learns it (PreconditionFailedError).  Where it cannot, the object is looked at just before: the window in which a
  foreign change is overwritten is then one request long.
* A call that failed with TransientError may have succeeded all the same.  Metadata under `TOKEN_KEY` is how that is
  found out: whoever repeats a put, a copy or an upload, now or after a crash, gives it the same token, and the retry
  wrapper takes an object that carries it for the result (see retry.py).
* A body out of a file is streamed.  Nobody may write to that range meanwhile: where the checksum sent ahead shows it,
  the store refuses; elsewhere the object would be a mixture.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol, TypeAlias, TypeVar

from fanoutfs.backend.archive import Restore
from fanoutfs.records import ObjectInfo, Version

T = TypeVar("T")

TOKEN_KEY: Final = "fanoutfs"  # noqa: S105 - a metadata key; letters only: Azure takes no "-", some proxies drop "_"
"""The user metadata key that tells one put from another of the same content."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes [start, end) of an open file; read with pread, so that the descriptor may be shared."""

    fd: int
    start: int
    end: int

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.end - self.start


Body: TypeAlias = bytes | memoryview | FileRange


class Expect(Enum):
    """What must be there for a change to happen, when it is no particular version."""

    ANYTHING = "anything"
    NOTHING = "nothing"


Condition: TypeAlias = Version | Expect
"""The version that must be there (by its ETag), or Expect."""


@dataclass(frozen=True, slots=True)
class Properties:
    """What goes along with the content of an object.

    metadata: user metadata; names of lower-case letters (digits and "-" too, but not to Azure), values of printable
    ASCII without blanks at the ends.  content_type, storage_class: "" for the store's default.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    content_type: str = ""
    storage_class: str = ""


@dataclass(frozen=True, slots=True)
class ObjectDetails:
    """An object as `head` sees it, with what a listing does not carry."""

    info: ObjectInfo
    properties: Properties
    restore: Restore = Restore.READABLE
    """Whether it has to be restored before it can be read."""
    restored_until_ns: int = 0
    """Until when a restored one can be read, by the store's clock; 0: not restored, or the store does not say."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload under way.  token: what its metadata has under TOKEN_KEY, "" for nothing."""

    key: str
    upload_id: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an upload that the store has.  Numbers begin with 1 and may have gaps."""

    number: int
    etag: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StaleUpload:
    """What `list_uploads` finds.  started_ns: wall clock of the store."""

    upload: Upload
    started_ns: int


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a store keeps of the promises above, asked of the store itself where it is a server.

    The condition flags say what is atomic; a condition that is not is looked at before (module docstring).
    """

    can_put_if_absent: bool
    can_put_if_match: bool
    can_upload_parts: bool
    """Else only `put`, of at most max_put_bytes."""
    can_copy_part: bool
    can_complete_if_absent: bool
    can_complete_if_match: bool
    can_copy_if_absent: bool
    can_delete_if_match: bool
    can_mark_directories: bool
    """An object whose key ends with "/" can be put."""
    has_metadata: bool
    min_part_bytes: int
    """Of every part but the last, copied ones too."""
    max_part_bytes: int
    max_parts: int
    max_put_bytes: int
    max_copy_bytes: int
    """What `copy` takes; beyond that an upload of copied parts."""
    can_change_class: bool = False
    """A copy onto itself puts an object into another storage class, inside the store."""


class Writer(Protocol):
    """What changes objects.

    Every call may raise, beyond what it says: ReadOnlyStoreError, AccessDeniedError, CredentialsError,
    BucketMissingError, StoreFullError, TransientError, and BackendError for what a retry does not mend.
    """

    def abilities(self) -> Abilities:
        """Return what the store can do; asked once, by writing and deleting a scratch object, then remembered.

        Raises as a put does.
        """
        ...

    def details(self, key: str) -> ObjectDetails:
        """Return the object's current version with its properties.  Raises as Backend.head."""
        ...

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        """Write an object whole; key may end with "/" (a directory marker, empty body).  Return its version.

        body: at most Abilities.max_put_bytes; 64 MiB is a good limit where parts can be uploaded instead.
        Raises PreconditionFailedError.
        """
        ...

    def begin_upload(self, key: str, properties: Properties) -> Upload:
        """Begin an object in parts; nothing is to be seen of it before `complete_upload`.  Raises UnsupportedError."""
        ...

    def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """Store a part; again with the same number: replace it.  Raises UploadMissingError."""
        ...

    def copy_part(self, upload: Upload, number: int, source: ObjectInfo, start: int, end: int) -> Part:
        """Make bytes [start, end) of exactly this version of another (or the same) object a part.

        Raises VersionGoneError, ObjectMissingError (both of the source), UploadMissingError, UnsupportedError.
        """
        ...

    def complete_upload(self, upload: Upload, parts: Sequence[Part], condition: Condition) -> Version:
        """Make the parts, in this order, the object.  parts: ascending numbers, at least one.

        Raises PreconditionFailedError (the upload lives on where the store checks, abort it), UploadMissingError.
        """
        ...

    def abort_upload(self, upload: Upload) -> None:
        """Drop an upload and its parts; one that is gone already is no error."""
        ...

    def list_uploads(self, prefix: str) -> Sequence[StaleUpload]:
        """Return the uploads under way of keys that begin with prefix, other clients' too.

        No store tells whose an upload is: abort those whose ids were noted when they were begun.
        """
        ...

    def copy(self, source: ObjectInfo, key: str, condition: Condition, properties: Properties | None) -> Version:
        """Copy exactly this version inside the store.  condition: on `key`.  properties: None to keep the source's.

        Then the copy is in source.storage_class ("": the default), where the store lets us choose.
        source.version.size_bytes: at most Abilities.max_copy_bytes.
        Raises PreconditionFailedError (key), VersionGoneError, ObjectMissingError (source).
        """
        ...

    def restore(self, key: str, days: int, speed: str = "") -> Restore:
        """Ask for an archived object to be made readable for so many days; return how it stands then.

        speed: one of config.schema.RESTORE_SPEEDS, "" for the store's default.  One that is being restored already is
        no error.
        Raises ObjectMissingError, UnsupportedError.
        """
        ...

    def delete(self, key: str, condition: Condition = Expect.ANYTHING) -> None:
        """Delete an object; none there is no error, whatever the condition.  condition: not Expect.NOTHING.

        Raises PreconditionFailedError when another version is there.
        """
        ...

    def delete_many(self, keys: Iterable[str]) -> Mapping[str, str]:
        """Delete objects unconditionally.  Return what failed: key → the store's reason; {} when all are gone."""
        ...


class PassedWrites:
    """A `Writer` that passes everything on, each call through `_around`: for wrappers, and backends of two halves."""

    def __init__(self, writer: Writer) -> None:
        """writer: who does it."""
        self._writer = writer

    def _around(self, kind: str, call: Callable[[], T]) -> T:
        """Make the call.  kind: the name of the method.  Overridden by wrappers."""
        return call()

    def abilities(self) -> Abilities:
        """See Writer.abilities."""
        return self._around("abilities", self._writer.abilities)

    def details(self, key: str) -> ObjectDetails:
        """See Writer.details."""
        return self._around("details", lambda: self._writer.details(key))

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        """See Writer.put."""
        return self._around("put", lambda: self._writer.put(key, body, condition, properties))

    def begin_upload(self, key: str, properties: Properties) -> Upload:
        """See Writer.begin_upload."""
        return self._around("begin_upload", lambda: self._writer.begin_upload(key, properties))

    def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """See Writer.upload_part."""
        return self._around("upload_part", lambda: self._writer.upload_part(upload, number, body))

    def copy_part(self, upload: Upload, number: int, source: ObjectInfo, start: int, end: int) -> Part:
        """See Writer.copy_part."""
        return self._around("copy_part", lambda: self._writer.copy_part(upload, number, source, start, end))

    def complete_upload(self, upload: Upload, parts: Sequence[Part], condition: Condition) -> Version:
        """See Writer.complete_upload."""
        return self._around("complete_upload", lambda: self._writer.complete_upload(upload, parts, condition))

    def abort_upload(self, upload: Upload) -> None:
        """See Writer.abort_upload."""
        self._around("abort_upload", lambda: self._writer.abort_upload(upload))

    def list_uploads(self, prefix: str) -> Sequence[StaleUpload]:
        """See Writer.list_uploads."""
        return self._around("list_uploads", lambda: self._writer.list_uploads(prefix))

    def copy(self, source: ObjectInfo, key: str, condition: Condition, properties: Properties | None) -> Version:
        """See Writer.copy."""
        return self._around("copy", lambda: self._writer.copy(source, key, condition, properties))

    def restore(self, key: str, days: int, speed: str = "") -> Restore:
        """See Writer.restore."""
        return self._around("restore", lambda: self._writer.restore(key, days, speed))

    def delete(self, key: str, condition: Condition = Expect.ANYTHING) -> None:
        """See Writer.delete."""
        self._around("delete", lambda: self._writer.delete(key, condition))

    def delete_many(self, keys: Iterable[str]) -> Mapping[str, str]:
        """See Writer.delete_many."""
        wanted = list(keys)
        return self._around("delete_many", lambda: self._writer.delete_many(wanted))
