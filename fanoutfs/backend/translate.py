"""Turns what a store or its client library says into fanoutfs.errors, once, at the edge.

`error_from_status` serves any HTTP answer; `error_from_obstore` takes obstore's exceptions apart.  obstore 0.12 has
no status attribute and drops the headers: the status and the store's error code are read from the message, whose
form the contract tests pin, and Retry-After is lost (the S3 lister, which sees headers, does pass it on).

Messages are rebuilt from what was recognised; the client's own text is quoted only without query strings, because
an Azure SAS signature travels there.  Raise the result `from None`: the original would bring the text back.
"""

import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import obstore.exceptions

from fanoutfs.errors import (
    AccessDeniedError,
    ArchivedError,
    BackendError,
    BucketMissingError,
    CredentialsError,
    ObjectMissingError,
    PreconditionFailedError,
    ReadOnlyStoreError,
    StoreFullError,
    TransientError,
    UnsupportedError,
    UploadMissingError,
    VersionGoneError,
)

_CREDENTIAL_CODES: Final = frozenset(
    {
        "AuthenticationFailed",  # Azure
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidAuthenticationInfo",  # Azure
        "InvalidSecurity",
        "InvalidToken",
        "MissingSecurityHeader",
        "NotSignedUp",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_BUCKET_CODES: Final = frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName"})
_TRANSIENT_CODES: Final = frozenset(
    {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
)
_TRANSIENT_STATUS: Final = frozenset({408, 425, 429})
_FULL_CODES: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})
_CONFLICT_CODES: Final = frozenset({"PreconditionFailed", "BlobAlreadyExists", "conditionNotMet"})  # S3, Azure, Google
_BUSY_CODES: Final = frozenset({"ConditionalRequestConflict", "OperationAborted"})
_ARCHIVED_CODES: Final = frozenset(
    {"InvalidObjectState", "ObjectNotInActiveTierError", "BlobArchived", "BlobBeingRehydrated"}
)
"""S3's for a GET and for a copy, Azure's."""
_DIGEST_CODES: Final = frozenset({"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"})
_GATEWAY_STATUS: Final = frozenset({502, 504})
"""Say nothing of the store behind who answers."""
_LASTING_STATUS: Final = frozenset({501, 505})

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_JSON_CODE: Final = re.compile(r'"reason":\s*"(\w+)"')
_QUERY: Final = re.compile(r"\?[^\s)\"']+")
_REGION: Final = re.compile(r"<Region>([\w-]+)</Region>|expecting '([\w-]+)'")


def error_from_status(
    status: int,
    code: str,
    what: str,
    *,
    retry_after_s: float | None = None,
    region: str = "",
    is_write: bool = False,
) -> BackendError:
    """Return the error for an HTTP answer that is not 2xx.

    code: the store's own error code, "" when the body is missing (HEAD).  what: "GET key", for the message.
    region: where the store says the bucket is, if it says so.
    is_write: the request was to change something: a condition that failed is a conflict then.
    """
    shown = f"{what}: {status}" + (f" {code}" if code else "")
    if region or status in (301, 307):
        hint = f"the bucket is in region {region}" if region else "the endpoint or the region is wrong"
        return BackendError(f"{shown}: {hint}")
    if is_write and (failure := _write_error(status, code, shown)):
        return failure
    if status == 401 or code in _CREDENTIAL_CODES:
        return CredentialsError(f"{shown}: the store rejected the credentials")
    if code in _ARCHIVED_CODES:
        return ArchivedError(f"{shown}: archived, to be restored before it can be read")
    if status == 403:
        return AccessDeniedError(f"{shown}: access denied")
    if code in _BUCKET_CODES:
        return BucketMissingError(f"{shown}: no such bucket")
    if status in (404, 410):
        return ObjectMissingError(f"{shown}: no such object")
    if status == 412:
        return VersionGoneError(f"{shown}: the object has another version now")
    if status == 416:
        # The object has become shorter than the range asked for: not the version we know.
        return VersionGoneError(f"{shown}: the object is shorter than the range asked for")
    if status == 405:
        return BackendError(f"{shown}: the server does not know this operation (http sources are listed by WebDAV)")
    if status in _TRANSIENT_STATUS or (status >= 500 and status not in _LASTING_STATUS) or code in _TRANSIENT_CODES:
        return TransientError(shown, retry_after_s, is_settled=status not in _GATEWAY_STATUS)
    return BackendError(shown)


def _write_error(status: int, code: str, shown: str) -> BackendError | None:
    """Return the error that only a change can meet, None for all others."""
    if status == 412 or code in _CONFLICT_CODES:
        return PreconditionFailedError(f"{shown}: the object is not what was expected")
    if status == 404 and code == "NoSuchUpload":
        return UploadMissingError(f"{shown}: no such upload")
    if status == 507 or code in _FULL_CODES:
        return StoreFullError(f"{shown}: no room, or a quota is reached")
    if code in _DIGEST_CODES or code in _BUSY_CODES or (status == 409 and not code):
        # The body changed on the way; or another change of the same object is under way.
        return TransientError(shown)
    if status == 405:
        return ReadOnlyStoreError(f"{shown}: the server takes no changes")
    return None


def error_from_obstore(error: Exception, what: str, *, is_write: bool = False) -> BackendError:
    """Return the error for an exception of an obstore call.  what: "GET key", for the message.  is_write: as above."""
    text = str(error).partition("\n\nDebug source")[0]
    status_match = _STATUS.search(text)
    if status_match:
        code_match = _CODE.search(text) or _JSON_CODE.search(text)
        region_match = _REGION.search(text)
        region = (region_match.group(1) or region_match.group(2)) if region_match else ""
        return error_from_status(
            int(status_match.group(1)),
            code_match.group(1) if code_match else "",
            what,
            region=region,
            is_write=is_write,
        )
    if isinstance(error, FileNotFoundError | obstore.exceptions.NotFoundError):
        return ObjectMissingError(f"{what}: no such object")
    if isinstance(error, obstore.exceptions.AlreadyExistsError):
        return PreconditionFailedError(f"{what}: there is an object already")
    if isinstance(error, obstore.exceptions.PreconditionError) and is_write:
        return PreconditionFailedError(f"{what}: the object has another version now")
    if isinstance(error, obstore.exceptions.NotSupportedError | NotImplementedError):
        return UnsupportedError(f"{what}: this store cannot do it")
    if isinstance(error, obstore.exceptions.PreconditionError):
        return VersionGoneError(f"{what}: the object has another version now")
    if isinstance(error, obstore.exceptions.PermissionDeniedError | PermissionError):
        return AccessDeniedError(f"{what}: access denied")
    if isinstance(error, obstore.exceptions.UnauthenticatedError):
        return CredentialsError(f"{what}: the store rejected the credentials")
    if isinstance(error, obstore.exceptions.InvalidPathError):
        return BackendError(f"{what}: the store holds a key there that cannot be represented")
    return error_from_text(text, what)


def error_from_text(text: str, what: str) -> BackendError:
    """Return the error for a failure without HTTP status."""
    if "non-partial response" in text:
        return TransientError(f"{what}: the server ignored the range and sent the whole object (200 instead of 206)")
    if (
        ("Requested " in text and ", got " in text)
        or "Wanted range starting at" in text  # behind the end that Content-Range names
        or "content_range" in text.lower()
        or "content-range" in text.lower()
    ):
        return TransientError(f"{what}: the server sent another range than asked for")
    if "Received redirect without LOCATION" in text:
        return error_from_status(301, "", what)
    if "HTTP error" in text or "error sending request" in text or "body error" in text or "timed out" in text.lower():
        return TransientError(f"{what}: connection failed, was cut or timed out")
    if "credential" in text.lower() or "metadata endpoint" in text or "token" in text.lower():
        return CredentialsError(f"{what}: no usable credentials: {_one_line(text)}")
    return BackendError(f"{what}: {_one_line(text)}")


def _one_line(text: str) -> str:
    return _QUERY.sub("?...", " ".join(text.split()))[:300]


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds a Retry-After header asks for (RFC 9110, 10.2.3: number or date), None without one."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000": UTC all the same
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
