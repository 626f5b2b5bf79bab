"""Messages per change, as exact numbers.

Content never passes the core: a WRITE costs one message, which a front answers; only names and attributes are relayed.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.records import MIB
from tests.mount import kernel
from tests.perf.counting import counted
from tests.support.mounts import Mount, wait_until
from tests.support.servers import Bucket, S3Server

pytestmark = pytest.mark.usefixtures("steady_caches")

NEW = {"lookup_answered": 1, "mknod_answered": 1}
FIRST_WRITE = {"getxattr_answered": 1, "write_answered": 1}
"""Before the first write after attributes were learned the kernel looks for file capabilities (6.18)."""


@pytest.fixture(scope="module")
def mount(weed: S3Server) -> Iterator[Mount]:
    """A mount that has learned that there are no opens and no CREATE, where nothing is uploaded meanwhile.

    The first new file is the core's; then each front gets what it needs for more.
    """
    bucket = weed.bucket()
    bucket.put("large", os.urandom(4 * MIB))
    with kernel.mounted_bucket(bucket, "--upload-delay", "1h") as mounted:
        (mounted.path / "learn").write_bytes(b"x")
        kernel.read_all(mounted.path / "learn")
        wait_until(lambda: min(mounted.status()["changes"]["spares"]) > 0, "fronts can make files by themselves")
        yield mounted


@pytest.fixture
def directory(mount: Mount, request: pytest.FixtureRequest) -> Path:
    """A new directory whose attributes the kernel knows."""
    path = mount.path / str(request.node.name)
    path.mkdir()
    path.stat()
    return path


def create(path: Path, flags: int = 0, data: bytes = b"") -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o644)
    try:
        if data:
            assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [0, os.O_EXCL, os.O_TRUNC], ids=["O_CREAT", "O_EXCL", "O_TRUNC"])
def test_creating_a_file_costs_a_lookup_and_a_mknod(mount: Mount, directory: Path, flags: int) -> None:
    with counted(mount) as seen:
        create(directory / "new", flags)
    assert seen == NEW


def test_creating_a_second_file_costs_the_attributes_of_the_directory_as_well(mount: Mount, directory: Path) -> None:
    create(directory / "first")
    with counted(mount) as seen:
        create(directory / "second", 0, b"content")
    assert seen == {**NEW, **FIRST_WRITE, "getattr_answered": 1}


def test_exclusive_creation_of_what_is_there_costs_no_change(mount: Mount, directory: Path) -> None:
    create(directory / "file")
    directory.stat()
    with counted(mount) as seen, pytest.raises(OSError) as caught:
        create(directory / "file", os.O_EXCL)
    assert caught.value.errno == errno.EEXIST
    assert seen == {"lookup_answered": 1}  # O_EXCL believes no cached name


def test_opening_an_existing_file_with_o_creat_costs_nothing(mount: Mount, directory: Path) -> None:
    create(directory / "file")
    directory.stat()
    with counted(mount) as seen:
        create(directory / "file")
    assert seen == {}


def test_attributes_of_a_new_file_are_set_without_the_core(mount: Mount, directory: Path) -> None:
    create(directory / "file", 0, b"content")
    directory.stat()
    with counted(mount) as seen:
        os.chmod(directory / "file", 0o600)
        os.chown(directory / "file", 7, 8)
        os.utime(directory / "file", ns=(10**9, 2 * 10**9))
    assert seen.pop("setattr_answered") == 3
    assert set(seen) <= {"getattr_answered", "getxattr_answered"}
    found = (directory / "file").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o600, 7, 8)
    assert (found.st_atime_ns, found.st_mtime_ns) == (10**9, 2 * 10**9)


def test_truncation_at_open_costs_one_setattr_and_empties_the_file(mount: Mount, directory: Path) -> None:
    create(directory / "file", 0, b"content")
    with counted(mount) as seen:
        create(directory / "file", os.O_TRUNC)
    assert seen.pop("setattr_relayed") == 1
    assert set(seen) <= {"getattr_answered"}
    assert (directory / "file").read_bytes() == b""


def test_a_mebibyte_is_one_message_that_stays_with_a_front(mount: Mount, directory: Path) -> None:
    fd = os.open(directory / "file", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, b"x")
        data = os.urandom(8 * MIB)
        with counted(mount) as seen:
            assert os.pwrite(fd, data, 0) == len(data)
        assert seen == {"write_answered": 8}
    finally:
        os.close(fd)


def test_appends_cost_one_message_each(mount: Mount, directory: Path) -> None:
    create(directory / "file", 0, b"x")
    fd = os.open(directory / "file", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"first")
        with counted(mount) as seen:
            for _line in range(10):
                os.write(fd, b"line\n")
        assert seen == {"write_answered": 10}
    finally:
        os.close(fd)


def test_first_write_to_an_object_asks_the_core_once(mount: Mount) -> None:
    fd = os.open(mount.path / "large", os.O_WRONLY)
    try:
        with counted(mount) as seen:
            os.pwrite(fd, b"x" * MIB, 0)
        assert seen.pop("write_relayed") == 1
        assert seen.pop("write_answered") == 1
        with counted(mount) as seen:
            os.pwrite(fd, b"y" * MIB, 0)
        assert seen == {"write_answered": 1}
    finally:
        os.close(fd)


def test_reading_back_what_was_written_costs_no_message(mount: Mount, directory: Path) -> None:
    create(directory / "file", 0, b"x" * 4096)
    (directory / "file").stat()
    fd = os.open(directory / "file", os.O_RDONLY)
    try:
        with counted(mount) as seen:
            assert os.pread(fd, 4096, 0) == b"x" * 4096
        assert seen == {}
    finally:
        os.close(fd)


def test_extended_attributes_are_read_without_the_core(mount: Mount, directory: Path) -> None:
    create(directory / "file")
    os.setxattr(directory / "file", "user.colour", b"blue")
    with counted(mount) as seen:
        assert os.getxattr(directory / "file", "user.colour") == b"blue"
        assert os.listxattr(directory / "file") == ["user.colour"]
    assert seen == {"getxattr_answered": 1, "listxattr_answered": 1}


def test_links_are_followed_without_the_core_and_once(mount: Mount, directory: Path) -> None:
    (directory / "link").symlink_to("target")
    directory.stat()
    with counted(mount) as seen:
        assert os.readlink(directory / "link") == "target"
        assert os.readlink(directory / "link") == "target"
    assert seen == {"readlink_answered": 1}


def test_sequential_read_of_an_overlay_asks_the_core_once_for_many_reads(bucket: Bucket) -> None:
    bucket.put("huge", bytes(range(256)) * (64 * MIB // 256))
    # On a busy machine as elsewhere: what a reader waits for at most is a time, and no part of the claim.
    with kernel.mounted_bucket(bucket, "--upload-delay", "1h", patch="reader_waits_for_what_is_ahead") as mount:
        path = mount.path / "huge"
        fd = os.open(path, os.O_RDWR)
        try:
            os.pwrite(fd, b"written", 33 * MIB)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            with counted(mount) as seen:
                content = kernel.read_all(path)
        finally:
            os.close(fd)
    expected = bytearray(bytes(range(256)) * (64 * MIB // 256))
    expected[33 * MIB : 33 * MIB + 7] = b"written"
    assert content == expected
    # The kernel reads ahead: a few READs are under way when the first of them finds nothing.
    assert seen["read_relayed"] <= 3 * 64 // 8, seen
