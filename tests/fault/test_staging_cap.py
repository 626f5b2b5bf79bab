"""Writers at the staging cap: they wait as long as uploads can make room, may be killed, and hear when none will."""

import errno
import mmap
import os
import signal
import time
from pathlib import Path

import pytest

from fanoutfs.records import MIB
from tests.fault.children import Children, content, digest
from tests.fault.conftest import Mounter
from tests.fault.test_write_trouble import drain, read_on, refuse, start, write_synced
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

CAPPED = ("--cache-size", "96MiB", "--staging-size", "16MiB")


def write_much(root: Path, files: int, progress: mmap.mmap) -> None:
    """Write files of 4 MiB and count them."""
    for number in range(files):
        write_synced(root / f"written{number}", content(100 + number, 4 * MIB))
        progress[0] = number + 1


def test_at_the_staging_cap_writers_wait_until_the_store_is_back(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children, stop: mmap.mmap
) -> None:
    mount = start(mount_of, bucket, proxy, "--cache-size", "96MiB", "--staging-size", "16MiB")
    refuse(proxy, "down")
    reader = children.start(read_on, mount.path, stop)
    with mmap.mmap(-1, 4096) as progress:
        writer = children.start(write_much, mount.path, 16, progress)
        try:
            wait_until(lambda: mount.status()["changes"]["staged_bytes"] > 12 * MIB, "there is little room left")
            wait_until(lambda: "last_error" in mount.status()["changes"], "the status tells why")
            assert writer.is_running
            assert progress[0] <= 4  # so many fit
            assert mount.status()["changes"]["staged_bytes"] <= 16 * MIB
        finally:
            proxy.clear()  # nobody can end a process that waits for an answer
        writer.result()
        assert progress[0] == 16
    stop[0] = 1
    assert reader.result()
    drain(mount)
    for number in range(16):
        assert digest(bucket.get(f"written{number}")) == digest(content(100 + number, 4 * MIB))


def write_on(path: Path, progress: mmap.mmap, *, has_timer: bool = False) -> int:
    """Append MiB by MiB, for ever; return the errno that ends it.  has_timer: with a signal 50 times a second."""
    if has_timer:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            progress[0] += os.write(fd, bytes(MIB)) // MIB
    except OSError as error:
        return error.errno or -1


def wait_until_stuck(mount: Mount, progress: mmap.mmap) -> None:
    """Return when a writer has waited at the cap for longer than the core keeps a request."""
    wait_until(lambda: mount.status()["changes"]["staged_bytes"] > 14 * MIB, "there is little room left")
    count, since = progress[0], time.monotonic()

    def is_stuck() -> bool:
        nonlocal count, since
        if progress[0] != count:
            count, since = progress[0], time.monotonic()
        return time.monotonic() - since > 2.5

    wait_until(is_stuck, "the writer waits")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_writer_at_the_cap_can_be_ended(
    number: signal.Signals, bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    mount = start(mount_of, bucket, proxy, *CAPPED)
    refuse(proxy, "down")
    with mmap.mmap(-1, 4096) as progress:
        writer = children.start(write_until_ended, mount.path / "checkpoint", progress)
        wait_until_stuck(mount, progress)
        writer.send(number)
        wait_until(lambda: not writer.is_running, "it ends while the store is still away")
        wait_until(lambda: (mount.path / "checkpoint").stat().st_size >= progress[0] * MIB, "what was written is there")
        (mount.path / "checkpoint").unlink()
        proxy.clear()
    drain(mount)
    assert set(bucket.keys()) == {"large", "small"}


def write_until_ended(path: Path, progress: mmap.mmap) -> int:
    """Write as a program without handlers of its own."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    return write_on(path, progress)


def test_signal_that_kills_nobody_ends_no_write(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    mount = start(mount_of, bucket, proxy, *CAPPED)
    refuse(proxy, "down")
    with mmap.mmap(-1, 4096) as progress:
        writer = children.start(write_with_timer, mount.path / "log", progress)
        wait_until_stuck(mount, progress)
        before = progress[0]
        proxy.clear()
        wait_until(lambda: progress[0] > before + 4, "it goes on")
        assert writer.is_running
        writer.kill()
    (mount.path / "log").unlink()
    drain(mount)


def write_with_timer(path: Path, progress: mmap.mmap) -> int:
    """Write as a program with a profiler."""
    return write_on(path, progress, has_timer=True)


@pytest.mark.parametrize("rule", ["keep_local = true", 'upload_after = "never"'])
def test_files_kept_local_fill_staging_as_they_would_a_disk(
    rule: str, bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children, tmp_path: Path
) -> None:
    policies = tmp_path / "policies.toml"
    policies.write_text(f'[[policy]]\npath = "scratch"\n{rule}\n', encoding="ascii")
    mount = start(mount_of, bucket, proxy, *CAPPED, "--policy-file", str(policies))
    (mount.path / "scratch").mkdir()
    with mmap.mmap(-1, 4096) as progress:
        assert children.start(write_on, mount.path / "scratch" / "a", progress).result() == errno.ENOSPC
        assert 12 <= progress[0] <= 16
        assert children.start(write_on, mount.path / "elsewhere", progress).result() == errno.ENOSPC
    assert "kept local by policies" in mount.log()
    assert "nothing that is staged will be uploaded" in run_command("status", str(mount.path)).stdout
    (mount.path / "elsewhere").unlink()
    assert (mount.path / "scratch" / "a").stat().st_size >= 12 * MIB
    policies.write_text("", encoding="ascii")
    assert run_command("tier", "reload", str(mount.path)).returncode == 0
    write_synced(mount.path / "elsewhere", content(9, 8 * MIB))
    drain(mount)
    assert digest(bucket.get("elsewhere")) == digest(content(9, 8 * MIB))
    assert len(bucket.get("scratch/a")) >= 12 * MIB


def test_writer_waits_for_the_room_of_a_kept_file_that_was_removed(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, tmp_path: Path
) -> None:
    policies = tmp_path / "policies.toml"
    policies.write_text('[[policy]]\npath = "*"\nkeep_local = true\n', encoding="ascii")
    mount = start(mount_of, bucket, proxy, *CAPPED, "--policy-file", str(policies))
    write_synced(mount.path / "a", content(5, 12 * MIB))
    (mount.path / "a").unlink()  # (it is freed once the kernel has forgotten it)
    write_synced(mount.path / "b", content(6, 12 * MIB))
    assert digest((mount.path / "b").read_bytes()) == digest(content(6, 12 * MIB))
    assert "writes_refused" not in mount.status()["changes"]
