"""The proxy itself: a witness must be right."""

import threading
from collections.abc import Callable

import obstore
from obstore.store import S3Store

from fanoutfs.backend.base import Backend
from fanoutfs.errors import TransientError
from tests.support.proxy_client import Proxy
from tests.support.servers import ACCESS_KEY, REGION, SECRET_KEY, Bucket

BODY = bytes(range(256)) * 20_000


def _through(proxy: Proxy, bucket: Bucket) -> S3Store:
    return S3Store(
        bucket.name,
        endpoint=proxy.endpoint,
        access_key_id=ACCESS_KEY,
        secret_access_key=SECRET_KEY,
        region=REGION,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


def test_bodies_pass_intact_both_ways_and_are_logged(bucket: Bucket, proxy: Proxy) -> None:
    key = f"{bucket.prefix}a"
    store = _through(proxy, bucket)
    obstore.put(store, key, BODY, use_multipart=False)
    assert bytes(obstore.get(store, key).bytes()) == BODY
    assert bytes(obstore.get_range(store, key, start=5, end=9)) == BODY[5:9]
    seen = [(each.method, each.range, each.status, each.body_bytes, each.fault) for each in proxy.requests(key)]
    assert seen == [("PUT", "", 200, 0, ""), ("GET", "", 200, len(BODY), ""), ("GET", "bytes=5-8", 206, 4, "")]


def test_boto3_upload_with_expect_continue_and_chunks_passes(bucket: Bucket, proxy: Proxy) -> None:
    from tests.support.servers import s3_client

    key = f"{bucket.prefix}a"
    s3_client(proxy.endpoint).put_object(Bucket=bucket.name, Key=key, Body=BODY)
    assert bytes(obstore.get(bucket.store, key).bytes()) == BODY


def test_fault_hits_only_matching_requests_and_only_so_often(
    bucket: Bucket, proxy: Proxy, open_bucket: Callable[..., Backend]
) -> None:
    for name in ("a", "b"):
        bucket.put(name, BODY)
    backend = open_bucket(bucket, proxy.endpoint)
    proxy.fault("status", match=f"{bucket.prefix}b", count=2, status=503)
    outcomes = []
    for name in ("a", "b", "a", "b", "b"):
        try:
            backend.head(bucket.prefix + name)
            outcomes.append(name)
        except TransientError:
            outcomes.append("503")
    assert outcomes == ["a", "503", "a", "503", "b"]
    assert [each.fault for each in proxy.requests(bucket.prefix)] == ["", "status", "", "status", ""]


def test_corrupt_fault_changes_one_bit_and_keeps_the_length(bucket: Bucket, proxy: Proxy) -> None:
    key = f"{bucket.prefix}a"
    bucket.put("a", BODY)
    proxy.fault("corrupt", match=key)
    body = bytes(obstore.get(_through(proxy, bucket), key).bytes())
    changed = [(got ^ right).bit_count() for got, right in zip(body, BODY, strict=True) if got != right]
    assert changed == [1]


def test_waiting_requests_do_not_hold_up_others(
    bucket: Bucket, proxy: Proxy, open_bucket: Callable[..., Backend]
) -> None:
    bucket.put("a", BODY)
    bucket.put("slow", BODY)
    backend = open_bucket(bucket, proxy.endpoint, op_timeout=6.0)
    version = backend.head(f"{bucket.prefix}slow").version
    proxy.fault("stall", match="slow", count=20)
    failures: list[str] = []

    def read() -> None:
        try:
            backend.get_range(f"{bucket.prefix}slow", 0, 10, version)
        except TransientError as error:
            failures.append(type(error).__name__)

    threads = [threading.Thread(target=read) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert backend.head(f"{bucket.prefix}a").version.size_bytes == len(BODY)
    assert failures == []
    for thread in threads:
        thread.join(20)
    assert failures == ["TransientError"] * 20
    assert proxy.stats()["peak"] >= 20
