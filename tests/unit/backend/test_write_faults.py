"""Writes to a real store behind a proxy that misbehaves: what becomes of them, and how often it is asked."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.backend.base import Backend
from fanoutfs.backend.connect import open_backend
from fanoutfs.backend.writing import TOKEN_KEY, Expect, FileRange, Properties
from fanoutfs.errors import (
    AccessDeniedError,
    BackendError,
    CredentialsError,
    PreconditionFailedError,
    ReadOnlyStoreError,
    StoreFullError,
    TransientError,
    UploadMissingError,
)
from fanoutfs.records import MIB
from tests.support.processes import environment
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

BODY = os.urandom(3 * MIB)
NONE = Properties()


@pytest.fixture
def bare(bucket: Bucket, proxy: Proxy, open_bucket: Callable[..., Backend]) -> Backend:
    """A backend without wrappers behind the proxy, which has asked already what the store can do."""
    backend = open_bucket(bucket, proxy.endpoint, op_timeout=15.0)
    backend.abilities()
    return backend


@pytest.fixture
def stack(bucket: Bucket, proxy: Proxy) -> Iterator[Backend]:
    """The whole stack behind the proxy."""
    with environment(bucket.env):
        backend = open_backend(bucket.config(proxy.endpoint, op_timeout=20.0))
    backend.abilities()
    yield backend
    backend.close()


@pytest.fixture
def key(bucket: Bucket) -> str:
    return f"{bucket.prefix}a"


@pytest.fixture
def body(tmp_path: Path) -> Iterator[FileRange]:
    """The body in a file."""
    (tmp_path / "staged").write_bytes(BODY)
    fd = os.open(tmp_path / "staged", os.O_RDONLY)
    yield FileRange(fd, 0, len(BODY))
    os.close(fd)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"status": 503, "code": "SlowDown", "retry_after": "7"}, TransientError),
        ({"status": 500, "code": "InternalError"}, TransientError),
        ({"status": 409, "code": "ConditionalRequestConflict"}, TransientError),
        ({"status": 400, "code": "XAmzContentSHA256Mismatch"}, TransientError),
        ({"status": 412, "code": "PreconditionFailed"}, PreconditionFailedError),
        ({"status": 404, "code": "NoSuchKey"}, PreconditionFailedError),
        ({"status": 403, "code": "AccessDenied"}, AccessDeniedError),
        ({"status": 403, "code": "ExpiredToken"}, CredentialsError),
        ({"status": 403, "code": "QuotaExceeded"}, StoreFullError),
        ({"status": 507}, StoreFullError),
        ({"status": 405, "code": "MethodNotAllowed"}, ReadOnlyStoreError),
        ({"status": 400, "code": "EntityTooLarge"}, BackendError),
    ],
    ids=lambda value: str(value.get("code") or value["status"]) if isinstance(value, dict) else "",
)
def test_refusal_of_a_conditional_put_is_understood_and_changes_nothing(
    bare: Backend, proxy: Proxy, bucket: Bucket, key: str, body: FileRange, options: dict[str, Any],
    expected: type[BackendError],
) -> None:  # fmt: skip
    bucket.put("a", b"before")
    version = bare.head(key).version
    proxy.fault("status", match=key, method="PUT", **options)
    with pytest.raises(expected) as caught:
        bare.put(key, body, version, NONE)
    assert type(caught.value) is expected
    if isinstance(caught.value, TransientError) and "retry_after" in options:
        assert caught.value.retry_after_s == 7
    assert bytes(bare.get_range(key, 0, 6, version)) == b"before"


def test_lost_answer_to_a_put_is_transient_and_the_object_is_there(
    bare: Backend, proxy: Proxy, key: str, body: FileRange
) -> None:
    proxy.fault("lost", match=key, method="PUT")
    with pytest.raises(TransientError):
        bare.put(key, body, Expect.NOTHING, NONE)
    version = bare.head(key).version
    assert bytes(bare.get_range(key, 0, len(BODY), version)) == BODY


def test_stack_takes_the_object_of_a_lost_answer_for_its_own(
    stack: Backend, proxy: Proxy, bucket: Bucket, key: str, body: FileRange
) -> None:
    proxy.fault("lost", match=key, method="PUT")
    version = stack.put(key, body, Expect.NOTHING, Properties({"mode": "33188"}))
    assert stack.head(key).version.etag == version.etag
    assert len(proxy.requests(key, method="PUT")) == 2
    bucket.put("a", b"foreign")
    proxy.fault("lost", match=key, method="PUT")
    with pytest.raises(PreconditionFailedError):
        stack.put(key, body, version, NONE)
    assert stack.head(key).version.size_bytes == 7


def test_put_repeated_after_a_crash_with_its_token_is_recognised(stack: Backend, key: str) -> None:
    properties = Properties({"mode": "33188", TOKEN_KEY: "of this upload"})
    first = stack.put(key, BODY, Expect.NOTHING, properties)
    assert stack.put(key, BODY, Expect.NOTHING, properties).etag == first.etag
    with pytest.raises(PreconditionFailedError):
        stack.put(key, BODY, Expect.NOTHING, Properties({"mode": "33152", TOKEN_KEY: "of this upload"}))
    with pytest.raises(PreconditionFailedError):
        stack.put(key, BODY[1:], Expect.NOTHING, properties)


def test_upload_survives_a_fault_at_every_step(stack: Backend, proxy: Proxy, key: str, body: FileRange) -> None:
    for method in ("POST", "PUT"):
        proxy.fault("status", match=key, method=method, status=503)
    upload = stack.begin_upload(key, NONE)
    proxy.fault("lost", match="partNumber", method="PUT")
    part = stack.upload_part(upload, 1, body)
    proxy.fault("lost", match="uploadId", method="POST")
    version = stack.complete_upload(upload, [part], Expect.NOTHING)
    assert bytes(stack.get_range(key, 0, len(BODY), version)) == BODY
    source = stack.head(key)
    proxy.fault("lost", match=key, method="PUT")
    stack.copy(source, f"{key}-copy", Expect.NOTHING, None)
    proxy.fault("lost", match=key, method="DELETE")
    stack.delete(key, source.version)
    assert [info.key for page in stack.list(key) for info in page.objects if info.key == key] == []


def test_upload_that_the_store_forgot_is_missing_not_complete(stack: Backend, key: str) -> None:
    upload = stack.begin_upload(key, NONE)
    part = stack.upload_part(upload, 1, b"x")
    stack.abort_upload(upload)
    with pytest.raises(UploadMissingError):
        stack.complete_upload(upload, [part], Expect.ANYTHING)


def test_seaweedfs_is_found_to_keep_every_condition(bare: Backend) -> None:
    found = bare.abilities()
    assert [name for name in found.__slots__ if getattr(found, name) is False] == []


def test_conditional_put_is_one_request_once_the_store_is_known(bare: Backend, proxy: Proxy, key: str) -> None:
    version = bare.put(key, BODY, Expect.NOTHING, NONE)
    bare.put(key, b"x", version, NONE)
    assert [request.method for request in proxy.requests(key)] == ["PUT", "PUT"]


def test_condition_that_the_store_ignores_is_looked_at_first(
    moto_bucket: Bucket, moto_proxy: Proxy, open_bucket: Callable[..., Backend]
) -> None:
    backend = open_bucket(moto_bucket, moto_proxy.endpoint)
    abilities = backend.abilities()
    # What moto 5.2 is known to ignore; a later one may know more, and needs another server here.
    assert not abilities.can_copy_if_absent
    assert not abilities.can_complete_if_match
    moto_bucket.put("a", b"source")
    moto_bucket.put("b", b"there")
    source = backend.head("a")
    with pytest.raises(PreconditionFailedError):
        backend.copy(source, "b", Expect.NOTHING, None)
    assert [request.method for request in moto_proxy.requests(f"/{moto_bucket.name}/b")] == ["HEAD"]


def test_file_that_becomes_shorter_while_it_is_sent_fails_and_makes_no_object(
    bare: Backend, key: str, tmp_path: Path
) -> None:
    path = tmp_path / "shrinking"
    path.write_bytes(BODY)
    fd = os.open(path, os.O_RDONLY)
    os.truncate(path, 10)
    with pytest.raises(BackendError, match="ends at 10 instead of"):
        bare.put(key, FileRange(fd, 0, len(BODY)), Expect.NOTHING, NONE)
    os.close(fd)
    assert list(bare.list_uploads(key)) == []
    bare.put(key, b"now", Expect.NOTHING, NONE)
