"""Fills: every byte once, also when the store misbehaves; errors are bounded in time and not for ever."""

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.records import KIB, MIB
from tests.fault.children import Child, Children, content, digest, read_digest, read_errno
from tests.fault.conftest import Mounter
from tests.fault.test_kills import forget_pages
from tests.support.mounts import wait_until
from tests.support.proxy_client import Proxy, Request
from tests.support.servers import Bucket

READERS = 64
PART = 8 * MIB


def byte_range(request: Request) -> tuple[int, int]:
    """Return the first byte asked for and the one behind the last."""
    first, last = request.range.removeprefix("bytes=").split("-")
    return int(first), int(last) + 1


def gets(proxy: Proxy, name: str) -> list[Request]:
    """Return the GETs of one object (listings carry a query)."""
    return [request for request in proxy.requests(name, "GET") if "?" not in request.path]


def assert_sent_once(requests: list[Request], size_bytes: int) -> None:
    """The ranges join without a gap or an overlap, and nothing more was sent."""
    ranges = sorted(byte_range(request) for request in requests)
    expected = 0
    for first, stop in ranges:
        assert first == expected, f"gap or overlap at {expected}: {ranges}"
        expected = stop
    assert expected == size_bytes
    assert sum(request.body_bytes for request in requests) == size_bytes


def assert_fetched_once(requests: list[Request], size_bytes: int) -> None:
    """The same of the whole answers; only what answers brought that were cut may be missing in front of the next."""
    starts = [(byte_range(each)[0], each.body_bytes) for each in requests if each.fault and each.status == 206]
    ranges = sorted(byte_range(request) for request in requests if not request.fault)
    expected = 0
    for first, stop in ranges:
        brought = expected
        for start, size in sorted(starts):  # each goes on where the one before it was cut
            if expected <= start <= brought:
                brought = max(brought, start + size)
        assert expected <= first <= brought, f"gap or overlap at {expected}: {ranges}, cut: {starts}"
        expected = stop
    assert expected == size_bytes


def read_parts(path: Path, start: int, gate: mmap.mmap) -> list[str]:
    """Wait at the gate, read a file by parts, beginning at part `start` and going round; return their digests."""
    fd = os.open(path, os.O_RDONLY)
    try:
        while not gate[0]:
            os.sched_yield()
        count = -(-os.fstat(fd).st_size // PART)
        found = [""] * count
        for step in range(count):
            part = (start + step) % count
            chunks = [os.pread(fd, MIB, part * PART + at) for at in range(0, PART, MIB)]
            found[part] = digest(b"".join(chunks))
        return found
    finally:
        os.close(fd)


def test_many_readers_of_one_cold_large_file_fetch_every_byte_once(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    body = content(1, 64 * MIB)
    bucket.put("large", body)
    expected = [digest(body[at : at + PART]) for at in range(0, len(body), PART)]
    mount = mount_of(bucket.url, endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.set_latency(20)
    gate = mmap.mmap(-1, 4096)
    readers = [
        children.start(read_parts, mount.path / "large", number % 8 if number % 2 else 0, gate)
        for number in range(READERS)
    ]
    gate[0] = 1
    assert children.results(readers) == [expected] * READERS
    mount.wait_for_fills()
    assert_sent_once(gets(proxy, "large"), len(body))
    assert mount.counters()["backend_bytes"] == len(body)


def read_all(paths: list[Path], gate: mmap.mmap) -> list[str]:
    """Wait at the gate and read files."""
    while not gate[0]:
        os.sched_yield()
    return [read_digest(path) for path in paths]


def test_many_readers_of_cold_small_files_fetch_every_file_once(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    bodies = {f"small{index:02}": content(index, 5 * KIB + index) for index in range(20)}
    for name, body in bodies.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.set_latency(20)
    gate = mmap.mmap(-1, 4096)
    paths = [mount.path / name for name in bodies]
    readers = [children.start(read_all, paths, gate) for _ in range(READERS)]
    gate[0] = 1
    assert children.results(readers) == [[digest(body) for body in bodies.values()]] * READERS
    for name, body in bodies.items():
        assert_sent_once(gets(proxy, name), len(body))


def wait_readable(children: Children, path: Path) -> None:
    """Wait until a file can be read: who failed in vain shares that with its successors for a moment."""
    wait_until(lambda: not children.start(read_errno, path).result(), f"{path} can be read again")


FAULTS: dict[str, dict[str, object]] = {
    "503": {"kind": "status", "status": 503},
    "429": {"kind": "status", "status": 429, "code": "TooManyRequests"},
    "reset at once": {"kind": "reset"},
    "reset mid body": {"kind": "reset", "after": 1000},
    "short body": {"kind": "short", "after": 1000},
    "length cut": {"kind": "short_length", "after": 1000},
    "wrong Content-Range": {"kind": "header", "name": "content-range", "value": "bytes 5-4004/4005"},
    "another range": {"kind": "header", "name": "content-range", "value": "bytes 5-3999/4000"},
    "range ignored": {"kind": "ignore_range"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_first_attempt_fails_and_the_bytes_are_right(
    fault: str, bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    bodies = {"large": content(1, 3 * MIB), "small": content(2, 4000)}
    for name, body in bodies.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    for name, body in bodies.items():
        proxy.fault(match=name, method="GET", count=2, **FAULTS[fault])  # type: ignore[arg-type]
        readers = [children.start(read_digest, mount.path / name) for _ in range(8)]
        assert children.results(readers) == [digest(body)] * 8
        assert proxy.stats()["faults_left"] == 0
        requests = gets(proxy, name)
        assert_fetched_once(requests, len(body))
        assert len([request for request in requests if request.fault]) == 2
    counters = mount.counters()
    assert counters["fills_failed"] == 0
    assert counters["backend_retries"] == 4


def test_answer_with_another_etag_is_estale_and_the_next_read_is_right(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    bodies = {"large": content(1, MIB), "small": content(2, 4000)}
    for name, body in bodies.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    for name, body in bodies.items():
        proxy.fault("header", match=name, method="GET", count=1000, name="etag", value='"0123456789"')
        assert children.start(read_errno, mount.path / name).result() == errno.ESTALE
        proxy.clear()
        assert children.start(read_digest, mount.path / name).result() == digest(body)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("status", {"status": 503}), ("reset", {}), ("stall", {}), ("short", {"after": 100})],
    ids=["503", "reset", "stall", "short"],
)
def test_lasting_failure_is_eio_and_ends_without_remount(
    kind: str, options: dict[str, Any], bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    readers_each = 6
    bodies = {"large": content(1, MIB), "small": content(2, 4000)}
    for name, body in bodies.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, "--op-timeout", "2s", endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.fault(kind, method="GET", count=1_000_000, **options)
    readers = [children.start(read_errno, mount.path / name) for name in bodies for _ in range(readers_each)]
    assert children.results(readers, 30) == [errno.EIO] * len(readers)
    proxy.clear()

    for name, body in bodies.items():
        wait_readable(children, mount.path / name)
        assert children.start(read_digest, mount.path / name).result() == digest(body)
    # Everybody waited for the same few streams of retries: at most the budget and its refill, not one stream each.
    assert len(proxy.requests(method="GET")) < 100
    assert mount.counters()["restarts_core"] == 0


def test_many_readers_of_one_unreachable_page_all_get_eio_in_one_deadline(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    # The kernel lets one reader of a page ask after the other: without sharing the failure, each would wait in turn.
    bucket.put("small", content(2, 4000))
    mount = mount_of(bucket.url, "--op-timeout", "2s", endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.fault("status", method="GET", count=1_000_000, status=503)
    readers = [children.start(read_errno, mount.path / "small") for _ in range(READERS)]
    assert children.results(readers, 30) == [errno.EIO] * READERS
    proxy.clear()
    assert mount.counters()["backend_deadlines"] <= 4


def test_many_lookups_of_one_unreachable_name_all_get_eio_in_one_deadline(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    bucket.put("d/file", b"x")
    mount = mount_of(bucket.url, "--op-timeout", "2s", endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.fault("status", count=1_000_000, status=503)
    readers = [children.start(read_errno, mount.path / "d/file") for _ in range(READERS)]
    assert children.results(readers, 30) == [errno.EIO] * READERS
    proxy.clear()
    wait_until(lambda: os.path.exists(mount.path / "d/file"), "lookups work again")
    assert mount.counters()["backend_deadlines"] <= 4


def test_reader_killed_while_it_waits_does_not_cancel_the_fill(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    bodies = {"large": content(1, 2 * MIB), "small": content(2, 4000)}
    for name, body in bodies.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.set_latency(1000)
    first: list[Child] = []
    for name in bodies:
        first.append(children.start(read_digest, mount.path / name))
    wait_until(lambda: proxy.stats()["under_way"] >= 2, "both fills are in progress")
    others = [children.start(read_digest, mount.path / name) for name in bodies]
    for child in first:
        child.kill()
    assert children.results(others) == [digest(body) for body in bodies.values()]
    for name, body in bodies.items():
        assert_sent_once(gets(proxy, name), len(body))


def test_deleted_object_is_enoent_or_estale_and_the_name_goes(
    bucket: Bucket, mount_of: Mounter, children: Children
) -> None:
    bodies = {"large": content(1, 2 * MIB), "small": content(2, 4000)}
    for name, body in bodies.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    os.listdir(mount.path)
    for name in bodies:
        bucket.delete(name)
        assert children.start(read_errno, mount.path / name).result() in (errno.ENOENT, errno.ESTALE)
    mount.invalidate()
    assert os.listdir(mount.path) == []


def test_changed_object_is_estale_until_listed_again_and_old_bytes_stay(
    bucket: Bucket, mount_of: Mounter, children: Children
) -> None:
    # A directory each: the first ESTALE has its directory listed again.
    old = {"a/large": content(1, 2 * MIB), "b/small": content(2, 4000), "c/held": content(5, 6000)}
    new = {"a/large": content(3, 2 * MIB), "b/small": content(4, 4000), "c/held": content(6, 6000)}
    for name, body in old.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    for directory in "abc":
        os.listdir(mount.path / directory)
    with open(mount.path / "c/held", "rb", buffering=0) as held:
        assert held.read() == old["c/held"]
        for name, body in new.items():
            bucket.put(name, body)
        for name in ("a/large", "b/small"):
            assert children.start(read_errno, mount.path / name).result() == errno.ESTALE
        mount.invalidate("c")
        for name, body in new.items():
            wait_readable(children, mount.path / name)
            assert children.start(read_digest, mount.path / name).result() == digest(body)
        os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        held.seek(0)
        assert held.read() == old["c/held"], "who has the old version open keeps it"


@pytest.mark.parametrize("kind", ["reset", "stall"])
def test_backend_down_cached_things_work_and_all_recovers(
    kind: str, bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    large, small = content(1, 2 * MIB), content(2, 4000)
    bucket.put("d/large", large)
    bucket.put("d/small", small)
    bucket.put("d/uncached", b"u" * 3000)
    bucket.put("other/file", b"o")
    mount = mount_of(bucket.url, "--op-timeout", "2s", "--metadata-ttl", "1s", endpoint=proxy.endpoint, env=bucket.env)
    assert sorted(os.listdir(mount.path)) == ["d", "other"]
    assert read_digest(mount.path / "d/large") == digest(large)
    assert read_digest(mount.path / "d/small") == digest(small)
    proxy.fault(kind, count=1_000_000)

    def check_cached() -> None:
        for name, body in (("large", large), ("small", small)):
            forget_pages(mount.path / "d" / name)
            assert children.start(read_digest, mount.path / "d" / name).result() == digest(body)
        assert sorted(children.start(os.listdir, mount.path / "d").result()) == ["large", "small", "uncached"]
        assert children.start(os.path.exists, mount.path / "d/absent").result() is False

    def tried_to_list(at_least: int) -> Callable[[], bool]:
        return lambda: mount.counters()["backend_errors"] >= at_least

    # The TTL is over when the background listings of both directories have been tried in vain.
    wait_until(tried_to_list(2), "the TTL is over")
    check_cached()
    assert children.start(read_errno, mount.path / "d/uncached").result(30) == errno.EIO
    check_cached()
    if kind == "reset":  # a warm mount needs no backend either
        mount.stop()
        mount.start()
        check_cached()
        assert children.start(read_errno, mount.path / "d/uncached").result(30) == errno.EIO
    assert children.start(read_errno, mount.path / "other/file").result(30) == errno.EIO
    proxy.clear()
    bucket.put("d/fresh", b"f")
    wait_until(lambda: os.path.exists(mount.path / "d/fresh"), "a new name shows up")
    for name, body in (("d/uncached", b"u" * 3000), ("other/file", b"o")):
        wait_readable(children, mount.path / name)
        assert (mount.path / name).read_bytes() == body
