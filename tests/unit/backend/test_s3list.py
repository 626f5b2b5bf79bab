"""Listing pages: parsing and the walk over them."""

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from fanoutfs.backend.base import Backend
from fanoutfs.backend.s3list import parse_page
from fanoutfs.errors import BackendError, TransientError
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def _page(inside: str, namespace: str = NAMESPACE) -> bytes:
    return f"<?xml version='1.0'?><ListBucketResult{namespace}>{inside}</ListBucketResult>".encode()


def _object(key: str) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>2025-10-21T07:28:00.123Z</LastModified>"
        '<ETag>"abc"</ETag><Size>3</Size></Contents>'
    )


@pytest.mark.parametrize("namespace", [NAMESPACE, ""], ids=["namespace", "none"])
def test_page_is_parsed_with_and_without_namespace(namespace: str) -> None:
    body = _page(_object("a") + "<CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes>", namespace)
    page, token = parse_page(body, "LIST /")
    (info,) = page.objects
    assert (info.key, info.version.etag, info.version.size_bytes) == ("a", "abc", 3)
    assert info.version.mtime_ns == 1761031680 * 10**9
    assert (page.prefixes, page.hidden, token) == (("b/",), 0, "")


@pytest.mark.parametrize(("said", "known"), [("GLACIER", "GLACIER"), ("STANDARD", ""), (None, "")])
def test_class_is_told_where_it_is_not_the_default(said: str | None, known: str) -> None:
    entry = _object("a")
    if said is not None:
        entry = entry.replace("</Contents>", f"<StorageClass>{said}</StorageClass></Contents>")
    page, _token = parse_page(_page(entry), "LIST /")
    assert [info.storage_class for info in page.objects] == [known]


def test_keys_are_decoded_only_when_the_store_says_it_encoded_them() -> None:
    encoded, _ = parse_page(_page("<EncodingType>url</EncodingType>" + _object("a+b%2Bc%20")), "LIST /")
    plain, _ = parse_page(_page(_object("a+b%2Bc%20")), "LIST /")
    assert [info.key for info in (*encoded.objects, *plain.objects)] == ["a b+c ", "a+b%2Bc%20"]


@pytest.mark.parametrize(
    "body", [b"", b"<html><body>log in</body></html>", _page(_object("a"))[:-5], b"not xml", b"<a/>"],
    ids=["empty", "html", "cut", "text", "other"],
)  # fmt: skip
def test_answer_that_is_no_listing_is_transient(body: bytes) -> None:
    with pytest.raises(TransientError):
        parse_page(body, "LIST /")


@pytest.mark.parametrize(
    "inside",
    ["<Contents><Key>a</Key></Contents>", _object("a").replace(">3<", ">many<"), _object("a").replace("2025", "x")],
    ids=["no-size", "bad-size", "bad-date"],
)
def test_listing_with_broken_entries_is_a_backend_error(inside: str) -> None:
    with pytest.raises(BackendError):
        parse_page(_page(inside), "LIST /")


def test_truncated_page_without_token_is_an_error_not_a_short_listing() -> None:
    with pytest.raises(BackendError):
        parse_page(_page("<IsTruncated>true</IsTruncated>"), "LIST /")


def test_pages_are_asked_for_one_by_one_and_connections_reused(
    moto_bucket: Bucket, moto_proxy: Proxy, open_bucket: Callable[..., Backend]
) -> None:
    for number in range(1001):
        moto_bucket.put(f"{number:04d}", b"")
    backend = open_bucket(moto_bucket, moto_proxy.endpoint)
    pages = backend.list("")
    assert moto_proxy.requests() == []
    assert len(next(pages).objects) == 1000
    assert len(moto_proxy.requests()) == 1
    assert len(next(pages).objects) == 1
    assert len(moto_proxy.requests()) == 2


def test_many_threads_list_at_once(moto_bucket: Bucket, open_bucket: Callable[..., Backend]) -> None:
    moto_bucket.put("a", b"")
    backend = open_bucket(moto_bucket)
    seen: list[int] = []
    threads = [
        threading.Thread(target=lambda: seen.append(sum(len(page.objects) for page in backend.list(""))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [1] * 8


def test_importing_the_package_loads_no_client_library() -> None:
    code = "import sys, fanoutfs.backend; sys.exit('obstore' in sys.modules or 'ssl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
