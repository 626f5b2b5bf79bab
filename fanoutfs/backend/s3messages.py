"""The headers and XML bodies of S3's changing requests.  Pure.

Source: Amazon S3 API reference (CreateMultipartUpload, CompleteMultipartUpload, CopyObject, DeleteObjects,
ListMultipartUploads).  S3 may answer 200 and put an <Error> into the body (copy, completion): parsers return "" then,
and whoever asked looks at S3Answer.code.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import quote, unquote_plus
from xml.sax.saxutils import escape

from fanoutfs.backend.keys import bare_etag, whole_second_ns
from fanoutfs.backend.writing import Part, Properties, StaleUpload, Upload
from fanoutfs.errors import BackendError, TransientError

_META: str = "x-amz-meta-"
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


def property_headers(properties: Properties) -> dict[str, str]:
    """Return the headers that say these properties.  Raises BackendError for metadata no header can carry."""
    headers: dict[str, str] = {}
    for name, value in properties.metadata.items():
        if not (value.isascii() and value.isprintable() and value == value.strip() and name.isascii()):
            raise BackendError(f"metadata {name!r} cannot be sent as a header")
        headers[_META + name.lower()] = value
    if properties.content_type:
        headers["content-type"] = properties.content_type
    if properties.storage_class:
        headers["x-amz-storage-class"] = properties.storage_class
    return headers


def parse_properties(headers: Mapping[str, str]) -> Properties:
    """Return the properties that the headers of an answer tell.  headers: names in lower case."""
    metadata = {name.removeprefix(_META): value for name, value in headers.items() if name.startswith(_META)}
    return Properties(metadata, headers.get("content-type", ""), headers.get("x-amz-storage-class", ""))


def copy_headers(bucket: str, key: str, spelled_etag: str) -> dict[str, str]:
    """Return what names the source of a copy.  spelled_etag: "" for whatever version is there."""
    headers = {"x-amz-copy-source": quote(f"/{bucket}/{key}", safe="/-_.~")}
    if spelled_etag:
        headers["x-amz-copy-source-if-match"] = spelled_etag
    return headers


def complete_message(parts: Sequence[Part]) -> bytes:
    """Return the body of CompleteMultipartUpload."""
    rows = "".join(
        f"<Part><PartNumber>{part.number}</PartNumber><ETag>&quot;{escape(part.etag)}&quot;</ETag></Part>"
        for part in parts
    )
    return f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>".encode()


def delete_message(keys: Sequence[str]) -> bytes:
    """Return the body of DeleteObjects."""
    rows = "".join(f"<Object><Key>{escape(key)}</Key></Object>" for key in keys)
    return f'<?xml version="1.0" encoding="UTF-8"?><Delete>{rows}<Quiet>true</Quiet></Delete>'.encode()


def parse_delete_errors(body: bytes, what: str) -> dict[str, str]:
    """Return key → code of what DeleteObjects could not delete."""
    failed: dict[str, str] = {}
    for element in _root(body, what):
        fields = _fields(element)
        if element.tag.rpartition("}")[2] == "Error" and fields.get("Code") != "NoSuchKey":
            failed[fields.get("Key", "")] = fields.get("Code", "unknown")
    return failed


def parse_etag(body: bytes) -> str:
    """Return the ETag in the answer to a copy or a completion, bare; "" when there is none."""
    return bare_etag(_first(body, "ETag"))


def parse_upload_id(body: bytes) -> str:
    """Return the id of the upload that was begun.  Raises TransientError for another answer."""
    upload_id = _first(body, "UploadId")
    if not upload_id:
        raise TransientError("begin upload: the answer has no UploadId")
    return upload_id


def parse_uploads(body: bytes, what: str) -> tuple[list[StaleUpload], dict[str, str]]:
    """Return a page of ListMultipartUploads, and the parameters of the next page, {} at the end."""
    root = _root(body, what)
    top = _fields(root)
    is_encoded = top.get("EncodingType") == "url"

    def decode(text: str) -> str:
        return unquote_plus(text, errors="surrogateescape") if is_encoded else text

    found = []
    for element in root:
        if element.tag.rpartition("}")[2] != "Upload":
            continue
        fields = _fields(element)
        try:
            started_ns = whole_second_ns(datetime.fromisoformat(fields["Initiated"]))
            found.append(StaleUpload(Upload(decode(fields["Key"]), fields["UploadId"]), started_ns))
        except (KeyError, ValueError) as error:
            raise BackendError(f"{what}: an entry is broken: {type(error).__name__}: {error}") from None
    if top.get("IsTruncated") != "true":
        return found, {}
    markers = {
        "key-marker": decode(top.get("NextKeyMarker", "")),
        "upload-id-marker": top.get("NextUploadIdMarker", ""),
    }
    return found, {name: value for name, value in markers.items() if value}


def answer_time_ns(headers: Mapping[str, str]) -> int:
    """Return when the store made the answer: a put does not say Last-Modified, and Date is at most a second off."""
    return _date_ns(headers.get("last-modified") or headers.get("date") or "")


def restored_until_ns(restore: str) -> int:
    """Return until when an object can be read by its header x-amz-restore; 0: it does not say."""
    found = re.search(r'expiry-date="([^"]*)"', restore)
    return _date_ns(found[1]) if found else 0


def parse_range(content_range: str) -> tuple[int, int, int] | None:
    """Return (start, end, size of the object) out of a Content-Range header, None for another one."""
    match = _RANGE.fullmatch(content_range.strip())
    return None if match is None else (int(match[1]), int(match[2]) + 1, int(match[3]))


def _root(body: bytes, what: str) -> ET.Element:
    try:
        return ET.fromstring(body)  # noqa: S314 - expat >= 2.4.1 bounds entity expansion
    except ET.ParseError as error:
        raise TransientError(f"{what}: the answer is not XML: {error}") from None


def _fields(element: ET.Element) -> dict[str, str]:
    return {child.tag.rpartition("}")[2]: child.text or "" for child in element}


def _first(body: bytes, name: str) -> str:
    try:
        root = ET.fromstring(body)  # noqa: S314 - as above
    except ET.ParseError:
        return ""
    for element in root.iter():
        if element.tag.rpartition("}")[2] == name:
            return element.text or ""
    return ""


def restore_message(days: int, speed: str) -> bytes:
    """Return the body of RestoreObject.  speed: "" for the store's default; not every store knows the element."""
    job = f"<GlacierJobParameters><Tier>{escape(speed)}</Tier></GlacierJobParameters>" if speed else ""
    return (
        f'<RestoreRequest xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Days>{days}</Days>{job}</RestoreRequest>'
    ).encode()


def _date_ns(text: str) -> int:
    """Return a date of HTTP; 0: it is none."""
    try:
        return whole_second_ns(parsedate_to_datetime(text))
    except ValueError:
        return 0
