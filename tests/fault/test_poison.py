"""Requests that kill whoever serves them: EIO for them, after few restarts, and for nobody else."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fanoutfs.records import KIB, MIB
from tests.fault.children import Child, Children, content, digest, read_digest, read_errno
from tests.fault.conftest import Mounter
from tests.fault.test_kills import status_of, wait_for_core
from tests.support.mounts import Mount, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

INNOCENTS = 6
MOST_RESTARTS = 8
"""Three crashes convict a request that was tried alone; company at its first crashes adds a few."""


@pytest.mark.parametrize("patch", ["poison_lookup", "poison_front"])
def test_poison_lookup_gets_eio_and_innocents_succeed(
    patch: str, bucket: Bucket, proxy: Proxy, patched_mount: Mounter, children: Children
) -> None:
    bodies = {f"file{index}": content(index, 3 * KIB) for index in range(INNOCENTS)}
    for name, body in bodies.items():
        bucket.put(f"cold/{name}", body)
    bucket.put("d/poison", b"p")
    bucket.put("d/good", b"g")
    mount = patched_mount(bucket.url, patches=patch, endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.set_latency(300)
    innocents = [children.start(read_digest, mount.path / "cold" / name) for name in bodies]
    wait_until(lambda: proxy.stats()["under_way"] >= 1, "innocents are in flight")
    guilty = children.start(read_errno, mount.path / "d/poison")
    assert guilty.result() == errno.EIO
    assert children.results(innocents) == [digest(body) for body in bodies.values()]
    proxy.set_latency(0)
    assert (mount.path / "d/good").read_bytes() == b"g"
    counters = mount.counters()
    assert counters["poison_requests"] == 1
    restarts = counters["restarts_core" if patch == "poison_lookup" else "restarts_front"]
    assert 2 <= restarts <= MOST_RESTARTS


def test_poison_read_gets_eio(bucket: Bucket, patched_mount: Mounter, children: Children) -> None:
    bucket.put("poison", b"p" * 666)
    bucket.put("good", b"g" * 665)
    mount = patched_mount(bucket.url, patches="poison_read", endpoint=bucket.endpoint, env=bucket.env)
    assert children.start(read_errno, mount.path / "poison").result() == errno.EIO
    # The kernel asks a second time, for one page, after its read-ahead has failed.
    assert mount.counters()["poison_requests"] == 2
    assert mount.counters()["restarts_core"] == 6
    assert (mount.path / "good").read_bytes() == b"g" * 665


def read_pages(path: Path, pages: int) -> str:
    """Read a file page by page, all pages at once; return the digest of the whole."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        with ThreadPoolExecutor(pages) as pool:
            found = list(pool.map(lambda page: os.pread(fd, 4 * KIB, page * 4 * KIB), range(pages)))
    finally:
        os.close(fd)
    return digest(b"".join(found))


def test_poison_among_hundreds_in_flight_is_the_only_one_to_fail(
    bucket: Bucket, proxy: Proxy, patched_mount: Mounter, children: Children
) -> None:
    pages = 400
    body = content(1, pages * 4 * KIB)
    bucket.put("file", body)
    bucket.put("d/poison", b"p")
    mount = patched_mount(bucket.url, patches="poison_lookup", endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.fault("stall", match="file", count=10_000, method="GET")
    innocents = children.start(read_pages, mount.path / "file", pages)
    wait_until(lambda: status_of(mount)["in_flight"]["requests"] >= pages, "all pages are asked for")
    core = status_of(mount)["core_pid"]
    guilty = children.start(read_errno, mount.path / "d/poison")
    wait_for_core(mount, core)
    proxy.clear()
    assert guilty.result() == errno.EIO
    assert innocents.result() == digest(body)
    counters = mount.counters()
    assert counters["poison_requests"] == 1
    assert 2 <= counters["restarts_core"] <= MOST_RESTARTS


def innocent(index: int) -> bytes:
    return content(index, 3 * KIB)


def stalled_innocents(bucket: Bucket, proxy: Proxy, mount: Mount, children: Children) -> list[Child]:
    """Return readers of small files that are in flight for as long as the store stalls; `d/poison` is there, too."""
    for index in range(INNOCENTS):
        bucket.put(f"file{index}", innocent(index))
    bucket.put("d/poison", b"p")
    os.listdir(mount.path)
    proxy.fault("stall", match="file", count=10_000, method="GET")
    innocents = [children.start(read_digest, mount.path / f"file{index}") for index in range(INNOCENTS)]
    wait_until(lambda: proxy.stats()["under_way"] >= INNOCENTS, "innocents are in flight")
    return innocents


def assert_innocents_succeed(children: Children, innocents: list[Child]) -> None:
    assert children.results(innocents) == [digest(innocent(index)) for index in range(INNOCENTS)]


def test_innocents_that_survived_a_kill_are_not_blamed_for_a_later_poison(
    bucket: Bucket, proxy: Proxy, patched_mount: Mounter, children: Children
) -> None:
    mount = patched_mount(bucket.url, patches="poison_lookup", endpoint=proxy.endpoint, env=bucket.env)
    innocents = stalled_innocents(bucket, proxy, mount, children)
    for _ in range(4):
        core = status_of(mount)["core_pid"]
        os.kill(core, signal.SIGKILL)
        wait_for_core(mount, core)
    wait_until(lambda: proxy.stats()["under_way"] >= 1, "innocents are in flight again")
    assert children.start(read_errno, mount.path / "d/poison").result() == errno.EIO
    proxy.clear()
    assert_innocents_succeed(children, innocents)
    assert mount.counters()["poison_requests"] == 1


def test_front_killed_with_the_answer_to_a_suspect_does_not_block_other_suspects(
    bucket: Bucket, proxy: Proxy, patched_mount: Mounter, children: Children
) -> None:
    patches = "poison_lookup,front_dies_with_suspect"
    mount = patched_mount(bucket.url, patches=patches, endpoint=proxy.endpoint, env=bucket.env)
    innocents = stalled_innocents(bucket, proxy, mount, children)
    core = status_of(mount)["core_pid"]
    guilty = children.start(read_errno, mount.path / "d/poison")
    wait_for_core(mount, core)
    proxy.clear()
    assert guilty.result() == errno.EIO
    assert_innocents_succeed(children, innocents)
    assert (mount.path.parent / "died").exists(), "the fault was never met"
    assert mount.counters()["poison_requests"] == 1


def test_large_files_survive_a_poison_in_the_middle_of_their_fills(
    bucket: Bucket, proxy: Proxy, patched_mount: Mounter, children: Children
) -> None:
    body = content(7, 24 * MIB)
    bucket.put("large", body)
    bucket.put("d/poison", b"p")
    mount = patched_mount(bucket.url, patches="poison_lookup", endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.set_latency(100)
    readers = [children.start(read_digest, mount.path / "large") for _ in range(3)]
    wait_until(lambda: proxy.stats()["under_way"] >= 1, "fills are in progress")
    assert children.start(read_errno, mount.path / "d/poison").result() == errno.EIO
    assert children.results(readers) == [digest(body)] * 3
