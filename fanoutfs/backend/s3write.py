"""Changes objects of an S3 bucket: conditional puts, uploads in parts, copies, deletes.

Which conditions the server keeps is asked of it before the first conditional change (s3probe.py).  One that it does
not keep is looked at just before instead, with a HEAD.

Directory markers are objects like others, but SeaweedFS makes directories of them and drops their metadata, the token
too: put them without a condition.  The ETag that SeaweedFS gives a copied part is that of the whole source, so that
there two objects put together of different ranges of one source may have one ETag (measured, 4.48).
`Version.mtime_ns` of a change is the answer's Date: no answer to a put says Last-Modified, and versions are told apart
by their ETags.
"""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from fanoutfs.backend.archive import Restore, restore_state
from fanoutfs.backend.keys import bare_etag, is_listable, is_same_version, scratch_key
from fanoutfs.backend.s3client import S3Answer, S3Client
from fanoutfs.backend.s3messages import (
    answer_time_ns,
    complete_message,
    copy_headers,
    delete_message,
    parse_delete_errors,
    parse_etag,
    parse_properties,
    parse_upload_id,
    parse_uploads,
    property_headers,
    restore_message,
    restored_until_ns,
)
from fanoutfs.backend.s3probe import S3Findings, find_abilities, remove_stale
from fanoutfs.backend.writing import (
    TOKEN_KEY,
    Abilities,
    Body,
    Condition,
    Expect,
    ObjectDetails,
    Part,
    Properties,
    StaleUpload,
    Upload,
)
from fanoutfs.errors import (
    BackendError,
    BucketMissingError,
    ObjectMissingError,
    PreconditionFailedError,
    TransientError,
    UnsupportedError,
    UploadMissingError,
    VersionGoneError,
)
from fanoutfs.records import ObjectInfo, Version

_DELETE_KEYS: Final = 1000
"""DeleteObjects takes no more."""
_PATIENCE_S: Final = 120.0
"""A copy of 5 GiB, or putting 10,000 parts together, may take this long before the first byte of the answer."""


class S3Writer:
    """The `Writer` of one bucket.  Thread-safe."""

    def __init__(self, client: S3Client, scratch_prefix: str) -> None:
        """client: closed by its owner.  scratch_prefix: where objects may be put to try things."""
        self._client = client
        self._scratch_prefix = scratch_prefix
        self._findings: S3Findings | None = None
        self._lock = threading.Lock()

    def abilities(self) -> Abilities:
        """See Writer.abilities."""
        return self._find().abilities

    def details(self, key: str) -> ObjectDetails:
        """See Writer.details."""
        what = f"HEAD {key}"
        _check_key(key, what)
        answer = _checked(self._client.request("HEAD", key, what), what)
        etag = bare_etag(answer.headers.get("etag"))
        size_bytes = int(answer.headers.get("content-length", "0"))
        version = Version(etag, answer.headers.get("x-amz-version-id", ""), size_bytes, answer_time_ns(answer.headers))
        properties, headers = parse_properties(answer.headers), answer.headers
        restore = headers.get("x-amz-restore", "")
        state = restore_state(properties.storage_class, restore, headers.get("x-amz-archive-status", ""))
        return ObjectDetails(ObjectInfo(key, version), properties, state, restored_until_ns(restore))

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        """See Writer.put."""
        what = f"PUT {key}"
        _check_key(key, what)
        headers = property_headers(properties) | self._condition_headers(
            key, condition, lambda can: (can.can_put_if_absent, can.can_put_if_match)
        )
        answer = self._changed(self._client.request("PUT", key, what, headers=headers, body=body), what, condition)
        return self._version(key, bare_etag(answer.headers.get("etag")), len(body), answer)

    def begin_upload(self, key: str, properties: Properties) -> Upload:
        """See Writer.begin_upload."""
        what = f"POST {key} uploads"
        _check_key(key, what)
        headers = property_headers(properties)
        answer = _checked(self._client.request("POST", key, what, {"uploads": ""}, headers), what, is_write=True)
        return Upload(key, parse_upload_id(answer.body), properties.metadata.get(TOKEN_KEY, ""))

    def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """See Writer.upload_part."""
        what = f"PUT {upload.key} part {number}"
        params = {"partNumber": str(number), "uploadId": upload.upload_id}
        answer = _part(self._client.request("PUT", upload.key, what, params, body=body), what)
        etag = bare_etag(answer.headers.get("etag"))
        if not etag:
            raise TransientError(f"{what}: the answer has no ETag")
        return Part(number, etag, len(body))

    def copy_part(self, upload: Upload, number: int, source: ObjectInfo, start: int, end: int) -> Part:
        """See Writer.copy_part."""
        what = f"PUT {upload.key} part {number} from {source.key} [{start}, {end})"
        if not self.abilities().can_copy_part:
            # One that does not know the headers takes the request for an empty part, and says 200.
            raise UnsupportedError(f"{what}: the server cannot copy parts")
        params = {"partNumber": str(number), "uploadId": upload.upload_id}
        headers = self._source_headers(source) | {"x-amz-copy-source-range": f"bytes={start}-{end - 1}"}
        answer = self._client.request("PUT", upload.key, what, params, headers, patience_s=_PATIENCE_S)
        if answer.status in (412, 416):
            raise VersionGoneError(f"{what}: the source has another version now")
        if answer.status == 404 and answer.code != "NoSuchUpload":
            raise ObjectMissingError(f"{what}: no such source")
        etag = parse_etag(_part(answer, what).body)
        if not etag:
            raise TransientError(f"{what}: the answer has no ETag")
        return Part(number, etag, end - start)

    def complete_upload(self, upload: Upload, parts: Sequence[Part], condition: Condition) -> Version:
        """See Writer.complete_upload."""
        what = f"POST {upload.key} complete"
        headers = self._condition_headers(
            upload.key, condition, lambda can: (can.can_complete_if_absent, can.can_complete_if_match)
        )
        params = {"uploadId": upload.upload_id}
        body = complete_message(parts)
        answer = self._client.request("POST", upload.key, what, params, headers, body, patience_s=_PATIENCE_S)
        if answer.status == 404 and answer.code == "NoSuchUpload":
            raise UploadMissingError(f"{what}: no such upload")
        answer = self._changed(answer, what, condition)
        return self._version(upload.key, parse_etag(answer.body), sum(part.size_bytes for part in parts), answer)

    def abort_upload(self, upload: Upload) -> None:
        """See Writer.abort_upload."""
        what = f"DELETE {upload.key} upload"
        answer = self._client.request("DELETE", upload.key, what, {"uploadId": upload.upload_id})
        if answer.status != 404 or answer.code == "NoSuchBucket":
            _checked(answer, what, is_write=True)

    def list_uploads(self, prefix: str) -> Sequence[StaleUpload]:
        """See Writer.list_uploads."""
        what = f"LIST uploads {prefix or '/'}"
        found: list[StaleUpload] = []
        params = {"uploads": "", "encoding-type": "url"} | ({"prefix": prefix} if prefix else {})
        markers: Mapping[str, str] = {}
        while True:
            answer = _checked(self._client.request("GET", "", what, {**params, **markers}), what)
            page, following = parse_uploads(answer.body, what)
            found += page
            if not following:
                # Some stores do not filter by the prefix exactly.
                return [each for each in found if each.upload.key.startswith(prefix)]
            if following == markers:
                raise BackendError(f"{what}: the store sent the same markers twice")
            markers = following

    def copy(self, source: ObjectInfo, key: str, condition: Condition, properties: Properties | None) -> Version:
        """See Writer.copy."""
        what = f"COPY {source.key} to {key}"
        _check_key(key, what)
        # If-Match is not tried on its own: where the one is known, so is the other (AWS had both in 2025).
        headers = self._condition_headers(key, condition, lambda can: (can.can_copy_if_absent, can.can_copy_if_absent))
        headers |= self._source_headers(source)
        headers["x-amz-metadata-directive"] = "COPY" if properties is None else "REPLACE"
        # A copy is in the default class unless another is asked for, also with the directive COPY.
        headers |= property_headers(properties if properties is not None else Properties({}, "", source.storage_class))
        answer = self._client.request("PUT", key, what, headers=headers, patience_s=_PATIENCE_S)
        if answer.status in (404, 412) and answer.code != "NoSuchBucket":
            # Of the source or of the target?  The source tells.
            self._check_source(source, what)
            if condition is not Expect.ANYTHING:
                raise PreconditionFailedError(f"{what}: {key} is not what was expected")
        answer = _checked(answer, what, is_write=True)
        return self._version(key, parse_etag(answer.body), source.version.size_bytes, answer)

    def restore(self, key: str, days: int, speed: str = "") -> Restore:
        """See Writer.restore."""
        what = f"RESTORE {key}"
        _check_key(key, what)
        body = restore_message(days, speed)
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        headers = {"content-md5": base64.b64encode(digest).decode(), "content-type": "application/xml"}
        answer = self._client.request("POST", key, what, {"restore": ""}, headers, body)
        if answer.status == 409 and answer.code == "RestoreAlreadyInProgress":
            return Restore.ONGOING
        if answer.code in ("MethodNotAllowed", "NotImplemented"):
            raise UnsupportedError(f"{what}: the store restores nothing")
        if answer.status == 404 and answer.code != "NoSuchBucket":
            raise ObjectMissingError(f"{what}: no such object")
        if answer.status == 403 and answer.code == "InvalidObjectState":
            return self.details(key).restore  # in a class that is read at once
        _checked(answer, what, is_write=True)
        return Restore.ONGOING if answer.status == 202 else self.details(key).restore

    def delete(self, key: str, condition: Condition = Expect.ANYTHING) -> None:
        """See Writer.delete."""
        what = f"DELETE {key}"
        _check_key(key, what)
        headers: dict[str, str] = {}
        if isinstance(condition, Version):
            try:
                headers = self._condition_headers(
                    key, condition, lambda can: (False, can.can_delete_if_match), is_missing_fine=True
                )
            except ObjectMissingError:
                return
        answer = self._client.request("DELETE", key, what, headers=headers)
        if answer.status == 404 and answer.code != "NoSuchBucket":
            return
        if answer.status == 412 and self._is_missing(key):
            return
        self._changed(answer, what, condition)

    def delete_many(self, keys: Iterable[str]) -> Mapping[str, str]:
        """See Writer.delete_many."""
        wanted = list(keys)
        failed: dict[str, str] = {}
        for start in range(0, len(wanted), _DELETE_KEYS):
            batch = wanted[start : start + _DELETE_KEYS]
            what = f"POST delete {len(batch)} objects, {batch[0]} first"
            body = delete_message(batch)
            # Asked for by S3 for this request alone.
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            headers = {"content-md5": base64.b64encode(digest).decode(), "content-type": "application/xml"}
            answer = self._client.request("POST", "", what, {"delete": ""}, headers, body, patience_s=_PATIENCE_S)
            failed |= parse_delete_errors(_checked(answer, what, is_write=True).body, what)
        return failed

    def _find(self) -> S3Findings:
        with self._lock:
            if self._findings is None:
                self._findings = find_abilities(self._client, scratch_key(self._scratch_prefix))
                remove_stale(self._client, self._scratch_prefix)
            return self._findings

    def _condition_headers(
        self,
        key: str,
        condition: Condition,
        kept: Callable[[Abilities], tuple[bool, bool]],
        *,
        is_missing_fine: bool = False,
    ) -> dict[str, str]:
        """Return the headers of a condition; look at the object instead where the server would not keep it.

        kept: returns whether the server keeps If-None-Match and If-Match for this request.
        Raises PreconditionFailedError; ObjectMissingError with is_missing_fine.
        """
        if condition is Expect.ANYTHING:
            return {}
        if_absent, if_match = kept(self.abilities())
        if isinstance(condition, Expect):
            if if_absent:
                return {"if-none-match": "*"}
            if self._is_missing(key):
                return {}
            raise PreconditionFailedError(f"{key}: there is an object already")
        if if_match and condition.etag:
            return {"if-match": self._spell(condition.etag)}
        try:
            now = self.details(key).info.version
        except ObjectMissingError:
            if is_missing_fine:
                raise
            raise PreconditionFailedError(f"{key}: the object is gone") from None
        if not is_same_version(condition, now.etag, now.size_bytes, now.mtime_ns):
            raise PreconditionFailedError(f"{key}: the object has another version now")
        return {}

    def _source_headers(self, source: ObjectInfo) -> dict[str, str]:
        findings = self._find()
        if findings.can_check_source and source.version.etag:
            return copy_headers(self._client.bucket, source.key, self._spell(source.version.etag))
        self._check_source(source, f"COPY {source.key}")
        return copy_headers(self._client.bucket, source.key, "")

    def _check_source(self, source: ObjectInfo, what: str) -> None:
        """Raise VersionGoneError or ObjectMissingError when the source is not there as it was."""
        now = self.details(source.key).info.version
        if not is_same_version(source.version, now.etag, now.size_bytes, now.mtime_ns):
            raise VersionGoneError(f"{what}: the source has another version now")

    def _is_missing(self, key: str) -> bool:
        try:
            self.details(key)
        except ObjectMissingError:
            return True
        return False

    def _spell(self, etag: str) -> str:
        return f'"{etag}"' if self._find().if_match_form == "quoted" else etag

    def _version(self, key: str, etag: str, size_bytes: int, answer: S3Answer) -> Version:
        """Return the version that a change made; asked for where the answer has no ETag."""
        if not etag:
            return self.details(key).info.version
        return Version(etag, answer.headers.get("x-amz-version-id", ""), size_bytes, answer_time_ns(answer.headers))

    def _changed(self, answer: S3Answer, what: str, condition: Condition) -> S3Answer:
        """Return the answer to a conditional change that succeeded."""
        if isinstance(condition, Version) and answer.status == 404 and answer.code != "NoSuchBucket":
            # AWS says 404 when If-Match finds nothing.
            raise PreconditionFailedError(f"{what}: the object is gone")
        return _checked(answer, what, is_write=True)


def _check_key(key: str, what: str) -> None:
    if not is_listable(key):
        raise ObjectMissingError(f"{what}: no object under this key can be addressed")


def _checked(answer: S3Answer, what: str, *, is_write: bool = False) -> S3Answer:
    """Return the answer if it is good, raise what it means else."""
    if answer.status < 300:
        if not (is_write and answer.body and b"<Error" in answer.body and answer.code):
            return answer
        # S3 begins to answer 200 before it has copied or put together everything.
        answer = S3Answer(412 if answer.code == "PreconditionFailed" else 500, answer.headers, answer.body)
    failure = answer.error(what, is_write=is_write)
    if is_write and isinstance(failure, ObjectMissingError) and not answer.code:
        raise BucketMissingError(f"{what}: {answer.status}")
    raise failure


def _part(answer: S3Answer, what: str) -> S3Answer:
    """Return the answer to a part that was stored."""
    if answer.status == 404 and answer.code != "NoSuchBucket":
        raise UploadMissingError(f"{what}: no such upload")
    return _checked(answer, what, is_write=True)
