"""What rclone and s3fs make of the objects we write, and we of theirs: mode, times, xattrs, symlinks."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanoutfs.backend.attributes import FileAttributes, decode_attributes, encode_attributes
from fanoutfs.backend.base import Backend
from fanoutfs.backend.writing import Expect, Properties
from tests.support.processes import ServerProcess
from tests.support.servers import ACCESS_KEY, SECRET_KEY, Bucket

MTIME_NS = 1_600_000_000_123_456_789
FILE = FileAttributes(
    mode=stat.S_IFREG | 0o640,
    uid=12,
    gid=34,
    mtime_ns=MTIME_NS,
    xattrs={b"user.color": b"red\x00\xff", b"user.b": b""},
)


@pytest.fixture
def backend(bucket: Bucket, open_bucket: Callable[..., Backend]) -> Backend:
    return open_bucket(bucket)


def _put(backend: Backend, key: str, body: bytes, attributes: FileAttributes) -> None:
    backend.put(key, body, Expect.ANYTHING, Properties(encode_attributes(attributes)))


def _rclone(bucket: Bucket, *arguments: str) -> str:
    env = {
        "PATH": os.environ["PATH"],  # and nothing else: rclone stumbles over AWS_CA_BUNDLE
        "RCLONE_CONFIG_T_TYPE": "s3",
        "RCLONE_CONFIG_T_PROVIDER": "Other",
        "RCLONE_CONFIG_T_ENDPOINT": bucket.endpoint,
        "RCLONE_CONFIG_T_ACCESS_KEY_ID": ACCESS_KEY,
        "RCLONE_CONFIG_T_SECRET_ACCESS_KEY": SECRET_KEY,
        "RCLONE_CONFIG": "/dev/null",
        "TZ": "UTC",
    }
    done = subprocess.run(["rclone", *arguments], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("rclone") is None, reason="rclone is not installed")
def test_rclone_shows_the_mtime_we_wrote_and_we_the_one_it_wrote(
    bucket: Bucket, backend: Backend, tmp_path: Path
) -> None:
    _put(backend, f"{bucket.prefix}a", b"hello", FILE)
    shown = _rclone(bucket, "lsl", f"t:{bucket.name}/{bucket.prefix}")
    assert shown.split() == ["5", "2020-09-13", "12:26:40.123456789", "a"]
    assert _rclone(bucket, "lsf", "--format", "pst", f"t:{bucket.name}/{bucket.prefix}") == "a;5;2020-09-13 12:26:40\n"
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"x")
    os.utime(theirs, ns=(MTIME_NS, MTIME_NS))
    _rclone(bucket, "copyto", str(theirs), f"t:{bucket.name}/{bucket.prefix}b")
    details = backend.details(f"{bucket.prefix}b")
    assert decode_attributes(details.properties.metadata).mtime_ns == MTIME_NS


@pytest.fixture
def s3fs(bucket: Bucket, tmp_path: Path) -> Iterator[Path]:
    """A mount of s3fs over the place, as root."""
    if shutil.which("s3fs") is None or os.getuid() != 0:
        pytest.skip("s3fs is not installed, or we are not root")
    mountpoint, passwords = tmp_path / "s3fs", tmp_path / "passwords"
    mountpoint.mkdir()
    passwords.write_text(f"{ACCESS_KEY}:{SECRET_KEY}\n")
    passwords.chmod(0o600)
    process = ServerProcess("s3fs")
    options = f"passwd_file={passwords},url={bucket.endpoint},use_path_request_style,use_xattr,complement_stat"
    try:
        process.start(
            ["s3fs", f"{bucket.name}:/{bucket.prefix.removesuffix('/')}", str(mountpoint), "-f", "-o", options],
            mountpoint.is_mount,
            deadline_s=30,
        )
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=False, capture_output=True, timeout=30)
        process.stop()


def test_s3fs_shows_what_we_wrote(bucket: Bucket, backend: Backend, s3fs: Path) -> None:
    _put(backend, f"{bucket.prefix}a", b"hello", FILE)
    target = FileAttributes(mode=stat.S_IFLNK | 0o777, mtime_ns=MTIME_NS)
    _put(backend, f"{bucket.prefix}link", b"a", target)
    found = (s3fs / "a").stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (FILE.mode, 12, 34)
    assert found.st_mtime_ns == MTIME_NS
    assert (s3fs / "a").read_bytes() == b"hello"
    assert {name: os.getxattr(s3fs / "a", name) for name in os.listxattr(s3fs / "a")} == {
        "user.color": b"red\x00\xff",
        "user.b": b"",
    }
    assert (s3fs / "link").readlink() == Path("a")


def test_we_read_what_s3fs_wrote(bucket: Bucket, backend: Backend, s3fs: Path) -> None:
    theirs = s3fs / "theirs"
    theirs.write_bytes(b"hello")
    theirs.chmod(0o604)
    os.chown(theirs, 12, 34)
    os.setxattr(theirs, "user.color", b"red\x00\xff")
    os.utime(theirs, ns=(MTIME_NS, MTIME_NS))
    (s3fs / "link").symlink_to("theirs")
    found = decode_attributes(backend.details(f"{bucket.prefix}theirs").properties.metadata)
    assert (found.mode, found.uid, found.gid, found.mtime_ns) == (stat.S_IFREG | 0o604, 12, 34, MTIME_NS)
    assert found.xattrs == {b"user.color": b"red\x00\xff"}
    link = backend.details(f"{bucket.prefix}link")
    assert stat.S_ISLNK(decode_attributes(link.properties.metadata).mode or 0)
    assert bytes(backend.get_range(link.info.key, 0, 6, link.info.version)) == b"theirs"
