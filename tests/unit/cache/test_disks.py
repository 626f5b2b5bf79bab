"""A further cache directory by itself: opened, emptied, found to be well or not.  No second disk is needed for that."""

import os
from pathlib import Path

import pytest

from fanoutfs.cache.disks import (
    MARKER,
    begin_anew,
    check_alive,
    is_setting_wrong,
    left_behind,
    mount_point,
    note_used,
    open_disk,
    probe,
    trim_others,
    used_directories,
)
from fanoutfs.errors import CacheInUseError, CacheUnusableError

VOLUME = "0123456789abcdef"


def test_fresh_directory_is_made_marked_and_alive(tmp_path: Path) -> None:
    disk = open_disk(tmp_path / "cache", VOLUME)
    assert disk.token == ""
    probe(disk)
    token = begin_anew(disk)
    check_alive(disk, token)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    disk.close()
    again = open_disk(tmp_path / "cache", VOLUME)
    assert again.token == token
    again.close()


def test_beginning_anew_leaves_nothing_of_before(tmp_path: Path) -> None:
    disk = open_disk(tmp_path / "cache", VOLUME)
    token = begin_anew(disk)
    (disk.folder / "objects/10").mkdir()
    (disk.folder / "objects/10/10").write_bytes(b"old")
    assert begin_anew(disk) != token
    assert list((disk.folder / "objects").iterdir()) == []
    with pytest.raises(OSError, match="marker"):
        check_alive(disk, token)
    disk.close()


def test_directory_that_was_replaced_is_not_alive(tmp_path: Path) -> None:
    disk = open_disk(tmp_path / "cache", VOLUME)
    token = begin_anew(disk)
    disk.folder.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        check_alive(disk, token)
    (disk.folder / "objects").mkdir(parents=True)
    (disk.folder / MARKER).write_text(token)
    with pytest.raises(OSError, match="replaced"):
        check_alive(disk, token)
    disk.close()


def test_directory_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    disk = open_disk(tmp_path / "cache", VOLUME)
    with pytest.raises(CacheInUseError):
        open_disk(tmp_path / "cache", "fedcba9876543210")
    assert [path.name for path in (tmp_path / "cache/volumes").iterdir()] == [VOLUME]
    disk.close()


def test_directory_whose_disk_is_not_mounted_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nothing is mounted"):
        open_disk(tmp_path / "cache", VOLUME, mounted_on=tmp_path)
    assert not (tmp_path / "cache").exists()
    assert os.path.ismount(mount_point(tmp_path / "not/there"))


@pytest.mark.parametrize("kind", ["file", "link", "open to others"])
def test_directory_that_can_never_be_used_is_a_wrong_setting(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    if kind == "file":
        path.write_text("")
    elif kind == "link":
        path.symlink_to(tmp_path)
    else:
        path.mkdir()
        path.chmod(0o777)
    with pytest.raises(CacheUnusableError) as caught:
        open_disk(path, VOLUME)
    assert is_setting_wrong(caught.value)


def test_what_other_volumes_left_is_counted_and_trimmed(tmp_path: Path) -> None:
    for age, name in enumerate(("a" * 16, "b" * 16)):
        disk = open_disk(tmp_path, name)
        begin_anew(disk)
        (disk.folder / "objects/file").write_bytes(bytes(64 << 10))
        os.utime(disk.folder, (age, age))
        disk.close()
    (tmp_path / "volumes" / ("c" * 16)).mkdir()
    (tmp_path / "volumes" / ("c" * 16) / "index.lmdb").write_bytes(bytes(1 << 20))
    disk = open_disk(tmp_path, VOLUME)
    assert trim_others(disk, 1 << 20) >= 128 << 10
    left = trim_others(disk, 100 << 10)
    assert 64 << 10 <= left <= 100 << 10
    assert [folder.name for folder, _size in left_behind(tmp_path)] == ["b" * 16], "the one used last stays"
    assert (tmp_path / "volumes" / ("c" * 16) / "index.lmdb").exists(), "what is no further directory is left alone"
    disk.close()


def test_used_directories_are_remembered_once(tmp_path: Path) -> None:
    volume = tmp_path / "volumes" / VOLUME
    volume.mkdir(parents=True)
    for path in ("/a", "/b", "/a"):
        note_used(volume, Path(path))
    assert used_directories(tmp_path) == [Path("/a"), Path("/b")]
    assert used_directories(tmp_path / "nothing") == []
