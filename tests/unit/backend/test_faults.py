"""A real store behind a proxy that misbehaves: what the backend makes of it, and how often it asks."""

from collections.abc import Callable
from typing import Any

import pytest

from fanoutfs.backend.base import Backend, Landing
from fanoutfs.backend.connect import open_backend
from fanoutfs.errors import (
    AccessDeniedError,
    BackendError,
    BucketMissingError,
    CredentialsError,
    DeadlineError,
    TransientError,
    VersionGoneError,
)
from fanoutfs.records import Version
from tests.support import ranges
from tests.support.processes import environment
from tests.support.proxy_client import Proxy
from tests.support.ranges import Get
from tests.support.servers import Bucket

BODY = bytes(range(256)) * 4096


@pytest.fixture
def bare(bucket: Bucket, proxy: Proxy, open_bucket: Callable[..., Backend]) -> Backend:
    """A backend without wrappers behind the proxy; one object `a`."""
    bucket.put("a", BODY)
    return open_bucket(bucket, proxy.endpoint, op_timeout=3.0)


@pytest.fixture
def key(bucket: Bucket) -> str:
    return f"{bucket.prefix}a"


Call = Callable[[Backend, str, Version], object]
CALLS: dict[str, Call] = {
    "head": lambda backend, key, _: backend.head(key),
    "get": lambda backend, key, version: backend.get_range(key, 100, 1_000_000, version),
    "get into": lambda backend, key, version: ranges.get_into(backend, key, 100, 1_000_000, version),
    "list": lambda backend, key, _: list(backend.list(key.removesuffix("a"))),
}


@pytest.fixture(params=ranges.WAYS)
def get(request: pytest.FixtureRequest) -> Get:
    """Return one of the two ways to get a range."""
    way: Get = request.param
    return way


@pytest.mark.parametrize("kind", list(CALLS))
@pytest.mark.parametrize(
    ("fault", "options", "expected"),
    [
        ("status", {"status": 503}, TransientError),
        ("status", {"status": 500, "code": "InternalError"}, TransientError),
        ("status", {"status": 429}, TransientError),
        ("reset", {}, TransientError),
        ("stall", {}, TransientError),
        ("status", {"status": 401, "code": "Unauthorized"}, CredentialsError),
        ("status", {"status": 403, "code": "AccessDenied"}, AccessDeniedError),
    ],
    ids=["503", "500", "429", "reset", "stall", "401", "403"],
)
def test_fault_before_the_answer_is_translated(
    bare: Backend, proxy: Proxy, key: str, kind: str, fault: str, options: dict[str, Any], expected: type[Exception]
) -> None:
    version = bare.head(key).version
    # A denied HEAD is explained by a GET of one byte: let that meet the fault too.
    proxy.fault(fault, count=2 if (kind, expected) == ("head", AccessDeniedError) else 1, **options)
    with pytest.raises(expected) as caught:
        CALLS[kind](bare, key, version)
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("reset", {"after": 1000}),
        ("stall", {"after": 1000}),
        ("short", {"after": 1000}),
        ("short_length", {"after": 1000}),
        ("ignore_range", {}),
        ("header", {"name": "Content-Range", "value": "bytes 101-1000000/1048576"}),
        ("header", {"name": "Content-Range", "value": "bytes 100-999998/1048576"}),
        ("header", {"name": "Content-Range", "value": ""}),
        ("header", {"name": "Content-Range", "value": "nonsense"}),
    ],
    ids=["reset", "stall", "short", "short-length", "ignored", "moved", "cut", "no-range", "bad-range"],
)
def test_wrong_body_or_range_is_transient(
    get: Get, bare: Backend, proxy: Proxy, key: str, fault: str, options: dict[str, Any]
) -> None:
    version = bare.head(key).version
    proxy.fault(fault, **options)
    with pytest.raises(TransientError):
        get(bare, key, 100, 1_000_000, version)


@pytest.mark.parametrize("etag", ['"0123456789abcdef0123456789abcdef"', "0123456789abcdef0123456789abcdef", 'W/"x"'])
def test_answer_with_another_etag_is_another_version(
    get: Get, bare: Backend, proxy: Proxy, key: str, etag: str
) -> None:
    version = bare.head(key).version
    proxy.fault("header", name="ETag", value=etag)
    with pytest.raises(VersionGoneError):
        get(bare, key, 100, 1_000_000, version)


def test_answer_with_another_total_size_is_another_version(get: Get, bare: Backend, proxy: Proxy, key: str) -> None:
    version = bare.head(key).version
    proxy.fault("header", name="Content-Range", value="bytes 100-999999/1048577")
    with pytest.raises(VersionGoneError):
        get(bare, key, 100, 1_000_000, version)


def test_server_that_never_does_ranges_is_refused_with_a_reason(
    get: Get, bare: Backend, proxy: Proxy, key: str
) -> None:
    version = bare.head(key).version
    proxy.fault("ignore_range", count=3)
    for _ in range(2):
        with pytest.raises(TransientError):
            get(bare, key, 100, 1_000_000, version)
    with pytest.raises(BackendError, match="never answered a range") as caught:
        get(bare, key, 100, 1_000_000, version)
    assert not isinstance(caught.value, TransientError)


def test_listing_passes_retry_after_on(bare: Backend, proxy: Proxy, key: str) -> None:
    proxy.fault("status", status=503, retry_after=7)
    with pytest.raises(TransientError) as caught:
        list(bare.list(""))
    assert caught.value.retry_after_s == 7


@pytest.mark.parametrize(("fault", "options"), [("short", {"after": 50}), ("corrupt", {})], ids=["cut", "corrupt"])
def test_listing_that_is_cut_or_broken_never_comes_out_short(
    bare: Backend, proxy: Proxy, key: str, fault: str, options: dict[str, Any]
) -> None:
    proxy.fault(fault, **options)
    with pytest.raises((TransientError, BackendError)):
        list(bare.list(key.removesuffix("a")))


def test_listing_of_a_bucket_in_another_region_names_it(bare: Backend, proxy: Proxy, key: str) -> None:
    proxy.fault("header", name="x-amz-bucket-region", value="eu-west-1", count=1)
    list(bare.list(""))  # the header alone is no failure
    proxy.fault("status", status=404, code="NoSuchBucket")
    with pytest.raises(BucketMissingError):
        list(bare.list(""))


def test_get_with_a_refused_quoted_etag_falls_back_once_and_remembers(
    get: Get, bare: Backend, proxy: Proxy, key: str
) -> None:
    # As Ceph RGW 16 does: 412 although the version is there.
    version = bare.head(key).version
    proxy.fault("status", status=412, code="PreconditionFailed", method="GET")
    assert bytes(get(bare, key, 0, 9, version)) == BODY[:9]
    before = len(proxy.requests(key))
    assert bytes(get(bare, key, 0, 9, version)) == BODY[:9]
    assert [request.method for request in proxy.requests(key)[before:]] == ["GET"]


def test_get_from_a_store_that_refuses_every_etag_still_checks_the_answer(
    get: Get, bare: Backend, proxy: Proxy, key: str, bucket: Bucket
) -> None:
    version = bare.head(key).version
    proxy.fault("status", status=412, code="PreconditionFailed", method="GET", count=2)
    assert bytes(get(bare, key, 0, 9, version)) == BODY[:9]
    bucket.put("a", BODY[::-1])
    with pytest.raises(VersionGoneError):
        get(bare, key, 0, 9, version)


def test_whole_stack_recovers_from_passing_faults_and_counts_them(
    get: Get, bucket: Bucket, proxy: Proxy, key: str
) -> None:
    bucket.put("a", BODY)
    counted: dict[str, int] = {}

    def count(name: str, value: int) -> None:
        counted[name] = counted.get(name, 0) + value

    with environment(bucket.env):
        backend = open_backend(bucket.config(proxy.endpoint), count)
    version = backend.head(key).version
    for fault in ("reset", "short", "short_length"):
        proxy.fault(fault, match=key, after=1000)
    assert bytes(get(backend, key, 0, len(BODY), version)) == BODY
    backend.close()
    assert {name: value for name, value in counted.items() if not name.endswith("_ns")} == {
        "backend_heads": 1, "backend_gets": 4, "backend_errors": 3, "backend_retries": 3, "backend_bytes": len(BODY),
    }  # fmt: skip


def test_landing_is_not_sent_again_what_has_arrived(bucket: Bucket, proxy: Proxy, key: str) -> None:
    bucket.put("a", BODY)
    with environment(bucket.env):
        backend = open_backend(bucket.config(proxy.endpoint))
    version = backend.head(key).version
    proxy.fault("reset", match=key, after=300_000)
    proxy.fault("short", match=key, after=200_000)
    told: list[int] = []
    into = Landing(memoryview(bytearray(len(BODY) - 7)), told.append)
    assert backend.get_range(key, 7, len(BODY), version, into) == BODY[7:]
    assert told == sorted(set(told))
    backend.close()
    starts = [int(request.range.removeprefix("bytes=").partition("-")[0]) for request in proxy.requests(key)[-3:]]
    assert starts[0] == 7
    assert starts[0] <= starts[1] <= starts[2] == starts[1] + 200_000


def test_whole_stack_gives_up_when_the_store_is_gone(bucket: Bucket) -> None:
    with environment(bucket.env):
        backend = open_backend(bucket.config("http://127.0.0.1:9", op_timeout=0.2))
    with pytest.raises(DeadlineError, match="gave up"):
        backend.head("a")
    backend.close()


def test_range_get_asks_for_just_its_bytes_once(get: Get, bare: Backend, proxy: Proxy, key: str) -> None:
    version = bare.head(key).version
    get(bare, key, 100, 300, version)
    (request,) = proxy.requests(key, method="GET")
    assert (request.range, request.status, request.body_bytes) == ("bytes=100-299", 206, 200)
