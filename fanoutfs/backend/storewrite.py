"""Changes objects through obstore (gs, az, memory), and refuses to where nothing can be changed (http).

What obstore 0.12 cannot do and what happens instead:

* Parts of an upload are its own business: there is no begin_upload here, `put` takes any size.  Beyond `_PUT_BYTES`
  it goes in parts, which has no condition: to a scratch name beside the object, which is then copied inside the store
  (if absent: atomic; if matching: the object is looked at just before), so that a condition is never silently lost.
  A kill in between leaves `<key>.fanoutfs-<hex>` behind.
* Google's condition is the generation, which listings do not carry: a HEAD fetches it, and the condition is exact.
* Copies and deletes have no condition on a version: the object is looked at just before.
* A copy with other properties goes through this machine, 8 MiB at a time.
* Keys cannot end with "/": there are no directory markers.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import obstore
import obstore.exceptions
from obstore.store import AzureStore, GCSStore, ObjectStore

from fanoutfs.backend.archive import Restore, restore_state
from fanoutfs.backend.keys import bare_etag, is_addressable, is_same_version, whole_second_ns
from fanoutfs.backend.sigv4 import read_into
from fanoutfs.backend.translate import error_from_obstore
from fanoutfs.backend.writing import (
    Abilities,
    Body,
    Condition,
    Expect,
    FileRange,
    ObjectDetails,
    Part,
    PassedWrites,
    Properties,
    StaleUpload,
    Upload,
)
from fanoutfs.errors import (
    BackendError,
    ObjectMissingError,
    PreconditionFailedError,
    ReadOnlyStoreError,
    UnsupportedError,
    VersionGoneError,
)
from fanoutfs.records import MIB, PART_BYTES, ObjectInfo, Version

if TYPE_CHECKING:  # obstore declares these in its stubs only
    from obstore import Attributes, PutMode

T = TypeVar("T")

_FOREIGN: Final = (obstore.exceptions.BaseError, OSError, ValueError, NotImplementedError)
_PUT_BYTES: Final = 64 * MIB
_ANY_BYTES: Final = 1 << 42
_NAMED: Final = {"Content-Type": "content_type", "Storage-Class": "storage_class"}


class StoreWriter:
    """The `Writer` of a container through obstore.  Stateless, hence thread-safe."""

    def __init__(self, store: ObjectStore) -> None:
        """store: shared with whoever reads."""
        self._store = store

    def abilities(self) -> Abilities:
        """See Writer.abilities; known by the kind of store, nothing is asked."""
        return Abilities(
            can_put_if_absent=True,
            can_put_if_match=True,
            can_upload_parts=False,
            can_copy_part=False,
            can_complete_if_absent=False,
            can_complete_if_match=False,
            can_copy_if_absent=True,
            can_delete_if_match=False,
            can_mark_directories=False,
            has_metadata=True,
            min_part_bytes=1,
            max_part_bytes=_ANY_BYTES,
            max_parts=1,
            # "Quotas & limits" of Cloud Storage: 5 TiB; Azure: 50,000 blocks of what obstore is told, 8 MiB.
            max_put_bytes=390 << 30 if isinstance(self._store, AzureStore) else 5 << 40,
            max_copy_bytes=5 << 40,
        )

    def details(self, key: str) -> ObjectDetails:
        """See Writer.details."""
        _check_key(key)
        try:
            found = obstore.get(self._store, key, options={"head": True})
            meta, attributes = found.meta, dict(found.attributes)
        except _FOREIGN as error:
            raise error_from_obstore(error, f"HEAD {key}") from None
        named = {_NAMED[name]: value for name, value in attributes.items() if name in _NAMED}
        metadata = {name: value for name, value in attributes.items() if name[:1].islower()}
        version = Version(
            bare_etag(meta["e_tag"]), meta["version"] or "", meta["size"], whole_second_ns(meta["last_modified"])
        )
        properties = Properties(metadata, **named)
        return ObjectDetails(ObjectInfo(key, version), properties, restore_state(properties.storage_class, ""))

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        """See Writer.put."""
        _check_key(key)
        if len(body) > _PUT_BYTES:
            return self._put_chunks(key, _chunks(body), len(body), condition, properties)
        content = b"".join(_chunks(body)) if isinstance(body, FileRange) else body
        mode: PutMode = "overwrite"
        if condition is Expect.NOTHING:
            mode = "create"
        elif isinstance(condition, Version):
            held = condition
            if isinstance(self._store, GCSStore) and not held.version_id:
                held = self._look(key, condition)
            mode = {"e_tag": f'"{held.etag}"'}
            if held.version_id:
                mode["version"] = held.version_id
        try:
            result = obstore.put(
                self._store, key, content, attributes=_attributes(properties), mode=mode, use_multipart=False
            )
        except _FOREIGN as error:
            failure = error_from_obstore(error, f"PUT {key}", is_write=True)
        else:
            return Version(bare_etag(result["e_tag"]), result["version"] or "", len(content), _now_ns())
        if isinstance(condition, Version) and isinstance(failure, ObjectMissingError):
            raise PreconditionFailedError(f"PUT {key}: the object is gone")
        raise failure

    def begin_upload(self, key: str, properties: Properties) -> Upload:
        """See Writer.begin_upload."""
        raise UnsupportedError(f"{key}: no uploads in parts here")

    def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """See Writer.upload_part."""
        raise UnsupportedError(f"{upload.key}: no uploads in parts here")

    def copy_part(self, upload: Upload, number: int, source: ObjectInfo, start: int, end: int) -> Part:
        """See Writer.copy_part."""
        raise UnsupportedError(f"{upload.key}: no uploads in parts here")

    def complete_upload(self, upload: Upload, parts: Sequence[Part], condition: Condition) -> Version:
        """See Writer.complete_upload."""
        raise UnsupportedError(f"{upload.key}: no uploads in parts here")

    def abort_upload(self, upload: Upload) -> None:
        """See Writer.abort_upload: there is none."""

    def list_uploads(self, prefix: str) -> Sequence[StaleUpload]:
        """See Writer.list_uploads: Google and Azure drop what is not finished after a week."""
        return ()

    def copy(self, source: ObjectInfo, key: str, condition: Condition, properties: Properties | None) -> Version:
        """See Writer.copy."""
        _check_key(key)
        try:
            self._look(source.key, source.version)
        except PreconditionFailedError as error:
            raise VersionGoneError(f"COPY {source.key} to {key}: source: {error}") from None
        if properties is None:
            return self._copy(source.key, key, condition)
        size_bytes = source.version.size_bytes
        if size_bytes <= _PUT_BYTES:
            return self.put(key, b"".join(self._read(source)), condition, properties)
        return self._put_chunks(key, self._read(source), size_bytes, condition, properties)

    def restore(self, key: str, days: int, speed: str = "") -> Restore:
        """See Writer.restore; of these stores only Azure's have such objects, and obstore cannot bring them back."""
        state = self.details(key).restore
        if state is Restore.ARCHIVED:
            raise UnsupportedError(f"{key}: change its access tier with the store's own tools")
        return state

    def delete(self, key: str, condition: Condition = Expect.ANYTHING) -> None:
        """See Writer.delete."""
        _check_key(key)
        try:
            if isinstance(condition, Version):
                self._look(key, condition)
            obstore.delete(self._store, key)
        except ObjectMissingError:
            return
        except _FOREIGN as error:
            failure = error_from_obstore(error, f"DELETE {key}", is_write=True)
        else:
            return
        if not isinstance(failure, ObjectMissingError):
            raise failure

    def delete_many(self, keys: Iterable[str]) -> Mapping[str, str]:
        """See Writer.delete_many; one request each."""
        failed: dict[str, str] = {}
        for key in keys:
            try:
                self.delete(key)
            except BackendError as error:
                failed[key] = str(error)
        return failed

    def _put_chunks(
        self, key: str, chunks: Iterator[bytes], size_bytes: int, condition: Condition, properties: Properties
    ) -> Version:
        """Write in parts: directly, or beside and then copied where there is a condition."""
        target = key if condition is Expect.ANYTHING else f"{key}.fanoutfs-{secrets.token_hex(8)}"
        try:
            result = obstore.put(
                self._store, target, chunks, attributes=_attributes(properties), use_multipart=True,
                chunk_size=PART_BYTES, max_concurrency=4,
            )  # fmt: skip
        except _FOREIGN as error:
            raise error_from_obstore(error, f"PUT {target}", is_write=True) from None
        if target == key:
            return Version(bare_etag(result["e_tag"]), result["version"] or "", size_bytes, _now_ns())
        try:
            return self._copy(target, key, condition)
        finally:
            self.delete(target)

    def _copy(self, source_key: str, key: str, condition: Condition) -> Version:
        if isinstance(condition, Version):
            try:
                self._look(key, condition)
            except ObjectMissingError:
                raise PreconditionFailedError(f"COPY {source_key} to {key}: the object is gone") from None
        try:
            obstore.copy(self._store, source_key, key, overwrite=condition is not Expect.NOTHING)
        except _FOREIGN as error:
            raise error_from_obstore(error, f"COPY {source_key} to {key}", is_write=True) from None
        return self.details(key).info.version

    def _read(self, source: ObjectInfo) -> Iterator[bytes]:
        for start in range(0, source.version.size_bytes, PART_BYTES):
            end = min(start + PART_BYTES, source.version.size_bytes)
            try:
                found = obstore.get(self._store, source.key, options={"range": (start, end)})
                etag, chunk = bare_etag(found.meta["e_tag"]), found.bytes().to_bytes()
            except _FOREIGN as error:
                raise error_from_obstore(error, f"GET {source.key} [{start}, {end})") from None
            if etag != source.version.etag or len(chunk) != end - start:
                raise VersionGoneError(f"GET {source.key} [{start}, {end}): the source changed while it was copied")
            yield chunk

    def _look(self, key: str, condition: Version) -> Version:
        """Return the version that is there.  Raises PreconditionFailedError for another, ObjectMissingError."""
        now = self.details(key).info.version
        if not is_same_version(condition, now.etag, now.size_bytes, now.mtime_ns):
            raise PreconditionFailedError(f"{key}: the object has another version now")
        return now


class ReadOnlyWriter(PassedWrites):
    """The `Writer` of a source that takes no changes: tells details, refuses the rest."""

    def _around(self, kind: str, call: Callable[[], T]) -> T:
        if kind != "details":
            raise ReadOnlyStoreError("this source takes no changes")
        return call()


def _check_key(key: str) -> None:
    if not is_addressable(key):
        raise ObjectMissingError(f"{key!r}: no object under this key can be addressed")


def _chunks(body: Body) -> Iterator[bytes]:
    """Yield a body in pieces of at most 8 MiB."""
    if not isinstance(body, FileRange):
        with memoryview(body) as view:
            for start in range(0, len(view), PART_BYTES):
                yield bytes(view[start : start + PART_BYTES])
        return
    at = body.start
    while at < body.end:
        buffer = bytearray(min(PART_BYTES, body.end - at))
        got = read_into(body, at, memoryview(buffer))
        yield bytes(buffer[:got])
        at += got


def _attributes(properties: Properties) -> "Attributes":
    attributes: Attributes = dict(properties.metadata)
    if properties.content_type:
        attributes["Content-Type"] = properties.content_type
    if properties.storage_class:
        attributes["Storage-Class"] = properties.storage_class
    return attributes


def _now_ns() -> int:
    return int(time.time()) * 1_000_000_000
