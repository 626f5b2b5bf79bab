"""Several cache directories, one of which has no room, of bytes or of inodes, or refuses writes; and their caps.

Disks that only refuse writes lie in an image on a tmpfs without room.
"""

import contextlib
import mmap
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from fanoutfs.records import MIB
from tests.fault.children import Children
from tests.fault.severaldisks import check_accounts, disk_state, read_all, readers, wait_for, wait_in_service
from tests.fault.sickdisk import Disk, run
from tests.fault.test_kills import forget_pages
from tests.fault.test_space import put_files
from tests.support.du import occupied_bytes
from tests.support.mounts import Mount
from tests.support.servers import Bucket

_GETS_NO_PARTS: Final = re.compile("cache directory (is full, no new parts|out of service)")


def test_disk_that_refuses_writes_only_costs_no_reader_anything(
    bucket: Bucket,
    tmp_path: Path,
    make_disk: Callable[..., Disk],
    mount_it: Callable[..., Mount],
    children: Children,
) -> None:
    # By chance half of them go to the small disk: that too few do to fill it happens once in 50,000 runs.
    expected = put_files(bucket, {f"large{n}": 8 * MIB for n in range(24)})
    backing = tmp_path / "backing"
    backing.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=24m", "none", backing)
    try:
        disk = make_disk("-O", "^has_journal", "-E", "lazy_itable_init=1", size_bytes=512 * MIB, base=backing)
        mount = mount_it(disk, options=("--cache-size", "256MiB"))
        wait_in_service(mount)
        with readers(mount, expected, children):
            # (The loop device says ENOSPC then, on a disk that has room: as good as full.  For a while: see the log.)
            wait_for(mount, lambda: _GETS_NO_PARTS.search(mount.log()), "the disk gets no new parts")
            wait_for(
                mount, lambda: mount.status()["cache"]["large_bytes"] >= 192 * MIB, "everything is cached elsewhere"
            )
        mount.wait_for_fills()
        check_accounts(mount, disk)
        assert mount.counters()["disk_errors"] >= 1
        assert mount.counters()["request_errors"] == 0
        mount.stop()
        disk.remove()
    finally:
        subprocess.run(["umount", "-l", backing], check=False, capture_output=True)


@pytest.mark.parametrize("lacking", ["bytes", "inodes"])
def test_full_disk_gets_no_new_parts(
    lacking: str, bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], children: Children
) -> None:
    # By chance about three in ten go to the small disk: that none of 40 does happens once in a million runs.
    expected = put_files(bucket, {f"large{n}": 3 * MIB + n for n in range(40)})
    disk = make_disk("-N", "64", size_bytes=128 * MIB) if lacking == "inodes" else make_disk(size_bytes=128 * MIB)
    mount = mount_it(disk, options=("--cache-size", "256MiB"))
    wait_in_service(mount)
    with readers(mount, expected, children):
        wait_for(mount, lambda: disk_state(mount)["large_bytes"] > 4 * MIB, "the disk is in use")
        if lacking == "bytes":
            disk.fill_up()
        else:
            with contextlib.suppress(OSError):  # no inode is left
                for number in range(100):
                    (disk.path / str(number)).touch()
        wait_for(
            mount, lambda: mount.status()["cache"]["large_bytes"] >= 40 * 3 * MIB, "everything is cached somewhere"
        )
    counters = mount.counters()
    assert counters["request_errors"] == 0
    read_all(mount, expected)
    check_accounts(mount, disk)
    assert mount.counters()["disks_failed"] == 0, "full is not sick"


@pytest.mark.parametrize("kind", ["full", "refusing"])
def test_parts_begun_on_a_disk_that_is_full_by_now_are_cached_elsewhere(
    kind: str, bucket: Bucket, tmp_path: Path, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount]
) -> None:
    # By chance about four in ten are begun on the small disk: that none of 24 is happens once in 100,000 runs.
    expected = put_files(bucket, {f"large{n}": 3 * MIB + 4096 * (n + 1) for n in range(24)})
    backing = tmp_path / "backing"
    backing.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=32m", "none", backing)
    try:
        disk = make_disk(size_bytes=128 * MIB, base=backing if kind == "refusing" else None)
        mount = mount_it(disk, options=("--cache-size", "128MiB", "--max-readahead", "0B"))
        wait_in_service(mount)
        for name, size_bytes in ((name, (mount.path / name).stat().st_size) for name in expected):
            with open(mount.path / name, "rb", buffering=0) as stream:
                os.preadv(stream.fileno(), [bytearray(4096)], size_bytes - 4096)
            forget_pages(mount.path / name)
        mount.wait_for_fills()
        begun_bytes = disk_state(mount)["large_bytes"]
        assert 0 < begun_bytes < 16 * MIB
        run("sync", "-f", disk.path)  # it is the parts' rest that is to find no room
        if kind == "full":
            disk.fill_up()
        else:
            with open(backing / "junk", "wb", buffering=0) as stream, pytest.raises(OSError, match="space"):
                while stream.write(bytes(MIB)):
                    pass
        read_all(mount, expected)
        read_all(mount, expected)  # (of parts with two fills under way one may have been read through)
        before = mount.counters()
        assert mount.status()["cache"]["large_bytes"] == sum((mount.path / name).stat().st_size for name in expected)
        read_all(mount, expected)
        after = mount.counters()
        assert after["backend_gets"] == before["backend_gets"], "each byte once, though a disk is full"
        assert after["request_errors"] == after["verify_failures"] == 0
        check_accounts(mount, disk)
        mount.stop()
        disk.remove()
    finally:
        subprocess.run(["umount", "-l", backing], check=False, capture_output=True)


def test_caps_hold_for_each_disk_and_all_together(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], children: Children
) -> None:
    expected = put_files(bucket, {f"large{n}": 2 * MIB + n for n in range(120)})
    one, two = make_disk(), make_disk(size_bytes=96 * MIB)
    mount = mount_it(f"{one.cache}=24MiB", two, options=("--cache-size", "120MiB"))
    wait_in_service(mount, 2)
    stop = mmap.mmap(-1, 4096)
    watcher = children.start(watch_disks, [one.path, two.path], stop)
    empty = [free(each.path) for each in (one, two)]
    with readers(mount, expected, children):
        wait_for(mount, lambda: mount.counters()["evicted_bytes"] > 200 * MIB, "much was evicted")
    stop[0] = 1
    fewest_one, fewest_two = watcher.result()
    print(f"one={(empty[0] - fewest_one) / MIB:.1f} MiB used at most, two={fewest_two / MIB:.1f} MiB free at least")
    # Where a file goes is by chance: that none of 120 ever goes to the small disk happens once in 100,000 runs.
    assert MIB < empty[0] - fewest_one <= 25 * MIB
    assert 16 * MIB <= fewest_two < empty[1] - MIB
    cache = mount.status()["cache"]
    total = sum(occupied_bytes(path) for path in (mount.cache, one.cache, two.cache))
    assert total <= cache["cap_bytes"]
    check_accounts(mount, one, two)
    assert mount.counters()["verify_failures"] == 0


def free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def watch_disks(paths: list[Path], stop: mmap.mmap) -> list[int]:
    """Return the fewest free bytes ever seen on each, until told to stop."""
    fewest = [1 << 62] * len(paths)
    while not stop[0]:
        for at, path in enumerate(paths):
            fewest[at] = min(fewest[at], max(free(path) for _look in range(2)))
    return fewest
