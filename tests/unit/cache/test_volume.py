"""Opening a volume: what survives, and that two histories never mix."""

import errno
import os
from pathlib import Path

import lmdb
import pytest
import trio

from fanoutfs.cache.volume import Volume, open_volume
from fanoutfs.errors import CacheUnusableError
from fanoutfs.index.format import (
    DT_DIR,
    FLAG_ATTRS,
    FLAG_LOCAL,
    FLAG_STAGED,
    FLAG_WHOLE,
    FORMAT_VERSION,
    U64,
    Inode,
)
from fanoutfs.index.operations import OpenVolume
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.records import BLOCK_BYTES, MIB, ROOT_INO, Version
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


def stage(volume: Volume, ino: int, content: bytes, key: str | None, base: Version | None = None) -> None:
    """Leave a staging file, as a writer does."""
    fd = volume.staging.create(ino, ino + 100)
    os.pwrite(fd, content, 0)
    if key is not None:
        volume.staging.tag(ino, ino + 100, key)
    if base is not None:
        volume.staging.tag_base(ino, ino + 100, base, base.size_bytes)


def tree(volume: Volume) -> dict[str, Inode]:
    """Every file by its path."""

    def below(txn: IndexTransaction, parent: int, path: str) -> dict[str, Inode]:
        found: dict[str, Inode] = {}
        for name, ino, dtype in txn.entries(parent):
            inode = txn.inode(ino)
            assert inode is not None
            if dtype == DT_DIR:
                found |= below(txn, ino, f"{path}{name.decode()}/")
            else:
                found[path + name.decode()] = inode
        return found

    return apply(volume.environment, lambda txn: below(txn, ROOT_INO, ""))


def lose_index(path: Path) -> None:
    (path / "index.lmdb").write_bytes(b"garbage")


def test_staged_content_outlives_a_lost_index(path: Path) -> None:
    volume = opened(path)
    stage(volume, 40, b"one", "d/e/a")
    stage(volume, 41, b"two", "d/e/a")
    stage(volume, 42, b"three", "../x")
    stage(volume, 43, b"never acknowledged", None)
    volume.close(path)
    lose_index(path)
    volume = opened(path)
    files = tree(volume)
    assert set(files) == {"d/e/a", "d/e/a.recovered-29-8d", "recovered-2a-8e"}
    first = files["d/e/a"]
    assert (first.ino, first.life) == (40, 140)
    assert first.flags & ~FLAG_ATTRS == FLAG_STAGED | FLAG_WHOLE | FLAG_LOCAL
    assert apply(volume.environment, lambda txn: txn.changed.dirty(40)) is not None
    assert apply(volume.environment, IndexTransaction.new_ino) > 143
    assert os.pread(volume.staging.descriptor(40, 140), 10, 0) == b"one"
    volume.close(path)
    again = opened(path)
    assert again.was_known
    assert tree(again) == files
    again.close(path)


def test_overlay_is_taken_over_with_its_object_and_the_blocks_it_has(path: Path) -> None:
    volume = opened(path)
    base = Version("abc", "v", 3 * BLOCK_BYTES + 5, NOW_NS)
    stage(volume, 40, b"", "a", base)
    os.pwrite(volume.staging.descriptor(40, 140), b"x" * BLOCK_BYTES, BLOCK_BYTES)
    os.pwrite(volume.staging.descriptor(40, 140), b"torn", 2 * BLOCK_BYTES)
    os.pwrite(volume.staging.descriptor(40, 140), b"appended", base.size_bytes)
    volume.staging.tag_base(40, 140, base, base.size_bytes - 1)
    volume.close(path)
    lose_index(path)
    volume = opened(path)
    inode = tree(volume)["a"]
    assert inode.version == base
    assert inode.flags & ~FLAG_ATTRS == FLAG_STAGED
    assert apply(volume.environment, lambda txn: txn.changed.base_size(40)) == base.size_bytes - 1
    assert apply(volume.environment, lambda txn: txn.changed.local_parts(40)) == {0: 0b0010}
    volume.close(path)


def test_file_written_anew_replaces_the_object_that_it_was(path: Path) -> None:
    volume = opened(path)
    stage(volume, 40, b"new", "a")
    volume.staging.tag_base(40, 140, Version("abc", "", 9, NOW_NS), 0)
    volume.close(path)
    lose_index(path)
    volume = opened(path)
    inode = tree(volume)["a"]
    assert (inode.etag, inode.key) == ("abc", "a")
    assert inode.flags & ~FLAG_ATTRS == FLAG_STAGED | FLAG_WHOLE
    assert apply(volume.environment, lambda txn: txn.changed.base_size(40)) is None
    volume.close(path)


def test_overlay_that_was_cut_short_lacks_nothing_behind_its_end(path: Path) -> None:
    volume = opened(path)
    stage(volume, 40, b"", "a", Version("abc", "", 3 * BLOCK_BYTES, NOW_NS))
    os.ftruncate(volume.staging.descriptor(40, 140), BLOCK_BYTES)
    volume.close(path)
    lose_index(path)
    volume = opened(path)
    assert apply(volume.environment, lambda txn: txn.changed.base_size(40)) == BLOCK_BYTES
    volume.close(path)


def test_files_on_a_disk_without_extended_attributes_are_kept_under_names_of_their_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> bytes:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "getxattr", refuse)
    monkeypatch.setattr(os, "setxattr", refuse)
    volume = opened(path)
    stage(volume, 40, b"one", "a")
    volume.close(path)
    lose_index(path)
    volume = opened(path)
    assert set(tree(volume)) == {"recovered-28-8c"}
    volume.close(path)


def test_damage_found_while_open_never_touches_staging(path: Path) -> None:
    volume = opened(path)
    stage(volume, 40, b"one", "a")
    volume.environment.broken.set()
    volume.small.broken.set()
    volume.close(path)
    volume.put_away_broken(path)
    volume = opened(path)
    assert set(tree(volume)) == {"a"}
    assert os.pread(volume.staging.descriptor(40, 140), 10, 0) == b"one"
    volume.close(path)
