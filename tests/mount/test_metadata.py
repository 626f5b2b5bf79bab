"""What others do to the bucket: objects appear, vanish and change; names, inodes and bytes follow, and never mix."""

import errno
import mmap
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fanoutfs.records import BLOCK_BYTES, MIB, PART_BYTES
from tests.mount import kernel
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, mounted, wait_until
from tests.support.servers import Bucket


@pytest.fixture
def mount(bucket: Bucket) -> Iterator[Mount]:
    """A mount that lists again when told to and not before."""
    bucket.put("directory/stays", b"stays")
    with kernel.mounted_bucket(bucket) as mounted_:
        yield mounted_


@pytest.fixture
def quick(bucket: Bucket) -> Iterator[Mount]:
    """A mount that lists active directories again every second."""
    bucket.put("directory/stays", b"stays")
    with mounted(bucket.url, "--endpoint-url", bucket.endpoint, "--metadata-ttl", "1s", env=bucket.env) as mounted_:
        yield mounted_


def _exists(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


# --- names -----------------------------------------------------------------------------------------------------


def test_absent_name_stays_absent_until_the_directory_is_listed_again(mount: Mount, bucket: Bucket) -> None:
    path = mount.path / "directory" / "new"
    assert not _exists(path)
    bucket.put("directory/new", b"new")
    assert not _exists(path)
    assert os.listdir(path.parent) == ["stays"]
    mount.invalidate("directory")
    assert kernel.read_all(path) == b"new"
    assert sorted(os.listdir(path.parent)) == ["new", "stays"]


def test_absent_names_cost_the_backend_nothing(mount: Mount) -> None:
    os.listdir(mount.path / "directory")
    before = {name: n for name, n in mount.counters().items() if name.startswith("backend_")}
    for number in range(200):
        assert not _exists(mount.path / "directory" / f"absent-{number}")
    assert {name: n for name, n in mount.counters().items() if name.startswith("backend_")} == before


def test_new_object_appears_by_itself(quick: Mount, bucket: Bucket) -> None:
    path = quick.path / "directory" / "new"
    assert not _exists(path)
    bucket.put("directory/new", b"new")
    wait_until(lambda: _exists(path), "the new object is seen")
    assert kernel.read_all(path) == b"new"
    assert sorted(os.listdir(path.parent)) == ["new", "stays"]


def test_deleted_object_disappears_by_itself(quick: Mount, bucket: Bucket) -> None:
    path = quick.path / "directory" / "gone"
    bucket.put("directory/gone", b"gone")
    wait_until(lambda: _exists(path), "the object is seen")
    bucket.delete("directory/gone")
    wait_until(lambda: not _exists(path), "the deletion is seen")
    assert os.listdir(path.parent) == ["stays"]


def test_changed_object_is_seen_by_itself(quick: Mount, bucket: Bucket) -> None:
    path = quick.path / "directory" / "stays"
    assert kernel.read_all(path) == b"stays"
    bucket.put("directory/stays", b"has changed")
    wait_until(lambda: kernel.read_all(path) == b"has changed", "the change is seen")


def test_new_directory_of_a_listed_directory_appears(mount: Mount, bucket: Bucket) -> None:
    assert os.listdir(mount.path) == ["directory"]
    bucket.put("other/deep/file", b"deep")
    assert not _exists(mount.path / "other")
    mount.invalidate()
    assert kernel.read_all(mount.path / "other/deep/file") == b"deep"


def test_deleted_object_vanishes_and_its_open_descriptor_goes_on(mount: Mount, bucket: Bucket) -> None:
    path = mount.path / "directory" / "stays"
    with kernel.opened(path) as fd:
        assert os.read(fd, 100) == b"stays"
        bucket.delete("directory/stays")
        mount.invalidate("directory")
        assert not _exists(path)
        drop_page_cache()
        assert os.pread(fd, 100, 0) == b"stays"
        assert os.fstat(fd).st_size == 5


def test_object_with_the_same_content_put_again_keeps_its_inode_and_changes_its_time(
    mount: Mount, bucket: Bucket
) -> None:
    path = mount.path / "directory" / "stays"
    before = path.stat()

    def is_newer() -> bool:
        bucket.put("directory/stays", b"stays")
        mount.invalidate("directory")
        return path.stat().st_mtime_ns > before.st_mtime_ns

    wait_until(is_newer, "the store's clock moved on by its one-second step")
    assert path.stat().st_ino == before.st_ino


# --- versions --------------------------------------------------------------------------------------------------


def test_changed_object_is_a_new_inode_and_the_old_descriptor_reads_the_old_version(
    mount: Mount, bucket: Bucket
) -> None:
    old, new = b"A" * (3 * MIB), b"B" * (2 * MIB)
    bucket.put("directory/file", old)
    path = mount.path / "directory" / "file"
    with kernel.opened(path) as fd:
        assert kernel.read_all(path) == old
        old_ino = os.fstat(fd).st_ino
        bucket.put("directory/file", new)
        mount.invalidate("directory")
        drop_page_cache()
        assert path.stat().st_ino != old_ino
        assert (path.stat().st_size, os.fstat(fd).st_size) == (len(new), len(old))
        assert kernel.read_all(path) == new
        assert os.pread(fd, len(old) + 1, 0) == old
        assert os.fstat(fd).st_ino == old_ino
    assert mount.counters()["version_switches"] == 1


def test_uncached_part_of_an_old_version_is_stale_and_the_cached_part_still_reads(bucket: Bucket) -> None:
    size = 4 * PART_BYTES
    bucket.put("file", b"A" * size)
    with kernel.mounted_bucket(bucket, "--max-readahead", "0") as mount:
        with kernel.opened(mount.path / "file", os.O_RDONLY | os.O_DIRECT) as fd:
            assert os.pread(fd, BLOCK_BYTES, 0) == b"A" * BLOCK_BYTES
            bucket.put("file", b"B" * size)
            mount.invalidate()
            assert os.pread(fd, BLOCK_BYTES, 0) == b"A" * BLOCK_BYTES
            for offset in (BLOCK_BYTES, PART_BYTES, size - 1):
                with pytest.raises(OSError) as caught:
                    os.pread(fd, 4096, offset)
                assert caught.value.errno == errno.ESTALE
        assert kernel.read_all(mount.path / "file") == b"B" * size


def test_uncached_change_that_was_not_listed_yet_is_stale_until_listed(bucket: Bucket) -> None:
    bucket.put("file", b"A" * MIB)
    with kernel.mounted_bucket(bucket) as mount:
        assert os.listdir(mount.path) == ["file"]
        bucket.put("file", b"B" * MIB)
        with pytest.raises(OSError) as caught:
            kernel.read_all(mount.path / "file")
        assert caught.value.errno == errno.ESTALE
        mount.invalidate()
        assert kernel.read_all(mount.path / "file") == b"B" * MIB


def test_uncached_deletion_that_was_not_listed_yet_is_an_error_until_listed(bucket: Bucket) -> None:
    bucket.put("file", b"A" * MIB)
    with kernel.mounted_bucket(bucket) as mount:
        assert os.listdir(mount.path) == ["file"]
        bucket.delete("file")
        with pytest.raises(OSError) as caught:
            kernel.read_all(mount.path / "file")
        assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
        mount.invalidate()
        assert os.listdir(mount.path) == []


@pytest.mark.parametrize("size", [20_000, 3 * MIB], ids=["small", "large"])
def test_no_reader_sees_two_versions_in_one_file(bucket: Bucket, size: int) -> None:
    bucket.put("file", b"\0" * size)
    with kernel.mounted_bucket(bucket) as mount:
        path = mount.path / "file"

        def read_versions(_number: int) -> set[int]:
            seen = set()
            while not is_over.exists():
                with kernel.opened(path) as fd:
                    try:
                        halves = os.pread(fd, size // 2, 0) + os.pread(fd, size, size // 2)
                    except OSError as error:
                        assert error.errno == errno.ESTALE
                        continue
                assert len(halves) == size
                assert halves == halves[:1] * size, sorted(set(halves))
                seen.add(halves[0])
            return seen

        is_over = mount.cache / "over"
        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read_versions, number) for number in range(4)]
            for version in range(1, 16):
                bucket.put("file", bytes([version]) * size)
                mount.invalidate()
                assert kernel.read_all(path) == bytes([version]) * size
            is_over.touch()
            for reader in readers:
                assert reader.result()
        assert mount.counters()["request_errors"] == 0


def test_mapping_of_an_old_version_keeps_its_bytes(mount: Mount, bucket: Bucket) -> None:
    bucket.put("directory/file", b"A" * MIB)
    path = mount.path / "directory" / "file"
    with kernel.opened(path) as fd, mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
        assert mapping[:] == b"A" * MIB
        bucket.put("directory/file", b"B" * MIB)
        mount.invalidate("directory")
        assert kernel.read_all(path) == b"B" * MIB
        assert mapping[:] == b"A" * MIB


def test_inodes_of_old_versions_are_freed_with_their_bytes(mount: Mount, bucket: Bucket) -> None:
    path = mount.path / "directory" / "file"
    os.listdir(path.parent)
    for version in (b"A", b"B", b"C"):
        bucket.put("directory/file", version * (2 * MIB))
        mount.invalidate("directory")
        assert kernel.read_all(path) == version * (2 * MIB)
    wait_until(lambda: mount.counters()["orphans_freed"] == 2, "both old versions are freed")
    assert mount.status()["cache"]["large_bytes"] == 2 * MIB
    assert kernel.read_all(path) == b"C" * (2 * MIB)


# --- directories -----------------------------------------------------------------------------------------------


def test_times_of_a_directory_change_with_its_names_and_not_by_being_looked_at(mount: Mount, bucket: Bucket) -> None:
    directory = mount.path / "directory"
    first = directory.stat().st_mtime_ns
    os.listdir(directory)
    kernel.read_all(directory / "stays")
    assert directory.stat().st_mtime_ns == first
    drop_page_cache()
    assert directory.stat().st_mtime_ns == first
    mount.invalidate("directory")
    assert directory.stat().st_mtime_ns == first
    mount.stop()
    mount.start()
    assert directory.stat().st_mtime_ns == first
    bucket.put("directory/new", b"new")
    mount.invalidate("directory")
    assert directory.stat().st_mtime_ns > first


@pytest.fixture
def moto_mount(moto_bucket: Bucket) -> Iterator[Mount]:
    """SeaweedFS keeps a directory for a while after its last object went; moto, like S3, does not."""
    moto_bucket.put("directory/stays", b"stays")
    with kernel.mounted_bucket(moto_bucket) as mounted_:
        yield mounted_


@pytest.fixture
def moto_quick(moto_bucket: Bucket) -> Iterator[Mount]:
    moto_bucket.put("directory/stays", b"stays")
    options = ("--endpoint-url", moto_bucket.endpoint, "--metadata-ttl", "1s")
    with mounted(moto_bucket.url, *options, env=moto_bucket.env) as mounted_:
        yield mounted_


def test_directory_vanishes_with_its_last_object_and_comes_back_as_another(
    moto_mount: Mount, moto_bucket: Bucket
) -> None:
    directory = moto_mount.path / "directory"
    before = directory.stat().st_ino
    moto_bucket.delete("directory/stays")
    moto_mount.invalidate()
    assert not _exists(directory)
    assert os.listdir(moto_mount.path) == []
    moto_bucket.put("directory/back", b"back")
    moto_mount.invalidate()
    assert os.listdir(directory) == ["back"]
    assert directory.stat().st_ino != before
    assert kernel.read_all(directory / "back") == b"back"


def test_descriptor_of_a_vanished_directory_shows_it_empty_for_ever(moto_quick: Mount, moto_bucket: Bucket) -> None:
    """As on a local disk; what comes back under the name belongs to the new directory alone."""
    directory = moto_quick.path / "directory"
    with kernel.opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        assert os.listdir(fd) == ["stays"]
        moto_bucket.delete("directory/stays")
        wait_until(lambda: not _exists(directory), "the directory vanished")
        assert os.listdir(fd) == []
        moto_bucket.put("directory/stays", b"is back")
        wait_until(lambda: _exists(directory / "stays"), "the directory is back")
        listings = moto_quick.counters()["listings"]
        wait_until(lambda: moto_quick.counters()["listings"] >= listings + 3, "everything active was listed again")
        assert os.listdir(fd) == []
        with pytest.raises(FileNotFoundError):
            os.stat("stays", dir_fd=fd)
        assert kernel.read_all(directory / "stays") == b"is back"
    assert moto_quick.status()["known"]["files"] == 1


def test_process_in_a_vanished_directory_gets_errors_and_no_hang(moto_mount: Mount, moto_bucket: Bucket) -> None:
    shell = subprocess.Popen(
        ["sh", "-c", "cat stays; echo; read _; cat stays; ls | wc -l; cd ..; ls"],
        cwd=moto_mount.path / "directory",
        stdin=-1,
        stdout=-1,
        stderr=-1,
        text=True,
    )
    assert shell.stdin is not None and shell.stdout is not None
    assert shell.stdout.readline() == "stays\n"
    moto_bucket.delete("directory/stays")
    moto_bucket.put("other/file", b"")
    moto_mount.invalidate()
    out, err = shell.communicate("\n", timeout=30)
    assert out.split() == ["0", "other"]
    assert "No such file" in err


def test_object_under_a_name_that_becomes_a_prefix_and_back(moto_bucket: Bucket) -> None:
    """The directory wins; the object is shown again when nothing is below the prefix any more."""
    moto_bucket.put("name", b"an object")
    with kernel.mounted_bucket(moto_bucket) as mount:
        path = mount.path / "name"
        with kernel.opened(path) as fd:
            assert kernel.read_all(path) == b"an object"
            moto_bucket.put("name/below", b"below")
            mount.invalidate()
            assert path.is_dir()
            assert os.listdir(path) == ["below"]
            assert kernel.read_all(path / "below") == b"below"
            assert os.pread(fd, 100, 0) == b"an object"
        moto_bucket.delete("name/below")
        mount.invalidate()
        assert path.is_file()
        assert kernel.read_all(path) == b"an object"
        moto_bucket.delete("name")
        moto_bucket.put("name/again", b"again")
        mount.invalidate()
        assert os.listdir(path) == ["again"]
        assert os.listdir(mount.path) == ["name"]


def test_object_and_prefix_of_one_name_from_the_beginning(moto_bucket: Bucket) -> None:
    moto_bucket.put("name", b"an object")
    moto_bucket.put("name/below", b"below")
    moto_bucket.put("name-between", b"sorts between the two")
    with kernel.mounted_bucket(moto_bucket) as mount:
        assert (mount.path / "name").is_dir()
        assert sorted(os.listdir(mount.path)) == ["name", "name-between"]
        assert mount.counters()["hidden_names"] == 1
        assert kernel.read_all(mount.path / "name/below") == b"below"


def test_marker_objects_make_empty_directories(moto_bucket: Bucket) -> None:
    moto_bucket.put("empty/", b"")
    moto_bucket.put("full/", b"the content of a marker is not shown")
    moto_bucket.put("full/file", b"file")
    with kernel.mounted_bucket(moto_bucket) as mount:
        assert sorted(os.listdir(mount.path)) == ["empty", "full"]
        assert os.listdir(mount.path / "empty") == []
        assert os.listdir(mount.path / "full") == ["file"]
        assert mount.counters()["hidden_names"] == 0


def test_read_of_a_replaced_object_makes_the_next_open_find_the_new_version(bucket: Bucket) -> None:
    bucket.put("dir/a", b"old" * 100)
    with mounted(
        bucket.url, "--endpoint-url", bucket.endpoint, "--metadata-ttl", "indefinite", env=bucket.env
    ) as mount:
        path = mount.path / "dir/a"
        assert path.stat().st_size == 300
        bucket.put("dir/a", b"newer" * 100)
        with pytest.raises(OSError, match="Stale") as caught:
            path.read_bytes()
        assert caught.value.errno == errno.ESTALE
        wait_until(lambda: path.stat().st_size == 500, "the new version is found")
        assert path.read_bytes() == b"newer" * 100
