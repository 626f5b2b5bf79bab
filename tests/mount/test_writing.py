"""Every way to write is refused: by the kernel on the read-only mount, by the daemon after root remounted it writable.

With opens answered by the kernel an existing file can be opened for writing after the remount; the first change is
what fails.  After all of it the object and what the mount shows of it are as before.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mount import kernel
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount
from tests.support.servers import Bucket, S3Server

CONTENT = bytes(range(256)) * 4096  # 1 MiB: a large file
SMALL = b"small file"


@dataclass(frozen=True)
class Place:
    """A mount and its bucket: directory/large, directory/small, empty-enough."""

    mount: Mount
    bucket: Bucket

    @property
    def path(self) -> Path:
        return self.mount.path


@pytest.fixture(scope="module")
def read_only(weed: S3Server) -> Iterator[Place]:
    with _place(weed) as place:
        yield place


@pytest.fixture(scope="module")
def writable(weed: S3Server) -> Iterator[Place]:
    with _place(weed) as place:
        kernel.remount_writable(place.path)
        yield place


@contextlib.contextmanager
def _place(weed: S3Server) -> Iterator[Place]:
    bucket = weed.bucket()
    bucket.put("directory/large", CONTENT)
    bucket.put("directory/small", SMALL)
    with kernel.mounted_bucket(bucket, "--read-only") as mount:
        yield Place(mount, bucket)


def _tmpfile(root: Path) -> None:
    os.close(os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600))


def _open_with(flags: int, name: str = "directory/large") -> Callable[[Path], None]:
    return lambda root: os.close(os.open(root / name, flags, 0o644))


BY_PATH: dict[str, Callable[[Path], object]] = {
    "open O_WRONLY|O_TRUNC": _open_with(os.O_WRONLY | os.O_TRUNC),
    "open O_RDWR|O_TRUNC": _open_with(os.O_RDWR | os.O_TRUNC),
    "open O_RDONLY|O_TRUNC": _open_with(os.O_RDONLY | os.O_TRUNC),
    "open O_CREAT": _open_with(os.O_WRONLY | os.O_CREAT, "directory/new"),
    "open O_CREAT|O_EXCL": _open_with(os.O_RDWR | os.O_CREAT | os.O_EXCL, "directory/new"),
    "open O_TMPFILE": _tmpfile,
    "truncate": lambda root: os.truncate(root / "directory/large", 10),
    "truncate longer": lambda root: os.truncate(root / "directory/large", 1 << 30),
    "truncate small": lambda root: os.truncate(root / "directory/small", 0),
    "mkdir": lambda root: os.mkdir(root / "directory/new"),
    "mknod": lambda root: os.mknod(root / "directory/new", stat.S_IFREG | 0o644),
    "mkfifo": lambda root: os.mkfifo(root / "directory/new"),
    "symlink": lambda root: os.symlink("small", root / "directory/new"),
    "link": lambda root: os.link(root / "directory/small", root / "directory/new"),
    "unlink": lambda root: os.unlink(root / "directory/small"),
    "rmdir": lambda root: os.rmdir(root / "directory"),
    "rename": lambda root: os.rename(root / "directory/small", root / "directory/new"),
    "rename over": lambda root: os.rename(root / "directory/small", root / "directory/large"),
    "rename directory": lambda root: os.rename(root / "directory", root / "new"),
    "renameat2 NOREPLACE": lambda root: kernel.renameat2(
        root / "directory/small", root / "directory/new", kernel.RENAME_NOREPLACE
    ),
    "renameat2 EXCHANGE": lambda root: kernel.renameat2(
        root / "directory/small", root / "directory/large", kernel.RENAME_EXCHANGE
    ),
    "chmod": lambda root: os.chmod(root / "directory/large", 0o600),
    "chown": lambda root: os.chown(root / "directory/large", 1, 1),
    "utimensat": lambda root: os.utime(root / "directory/large", ns=(1, 1)),
    "utimensat now": lambda root: os.utime(root / "directory"),
    "setxattr": lambda root: os.setxattr(root / "directory/large", "user.x", b"1"),
    "setxattr trusted": lambda root: os.setxattr(root / "directory/large", "trusted.x", b"1"),
    "removexattr": lambda root: os.removexattr(root / "directory/large", "user.x"),
}

BY_DESCRIPTOR: dict[str, Callable[[int, Path], object]] = {
    "write": lambda fd, _root: os.write(fd, b"changed"),
    "pwrite in the middle": lambda fd, _root: os.pwrite(fd, b"changed" * 1000, 4000),
    "pwrite behind the end": lambda fd, _root: os.pwrite(fd, b"changed", len(CONTENT) + 5000),
    "pwritev": lambda fd, _root: os.pwritev(fd, [b"cha", b"nged"], 1),
    "ftruncate": lambda fd, _root: os.ftruncate(fd, 0),
    "fallocate": lambda fd, _root: os.posix_fallocate(fd, 0, 2 * len(CONTENT)),
    "fchmod": lambda fd, _root: os.fchmod(fd, 0o600),
    "fchown": lambda fd, _root: os.fchown(fd, 1, 1),
    "futimens": lambda fd, _root: os.utime(fd, ns=(1, 1)),
    "fsetxattr": lambda fd, _root: os.setxattr(fd, "user.x", b"1"),
}


def _assert_untouched(place: Place) -> None:
    large, small = place.path / "directory/large", place.path / "directory/small"
    assert sorted(os.listdir(place.path / "directory")) == ["large", "small"]
    assert (large.stat().st_size, stat.S_IMODE(large.stat().st_mode), large.stat().st_uid) == (1 << 20, 0o644, 0)
    assert kernel.read_all(large) == CONTENT
    assert kernel.read_all(small) == SMALL
    assert place.bucket.keys() == ["directory/large", "directory/small"]


def _assert_refused(call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == errno.EROFS, caught.value


# --- the ordinary mount ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BY_PATH, "open O_WRONLY", "open O_RDWR", "open O_APPEND"])
def test_read_only_mount_refuses(read_only: Place, name: str) -> None:
    opens = {"open O_WRONLY": os.O_WRONLY, "open O_RDWR": os.O_RDWR, "open O_APPEND": os.O_WRONLY | os.O_APPEND}
    _assert_refused(lambda: (BY_PATH.get(name) or _open_with(opens[name]))(read_only.path))


def test_read_only_mount_sends_no_writing_message_and_stays_as_it_was(read_only: Place) -> None:
    for call in BY_PATH.values():
        _assert_refused(lambda call=call: call(read_only.path))  # type: ignore[misc]
    _assert_untouched(read_only)
    seen = {name.removesuffix("_answered").removesuffix("_relayed") for name in read_only.mount.messages()}
    assert seen <= {"lookup", "getattr", "open", "opendir", "flush", "read", "readdirplus", "statfs", "forget"}


def test_read_only_mount_is_not_writable_for_access(read_only: Place) -> None:
    assert not os.access(read_only.path / "directory/large", os.W_OK)
    assert os.statvfs(read_only.path).f_flag & os.ST_RDONLY


# --- after mount -o remount,rw ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_PATH)
def test_remounted_mount_refuses(writable: Place, name: str) -> None:
    _assert_refused(lambda: BY_PATH[name](writable.path))
    _assert_untouched(writable)


@pytest.mark.parametrize("name", BY_DESCRIPTOR)
def test_remounted_mount_refuses_through_a_descriptor(writable: Place, name: str) -> None:
    with kernel.opened(writable.path / "directory/large", os.O_RDWR) as fd:
        _assert_refused(lambda: BY_DESCRIPTOR[name](fd, writable.path))
    _assert_untouched(writable)


def test_remounted_mount_refuses_append_direct_and_sync_writes(writable: Place) -> None:
    for flag in (os.O_APPEND, os.O_SYNC, os.O_DIRECT):
        with kernel.opened(writable.path / "directory/large", os.O_RDWR | flag) as fd, mmap.mmap(-1, 4096) as page:
            _assert_refused(lambda fd=fd, page=page: os.writev(fd, [page]))  # type: ignore[misc]
    _assert_untouched(writable)


def test_remounted_mount_refuses_copy_file_range(writable: Place) -> None:
    with (
        kernel.opened(writable.path / "directory/small") as source,
        kernel.opened(writable.path / "directory/large", os.O_RDWR) as target,
    ):
        _assert_refused(lambda: os.copy_file_range(source, target, 5, 0, 0))
    _assert_untouched(writable)


def test_remounted_mount_refuses_sendfile_and_splice_into_it(writable: Place) -> None:
    with (
        kernel.opened(writable.path / "directory/small") as source,
        kernel.opened(writable.path / "directory/large", os.O_RDWR) as target,
    ):
        _assert_refused(lambda: os.sendfile(target, source, 0, 5))
    _assert_untouched(writable)


def test_shared_mapping_written_after_a_remount_fails_at_msync(writable: Place) -> None:
    """The kernel keeps what was stored into the mapping until it drops the page; msync has said that it is lost."""
    with (
        kernel.opened(writable.path / "directory/large", os.O_RDWR) as fd,
        mmap.mmap(fd, 4096) as mapping,
    ):
        mapping[:7] = b"changed"
        _assert_refused(mapping.flush)
    drop_page_cache()
    _assert_untouched(writable)


def test_fsync_of_anything_succeeds(writable: Place) -> None:
    """Nothing can be dirty."""
    for name in ("directory/large", "directory/small", "directory"):
        with kernel.opened(writable.path / name) as fd:
            os.fsync(fd)
            os.fdatasync(fd)


def test_syncfs_of_a_read_only_mount_succeeds(read_only: Place) -> None:
    with kernel.opened(read_only.path) as fd:
        assert ctypes.CDLL(None).syncfs(fd) == 0


def test_attribute_ioctls_are_not_supported(writable: Place) -> None:
    fs_ioc_getflags = 0x80086601
    for name in ("directory/large", "directory"):
        with kernel.opened(writable.path / name) as fd:
            with pytest.raises(OSError) as caught:
                fcntl.ioctl(fd, fs_ioc_getflags, bytes(8))
            assert caught.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)


def test_extended_attributes_are_not_supported(writable: Place) -> None:
    for call in (lambda path: os.getxattr(path, "user.x"), os.listxattr):
        with pytest.raises(OSError) as caught:
            call(writable.path / "directory/large")
        assert caught.value.errno == errno.EOPNOTSUPP


def test_every_opcode_that_can_be_provoked_was_answered(weed: S3Server) -> None:
    """The list is exact: an opcode that appears here for the first time is a change of the kernel or of INIT."""
    with _place(weed) as place:
        kernel.remount_writable(place.path)
        large = place.path / "directory/large"
        for call in BY_PATH.values():
            _assert_refused(lambda call=call: call(place.path))  # type: ignore[misc]
        test_remounted_mount_refuses_copy_file_range(place)
        test_fsync_of_anything_succeeds(place)
        test_extended_attributes_are_not_supported(place)
        with kernel.opened(large, os.O_RDWR) as fd:
            for change in BY_DESCRIPTOR.values():
                _assert_refused(lambda change=change: change(fd, place.path))  # type: ignore[misc]
            poller = select.poll()
            poller.register(fd, select.POLLIN | select.POLLOUT)
            assert poller.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]
            assert os.lseek(fd, 0, os.SEEK_DATA) == 0
            assert not os.isatty(fd)  # an IOCTL
        kernel.statx(large, kernel.AT_STATX_FORCE_SYNC, kernel.STATX_BASIC_STATS | kernel.STATX_BTIME)
        drop_page_cache()
        os.stat(large)
        seen = {name.rpartition("_")[0].replace("batch_", "") for name in place.mount.messages()}
        assert place.mount.counters()["request_errors"] == 0
    read = {"lookup", "forget", "getattr", "statx", "open", "opendir", "flush", "read", "readdirplus", "statfs"}
    other = {"fsync", "fsyncdir", "getxattr", "listxattr", "ioctl", "poll", "lseek"}
    write = {"setattr", "symlink", "mknod", "mkdir", "unlink", "rmdir", "rename", "rename2", "link", "write", "create"}
    assert seen == read | other | write | {"tmpfile", "setxattr", "removexattr", "fallocate", "copy_file_range_64"}
