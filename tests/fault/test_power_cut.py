"""The power fails under a writer: whatever fsync acknowledged is there when it is back, byte for byte.

FANOUTFS_POWER_CUTS   cuts per file system and kind of place (default 4; a soak asks for 100)
FANOUTFS_FAULT_SEED   repeat a run: the number a failure printed

The cache directory lies on a disk of its own (tests/fault/disks.py); the object store, which is elsewhere, goes on.
"""

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanoutfs.config.directories import control_socket, keeper_socket
from tests.fault.children import Children
from tests.fault.conftest import check_nothing_left
from tests.fault.disks import FILE_SYSTEMS, Disk, power_disk
from tests.fault.ledger import LossError
from tests.fault.writing import MountPlace, Place, PlainPlace, Writers, check_after_a_wiped_cache, kill_tree, run_rounds
from tests.support.mounts import Mount, PatchedMount
from tests.support.servers import Bucket

CUTS = int(os.environ.get("FANOUTFS_POWER_CUTS", "4"))
CONTROL_CUTS = 20


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("FANOUTFS_FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"repeat with FANOUTFS_FAULT_SEED={seed} FANOUTFS_POWER_CUTS={CUTS}")
    return random.Random(seed)


@pytest.fixture(params=sorted(FILE_SYSTEMS))
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    with power_disk(request.param) as made:
        yield made
    check_nothing_left([made.path.parent], [])


def cut(disk: Disk, place: Place, writers: Writers) -> None:
    """Cut the power; nobody is left who remembers; switch it on again.

    The writers are held first: an fsync that runs across the shutdown may return 0 (ext4 of 6.18 does, for a new file
    whose inode was committed and whose size was not), which no program lives to see when the power really fails.
    They end after the daemon: while its disk is gone no core can start that would answer what they ask.
    """
    writers.hold()
    disk.cut_power()
    place.end()
    writers.stop()
    disk.unplug()
    disk.plug_in()
    place.begin()


@pytest.fixture
def mount_on(disk: Disk, bucket: Bucket) -> Iterator[Callable[..., Mount]]:
    """A function that mounts the bucket with its cache on the disk; patch: with a daemon changed so."""
    mounts: list[Mount] = []

    def mount_it(*options: str, patch: str = "") -> Mount:
        path = disk.path.parent / "mnt"
        path.mkdir()
        common = ("--endpoint-url", bucket.endpoint, "--metadata-ttl", "1h", "--cache-size", "1GiB")
        place = (bucket.url, path, disk.path / "cache", (*common, *options), dict(bucket.env))
        mount = PatchedMount(*place, patch=patch) if patch else Mount(*place)
        mounts.append(mount)
        mount.start()
        return mount

    yield mount_it
    for mount in mounts:
        with contextlib.suppress(OSError):  # the disk may be away
            print("\n".join(mount.log().splitlines()[-60:]))
        kill_tree(mount)
        subprocess.run(["umount", "-l", mount.path], check=False, capture_output=True)
        for path in (control_socket(mount.path), keeper_socket(mount.path)):
            path.unlink(missing_ok=True)  # who is killed leaves them to the next mount of this place


@pytest.mark.timeout(24 * 3600)
def test_everything_acknowledged_is_there(
    disk: Disk,
    mount_on: Callable[..., Mount],
    bucket: Bucket,
    children: Children,
    tmp_path: Path,
    chance: random.Random,
) -> None:
    # Uploads begin at once, so that cuts meet them, too.
    mount = mount_on("-o", "upload_delay=50ms", "-o", "object_attributes=lookup")
    writers = Writers(MountPlace(mount), tmp_path, chance, children)
    writers.make_directories()
    run_rounds(writers, CUTS, lambda: cut(disk, writers.place, writers))
    print(f"{CUTS} cuts, {writers.steps} steps acknowledged")
    check_after_a_wiped_cache(mount, writers, bucket)
    mount.stop()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("patch", ["", "content_is_not_synced", "index_is_not_synced"])
def test_control_without_syncing_loses_data(
    disk: Disk, mount_on: Callable[..., Mount], children: Children, tmp_path: Path, chance: random.Random, patch: str
) -> None:
    """Writers that do not call fsync; and a daemon that answers it without having done half of it."""
    mount = mount_on("-o", "upload_delay=1h", "-o", "upload_deadline=1h", patch=patch)
    writers = Writers(MountPlace(mount), tmp_path, chance, children, syncs=bool(patch))
    writers.make_directories()
    with pytest.raises(LossError):
        run_rounds(writers, CONTROL_CUTS, lambda: cut(disk, writers.place, writers))


# --- the cut itself --------------------------------------------------------------------------------------------


@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("syncs", [True, False], ids=["fsync", "no-fsync"])
def test_plain_directory_keeps_what_fsync_acknowledged_and_loses_the_rest(
    disk: Disk, children: Children, tmp_path: Path, chance: random.Random, syncs: bool
) -> None:
    place = PlainPlace(disk.path / "directory")
    place.begin()
    writers = Writers(place, tmp_path, chance, children, syncs=syncs)
    writers.make_directories()
    os.sync()
    if syncs:
        run_rounds(writers, CUTS, lambda: cut(disk, place, writers))
        return
    with pytest.raises(LossError):
        run_rounds(writers, CONTROL_CUTS, lambda: cut(disk, place, writers))
