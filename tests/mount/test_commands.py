"""mount, umount and status as a user meets them: what fails leaves nothing behind, what ends ends completely."""

import errno
import fcntl
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.config.directories import control_socket
from fanoutfs.errors import (
    BucketMissingError,
    CacheInUseError,
    CredentialsError,
    DeadlineError,
    MountBusyError,
    MountpointError,
    NotMountedError,
    UsageError,
)
from fanoutfs.keeper.mountinfo import find_mount
from tests.mount import kernel
from tests.support.caches import drop_page_cache
from tests.support.mounts import COMMAND, Mount, mounted, run_command, wait_until
from tests.support.processes import free_ports
from tests.support.servers import Bucket

CONTENT = bytes(range(256)) * 2048  # 512 KiB


@pytest.fixture
def base() -> Iterator[Path]:
    """A place with an empty directory `mnt`; afterwards nothing may be mounted there."""
    path = Path(tempfile.mkdtemp(prefix="fanoutfs-test-", dir="/var/tmp"))
    (path / "mnt").mkdir()
    yield path
    shutil.rmtree(path)


def _processes(base: Path) -> list[int]:
    """Return all processes whose command line names this place."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if os.fsencode(base) in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _assert_nothing_left(base: Path) -> None:
    assert find_mount(base / "mnt") is None
    assert _processes(base) == []
    assert not control_socket(base / "mnt").exists()
    lock = base / "cache" / "lock"
    if lock.exists():
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _mount_fails(base: Path, source: str, *options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a mount that must fail; return its exit code and its one line."""
    result = run_command("mount", source, str(base / "mnt"), "--cache-dir", str(base / "cache"), *options, env=env)
    assert result.returncode != 0
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("fanoutfs: ")
    assert "SKSKSKSK" not in result.stderr
    return result.returncode, lines[0]


# --- mounts that cannot be -------------------------------------------------------------------------------------


def test_wrong_secret_key(base: Path, bucket: Bucket) -> None:
    env = {**bucket.env, "AWS_SECRET_ACCESS_KEY": "wrong"}
    code, line = _mount_fails(base, bucket.url, "--endpoint-url", bucket.endpoint, env=env)
    assert code == CredentialsError.exit_code
    assert "rejected the credentials" in line
    _assert_nothing_left(base)


def test_unknown_access_key(base: Path, bucket: Bucket) -> None:
    env = {**bucket.env, "AWS_ACCESS_KEY_ID": "nobody"}
    code, _line = _mount_fails(base, bucket.url, "--endpoint-url", bucket.endpoint, env=env)
    assert code == CredentialsError.exit_code
    _assert_nothing_left(base)


def test_no_credentials_at_all(base: Path, bucket: Bucket) -> None:
    env = {**bucket.env, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    code, line = _mount_fails(base, bucket.url, "--endpoint-url", bucket.endpoint, env=env)
    assert code == CredentialsError.exit_code
    assert "no credentials" in line
    _assert_nothing_left(base)


def test_wrong_credentials_on_a_known_cache(bucket: Bucket) -> None:
    """The cache could serve, but whoever may not read the bucket may not read the cache either."""
    bucket.put("file", b"x")
    options = ("--endpoint-url", bucket.endpoint)
    with kernel.mounted_bucket(bucket) as mount:
        kernel.read_all(mount.path / "file")
        mount.stop()
        env = {**bucket.env, "AWS_SECRET_ACCESS_KEY": "wrong"}
        code, _line = _mount_fails(mount.path.parent, bucket.url, *options, env=env)
        assert code == CredentialsError.exit_code
        _assert_nothing_left(mount.path.parent)


def test_no_such_bucket(base: Path, bucket: Bucket) -> None:
    code, line = _mount_fails(base, "s3://no-such-bucket", "--endpoint-url", bucket.endpoint, env=bucket.env)
    assert code == BucketMissingError.exit_code
    assert "no-such-bucket" in line
    _assert_nothing_left(base)


def test_no_such_directory(base: Path) -> None:
    code, line = _mount_fails(base, f"file://{base}/absent")
    assert code == BucketMissingError.exit_code
    assert "no such directory" in line
    _assert_nothing_left(base)


def test_endpoint_where_nobody_listens(base: Path, bucket: Bucket) -> None:
    (port,) = free_ports(1)
    code, line = _mount_fails(
        base, bucket.url, "--endpoint-url", f"http://127.0.0.1:{port}", "--op-timeout", "1s", env=bucket.env
    )
    assert code == DeadlineError.exit_code
    assert "LIST" in line
    _assert_nothing_left(base)


def test_endpoint_that_never_answers(base: Path, bucket: Bucket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code, _line = _mount_fails(base, bucket.url, "--endpoint-url", endpoint, "--op-timeout", "2s", env=bucket.env)
    assert code == DeadlineError.exit_code
    _assert_nothing_left(base)


def test_unknown_source_and_option(base: Path) -> None:
    assert _mount_fails(base, "ftp://host/")[0] == UsageError.exit_code
    assert _mount_fails(base, "memory://", "-o", "no_such_option=1")[0] == UsageError.exit_code
    assert _mount_fails(base, "memory://", "--cache-size", "many")[0] == UsageError.exit_code
    _assert_nothing_left(base)


def test_missing_mountpoint(base: Path) -> None:
    (base / "mnt").rmdir()
    code, line = _mount_fails(base, "memory://")
    assert (code, "mkdir" in line) == (MountpointError.exit_code, True)
    _assert_nothing_left(base)


def test_mountpoint_with_content(base: Path) -> None:
    (base / "mnt" / "file").touch()
    code, line = _mount_fails(base, "memory://")
    assert (code, "not empty" in line) == (MountpointError.exit_code, True)
    _assert_nothing_left(base)
    assert (base / "mnt" / "file").exists()


def test_mountpoint_that_is_a_file(base: Path) -> None:
    (base / "mnt").rmdir()
    (base / "mnt").touch()
    assert _mount_fails(base, "memory://")[0] == MountpointError.exit_code
    _assert_nothing_left(base)


def test_mountpoint_in_use_by_fanoutfs_and_by_others(base: Path) -> None:
    with mounted("memory://") as mount:
        again = run_command("mount", "memory://", str(mount.path), "--cache-dir", str(base / "cache"))
        assert again.returncode == MountpointError.exit_code
        assert "mounted already" in again.stderr
        assert mount.status()["source"] == "memory://"
        assert not (base / "cache").exists()
    subprocess.run(["mount", "-t", "tmpfs", "none", base / "mnt"], check=True)
    try:
        code, line = _mount_fails(base, "memory://")
        assert (code, "tmpfs" in line) == (MountpointError.exit_code, True)
    finally:
        subprocess.run(["umount", base / "mnt"], check=True)
    _assert_nothing_left(base)


def test_cache_directory_in_use_by_another_daemon(base: Path, bucket: Bucket) -> None:
    bucket.put("file", b"x")
    with kernel.mounted_bucket(bucket) as mount:
        second = run_command("mount", "memory://", str(base / "mnt"), "--cache-dir", str(mount.cache))
        assert second.returncode == CacheInUseError.exit_code
        assert str(mount.status()["keeper_pid"]) in second.stderr
        assert len(second.stderr.splitlines()) == 1
        assert find_mount(base / "mnt") is None
        assert not control_socket(base / "mnt").exists()
        assert kernel.read_all(mount.path / "file") == b"x"
    _assert_nothing_left(base)


def test_failed_mount_can_be_tried_again_at_once(base: Path, bucket: Bucket) -> None:
    bucket.put("file", b"x")
    env = {**bucket.env, "AWS_SECRET_ACCESS_KEY": "wrong"}
    _mount_fails(base, bucket.url, "--endpoint-url", bucket.endpoint, env=env)
    mount = Mount(bucket.url, base / "mnt", base / "cache", ("--endpoint-url", bucket.endpoint), bucket.env)
    mount.start()
    assert kernel.read_all(mount.path / "file") == b"x"
    mount.stop()
    _assert_nothing_left(base)


# --- the end ---------------------------------------------------------------------------------------------------


def test_umount_leaves_nothing(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    with kernel.mounted_bucket(bucket) as mount:
        kernel.read_all(mount.path / "file")
        assert control_socket(mount.path).exists()
        assert len(_processes(mount.path.parent)) >= 4
        mount.stop()
        _assert_nothing_left(mount.path.parent)
        assert os.listdir(mount.path) == []


def test_umount_of_nothing_is_an_error(base: Path) -> None:
    result = run_command("umount", str(base / "mnt"))
    assert result.returncode == NotMountedError.exit_code
    assert result.stderr.count("\n") == 1


def test_umount_of_a_busy_mount_names_the_process_and_changes_nothing(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    with kernel.mounted_bucket(bucket) as mount:
        holder = subprocess.Popen(["tail", "-f", mount.path / "file"], stdout=subprocess.DEVNULL)
        try:
            wait_until(
                lambda: any(
                    os.readlink(fd).startswith(str(mount.path)) for fd in Path(f"/proc/{holder.pid}/fd").iterdir()
                ),
                "tail opened the file",
            )
            result = run_command("umount", str(mount.path))
            assert result.returncode == MountBusyError.exit_code
            assert re.search(rf"in use by .*\b{holder.pid} \(tail\)", result.stderr)
            assert kernel.read_all(mount.path / "file") == CONTENT
        finally:
            holder.kill()
            holder.wait()


def test_lazy_umount_serves_the_open_file_to_its_end(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    with kernel.mounted_bucket(bucket) as mount:
        keeper = mount.status()["keeper_pid"]
        with kernel.opened(mount.path / "file") as fd:
            result = run_command("umount", "--lazy", str(mount.path))
            assert (result.returncode, result.stderr) == (0, "")
            assert find_mount(mount.path) is None
            assert os.pread(fd, len(CONTENT), 0) == CONTENT
            os.kill(keeper, 0)
        wait_until(lambda: not _processes(mount.path.parent), "the daemon ended after the last user")
        _assert_nothing_left(mount.path.parent)


def test_umount_program_of_the_system_ends_the_daemon_too(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    with kernel.mounted_bucket(bucket) as mount:
        subprocess.run(["umount", mount.path], check=True)
        wait_until(lambda: not _processes(mount.path.parent), "the daemon ended")
        _assert_nothing_left(mount.path.parent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_an_idle_mount(bucket: Bucket, number: signal.Signals) -> None:
    with kernel.mounted_bucket(bucket) as mount:
        os.kill(mount.status()["keeper_pid"], number)
        wait_until(lambda: not _processes(mount.path.parent), "the daemon ended")
        _assert_nothing_left(mount.path.parent)


def test_sigterm_while_a_file_is_open_ends_everything_and_no_reader_hangs(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    with kernel.mounted_bucket(bucket) as mount:
        kernel.read_all(mount.path / "file")  # a mount's first close() sends a FLUSH, which could fail below
        with kernel.opened(mount.path / "file") as fd:
            assert os.pread(fd, 4096, 0) == CONTENT[:4096]
            os.kill(mount.status()["keeper_pid"], signal.SIGTERM)
            wait_until(lambda: not _processes(mount.path.parent), "the daemon ended")
            _assert_nothing_left(mount.path.parent)
            drop_page_cache()
            with pytest.raises(OSError) as caught:
                os.pread(fd, len(CONTENT), 0)
            assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        mount.start()
        assert kernel.read_all(mount.path / "file") == CONTENT


def test_mountpoint_of_a_killed_daemon_is_taken_over(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    with kernel.mounted_bucket(bucket) as mount:
        assert kernel.read_all(mount.path / "file") == CONTENT
        pids = _processes(mount.path.parent)
        pidfds = [os.pidfd_open(pid) for pid in pids]
        for pidfd in pidfds:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], 30)[0]
            os.close(pidfd)
        drop_page_cache()
        with pytest.raises(OSError, match="Transport endpoint is not connected"):
            os.statvfs(mount.path)
        status = run_command("status", str(mount.path))
        assert status.returncode != 0
        assert status.stderr.count("\n") == 1
        mount.start()
        assert kernel.read_all(mount.path / "file") == CONTENT
        assert mount.counters()["backend_gets"] == 0
        table = Path("/proc/self/mountinfo").read_text()
        assert table.count(f" {mount.path} ") == 1


def test_umount_of_a_killed_daemon_cleans_up(bucket: Bucket) -> None:
    with kernel.mounted_bucket(bucket) as mount:
        for pid in _processes(mount.path.parent):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _processes(mount.path.parent), "all are dead")
        result = run_command("umount", str(mount.path))
        assert (result.returncode, result.stderr) == (0, "")
        _assert_nothing_left(mount.path.parent)


# --- side by side ----------------------------------------------------------------------------------------------


def test_two_mounts_of_one_source_with_two_caches(bucket: Bucket) -> None:
    bucket.put("file", CONTENT)
    with kernel.mounted_bucket(bucket) as first, kernel.mounted_bucket(bucket) as second:
        assert kernel.read_all(first.path / "file") == CONTENT
        assert kernel.read_all(second.path / "file") == CONTENT
        assert first.counters()["backend_bytes"] == second.counters()["backend_bytes"] == len(CONTENT)
        bucket.put("new", b"new")
        first.invalidate()
        assert sorted(os.listdir(first.path)) == ["file", "new"]
        assert os.listdir(second.path) == ["file"]
        listing = run_command("status").stdout
        assert str(first.path) in listing
        assert str(second.path) in listing
        first.stop()
        assert kernel.read_all(second.path / "file") == CONTENT


def test_one_cache_serves_one_source_after_the_other(base: Path, bucket: Bucket) -> None:
    """A volume of its own for each: nothing of the one is ever seen in the other, both stay warm."""
    bucket.put("a/file", b"A" * 200_000)
    bucket.put("b/file", b"B" * 200_000)
    for expected_gets in (1, 0):
        for name in ("a", "b"):
            options = ("--endpoint-url", bucket.endpoint, "--metadata-ttl", "indefinite")
            mount = Mount(bucket.url + name, base / "mnt", base / "cache", options, bucket.env)
            mount.start()
            assert kernel.read_all(mount.path / "file") == name.upper().encode() * 200_000
            assert mount.counters()["backend_gets"] == expected_gets
            mount.stop()
    _assert_nothing_left(base)


def test_mount_over_a_symlink_and_a_relative_path(base: Path) -> None:
    (base / "link").symlink_to("mnt")
    result = run_command("mount", "memory://", str(base / "link"), "--cache-dir", str(base / "cache"))
    assert result.returncode == 0, result.stderr
    assert find_mount(base / "mnt") is not None
    assert run_command("status", str(base / "link")).returncode == 0
    assert run_command("umount", str(base / "link")).returncode == 0
    _assert_nothing_left(base)


def test_foreground_mount_ends_with_its_mount(base: Path) -> None:
    command = [*COMMAND, "mount", "--foreground", "memory://", str(base / "mnt")]
    daemon = subprocess.Popen([*command, "--cache-dir", str(base / "cache")], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: find_mount(base / "mnt"), "it is mounted")
        assert os.listdir(base / "mnt") == []
        assert run_command("umount", str(base / "mnt")).returncode == 0
        assert daemon.wait(30) == 0
    finally:
        daemon.kill()
        daemon.wait()
    _assert_nothing_left(base)


def test_mount_from_a_file_with_a_variable_and_a_flag_above_it(base: Path) -> None:
    config = base / "data.toml"
    config.write_text(
        f'source = "memory://files"\nmountpoint = "{base}/mnt"\ncache_dir = "{base}/cache"\nprofile = "training"\n'
        'cache_size = "1GiB"\nfronts = 3\n'
    )
    above = {"FANOUTFS_CACHE_SIZE": "2GiB"}
    result = run_command("mount", "--config", str(config), "--fronts", "1", env=above)
    assert (result.returncode, result.stderr) == (0, "")
    status = Mount("memory://files", base / "mnt", base / "cache").status()
    assert (status["cache"]["cap_bytes"], len(status["front_pids"])) == (2 << 30, 1)
    info = find_mount(base / "mnt")
    assert info is not None
    assert "ro" in info.options
    assert run_command("umount", str(base / "mnt")).returncode == 0
    _assert_nothing_left(base)


def test_mount_from_a_wrong_file_names_the_line_and_leaves_nothing(base: Path) -> None:
    config = base / "data.toml"
    config.write_text(f'source = "memory://files"\nmountpoint = "{base}/mnt"\ncach_size = "1GiB"\n')
    result = run_command("mount", "--config", str(config))
    assert result.returncode == UsageError.exit_code
    assert result.stderr == f"fanoutfs: {config}:3: unknown key cach_size: did you mean cache_size?\n"
    assert not (base / "cache").exists()
