"""Listings: complete, each name once, at any buffer size, while names come and go."""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount import kernel
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, mounted, wait_until
from tests.support.servers import Bucket, S3Server

ENTRIES = 5_200
NAMES = [f"{number:05d}-{'x' * (number % 40)}" for number in range(ENTRIES)]
TINY = 280
"""Fits one entry of the longest name."""


@pytest.fixture(scope="module")
def mount(weed: S3Server) -> Iterator[Mount]:
    """5,200 objects in one directory, six LIST pages."""
    bucket = weed.bucket()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put(f"many/{name}", b""), NAMES))
    bucket.put("few/a", b"")
    bucket.put("few/b/c", b"")
    with kernel.mounted_bucket(bucket) as mounted_:
        yield mounted_


def _getdents_all(path: Path, size: int) -> list[tuple[int, int, int, bytes]]:
    with kernel.opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        found = []
        while some := kernel.getdents(fd, size):
            found += some
        return found


def test_large_directory_is_listed_completely_by_every_tool(mount: Mount) -> None:
    path = mount.path / "many"
    assert sorted(entry.name for entry in os.scandir(path)) == NAMES
    assert sorted(os.listdir(path)) == NAMES
    listed = subprocess.run(["ls", "-f", path], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(listed) == [".", "..", *NAMES]
    found = subprocess.run(["find", path, "-type", "f", "-printf", "%f\n"], capture_output=True, text=True, check=True)
    assert sorted(found.stdout.split()) == NAMES
    long = subprocess.run(["ls", "-l", path], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(long) == ENTRIES + 1


@pytest.mark.parametrize("size", [TINY, 1000, 1 << 20])
@pytest.mark.parametrize("is_cached", [False, True])
def test_any_buffer_size_lists_every_name_once(mount: Mount, size: int, is_cached: bool) -> None:
    if not is_cached:
        drop_page_cache()
    found = _getdents_all(mount.path / "many", size)
    names = [name.decode() for _ino, _offset, _type, name in found]
    assert names == [".", "..", *NAMES]
    assert len({offset for _ino, offset, _type, _name in found}) == len(found)


def test_buffer_too_small_for_one_entry_is_an_error(mount: Mount) -> None:
    with kernel.opened(mount.path / "many") as fd, pytest.raises(OSError, match="Invalid argument"):
        kernel.getdents(fd, 16)


def test_types_and_inodes_in_a_listing(mount: Mount) -> None:
    found = {name: (ino, dtype) for ino, _offset, dtype, name in _getdents_all(mount.path / "few", 4096)}
    assert {name: dtype for name, (_ino, dtype) in found.items()} == {b".": 4, b"..": 4, b"a": 8, b"b": 4}
    for name in ("a", "b", "."):
        assert found[name.encode()][0] == (mount.path / "few" / name).stat().st_ino


def test_position_of_telldir_leads_back_to_the_same_name(mount: Mount) -> None:
    path = mount.path / "many"
    positions = kernel.directory_positions(path)
    assert [name.decode() for _position, name in positions[2:]] == NAMES
    for position, name in positions[:: ENTRIES // 50]:
        assert kernel.name_at_position(path, position) == name
    drop_page_cache()
    for position, name in positions[:: ENTRIES // 50]:
        assert kernel.name_at_position(path, position) == name


def test_rewind_lists_again_from_the_beginning(mount: Mount) -> None:
    with kernel.opened(mount.path / "many") as fd:
        first = kernel.getdents(fd, 4096)
        kernel.getdents(fd, 65536)
        os.lseek(fd, 0, os.SEEK_SET)
        assert kernel.getdents(fd, 4096) == first


def test_two_streams_of_one_directory_do_not_disturb_each_other(mount: Mount) -> None:
    path = mount.path / "many"
    drop_page_cache()
    with kernel.opened(path) as first, kernel.opened(path) as second:
        seen: list[list[bytes]] = [[], []]
        streams = [first, second]
        while streams:
            for fd in list(streams):
                some = kernel.getdents(fd, 2000 if fd == first else 7000)
                seen[fd == second] += [entry[3] for entry in some]
                if not some:
                    streams.remove(fd)
    expected = [b".", b"..", *(name.encode() for name in NAMES)]
    assert seen == [expected, expected]


def test_listing_twice_at_once_by_many_threads_lists_the_backend_once(weed: S3Server) -> None:
    bucket = weed.bucket()
    for number in range(50):
        bucket.put(f"directory/{number}", b"")
    with kernel.mounted_bucket(bucket) as mount:
        os.stat(mount.path / "directory")
        before = mount.counters()["backend_lists"]
        with ThreadPoolExecutor(16) as pool:
            lists = list(pool.map(lambda _number: sorted(os.listdir(mount.path / "directory")), range(16)))
        assert all(names == sorted(str(number) for number in range(50)) for names in lists)
        assert mount.counters()["backend_lists"] == before + 1


# --- while names come and go -----------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source whose files are cheap to make: 3,000 that stay, 600 that will go."""
    (tmp_path / "directory").mkdir()
    for number in range(3_000):
        (tmp_path / "directory" / f"{number:05d}-stays").touch()
        if number % 5 == 0:
            (tmp_path / "directory" / f"{number:05d}-goes").touch()
    return tmp_path


def _change_step(directory: Path, step: int) -> None:
    """Remove two names, replace one, add two: in front of, at and behind wherever a reader may be."""
    for number in (step * 20 % 3_000, (2_995 - step * 20) % 3_000):
        (directory / f"{number:05d}-goes").unlink(missing_ok=True)
        (directory / f"{number:05d}-new").touch()
    replaced = directory / f"{step * 37 % 3_000:05d}-stays"
    replaced.write_text(f"version {step}")


def test_stable_names_are_listed_exactly_once_while_others_change(source: Path) -> None:
    directory = source / "directory"
    stable = {f"{number:05d}-stays" for number in range(3_000)}
    with mounted(f"file://{source}", "--metadata-ttl", "indefinite") as mount:
        path = mount.path / "directory"
        assert len(os.listdir(path)) == 3_600
        for size in (1_500, 20_000):
            seen: Counter[str] = Counter()
            with kernel.opened(path) as fd:
                step = 0
                while some := kernel.getdents(fd, size):
                    seen.update(entry[3].decode() for entry in some)
                    step += 1
                    if step % (30_000 // size + 1) == 0:
                        _change_step(directory, step)
                        mount.invalidate("directory")
            assert [name for name, count in seen.items() if count > 1] == []
            assert stable - set(seen) == set()
        assert sorted(os.listdir(path)) == sorted(os.listdir(directory))


def test_entry_at_the_reading_position_is_removed_and_the_listing_goes_on(source: Path) -> None:
    with mounted(f"file://{source}", "--metadata-ttl", "indefinite") as mount:
        with kernel.opened(mount.path / "directory") as fd:
            seen: list[str] = []
            while some := kernel.getdents(fd, 3_000):
                seen += [entry[3].decode() for entry in some]
                if seen[-1].endswith("-goes"):
                    (source / "directory" / seen[-1]).unlink()
                    mount.invalidate("directory")
        stays = [name for name in seen if name.endswith("-stays")]
        assert stays == [f"{number:05d}-stays" for number in range(3_000)]
        assert len(set(seen)) == len(seen)


def test_listing_that_stood_at_a_freed_entry_goes_on_behind_it(source: Path) -> None:
    """As `rm -r` of a large directory needs it: it removes what it has read, and reads on."""
    with mounted(f"file://{source}", "--metadata-ttl", "indefinite") as mount:
        expected = sorted(os.fsencode(name) for name in os.listdir(source / "directory"))
        with kernel.opened(mount.path / "directory") as fd:
            found = [entry[3] for entry in kernel.getdents(fd, 3_000)]
            (source / "directory" / found[-1].decode()).unlink()
            mount.invalidate("directory")
            drop_page_cache()
            wait_until(lambda: mount.counters()["orphans_freed"], "the removed inode is freed")
            while entries := kernel.getdents(fd, 3_000):
                found += [entry[3] for entry in entries]
            assert sorted(set(found) - {b".", b".."}) == expected
            assert len(found) == len(expected) + 2
            os.lseek(fd, 0, os.SEEK_SET)
            assert len(_getdents_all(mount.path / "directory", 3_000)) == 3_601


def test_background_listing_keeps_stable_names_while_the_backend_changes(source: Path) -> None:
    directory = source / "directory"
    stable = {f"{number:05d}-stays" for number in range(3_000)}
    with mounted(f"file://{source}", "--metadata-ttl", "1s") as mount:
        path = mount.path / "directory"
        listings = mount.counters()["listings"]
        step = 0
        while mount.counters()["listings"] < listings + 4:
            names = os.listdir(path)
            assert len(names) == len(set(names))
            assert stable <= set(names)
            _change_step(directory, step)
            step += 1
        wait_until(lambda: sorted(os.listdir(path)) == sorted(os.listdir(directory)), "the last change is visible")


def test_directory_of_a_bucket_that_is_gone_is_an_error_and_not_empty(moto_bucket: Bucket) -> None:
    """ENOENT of getdents(2) is the end of a directory to the C library: `rsync --delete` would empty its copy."""
    keys = ("a/listed", "b/not listed", "large")
    for key in keys:
        moto_bucket.put(key, b"content" * 100_000)
    with mounted(
        moto_bucket.url, "--endpoint-url", moto_bucket.endpoint, "-o", "op_timeout=5s", env=moto_bucket.env
    ) as mount:
        assert os.listdir(mount.path / "a") == ["listed"]
        with open(mount.path / "large", "rb") as stream:
            for key in keys:
                moto_bucket.delete(key)
            moto_bucket.client.delete_bucket(Bucket=moto_bucket.name)
            with pytest.raises(OSError, match=r"Input/output error|Stale file handle"):
                stream.read()
        assert os.listdir(mount.path / "a") == ["listed"]
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(mount.path / "b")
        result = subprocess.run(["ls", mount.path / "b"], capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert "Input/output error" in result.stderr
