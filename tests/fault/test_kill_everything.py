"""Every process of a mount is killed at once, again and again, under writers: nothing acknowledged is lost.

FANOUTFS_KILLS        kills (default 6; a soak asks for 300)
FANOUTFS_FAULT_SEED   repeat a run: the number a failure printed
"""

import os
import random
from pathlib import Path

import pytest

from tests.fault.children import Children
from tests.fault.conftest import Mounter
from tests.fault.writing import MountPlace, PlainPlace, Writers, check_after_a_wiped_cache, run_rounds
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

KILLS = int(os.environ.get("FANOUTFS_KILLS", "6"))


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("FANOUTFS_FAULT_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"repeat with FANOUTFS_FAULT_SEED={seed} FANOUTFS_KILLS={KILLS}")
    return random.Random(seed)


@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("upload_delay", ["20ms", "1h"], ids=["uploading", "staging"])
def test_everything_acknowledged_is_there(
    bucket: Bucket,
    proxy: Proxy,
    mount_of: Mounter,
    children: Children,
    tmp_path: Path,
    chance: random.Random,
    upload_delay: str,
) -> None:
    # Slow answers: kills meet uploads, copies and deletions under way.
    proxy.set_latency(20)
    options = ("--metadata-ttl", "1h", "-o", f"upload_delay={upload_delay}", "-o", "upload_deadline=1h")
    mount = mount_of(bucket.url, *options, "-o", "object_attributes=lookup", endpoint=proxy.endpoint, env=bucket.env)
    place = MountPlace(mount)
    writers = Writers(place, tmp_path, chance, children)
    writers.make_directories()

    def kill() -> None:
        place.end()
        writers.stop()
        place.begin()

    run_rounds(writers, KILLS, kill)
    print(f"{KILLS} kills, {writers.steps} steps acknowledged")
    proxy.set_latency(0)
    check_after_a_wiped_cache(mount, writers, bucket)


def test_control_a_wiped_directory_is_noticed(children: Children, tmp_path: Path, chance: random.Random) -> None:
    """What the checks above would say if a daemon lost one file: the ledgers know."""
    place = PlainPlace(tmp_path / "directory")
    place.begin()
    (tmp_path / "ledgers").mkdir()
    writers = Writers(place, tmp_path / "ledgers", chance, children)
    writers.make_directories()
    run_rounds(writers, 3, lambda: None)
    writers.check_content()
    victim = next(path for path in sorted(place.path.rglob("*")) if path.is_file())
    victim.unlink()
    with pytest.raises(AssertionError, match=f"{victim.name} is missing"):
        writers.check_content()
