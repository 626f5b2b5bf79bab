"""Finds out which conditions an S3 server keeps, by asking it.

Servers differ, and those that do not know a condition ignore it and answer 200 (rclone serve s3; Ceph RGW 16 when an
upload is completed): nothing but a try tells.  About twenty requests, once per mount, before the first conditional
change; scratch objects of a few bytes under one key, deleted again.  A kill in between leaves them there.

AWS has had conditional puts and completions since 2024, deletes and copies since 2025.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fanoutfs.backend.keys import SCRATCH_PREFIX, bare_etag
from fanoutfs.backend.s3client import S3Answer, S3Client
from fanoutfs.backend.s3list import parse_scratch_page
from fanoutfs.backend.s3messages import (
    answer_time_ns,
    complete_message,
    copy_headers,
    parse_etag,
    parse_upload_id,
)
from fanoutfs.backend.writing import Abilities, Part
from fanoutfs.errors import (
    BackendError,
    BucketMissingError,
    CredentialsError,
    TransientError,
)

log = logging.getLogger(__name__)

# "Amazon S3 multipart upload limits" of the S3 user guide; other stores keep to them.
MIN_PART_BYTES: Final = 5 << 20
MAX_PART_BYTES: Final = 5 << 30
MAX_PARTS: Final = 10_000

STALE_S: Final = 3600.0
"""A probe under way may be another daemon's, but not for so long."""
_WRONG: Final = "00000000000000000000000000000000"
_BODY: Final = b"fanoutfs asks which conditions are kept here"


@dataclass(frozen=True, slots=True)
class S3Findings:
    """What was found.  if_match_form: how an ETag is to be spelled in a condition, "quoted" or "bare"."""

    abilities: Abilities
    if_match_form: str
    can_check_source: bool
    """The condition on the source of a copy is kept."""


def find_abilities(client: S3Client, key: str) -> S3Findings:
    """Ask the server.  key: of the scratch object.  Raises what a put raises; nothing is concluded from a failure."""
    probe = _Probe(client, key)
    try:
        return probe.run()
    finally:
        probe.clean()


def remove_stale(client: S3Client, prefix: str, age_s: float = STALE_S) -> None:
    """Delete the scratch objects below a prefix that killed probes left.  What cannot be deleted stays."""
    what = "LIST scratch objects"
    params = {"list-type": "2", "encoding-type": "url", "prefix": f"{prefix}{SCRATCH_PREFIX}"}
    try:
        answer = client.request("GET", "", what, params)
        if answer.status != 200:
            return  # who may put may not always list
        page, _more = parse_scratch_page(answer.body, what)
        newest_ns = answer_time_ns(answer.headers) - int(age_s * 1e9)  # by the server's clock, as the objects' times
        for info in page.objects:
            if info.version.mtime_ns <= newest_ns:
                client.request("DELETE", info.key, "DELETE scratch object")
    except BackendError as error:
        log.debug("scratch objects of earlier probes stay: %s", error)


class _Probe:
    """The questions, each of which leaves an object under `key` for the next."""

    def __init__(self, client: S3Client, key: str) -> None:
        self._client = client
        self._key = key
        self._copy_key = f"{key}-copy"
        self._etag = ""
        self._form = "quoted"
        self._uploads: set[str] = set()

    def run(self) -> S3Findings:
        """Ask everything."""
        self._etag = self._need(self._put({"x-amz-meta-probe": "yes"}))
        head = self._client.request("HEAD", self._key, "HEAD scratch object")
        if_absent = self._is_kept(self._put({"if-none-match": "*"}))
        if_match = self._ask_if_match()
        can_check_source = self._is_kept(self._copy(_WRONG))
        copied = self._copy(self._etag)
        if copied.status == 412:  # a server that keeps the condition, but knows no version by its ETag
            can_check_source = False
            copied = self._copy("")
        copy_if_absent = copied.status == 200 and self._is_kept(self._copy("", {"if-none-match": "*"}))
        can_upload, can_copy_part, complete_if_absent, complete_if_match = self._ask_uploads()
        delete_if_match = self._is_kept(
            self._client.request("DELETE", self._key, "DELETE", headers={"if-match": self._spell(_WRONG)})
        )
        return S3Findings(
            Abilities(
                can_put_if_absent=if_absent,
                can_put_if_match=if_match,
                can_upload_parts=can_upload,
                can_copy_part=can_copy_part,
                can_complete_if_absent=complete_if_absent,
                can_complete_if_match=complete_if_match,
                can_copy_if_absent=copy_if_absent,
                can_delete_if_match=delete_if_match,
                can_mark_directories=True,
                has_metadata=head.headers.get("x-amz-meta-probe") == "yes",
                min_part_bytes=MIN_PART_BYTES,
                max_part_bytes=MAX_PART_BYTES,
                max_parts=MAX_PARTS,
                max_put_bytes=MAX_PART_BYTES,
                max_copy_bytes=MAX_PART_BYTES,
                can_change_class=True,
            ),
            self._form,
            can_check_source,
        )

    def clean(self) -> None:
        """Delete the scratch objects; what cannot be deleted stays."""
        try:
            for upload_id in self._uploads:
                self._client.request("DELETE", self._key, "abort scratch upload", {"uploadId": upload_id})
            for key in (self._key, self._copy_key):
                self._client.request("DELETE", key, "DELETE scratch object")
        except BackendError:
            pass

    def _ask_if_match(self) -> bool:
        if not self._is_kept(self._put({"if-match": self._spell(_WRONG)})):
            return False
        # RFC 9110 wants quotes; Ceph RGW 16 answers 412 to them although the version is there.
        for form in ("quoted", "bare"):
            self._form = form
            answer = self._put({"if-match": self._spell(self._etag)})
            if answer.status == 200:
                self._etag = self._need(answer)
                return True
        self._form = "quoted"
        return False

    def _ask_uploads(self) -> tuple[bool, bool, bool, bool]:
        """Return whether there are uploads, copied parts, and completions if absent and if matching."""
        upload_id, part, can_copy_part = self._one_part()
        if part is None:
            return False, False, False, False
        if_absent = self._is_kept(self._complete(upload_id, part, {"if-none-match": "*"}))
        if not if_absent:
            can_copy_part = can_copy_part and self._size() == part.size_bytes
            upload_id, part, _ = self._one_part()
            if part is None:
                return False, False, False, False
        if_match = self._is_kept(self._complete(upload_id, part, {"if-match": self._spell(_WRONG)}))
        if if_match:
            if_match = self._complete(upload_id, part, {"if-match": self._spell(self._etag)}).status == 200
        if if_absent and not if_match:
            self._complete(upload_id, part, {})
        return True, can_copy_part and self._size() == part.size_bytes, if_absent, if_match

    def _one_part(self) -> tuple[str, Part | None, bool]:
        """Begin an upload of one part; return its id, the part, None without uploads, and whether it was copied.

        Two bytes are copied, to see that the range counts.
        """
        upload_id = self._begin()
        if not upload_id:
            return "", None, False
        self._etag = bare_etag(self._client.request("HEAD", self._key, "HEAD scratch object").headers.get("etag"))
        headers = copy_headers(self._client.bucket, self._key, self._spell(self._etag))
        headers["x-amz-copy-source-range"] = "bytes=1-2"
        params = {"uploadId": upload_id, "partNumber": "1"}
        answer = self._client.request("PUT", self._key, "PUT copied part", params, headers)
        if answer.status == 200 and (etag := parse_etag(answer.body)):
            return upload_id, Part(1, etag, 2), True
        self._is_kept(answer)
        # A new upload: rclone serve s3 took the request for an empty part, and takes no part twice.
        upload_id = self._begin()
        params = {"uploadId": upload_id, "partNumber": "1"}
        answer = self._client.request("PUT", self._key, "PUT part", params, body=_BODY)
        if answer.status != 200:
            self._is_kept(answer)
            return upload_id, None, False
        return upload_id, Part(1, bare_etag(answer.headers.get("etag")), len(_BODY)), False

    def _begin(self) -> str:
        answer = self._client.request("POST", self._key, "POST scratch upload", {"uploads": ""})
        if answer.status != 200:
            self._is_kept(answer)
            return ""
        upload_id = parse_upload_id(answer.body)
        self._uploads.add(upload_id)
        return upload_id

    def _complete(self, upload_id: str, part: Part, headers: Mapping[str, str]) -> S3Answer:
        answer = self._client.request(
            "POST", self._key, "complete scratch upload", {"uploadId": upload_id}, headers, complete_message([part])
        )
        if answer.status == 200 and not answer.code:
            self._uploads.discard(upload_id)
        return answer

    def _copy(self, source_etag: str, headers: Mapping[str, str] | None = None) -> S3Answer:
        sent = copy_headers(self._client.bucket, self._key, self._spell(source_etag) if source_etag else "")
        return self._client.request("PUT", self._copy_key, "copy scratch object", headers={**sent, **(headers or {})})

    def _put(self, headers: Mapping[str, str]) -> S3Answer:
        return self._client.request("PUT", self._key, f"PUT {self._key}", headers=headers, body=_BODY)

    def _size(self) -> int:
        return int(self._client.request("HEAD", self._key, "HEAD scratch object").headers.get("content-length", "-1"))

    def _spell(self, etag: str) -> str:
        return f'"{etag}"' if self._form == "quoted" else etag

    def _need(self, answer: S3Answer) -> str:
        """Return the ETag of a put that must succeed."""
        if answer.status != 200:
            raise answer.error(f"PUT {self._key}", is_write=True)
        return bare_etag(answer.headers.get("etag"))

    def _is_kept(self, answer: S3Answer) -> bool:
        """Return whether a condition that does not hold was kept.  Raises when the answer says nothing about that."""
        if answer.status == 412 or answer.code == "PreconditionFailed":
            return True
        if answer.status >= 300:
            # Denied is an answer too: who may put may not always copy or delete.
            error = answer.error(f"PUT {self._key}", is_write=True)
            if isinstance(error, TransientError | CredentialsError | BucketMissingError):
                raise error
        return False
