"""`fanoutfs service`: the files that are written, and what systemd itself says of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import fanoutfs
from fanoutfs.cli import main, service
from fanoutfs.config import files

Capture = pytest.CaptureFixture[str]

MAKES_A_NAMESPACE = (
    "ProtectSystem", "ProtectHome", "ProtectProc", "ProtectKernelModules", "ProtectKernelLogs", "ProtectKernelTunables",
    "ProtectControlGroups", "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateIPC", "ReadWritePaths",
    "BindPaths", "BindReadOnlyPaths", "InaccessiblePaths", "ReadOnlyPaths", "RootDirectory", "DynamicUser",
    "TemporaryFileSystem", "MountFlags", "ProcSubset",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert main(["service", "install", "--root", str(tmp_path)]) == 0
    return tmp_path


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "configs"
    path.mkdir()
    monkeypatch.setattr(files, "config_dirs", lambda: (path,))
    return path


def _unit(root: Path) -> Path:
    return root / "etc/systemd/system/fanoutfs@.service"


def test_unit_in_the_package_is_the_one_at_the_top() -> None:
    # A copy, not a symbolic link: archives and some checkouts make a file of one, with a path in it.
    packaged = Path(fanoutfs.__file__).parent / "systemd" / service.UNIT
    at_top = Path(__file__).parents[3] / "systemd" / service.UNIT
    assert packaged.read_bytes() == at_top.read_bytes()


def test_unit_and_helper_name_this_installation(root: Path) -> None:
    helper = root / "sbin/mount.fanoutfs"
    program = helper.readlink()
    assert program.exists()
    lines = _unit(root).read_text().splitlines()
    assert f"ExecStart={program} mount --foreground %i" in lines
    assert not [line for line in lines if "/usr/bin/fanoutfs" in line]
    assert main(["service", "install", "--root", str(root)]) == 0  # again, over what is there
    assert helper.readlink() == program


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_to_complain_about(root: Path) -> None:
    instance = _unit(root).with_name("fanoutfs@x.service")
    instance.write_text(_unit(root).read_text())
    done = subprocess.run(["systemd-analyze", "verify", instance], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=45", str(instance)]  # tenths: 4.5
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_no_setting_of_the_unit_makes_a_mount_namespace(root: Path) -> None:
    keys = set(re.findall(r"^(\w+)=", _unit(root).read_text(), flags=re.M))
    assert not keys & set(MAKES_A_NAMESPACE)


def test_stop_has_time_for_the_drain(root: Path) -> None:
    (timeout,) = re.findall(r"^TimeoutStopSec=(\d+)$", _unit(root).read_text(), flags=re.M)
    assert int(timeout) >= service.DRAIN_TIMEOUT_S + 30


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="needs systemctl")
def test_enable_waits_for_the_disks_and_hands_over_credentials(root: Path, configs: Path, capsys: Capture) -> None:
    (configs / "train.toml").write_text('source = "s3://b"\nmountpoint = "/mnt/a b"\ncache_dir = "/nvme/100%"\n')
    credentials = configs / "train.credentials"
    credentials.write_text("[default]\n")
    credentials.chmod(0o644)
    assert main(["service", "enable", "train", "--root", str(root)]) == 2
    assert f"chmod 600 {credentials}" in capsys.readouterr().err
    credentials.chmod(0o600)
    assert main(["service", "enable", "train", "--root", str(root)]) == 0
    assert (root / "etc/systemd/system/multi-user.target.wants/fanoutfs@train.service").is_symlink()
    lines = (root / "etc/systemd/system/fanoutfs@train.service.d/10-fanoutfs.conf").read_text().splitlines()
    assert 'RequiresMountsFor="/nvme/100%%"' in lines
    assert 'RequiresMountsFor="/mnt"' in lines
    assert f"LoadCredential=aws:{credentials}" in lines
    assert "Environment=AWS_SHARED_CREDENTIALS_FILE=%d/aws" in lines


def test_enable_refuses_what_would_not_start(root: Path, configs: Path, tmp_path: Path, capsys: Capture) -> None:
    (configs / "bad.toml").write_text('source = "s3://b"\ncach_size = "1G"\n')
    (configs / "half.toml").write_text('source = "s3://b"\n')
    for name, message in (
        ("bad", "bad.toml:2: unknown key cach_size"),
        ("half", "has no mountpoint"),
        ("none", "no configuration"),
    ):
        assert main(["service", "enable", name, "--root", str(root)]) == 2
        assert message in capsys.readouterr().err
    (configs / "good.toml").write_text('source = "s3://b"\nmountpoint = "/mnt"\n')
    assert main(["service", "enable", "good", "--root", str(tmp_path / "empty")]) == 2
    assert "service install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("jobs", "is_restarting"),
    [
        ("51 fanoutfs@train.service restart running\n", True),
        ("51 fanoutfs@train.service stop running\n", False),
        ("50 other.service restart waiting\n", False),
        ("", False),
    ],
)
def test_a_restart_is_told_from_a_stop(
    jobs: str, is_restarting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\nprintf '{jobs}'\n")
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert service._is_restarting("fanoutfs@train.service") is is_restarting
