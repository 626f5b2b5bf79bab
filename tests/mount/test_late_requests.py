"""What a core has asked of the store may be carried out when it was killed, or had given up: nothing is lost by it."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.mount.test_upload_arrival import contents, drain, kill_core, tree, writable
from tests.support.mounts import Mount, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket


@pytest.fixture
def mount(bucket: Bucket, proxy: Proxy) -> Iterator[Mount]:
    with writable(bucket, endpoint=proxy.endpoint) as place:
        try:
            yield place
        finally:
            proxy.release()


def hold(proxy: Proxy, method: str, key: str) -> None:
    """Have the next such request arrive late."""
    proxy.fault("hold", method=method, match=key)


def kill_core_with_one_held(mount: Mount, proxy: Proxy) -> None:
    wait_until(lambda: proxy.stats()["held"], "the request is on its way")
    kill_core(mount)


def is_sent(mount: Mount, name: str) -> bool:
    """Wait as long as an upload takes that waits for nothing; tell whether it has ended."""

    def is_clean() -> bool:
        return os.getxattr(mount.path / name, "user.fanoutfs.state") == b"clean"

    with contextlib.suppress(AssertionError, pytest.fail.Exception):
        return bool(wait_until(is_clean, "the upload is over", 1.5))
    return False


def test_late_deletion_does_not_take_what_was_put_back(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    """The same content has the same ETag: no condition tells the new object from the one that was to go."""
    (mount.path / "a").write_bytes(b"content")
    drain(mount)
    hold(proxy, "DELETE", "/a")
    (mount.path / "a").unlink()
    kill_core_with_one_held(mount, proxy)
    (mount.path / "a").write_bytes(b"content")
    assert not is_sent(mount, "a"), "a deletion may be on its way"
    proxy.release()
    drain(mount)
    assert contents(bucket) == {"a": b"content"}


def test_late_put_of_a_removed_file_does_not_bring_it_back(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    hold(proxy, "PUT", "/a")
    (mount.path / "a").write_bytes(b"content")
    kill_core_with_one_held(mount, proxy)
    (mount.path / "a").unlink()
    wait_until(lambda: proxy.answered("/a", "HEAD"), "the next core has looked for the object")
    proxy.release()
    wait_until(lambda: proxy.answered("/a", "PUT"), "it has arrived")
    drain(mount)
    assert contents(bucket) == {}
    assert tree(mount.path) == {}


def test_late_put_of_a_renamed_file_does_not_stay(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    hold(proxy, "PUT", "/a")
    (mount.path / "a").write_bytes(b"content")
    kill_core_with_one_held(mount, proxy)
    (mount.path / "a").rename(mount.path / "b")
    wait_until(lambda: proxy.answered("/b", "PUT"), "it is in the store under its new name")
    proxy.release()
    wait_until(lambda: proxy.answered("/a", "PUT"), "it has arrived under the old one")
    drain(mount)
    assert contents(bucket) == tree(mount.path) == {"b": b"content"}


def test_late_put_does_not_replace_newer_content(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    """The file becomes what it was before the put: that is what the late one expects to replace."""
    (mount.path / "a").write_bytes(b"before")
    drain(mount)
    hold(proxy, "PUT", "/a")
    (mount.path / "a").write_bytes(b"between")
    kill_core_with_one_held(mount, proxy)
    (mount.path / "a").write_bytes(b"before")
    assert not is_sent(mount, "a"), "a put may be on its way"
    proxy.release()
    drain(mount)
    assert contents(bucket) == tree(mount.path) == {"a": b"before"}
    assert mount.status()["changes"]["conflicts"] == 0


def test_late_marker_of_a_removed_directory_does_not_stay(bucket: Bucket, proxy: Proxy, mount: Mount) -> None:
    hold(proxy, "PUT", "/d/")
    (mount.path / "d").mkdir()
    kill_core_with_one_held(mount, proxy)
    (mount.path / "d").rmdir()
    wait_until(lambda: proxy.answered("/d/", "HEAD"), "the next core has looked for the marker")
    proxy.release()
    wait_until(lambda: proxy.answered("/d/", "PUT"), "it has arrived")
    drain(mount)
    assert list(bucket.keys()) == []
    assert os.listdir(mount.path) == []


@pytest.fixture
def impatient(bucket: Bucket, proxy: Proxy) -> Iterator[Mount]:
    """A mount that gives a request up after a second."""
    with writable(bucket, "-o", "op_timeout=3s", endpoint=proxy.endpoint) as place:
        try:
            yield place
        finally:
            proxy.release()


def test_deletion_given_up_does_not_take_what_was_put_back(bucket: Bucket, proxy: Proxy, impatient: Mount) -> None:
    (impatient.path / "a").write_bytes(b"content")
    drain(impatient)
    hold(proxy, "DELETE", "/a")
    (impatient.path / "a").unlink()
    wait_until(lambda: proxy.answered("/a", "DELETE"), "it was given up, and asked for again")
    assert proxy.stats()["held"]
    (impatient.path / "a").write_bytes(b"content")
    assert not is_sent(impatient, "a"), "a deletion may be on its way"
    proxy.release()
    drain(impatient)
    assert contents(bucket) == {"a": b"content"}


def test_put_given_up_does_not_bring_a_removed_file_back(bucket: Bucket, proxy: Proxy, impatient: Mount) -> None:
    hold(proxy, "PUT", "/a")
    (impatient.path / "a").write_bytes(b"content")
    wait_until(lambda: proxy.answered("/a", "PUT"), "it was given up, and asked for again")
    assert proxy.stats()["held"]
    (impatient.path / "a").unlink()
    with contextlib.suppress(AssertionError, pytest.fail.Exception):
        wait_until(lambda: proxy.answered("/a", "DELETE"), "as long as a deletion takes that waits for nothing", 1.5)
    proxy.release()
    wait_until(lambda: len(proxy.answered("/a", "PUT")) == 2, "the one that was given up has arrived")
    drain(impatient)
    assert contents(bucket) == tree(impatient.path) == {}
