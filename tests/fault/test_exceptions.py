"""Exceptions nobody foresaw, in every handler: EIO for that request, and the mount lives."""

import errno
import os
from pathlib import Path

from fanoutfs.records import KIB, MIB
from tests.fault.children import Children, content, digest, read_digest, read_errno
from tests.fault.conftest import Mounter
from tests.fault.test_kills import forget_pages
from tests.support.mounts import Mount, wait_until
from tests.support.servers import Bucket

SMALL = content(1, 3 * KIB)
LARGE = content(2, 9 * MIB)


def errno_of(call: object, *arguments: object) -> int:
    """Return 0 or the errno of a call."""
    try:
        call(*arguments)  # type: ignore[operator]
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def fill_bucket(bucket: Bucket) -> None:
    for directory in ("a", "b", "c"):
        bucket.put(f"{directory}/small", SMALL)
        bucket.put(f"{directory}/large", LARGE)


def mark(mount: Mount, name: str = "raise") -> Path:
    path = mount.path.parent / name
    path.touch()
    return path


def raised(mount: Mount) -> set[str]:
    path = mount.path.parent / "raised"
    return set(path.read_text().split()) if path.exists() else set()


def check_alive(mount: Mount, directory: str) -> None:
    """Everything works, and no process had to be replaced."""
    assert read_digest(mount.path / directory / "small") == digest(SMALL)
    assert read_digest(mount.path / directory / "large") == digest(LARGE)
    assert sorted(os.listdir(mount.path / directory)) == ["large", "small"]
    counters = mount.counters()
    assert (counters["restarts_core"], counters["restarts_front"]) == (0, 0)


def test_every_core_operation_raises_eio(bucket: Bucket, patched_mount: Mounter, children: Children) -> None:
    fill_bucket(bucket)
    mount = patched_mount(bucket.url, patches="core_raises", endpoint=bucket.endpoint, env=bucket.env)
    assert sorted(os.listdir(mount.path)) == ["a", "b", "c"]
    assert sorted(os.listdir(mount.path / "b")) == ["large", "small"]
    marked = mark(mount)
    assert children.start(read_errno, mount.path / "a/small").result() == errno.EIO
    assert children.start(errno_of, os.listdir, mount.path / "c").result() == errno.EIO
    assert children.start(read_errno, mount.path / "b/small").result() == errno.EIO
    assert children.start(read_errno, mount.path / "b/large").result() == errno.EIO
    assert raised(mount) == {"lookup", "make_listed", "prepare_read"}
    assert mount.counters()["request_errors"] >= 4
    marked.unlink()
    for directory in ("a", "b", "c"):
        check_alive(mount, directory)


def test_every_fill_and_listing_raises_eio(bucket: Bucket, patched_mount: Mounter, children: Children) -> None:
    fill_bucket(bucket)
    mount = patched_mount(bucket.url, patches="fill_raises", endpoint=bucket.endpoint, env=bucket.env)
    os.listdir(mount.path / "b")
    marked = mark(mount)
    assert children.start(errno_of, os.listdir, mount.path / "c").result() == errno.EIO
    assert children.start(read_errno, mount.path / "b/small").result() == errno.EIO
    assert children.start(read_errno, mount.path / "b/large").result() == errno.EIO
    assert raised(mount) == {"_list", "fetch_version", "_fill_blocks"}
    marked.unlink()
    for directory in ("a", "b", "c"):
        check_alive(mount, directory)


def test_every_front_handler_raises_eio(bucket: Bucket, patched_mount: Mounter, children: Children) -> None:
    fill_bucket(bucket)
    mount = patched_mount(bucket.url, patches="front_raises", endpoint=bucket.endpoint, env=bucket.env)
    for directory in ("a", "b"):
        check_alive(mount, directory)
    forget_pages(mount.path / "a/small")
    mount.invalidate("a")
    marked = mark(mount)
    assert children.start(errno_of, os.stat, mount.path / "a/absent").result() == errno.EIO
    assert children.start(errno_of, os.statvfs, mount.path).result() == errno.EIO
    assert children.start(read_errno, mount.path / "a/small").result() == errno.EIO
    # The name was never looked up; the directory below is known, its listing is not: readdirplus, relayed and finished.
    assert children.start(errno_of, os.listdir, mount.path / "c").result() == errno.EIO
    marked.unlink()
    assert os.stat(mount.path / "c")
    mark(mount)
    assert children.start(errno_of, os.listdir, mount.path / "c").result() == errno.EIO
    assert raised(mount) & {"readdir", "readdirplus"}
    marked.unlink()
    mark(mount, "raise-finish")
    assert children.start(errno_of, os.listdir, mount.path / "c").result() == errno.EIO
    assert "finish" in raised(mount)
    (mount.path.parent / "raise-finish").unlink()
    check_alive(mount, "b")
    assert {"lookup", "statfs", "read"} <= raised(mount)
    for directory in ("a", "c"):
        check_alive(mount, directory)


def test_background_work_of_the_core_raises_and_the_core_lives(
    bucket: Bucket, patched_mount: Mounter, children: Children
) -> None:
    fill_bucket(bucket)
    mount = patched_mount(
        bucket.url, "--metadata-ttl", "1s", patches="core_background_raises", endpoint=bucket.endpoint, env=bucket.env
    )
    check_alive(mount, "a")
    core = mount.status()["core_pid"]
    marked = mark(mount)
    forget_pages(mount.path / "a/large")
    assert read_digest(mount.path / "a/large") == digest(LARGE)
    wait_until(lambda: raised(mount) >= {"sweep", "_due", "note_part_read"}, "every background task has raised")
    mark(mount, "raise-once")
    assert children.start(_status_fails, mount).result()
    marked.unlink()
    check_alive(mount, "b")
    assert mount.status()["core_pid"] == core


def _status_fails(mount: Mount) -> bool:
    from fanoutfs.errors import FanoutError

    try:
        mount.status()
    except FanoutError as error:
        return "internal error" in str(error)
    return False
