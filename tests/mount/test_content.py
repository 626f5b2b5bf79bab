"""Bytes: sizes at every border of small files, blocks, parts and READs; reads at any offset; cold, warm, parallel."""

import hashlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from fanoutfs.records import BLOCK_BYTES, KIB, MIB, PART_BYTES
from tests.mount import kernel
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, mounted
from tests.support.servers import S3Server

SEED = 20_260_731
BORDERS = (4 * KIB, 128 * KIB, BLOCK_BYTES, MIB, PART_BYTES, PART_BYTES + BLOCK_BYTES, 2 * PART_BYTES)
SIZES = (0, 1, *(border + change for border in BORDERS for change in (-1, 0, 1)))


def content(size: int) -> bytes:
    """Return bytes that are the same nowhere else: of this size's own generator."""
    return random.Random(SEED + size).randbytes(size)


@dataclass(frozen=True)
class Place:
    mount: Mount
    contents: dict[int, bytes]


@pytest.fixture(scope="module")
def place(weed: S3Server) -> Iterator[Place]:
    bucket = weed.bucket()
    contents = {size: content(size) for size in SIZES}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda size: bucket.put(f"size-{size}", contents[size]), SIZES))
    with kernel.mounted_bucket(bucket) as mount:
        yield Place(mount, contents)


@pytest.mark.parametrize("size", SIZES)
def test_whole_file_is_read_right_cold_and_warm(place: Place, size: int) -> None:
    path = place.mount.path / f"size-{size}"
    assert path.stat().st_size == size
    for _time in ("cold", "warm"):
        assert kernel.read_all(path) == place.contents[size]
    with kernel.opened(path, os.O_RDONLY | os.O_DIRECT) as fd:  # from the daemon's cache, not from the page cache
        assert os.pread(fd, size + 4096, 0) == place.contents[size]


@pytest.mark.parametrize("size", [size for size in SIZES if size > 4])
def test_reads_around_every_border_are_right(place: Place, size: int) -> None:
    data = place.contents[size]
    borders = [border for border in (*BORDERS, size) if border <= size]
    with kernel.opened(place.mount.path / f"size-{size}", os.O_RDONLY | os.O_DIRECT) as fd:
        for border in borders:
            for start, length in ((border - 1, 2), (border - 3, 3), (border, 1), (border - 4, 5000), (0, border)):
                assert os.pread(fd, length, start) == data[start : start + length], (border, start, length)
        assert os.pread(fd, 10, size) == b""


def test_reads_anywhere_of_any_length_are_right_through_page_cache_and_directly(place: Place) -> None:
    size = 2 * PART_BYTES + 1
    data = place.contents[size]
    choose = random.Random(SEED)
    drop_page_cache()
    path = place.mount.path / f"size-{size}"
    with kernel.opened(path) as cached, kernel.opened(path, os.O_RDONLY | os.O_DIRECT) as direct:
        for number in range(300):
            start = choose.randrange(size)
            length = choose.choice((1, 511, 4096, 4097, 70_000, BLOCK_BYTES + 1, 3 * MIB + 5))
            for fd in (cached, direct):
                assert os.pread(fd, length, start) == data[start : start + length], f"seed {SEED} read {number}"


def test_cold_random_reads_by_many_threads_are_right_and_fetch_each_byte_once(weed: S3Server) -> None:
    size = 3 * PART_BYTES + 12_345
    data = content(size)
    bucket = weed.bucket()
    bucket.put("file", data)
    with kernel.mounted_bucket(bucket) as mount:

        def read_some(number: int) -> None:
            choose = random.Random(SEED + number)
            with kernel.opened(mount.path / "file", os.O_RDONLY | (os.O_DIRECT if number % 2 else 0)) as fd:
                for step in range(60):
                    start, length = choose.randrange(size), choose.randrange(1, 400_000)
                    assert os.pread(fd, length, start) == data[start : start + length], f"seed {SEED + number} {step}"

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read_some, range(8)))
        assert hashlib.sha256(kernel.read_all(mount.path / "file")).digest() == hashlib.sha256(data).digest()
        assert mount.counters()["backend_bytes"] == size


@pytest.mark.parametrize("small_file_size", [0, 4 * KIB, 128 * KIB, MIB])
def test_limit_of_small_files_is_inclusive(weed: S3Server, small_file_size: int) -> None:
    """The limit decides where bytes are kept, and nothing a reader sees."""
    bucket = weed.bucket()
    sizes = [max(0, small_file_size + change) for change in (-1, 0, 1)]
    for name, size in zip("abc", sizes, strict=True):
        bucket.put(name, content(size))
    with mounted(
        bucket.url, "--endpoint-url", bucket.endpoint, "--small-file-size", f"{small_file_size}B", env=bucket.env
    ) as mount:
        for name, size in zip("abc", sizes, strict=True):
            assert kernel.read_all(mount.path / name) == content(size)
        large = sum(size for size in sizes if size > small_file_size)
        mount.wait_for_fills()
        assert mount.status()["cache"]["large_bytes"] == large


def test_source_on_disk_with_the_same_borders(tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.mktemp("source")
    for size in SIZES:
        (source / f"size-{size}").write_bytes(content(size))
    with mounted(f"file://{source}", "--metadata-ttl", "indefinite") as mount:
        for size in SIZES:
            assert kernel.read_all(mount.path / f"size-{size}") == content(size)
