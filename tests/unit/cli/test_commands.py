"""What a shell sees: exit codes, one line on stderr, silence on success."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fanoutfs import errors
from fanoutfs.cli import main
from fanoutfs.cli.app import as_command
from fanoutfs.config.load import SETTINGS, SYNONYMS
from fanoutfs.keeper import mount as attach

Capture = pytest.CaptureFixture[str]


def _run(*arguments: str | Path) -> int:
    return main([os.fspath(argument) for argument in arguments])


def _line(capsys: Capture) -> str:
    """Return the one line on stderr, having checked that there is no more."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("fanoutfs: ")
    return captured.err.removeprefix("fanoutfs: ").rstrip()


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cache-size", "20480"], "--cache-size: `20480` has no unit"),
        (["--cache-size", "20Q"], "unknown unit `q`"),
        (["--cach-size", "1G"], "--cache-size"),
        (["-o", "rw,cach_size=1G"], "did you mean --cache-size?"),
        (["--uid", "no-such-user"], "--uid: `no-such-user` is no user"),
        (["--max-cache-size", "x"], "--max-cache-size: `x` is not a size"),
    ],
)
def test_wrong_option_exits_2_and_says_what_to_write(
    mountpoint: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert _run("mount", "s3://bucket", mountpoint, *arguments) == errors.UsageError.exit_code
    assert message in _line(capsys)


def test_wrong_source_exits_2(mountpoint: Path, capsys: Capture) -> None:
    assert _run("mount", "bucket", mountpoint) == 2
    assert "write s3://bucket" in _line(capsys)


def test_bad_mountpoints_exit_10(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "none", "create it"),
        (tmp_path / "file", "not a directory"),
        (tmp_path, "not empty"),
    ):
        assert _run("mount", "s3://bucket", path) == errors.MountpointError.exit_code
        assert message in _line(capsys)


def test_mountpoint_inside_the_cache_is_noticed_through_a_symlink(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "cache" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("cache/mnt")
    assert _run("mount", "s3://bucket", tmp_path / "link", "--cache-dir", tmp_path / "cache") == 2
    assert "lies inside the cache directory" in _line(capsys)


def test_no_fuse_device_exits_13(mountpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "FUSE_DEVICE", mountpoint / "fuse")
    assert _run("mount", "s3://bucket", mountpoint) == errors.FuseUnavailableError.exit_code
    assert "apt install fuse3" in _line(capsys)


def test_umount_and_status_of_what_is_no_fanoutfs_mount_exit_12(mountpoint: Path, capsys: Capture) -> None:
    for command in ("umount", "status"):
        assert _run(command, mountpoint) == errors.NotMountedError.exit_code
        assert "nothing is mounted at" in _line(capsys)
        assert _run(command, "/proc") == errors.NotMountedError.exit_code
        assert "is no fanoutfs mount but proc" in _line(capsys)


@pytest.mark.parametrize("arguments", [["bogus"], ["mount"], ["status", "--yaml"], ["umount"]])
def test_malformed_command_line_exits_2_in_one_line(arguments: list[str], capsys: Capture) -> None:
    assert _run(*arguments) == 2
    _line(capsys)


def test_unexpected_error_is_one_line_and_a_traceback_only_when_debugging(
    mountpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_keywords: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(attach, "check_mountpoint", fail)
    assert _run("mount", "s3://bucket", mountpoint) == 1
    assert _line(capsys) == "ZeroDivisionError: a b (FANOUTFS_DEBUG=1 shows where)"
    monkeypatch.setenv("FANOUTFS_DEBUG", "1")
    assert _run("mount", "s3://bucket", mountpoint) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_exits_130(mountpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object, **_keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(attach, "check_mountpoint", interrupt)
    assert _run("mount", "s3://bucket", mountpoint) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_of_mount_shows_every_setting_and_hides_synonyms(capsys: Capture) -> None:
    assert _run("mount", "--help") == 0
    shown = capsys.readouterr().out
    for name in SETTINGS:
        assert "--" + name.replace("_", "-") in shown
    for name in SYNONYMS:
        assert f"--{name.replace('_', '-')} " not in shown


def test_light_commands_import_nothing_heavy() -> None:
    script = """
import sys
from fanoutfs.cli import main
for words in (["--version"], ["status"], ["version"]):
    assert main(words) == 0
heavy = {"trio", "pyfuse3", "obstore", "lmdb", "xxhash"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fanoutfs ")


@pytest.mark.parametrize(
    ("program", "words", "command"),
    [
        ("fanoutfs", ["status"], ["status"]),
        ("fanoutfs", ["s3://b1", "/mnt", "-o", "rw"], ["mount", "s3://b1", "/mnt", "-o", "rw"]),
        ("mount.fanoutfs", ["s3://b1", "/mnt", "-o", "ro", "-sv"], ["mount", "s3://b1", "/mnt", "-o", "ro"]),
        ("mount.fanoutfs", ["s3://b1", "/mnt", "-rn", "-t", "fanoutfs"], ["mount", "s3://b1", "/mnt", "-o", "ro"]),
        ("mount.fanoutfs", ["s3://b1", "/mnt", "-f"], None),
    ],
)
def test_mount_helper_calls(program: str, words: list[str], command: list[str] | None) -> None:
    assert as_command(program, words) == command
