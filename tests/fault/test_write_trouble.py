"""Writers and readers while the store is away, refuses, or the local disk is full: what docs/writing.md says of it."""

import errno
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.records import MIB
from tests.fault.children import Children, content, digest, read_digest
from tests.fault.conftest import Mounter
from tests.fault.disks import sized_disk
from tests.fault.test_kills import forget_pages
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

MANY = 1_000_000
CACHED = {"large": content(1, 3 * MIB), "small": content(2, 5000)}

TROUBLES: dict[str, dict[str, Any]] = {
    "down": {"kind": "reset"},
    "overloaded": {"kind": "status", "status": 503, "code": "SlowDown"},
    "expired": {"kind": "status", "status": 403, "code": "ExpiredToken"},
    "read-only": {"kind": "status", "status": 403, "code": "AccessDenied"},
}
ERRNOS = {"down": errno.EIO, "expired": errno.EACCES, "read-only": errno.EACCES}
"""What an fsync fails with that is to wait for the store."""


def refuse(proxy: Proxy, trouble: str) -> None:
    """Have the store refuse whatever changes it, and, unless it is read-only, every other request."""
    for method in ("PUT", "POST", "DELETE") if trouble == "read-only" else ("",):
        proxy.fault(method=method, count=MANY, **TROUBLES[trouble])


def start(mount_of: Mounter, bucket: Bucket, proxy: Proxy, *options: str, cache: Path | None = None) -> Mount:
    """Mount a bucket with two files, and read both."""
    for name, body in CACHED.items():
        bucket.put(name, body)
    settings = ("-o", "upload_delay=0s,metadata_ttl=indefinite,op_timeout=5s")
    mount = mount_of(bucket.url, *settings, *options, endpoint=proxy.endpoint, env=bucket.env, start=False)
    if cache is not None:
        mount.cache = cache
    mount.start()
    for name, body in CACHED.items():
        assert (mount.path / name).read_bytes() == body
    mount.wait_for_fills()
    return mount


def read_on(root: Path, stop: mmap.mmap) -> int:
    """Read what is cached, past the page cache, until told to stop; return how often."""
    count = 0
    while not stop[0] or not count:
        for name, body in CACHED.items():
            forget_pages(root / name)
            assert read_digest(root / name) == digest(body), name
        count += 1
    return count


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and fsync it."""
    with open(path, "wb", buffering=0) as stream:
        written = 0
        while written < len(data):  # a disk that becomes full makes a short write first, and then an error
            written += stream.write(data[written:])
        os.fsync(stream.fileno())


def drain(mount: Mount) -> None:
    result = run_command("drain", "--wait", str(mount.path))
    assert result.returncode == 0, f"{result.stderr}\n{mount.log()[-4000:]}"


@pytest.mark.parametrize("trouble", TROUBLES)
def test_store_in_trouble_amid_an_upload_keeps_nobody_waiting_and_gets_everything_afterwards(
    trouble: str, bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children, stop: mmap.mmap
) -> None:
    bucket.put("old", b"content")
    mount = start(mount_of, bucket, proxy)
    big = content(3, 66 * MIB)  # a multipart upload
    # Held again when it is sent again: fsync may take longer than op_timeout.
    proxy.fault("hold", match="partNumber=2", method="PUT", count=6)
    write_synced(mount.path / "big", big)
    wait_until(lambda: proxy.stats()["held"], "a part of the upload is under way")
    refuse(proxy, trouble)
    proxy.release()
    reader = children.start(read_on, mount.path, stop)
    write_synced(mount.path / "new.part", content(4, MIB))
    (mount.path / "new.part").rename(mount.path / "new")
    write_synced(mount.path / "old", b"another content")
    (mount.path / "folder").mkdir()
    write_synced(mount.path / "folder" / "log", b"line\n")
    wait_until(lambda: "last_error" in mount.status()["changes"], "the status tells of it")
    assert (mount.path / "new").read_bytes() == content(4, MIB)
    assert digest((mount.path / "big").read_bytes()) == digest(big)
    assert not {"big", "new"} & set(bucket.keys())
    stop[0] = 1
    assert reader.result()
    proxy.clear()
    proxy.release()
    drain(mount)
    new = {"big": big, "new": content(4, MIB), "old": b"another content", "folder/log": b"line\n"}
    assert {name: digest(bucket.get(name)) for name in new} == {name: digest(body) for name, body in new.items()}
    changes = mount.status()["changes"]
    assert "last_error" not in changes
    assert changes["conflicts"] == 0


def sync_errno(path: Path, data: bytes) -> int:
    """Write and fsync a file; return fsync's errno, 0 when it succeeded."""
    with open(path, "wb", buffering=0) as stream:
        stream.write(data)
        try:
            os.fsync(stream.fileno())
        except OSError as error:
            return error.errno or -1
        return 0


@pytest.mark.parametrize("trouble", ["down", "expired", "read-only"])
def test_fsync_that_waits_for_the_store_tells_of_trouble_and_keeps_the_data(
    trouble: str, bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    mount = start(mount_of, bucket, proxy, "-o", "durability=remote,upload_delay=1h,op_timeout=5s")
    refuse(proxy, trouble)
    try:
        assert children.start(sync_errno, mount.path / "model", b"content").result(60) == ERRNOS[trouble]
        assert (mount.path / "model").read_bytes() == b"content"
    finally:
        proxy.clear()
    with open(mount.path / "model", "rb") as stream:
        os.fsync(stream.fileno())
    assert bucket.get("model") == b"content"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 64 MiB."""
    with sized_disk(tmp_path, 64 * MIB) as path:
        yield path


def fill_up(root: Path) -> dict[str, bytes]:
    """Write and sync files until there is no room; return those that were synced, and what the error was about."""
    synced: dict[str, bytes] = {}
    chance = random.Random(5)
    for number in range(1000):
        name, data = f"filled{number}", chance.randbytes(3 * MIB)
        try:
            write_synced(root / name, data)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return synced
        synced[name] = data
    raise AssertionError("the disk was never full")


def test_full_local_disk_is_enospc_to_writers_and_nothing_to_readers(
    small_disk: Path, bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children, stop: mmap.mmap
) -> None:
    options = ("--cache-size", "1GiB", "--free-space-floor", "0")
    mount = start(mount_of, bucket, proxy, *options, cache=small_disk / "cache")
    try:
        refuse(proxy, "read-only")
        synced = children.start(fill_up, mount.path).result(120)
        assert len(synced) >= 5
        reader = children.start(read_on, mount.path, stop)  # from the store, if its bytes had to make way
        for name, data in synced.items():
            forget_pages(mount.path / name)
            assert digest((mount.path / name).read_bytes()) == digest(data), name
        stop[0] = 1
        assert reader.result()
        proxy.clear()
        drain(mount)
        for name, data in synced.items():
            assert digest(bucket.get(name)) == digest(data), name
        write_synced(mount.path / "room", content(9, 8 * MIB))  # what is uploaded makes way
        assert digest((mount.path / "room").read_bytes()) == digest(content(9, 8 * MIB))
        assert mount.counters()["restarts_core"] == 0
    finally:
        children.end()
        mount.stop()
