"""Mode, owner, times, links and extended attributes that objects carry, shown by a mount that asks for them."""

import base64
import json
import os
import stat
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.mount import kernel
from tests.support.servers import Bucket

ASKING = ("--object-attributes", "lookup")


def put(bucket: Bucket, key: str, body: bytes, **metadata: str) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + key, Body=body, Metadata=metadata)


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    xattrs = quote(json.dumps({"user.k": base64.b64encode(b"v").decode()}), safe="")
    put(bucket, "d/file", b"1234", mode=str(0o100640), uid="5", gid="6", mtime="1500000000.25", xattr=xattrs)
    put(bucket, "d/link", b"file", mode=str(stat.S_IFLNK | 0o777), uid="7", gid="8")
    put(bucket, "d/plain", b"12")
    put(bucket, "d/setuid", b"1", mode=str(0o104755))
    return bucket


def look(path: Path) -> dict[str, os.stat_result]:
    """Return what a long listing of a directory shows."""
    with os.scandir(path) as entries:
        return {entry.name: entry.stat(follow_symlinks=False) for entry in entries}


def test_attributes_of_objects_are_shown_and_asked_for_once(filled: Bucket) -> None:
    with kernel.mounted_bucket(filled, *ASKING) as mount:
        before = mount.counters()["backend_heads"]
        for _again in range(2):
            shown = look(mount.path / "d")
            file = shown["file"]
            assert stat.S_IMODE(file.st_mode) == 0o640
            assert (file.st_uid, file.st_gid, file.st_mtime_ns) == (5, 6, 1_500_000_000_250_000_000)
            assert stat.S_ISLNK(shown["link"].st_mode)
            assert (shown["link"].st_uid, shown["link"].st_size) == (7, 4)
            assert stat.S_IMODE(shown["plain"].st_mode) == 0o644
            assert stat.S_IMODE(shown["setuid"].st_mode) == 0o755
            assert os.readlink(mount.path / "d/link") == "file"
            assert (mount.path / "d/link").read_bytes() == b"1234"
        assert mount.counters()["backend_heads"] - before == 4
        assert os.getxattr(mount.path / "d/file", "user.k") == b"v"


def test_mount_that_does_not_ask_shows_its_own(filled: Bucket) -> None:
    with kernel.mounted_bucket(filled) as mount:
        before = mount.counters()["backend_heads"]
        shown = look(mount.path / "d")
        assert {stat.S_IMODE(each.st_mode) for each in shown.values()} == {0o644}
        assert stat.S_ISREG(shown["link"].st_mode)
        assert mount.counters()["backend_heads"] == before


def test_attributes_follow_when_the_object_is_replaced(filled: Bucket) -> None:
    with kernel.mounted_bucket(filled, *ASKING) as mount:
        assert stat.S_ISLNK(os.lstat(mount.path / "d/link").st_mode)
        put(filled, "d/link", b"no link any more", mode=str(0o100600))
        mount.invalidate("d")
        shown = os.lstat(mount.path / "d/link")
        assert stat.S_ISREG(shown.st_mode)
        assert stat.S_IMODE(shown.st_mode) == 0o600
        assert (mount.path / "d/link").read_bytes() == b"no link any more"
