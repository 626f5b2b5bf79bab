"""`fanoutfs bench PATH` on real mounts of a real S3-compatible server: what it counts is right, and nothing is left.

Over ordinary directories: tests/unit/bench/test_field.py.
"""

import ctypes
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.bench.field.site import HERE, Site
from fanoutfs.cache.files import CacheFiles
from fanoutfs.errors import UsageError
from fanoutfs.records import MIB
from tests.mount import kernel
from tests.support.benches import interrupt_storm
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

OWN = "mine/keep.txt"
ROLES = ("here", "contrast")
LIBC = ctypes.CDLL(None)


pytestmark = pytest.mark.usefixtures("steady_caches")  # messages are counted, also by the programs themselves


@pytest.fixture
def mount(bucket: Bucket, proxy: Proxy) -> Iterator[Mount]:
    """A read-write mount with one file of its user."""
    bucket.put(OWN, b"kept")
    with kernel.mounted_bucket(bucket, "--metadata-ttl", "1h", endpoint=proxy.endpoint) as mounted:
        yield mounted


@pytest.fixture
def data_set(bucket: Bucket) -> Iterator[Mount]:
    """A read-only mount of two large and thirty small files."""
    for name in ("a", "b"):
        bucket.put(f"large/{name}", os.urandom(3 * MIB + 17))
    for number in range(30):
        bucket.put(f"small/{number:02d}", os.urandom(1000 + number))
    with kernel.mounted_bucket(bucket, "--metadata-ttl", "1h", "--read-only") as mounted:
        yield mounted


def _measure(path: Path, name: str, *options: str) -> dict[str, dict[str, Any]]:
    """Run one command as a user would; return its jobs by name, with their figures by name."""
    done = run_command("bench", name, str(path), "--json", "-", "--runs", "2", *options)
    assert done.returncode == 0, done.stderr
    return {
        job["jobname"]: job | {"figures": {figure["name"]: figure["values"] for figure in job["fanoutfs"]["figures"]}}
        for job in json.loads(done.stdout)["jobs"]
    }


def _assert_nothing_is_left(mount: Mount, bucket: Bucket) -> None:
    assert sorted(os.listdir(mount.path)) == ["mine"]
    assert kernel.read_all(mount.path / OWN) == b"kept"
    # A marker that was under way when its directory was removed goes after the measurement.
    wait_until(lambda: bucket.keys() == [OWN], lambda: f"nothing else is left in the store: {bucket.keys()}")


def test_storm_fetches_each_byte_once_and_then_sends_no_message(mount: Mount, bucket: Bucket, proxy: Proxy) -> None:
    jobs = _measure(mount.path, "storm", "--size", "20MiB", "--processes", "8", "--seconds", "300ms")
    cold, hot = jobs["storm-cold"], jobs["storm-hot"]
    assert cold["figures"]["from the store"] == [20.0, 20.0]
    assert cold["read"]["io_bytes"] >= 2 * 4 * 20 * MIB  # everything was wanted four times, and compared
    sent = [each for each in proxy.requests(method="GET") if "fanoutfs-bench-" in each.path and "large" in each.path]
    assert sum(each.body_bytes for each in sent) == 2 * 20 * MIB
    assert hot["read"]["total_ios"] > 1000
    assert hot["read"]["clat_ns"]["N"] == hot["read"]["total_ios"]
    messages = hot["figures"]["messages to the daemon"]
    assert messages == [0, 0]
    _assert_nothing_is_left(mount, bucket)


def test_cold_reads_come_from_the_store_and_then_from_the_cache(mount: Mount, bucket: Bucket) -> None:
    before = mount.counters()["reader_bytes"]
    jobs = _measure(mount.path, "cold", "--size", "16MiB", "--processes", "2")
    orders = ("random", "sequential")
    assert set(jobs) == {f"cold-{order}-{distance}" for order in orders for distance in ("store", "cache")}
    assert jobs["cold-sequential-store"]["figures"]["from the store"] == [32.0, 32.0]
    for order in orders:
        assert jobs[f"cold-{order}-cache"]["figures"]["from the store"] == [0.0, 0.0]
        assert jobs[f"cold-{order}-cache"]["read"]["io_bytes"] == 2 * 32 * MIB
    assert jobs["cold-random-store"]["read"]["total_ios"] == 2 * 2 * 2  # a block of each part of 8 MiB
    # Nothing of it came from the page cache: the daemon has handed out all of it.
    assert mount.counters()["reader_bytes"] - before >= 3 * 2 * 32 * MIB
    _assert_nothing_is_left(mount, bucket)


def test_small_files_come_from_the_store_the_page_cache_and_the_cache(mount: Mount, bucket: Bucket) -> None:
    jobs = _measure(mount.path, "small", "--files", "64", "--file-size", "16KiB", "--processes", "2")
    assert jobs["small-store"]["figures"]["from the store"] == [1.0, 1.0]
    assert jobs["small-cache"]["figures"]["from the store"] == [0.0, 0.0]
    assert jobs["small-store"]["read"]["total_ios"] == jobs["small-cache"]["read"]["total_ios"] == 2 * 64
    assert max(jobs["small-hot"]["figures"]["messages to the daemon"]) < 64  # a pass is 64 reads, and there are 313
    _assert_nothing_is_left(mount, bucket)


def test_writes_are_measured_until_the_store_has_them(mount: Mount, bucket: Bucket, proxy: Proxy) -> None:
    jobs = _measure(mount.path, "write", "--size", "9MiB", "--files", "30", "--processes", "2")
    assert jobs["write-checkpoint"]["write"]["io_bytes"] == jobs["write-checkpoint-upload"]["write"]["io_bytes"]
    assert jobs["write-create-upload"]["write"]["total_ios"] == 2 * 30
    assert min(jobs["write-create"]["figures"]["messages for each"]) >= 2
    put = {each.path.partition("?")[0] for each in proxy.requests(method="PUT")}
    assert sum("/sample-" in path for path in put) == 2 * 30
    assert sum("/checkpoint-" in path for path in put) == 2
    _assert_nothing_is_left(mount, bucket)


def test_names_are_measured_beside_another_directory(mount: Mount, bucket: Bucket, tmp_path: Path) -> None:
    done = run_command(
        "bench", "meta", str(mount.path / "mine"), "--contrast", str(tmp_path), "--files", "50", "--runs", "1",
        "--html", str(tmp_path / "page.html"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fuse.fanoutfs on s3://" in done.stdout
    assert done.stdout.count("messages for each") == 5
    assert os.listdir(tmp_path) == ["page.html"]
    assert os.listdir(mount.path / "mine") == ["keep.txt"]
    _assert_nothing_is_left(mount, bucket)


def test_pages_of_these_files_are_dropped_here_and_in_the_cache(mount: Mount) -> None:
    sizes = {"large": 9 * MIB, "other": MIB, "small": 5000}
    for name, size in sizes.items():
        (mount.path / "mine" / name).write_bytes(os.urandom(size))
    site = Site(str(mount.path), HERE)
    site.upload(mount.path / "mine", 60.0)
    assert site.evict([mount.path / "mine"]) == ""
    site.drop_pages(mount.path / "mine" / name for name in sizes)
    for name, size in sizes.items():
        assert len(kernel.read_all(mount.path / "mine" / name)) == size
    site.wait_for_fills()
    objects = mount.volume() / "objects"
    cached = {name: objects / CacheFiles.relative_path((mount.path / "mine" / name).stat().st_ino) for name in sizes}
    segments = list((mount.volume() / "segments").iterdir())
    for path in (cached["large"], cached["other"], *segments):  # as if the daemon had read them
        path.read_bytes()
        assert _pages(path) > 0
    site.drop_pages(mount.path / "mine" / name for name in ("large", "small"))
    assert [_pages(mount.path / "mine" / name) > 0 for name in sizes] == [False, True, False]
    assert [_pages(cached[name]) > 0 for name in ("large", "other")] == [False, True]
    assert [_pages(path) for path in segments] == [0] * len(segments)


def _pages(path: Path) -> int:
    """Return how many pages of a file are in memory."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as mapped,
    ):
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        found = ctypes.create_string_buffer(-(-len(mapped) // mmap.PAGESIZE))
        assert LIBC.mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), found) == 0
        return sum(each & 1 for each in found.raw)


# --- read-only -------------------------------------------------------------------------------------------------


def test_read_only_mount_is_measured_with_the_files_it_has(data_set: Mount) -> None:
    storm = _measure(data_set.path, "storm", "--processes", "4", "--seconds", "200ms")
    size = 3 * MIB + 17
    assert storm["storm-cold"]["figures"]["from the store"] == pytest.approx([size / MIB] * 2)
    assert storm["storm-hot"]["figures"]["messages to the daemon"] == [0, 0]
    cold = _measure(data_set.path, "cold", "--processes", "2")
    assert cold["cold-sequential-cache"]["read"]["io_bytes"] == 2 * 2 * size
    small = _measure(data_set.path, "small", "--processes", "2")
    assert small["small-store"]["read"]["total_ios"] == 2 * 30
    assert small["small-store"]["read"]["io_bytes"] == 2 * sum(range(1000, 1030))
    assert small["small-store"]["figures"]["from the store"] == pytest.approx([sum(range(1000, 1030)) / MIB] * 2)


def test_contrast_of_a_read_only_mount_gets_files_of_the_same_size(data_set: Mount, tmp_path: Path) -> None:
    file = tmp_path / "j"
    common = ("--contrast", str(tmp_path), "--runs", "1", "--processes", "2", "--json", str(file))
    for name, option, sizes in (("cold", "size", ["3145745", "4194304"]), ("small", "filesize", ["1014", "1014"])):
        done = run_command("bench", name, str(data_set.path), *common)
        assert done.returncode == 0, done.stderr
        jobs = json.loads(file.read_text())["jobs"]
        found = [{job["job options"][option] for job in jobs if job["fanoutfs"]["role"] == role} for role in ROLES]
        assert found == [{size} for size in sizes]
        assert {job["job options"].get("nrfiles", "30") for job in jobs} == {"30"}
    assert os.listdir(tmp_path) == ["j"]


@pytest.mark.parametrize("name", ["write", "meta"])
def test_what_writes_says_in_one_line_that_it_cannot(data_set: Mount, name: str) -> None:
    done = run_command("bench", name, str(data_set.path))
    assert (done.returncode, done.stdout) == (UsageError.exit_code, "")
    assert done.stderr == f"fanoutfs: {data_set.path} is read-only: nothing can be written there\n"


def test_pinned_files_are_not_evicted_for_a_measurement(data_set: Mount) -> None:
    assert run_command("pin", str(data_set.path / "large")).returncode == 0
    done = run_command("bench", "storm", str(data_set.path), "--processes", "2", "--seconds", "100ms", "--runs", "1")
    assert done.returncode == 0, done.stderr
    assert "not measured: kept in the cache: pinned (files: 1)" in done.stdout


def test_too_little_room_in_the_cache_is_said_beforehand(mount: Mount) -> None:
    done = run_command("bench", "write", str(mount.path), "--size", "100TiB")
    assert done.returncode == UsageError.exit_code
    assert "half of that may wait for uploads" in done.stderr
    assert os.listdir(mount.path) == ["mine"]


def test_interrupted_run_leaves_nothing_here_and_in_the_store(mount: Mount, bucket: Bucket) -> None:
    interrupt_storm(mount.path)
    assert sorted(os.listdir(mount.path)) == ["mine"]
    wait_until(lambda: bucket.keys() == [OWN], "the store has only what was there before", deadline_s=60)
