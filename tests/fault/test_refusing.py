"""No core can start: whoever waits gets an error and can go, and all is as before when one can again."""

import errno
import mmap
import os
import signal
from pathlib import Path

import pytest

from fanoutfs.cli import main
from fanoutfs.cli.client import SilentDaemonError, call
from fanoutfs.records import KIB, MIB
from tests.fault.children import Children, content, digest, read_digest, read_errno
from tests.fault.conftest import Mounter
from tests.fault.disks import power_disk
from tests.fault.test_kills import wait_for_core
from tests.support.mounts import Mount, wait_until
from tests.support.servers import Bucket


def write_errno(path: Path) -> int:
    """Overwrite the beginning of a file; return 0 or the errno."""
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, b"W" * KIB)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def mkdir_errno(path: Path) -> int:
    """Make a directory; return 0 or the errno."""
    try:
        path.mkdir()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def has_failed(mount: Mount, what: str) -> bool:
    """Tell whether the daemon says that its core cannot start, and why."""
    try:
        call(mount.path, "status")
    except SilentDaemonError as error:
        return "its core cannot start" in str(error) and what in str(error)
    return False


def test_dead_disk_of_the_cache_is_an_error_and_no_endless_wait(
    bucket: Bucket, mount_of: Mounter, children: Children, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket.put("small", b"s" * KIB)
    bucket.put("large", content(1, 2 * MIB))
    with power_disk("ext4") as disk:
        options = ("--cache-dir", str(disk.path / "cache"), "--endpoint-url", bucket.endpoint)
        mount = mount_of(bucket.url, start=False, env=bucket.env)
        log = mount.path.parent / "log"
        mount.options = (*options, "--log-file", str(log))  # the last --cache-dir counts
        mount.start()
        assert read_digest(mount.path / "large") == digest(content(1, 2 * MIB))
        (mount.path / "own").write_bytes(b"written here")
        with (
            open(mount.path / "large", "rb") as stream,
            mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE) as cached,
        ):  # pages that are mapped stay when other tests drop caches
            pid = mount.status()["core_pid"]
            disk.cut_power()
            os.kill(pid, signal.SIGKILL)
            waiting = [
                children.start(write_errno, mount.path / "own"),
                children.start(mkdir_errno, mount.path / "directory"),
                children.start(read_errno, mount.path / "small"),
            ]
            assert [each.result() for each in waiting] == [errno.EIO] * 3
            assert children.start(write_errno, mount.path / "own").result() == errno.EIO
            assert cached[:] == content(1, 2 * MIB)
        assert has_failed(mount, "Input/output error")
        assert main(["status", str(mount.path)]) == 17
        assert capfd.readouterr().err.count("\n") == 1
        assert main(["doctor", "memory://", str(mount.path), "--cache-dir", str(disk.path / "cache")]) == 1
        assert "FAIL  daemon" in capfd.readouterr().out
        told = log.read_text()
        assert told.count("core did not start: what needs it gets EIO") == 1
        assert "Traceback" not in told
        mount.stop()
        wait_until(lambda: "ended" in log.read_text(), "the daemon ends")


def test_mount_goes_on_as_soon_as_a_core_can_start(bucket: Bucket, mount_of: Mounter, children: Children) -> None:
    bucket.put("small", b"s" * KIB)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    (mount.path / "own").write_bytes(b"o" * KIB)
    (mount.path / "own").read_bytes()
    before = mount.status()
    volume = mount.volume()
    aside = volume.rename(mount.path.parent / "aside")
    os.kill(before["core_pid"], signal.SIGKILL)
    wait_until(lambda: has_failed(mount, str(volume)), "no core can start")  # until then an old front may answer
    assert children.start(write_errno, mount.path / "own").result() == errno.EIO
    assert children.start(read_errno, mount.path / "small").result() == errno.EIO
    aside.rename(volume)
    after = wait_for_core(mount, before["core_pid"])
    assert after["keeper_pid"] == before["keeper_pid"]
    assert children.start(write_errno, mount.path / "own").result() == 0
    assert (mount.path / "own").read_bytes() == b"W" * KIB
    assert (mount.path / "small").read_bytes() == b"s" * KIB
    # What was there when the core died may be uploaded before.
    wait_until(lambda: bucket.keys() == ["own", "small"] and bucket.get("own") == b"W" * KIB, "it is uploaded")
