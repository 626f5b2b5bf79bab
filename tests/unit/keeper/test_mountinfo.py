"""The mount table: escapes, odd fields, and which of several mounts at one path counts."""

import os
from pathlib import Path

import pytest

from fanoutfs.keeper import mountinfo

TABLE = (
    b"22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    b"40 27 0:50 / /mnt/a\\040b\\011c\\134d\\012e rw,nosuid shared:5 master:1 - fuse.fanoutfs s3://b/x\\040y "
    b"ro,user_id=1000,group_id=0,default_permissions\n"
    b"41 27 0:51 / /mnt/\xff\xfe rw - fuse.sshfs host: rw,user_id=7\n"
    b"42 27 254:1 / /mnt/twice rw - ext4 /dev/vda rw\n"
    b"43 42 0:52 / /mnt/twice rw - fuse.fanoutfs  rw,user_id=0\n"
    b"garbage\n"
)


@pytest.fixture(autouse=True)
def _table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    monkeypatch.setattr(mountinfo, "MOUNTINFO", path)


def test_escapes_and_optional_fields_are_decoded() -> None:
    info = mountinfo.find_mount(Path("/mnt/a b\tc\\d\ne"))
    assert info is not None
    assert (info.mount_id, info.parent_id, info.device) == (40, 27, "0:50")
    assert (info.fstype, info.source) == ("fuse.fanoutfs", "s3://b/x y")
    assert info.options == ("rw", "nosuid")
    assert "default_permissions" in info.super_options
    assert info.owner_uid == 1000
    assert info.connection_id == 50


def test_mountpoint_that_is_not_utf8_survives() -> None:
    info = mountinfo.find_mount(Path(os.fsdecode(b"/mnt/\xff\xfe")))
    assert info is not None
    assert info.is_fuse
    assert os.fsencode(info.mountpoint) == b"/mnt/\xff\xfe"


def test_topmost_of_two_mounts_wins_and_empty_source_is_kept() -> None:
    info = mountinfo.find_mount(Path("/mnt/twice"))
    assert info is not None
    assert (info.mount_id, info.source) == (43, "")


def test_only_fanoutfs_mounts_are_listed() -> None:
    assert [info.mount_id for info in mountinfo.fanoutfs_mounts()] == [40, 43]


def test_other_file_systems_have_no_owner() -> None:
    info = mountinfo.find_mount(Path("/proc"))
    assert info is not None
    assert info.owner_uid is None
    assert not info.is_fuse


def test_read_ahead_of_unknown_device_is_refused_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountinfo, "BDI_DIR", tmp_path)
    assert not mountinfo.set_read_ahead("0:50", 1024)
    (tmp_path / "0:50").mkdir()
    (tmp_path / "0:50" / "read_ahead_kb").write_text("128\n")
    assert mountinfo.set_read_ahead("0:50", 1024)
    assert (tmp_path / "0:50" / "read_ahead_kb").read_text() == "1024"
