"""Opening a volume: what survives, and that two histories never mix."""

import os
from pathlib import Path

import lmdb
import pytest
import trio

from fanoutfs.cache.volume import Volume, open_volume
from fanoutfs.errors import CacheUnusableError
from fanoutfs.index.format import FORMAT_VERSION, U64
from fanoutfs.index.operations import OpenVolume
from fanoutfs.index.transaction import write_transaction
from fanoutfs.records import MIB
from tests.unit.indexes import NOW_NS, OWNER, apply, enter_listing, file

WANTED = OpenVolume("test", OWNER, NOW_NS)


def opened(path: Path) -> Volume:
    return open_volume(path, 8 * MIB, WANTED, trio.lowlevel.checkpoint)


def fill(path: Path) -> None:
    """Leave a volume with a listing, a small content and a cache file."""
    volume = opened(path)
    enter_listing(volume.environment, [file(f"a{n}") for n in range(300)])
    trio.run(volume.small.put, 16, memoryview(b"old content"))
    os.write(volume.files.descriptor(17), b"old blocks")
    volume.close(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "objects").mkdir()
    return tmp_path


def cache_files(path: Path) -> list[Path]:
    return [found for found in (path / "objects").rglob("*") if found.is_file()]


def test_known_volume_keeps_everything(path: Path) -> None:
    fill(path)
    volume = opened(path)
    assert volume.was_known
    assert volume.small.has(16)
    assert len(cache_files(path)) == 1
    volume.close(path)


def test_files_are_readable_by_their_owner_only(path: Path) -> None:
    fill(path)
    for name in ("index.lmdb", "small.lmdb"):
        assert (path / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty meta", "root missing", "leaves missing"])
def test_lost_index_takes_everything_under_old_numbers_with_it(path: Path, damage: str) -> None:
    fill(path)
    index = path / "index.lmdb"
    if damage == "missing":
        index.unlink()
    elif damage == "garbage":
        index.write_bytes(b"\xa5" * index.stat().st_size)
    elif damage == "empty meta":
        with index.open("r+b") as stream:
            stream.write(bytes(8192))
    elif damage == "root missing":
        os.truncate(index, 3 * 4096)
    else:
        os.truncate(index, index.stat().st_size // 2)
    volume = opened(path)
    assert not volume.was_known
    assert not volume.small.has(16)
    assert cache_files(path) == []
    assert apply(volume.environment, lambda txn: txn.entries(1)) == []
    volume.close(path)


def test_index_that_is_short_of_unwritten_pages_only_is_kept(path: Path) -> None:
    fill(path)
    volume = opened(path)
    before = (path / "index.lmdb").stat().st_size
    with write_transaction(volume.environment) as txn:
        for n in range(2000):  # pages allocated and freed within one transaction
            txn.set_setting(b"x%d" % n, bytes(2000))
        for n in range(2000):
            txn._txn.delete(b"x%d" % n, db=volume.environment.settings)
    volume.close(path)
    assert (path / "index.lmdb").stat().st_size >= before
    volume = opened(path)
    assert volume.was_known
    volume.close(path)


def test_broken_index_is_kept_for_a_look(path: Path) -> None:
    fill(path)
    (path / "index.lmdb").write_bytes(b"\xa5" * 16384)
    opened(path).close(path)
    assert (path / "index.lmdb.broken").read_bytes() == b"\xa5" * 16384


def test_broken_small_store_is_replaced_and_the_index_stays(path: Path) -> None:
    fill(path)
    (path / "small.lmdb").write_bytes(b"\xa5" * 16384)
    volume = opened(path)
    assert volume.was_known
    assert not volume.small.has(16)
    assert len(cache_files(path)) == 1
    volume.close(path)


def test_small_store_of_an_older_format_is_replaced_and_the_index_stays(path: Path) -> None:
    fill(path)
    (path / "small.lmdb").unlink()
    with lmdb.open(str(path / "small.lmdb"), subdir=False, lib_version=0) as env, env.begin(write=True) as txn:
        txn.put((16).to_bytes(8, "big"), b"checksumold content")
    volume = opened(path)
    assert volume.was_known
    assert not volume.small.has(16)
    trio.run(volume.small.put, 16, memoryview(b"new content"))
    volume.close(path)
    volume = opened(path)
    assert volume.small.is_intact(16)
    volume.close(path)


def test_newer_format_is_refused_and_nothing_is_touched(path: Path) -> None:
    fill(path)
    volume = opened(path)
    with write_transaction(volume.environment) as txn:
        txn.set_setting(b"format", U64.pack(FORMAT_VERSION + 1))
    volume.close(path)
    with pytest.raises(CacheUnusableError, match=f"format {FORMAT_VERSION + 1}"):
        opened(path)
    assert len(cache_files(path)) == 1


def test_older_format_is_replaced_by_a_new_index_in_one_line_of_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    volume = opened(path)
    with write_transaction(volume.environment) as txn:
        txn.set_setting(b"format", U64.pack(1))
    volume.close(path)
    volume = opened(path)
    assert not volume.was_known
    assert cache_files(path) == []
    assert len([record for record in caplog.records if "earlier version" in record.message]) == 1
    volume.close(path)
    again = opened(path)
    assert again.was_known
    again.close(path)


def test_crash_between_renaming_the_index_and_emptying_ends_empty(path: Path) -> None:
    fill(path)
    (path / "index.lmdb").rename(path / "index.lmdb.broken")
    volume = opened(path)
    assert not volume.was_known
    assert cache_files(path) == []
    assert not volume.small.has(16)
    volume.close(path)
