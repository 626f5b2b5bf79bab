"""mount(8) and fstab: /sbin/mount.fanoutfs, as `fanoutfs service install` makes it."""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.errors import MountpointError, UsageError
from fanoutfs.keeper.mountinfo import find_mount
from tests.support.mounts import Mount, run_command

HELPER = Path("/sbin/mount.fanoutfs")


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A place with a source and a mountpoint, while the helper of this installation is in place."""
    installed = run_command("service", "install", "--root", str(tmp_path))
    assert installed.returncode == 0, installed.stderr
    with (
        tempfile.TemporaryDirectory(prefix="fanoutfs-test-", dir="/var/tmp", ignore_cleanup_errors=True) as name,
        open("/run/lock/fanoutfs-test-helper", "w") as lock,  # other test runs on this machine
    ):
        base = Path(name)
        for each in ("mnt", "source"):
            (base / each).mkdir()
        (base / "source" / "file").write_bytes(b"content")
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = os.readlink(HELPER) if HELPER.is_symlink() else None
        HELPER.unlink(missing_ok=True)
        HELPER.symlink_to(os.readlink(tmp_path / "sbin" / "mount.fanoutfs"))
        try:
            yield base
        finally:
            HELPER.unlink()
            if before is not None:
                HELPER.symlink_to(before)
            Mount("", base / "mnt", base / "cache").kill_everything()


def _mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=60, check=False)


def _umount(base: Path) -> None:
    subprocess.run(["umount", str(base / "mnt")], check=True, timeout=60)
    assert find_mount(base / "mnt") is None


def test_mount_program_takes_our_options_and_ignores_the_systems(base: Path) -> None:
    options = f"_netdev,nofail,x-systemd.automount,noatime,cache_dir={base}/cache,cache_size=1GiB,fronts=1,ro"
    done = _mount("-t", "fanoutfs", f"file://{base}/source", str(base / "mnt"), "-o", options)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (base / "mnt" / "file").read_bytes() == b"content"
    status = Mount("", base / "mnt", base / "cache").status()
    assert (status["cache"]["cap_bytes"], len(status["front_pids"])) == (1 << 30, 1)
    info = find_mount(base / "mnt")
    assert info is not None
    assert "ro" in info.options
    _umount(base)


def test_fstab_line_with_a_configuration_file(base: Path) -> None:
    config = base / "data.toml"
    config.write_text(f'cache_dir = "{base}/cache"\nprofile = "training"\n')
    fstab = base / "fstab"
    fstab.write_text(f"file://{base}/source {base}/mnt fanoutfs _netdev,nofail,config={config},fronts=1 0 0\n")
    for _ in range(2):  # the second time it is mounted already, and mount -a knows
        done = _mount("--fstab", str(fstab), "--all")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (base / "mnt" / "file").read_bytes() == b"content"
    _umount(base)


def test_mistakes_are_told_through_the_mount_program(base: Path) -> None:
    source, mnt = f"file://{base}/source", str(base / "mnt")
    done = _mount("-t", "fanoutfs", source, mnt, "-o", f"cache_dir={base}/cache,cach_size=1G")
    assert done.returncode == UsageError.exit_code
    assert done.stderr == "fanoutfs: unknown option --cach-size: did you mean --cache-size?\n"
    (base / "full" / "of").mkdir(parents=True)
    done = _mount("-t", "fanoutfs", source, str(base / "full"), "-o", f"cache_dir={base}/cache")
    assert done.returncode == MountpointError.exit_code
    assert "is not empty" in done.stderr
    assert _mount("-f", "-t", "fanoutfs", source, mnt).returncode == 0
    assert find_mount(base / "mnt") is None


def test_helper_works_without_a_home_and_a_path(base: Path) -> None:
    """As systemd runs it for a .mount unit."""
    arguments = [str(HELPER), f"file://{base}/source", str(base / "mnt"), "-o", f"rw,_netdev,cache_dir={base}/cache"]
    done = subprocess.run(arguments, env={}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (base / "mnt" / "file").read_bytes() == b"content"
    _umount(base)
