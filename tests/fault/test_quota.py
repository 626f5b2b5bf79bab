"""The cache on a disk with a quota that `statvfs` tells nothing of, and that copies on write (btrfs)."""

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.records import KIB, MIB
from tests.fault.children import Children, content, digest
from tests.fault.conftest import Mounter
from tests.fault.disks import lift_quota, quota_disk
from tests.fault.test_kills import forget_pages
from tests.fault.test_space import put_files, read_passes
from tests.fault.test_write_trouble import drain, read_on, refuse, start, write_synced
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

OPTIONS = ("--cache-size", "1GiB", "--free-space-floor", "0")


@pytest.fixture
def quota(tmp_path: Path) -> Iterator[Path]:
    """A directory with a quota of 64 MiB."""
    with quota_disk(tmp_path, 64 * MIB) as path:
        yield path


def test_quota_costs_readers_nothing(quota: Path, bucket: Bucket, mount_of: Mounter, children: Children) -> None:
    sizes = {f"a/large{n}": 9 * MIB for n in range(10)} | {f"a/small{n}": 20 * KIB for n in range(40)}
    expected = put_files(bucket, sizes)
    mount = mount_of(bucket.url, *OPTIONS, endpoint=bucket.endpoint, env=bucket.env, start=False)
    mount.cache = quota / "cache"
    mount.start()
    try:
        os.listdir(mount.path / "a")
        children.results([children.start(read_passes, mount.path, expected, seed, 2) for seed in range(3)])
        counters = mount.counters()
        assert counters["evicted_bytes"] + counters["read_through_bytes"] > 0
        # (Should the index's header meet the quota, a new core opens it anew, and readers wait for that.)
        assert counters["restarts_front"] == 0
        assert "SIGBUS" not in mount.log()
    finally:
        children.end()
        mount.stop()


def write_until_refused(root: Path) -> list[str]:
    """Write and sync files until there is no room; return those that were synced."""
    chance = random.Random(5)
    synced: list[str] = []
    for number in range(100):
        try:
            write_synced(root / f"filled{number}", chance.randbytes(3 * MIB))
        except OSError:
            return synced
        synced.append(f"filled{number}")
    raise AssertionError("the quota was never reached")


def test_quota_costs_writers_nothing_that_was_synced(
    quota: Path, bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children, stop: mmap.mmap
) -> None:
    mount = start(mount_of, bucket, proxy, *OPTIONS, cache=quota / "cache")
    try:
        refuse(proxy, "read-only")
        synced = children.start(write_until_refused, mount.path).result(120)
        assert len(synced) >= 5
        chance = random.Random(5)
        bodies = {name: chance.randbytes(3 * MIB) for name in synced}
        reader = children.start(read_on, mount.path, stop)
        for name, body in bodies.items():
            forget_pages(mount.path / name)
            assert digest((mount.path / name).read_bytes()) == digest(body), name
        stop[0] = 1
        assert reader.result()
        assert mount.counters()["restarts_front"] == 0
        assert "SIGBUS" not in mount.log()
        proxy.clear()
        lift_quota(quota)
        mount.stop()  # what could not be synced is tried again by a new daemon only
        mount.start()
        drain(mount)
        for name, body in bodies.items():
            assert digest(bucket.get(name)) == digest(body), name
        write_synced(mount.path / "room", content(9, 8 * MIB))
        assert digest((mount.path / "room").read_bytes()) == digest(content(9, 8 * MIB))
    finally:
        children.end()
        mount.stop()
