"""What a shell sees: exit codes, one line on stderr, silence on success."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fanoutfs import errors
from fanoutfs.cli import main, target
from fanoutfs.cli.app import COMMANDS, as_command, commands
from fanoutfs.config.load import SETTINGS, SYNONYMS
from fanoutfs.keeper import mount as attach
from fanoutfs.keeper.mountinfo import FSTYPE, MountInfo

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


_LATE = {
    *("trio", "pyfuse3", "obstore", "lmdb", "xxhash", "rich", "tqdm", "matplotlib"),
    *("asyncio", "ctypes", "difflib", "importlib.metadata", "logging", "random", "ssl", "subprocess", "traceback"),
    *("fanoutfs.keeper.mount", "fanoutfs.keeper.main", "fanoutfs.bench", "fanoutfs.eviction.recency"),
}
"""What no command loads before it knows that it needs it: each takes 3 to 60 ms."""
_SETTINGS = {"tomllib", "fanoutfs.config.load", "fanoutfs.config.layers"}
_ASK_SETTINGS = {"mount", "doctor", "config", "service"}


@pytest.mark.parametrize(
    ("calls", "late"),
    [
        pytest.param([["--version"], ["--help"], ["status"], ["status", "--json"]], _LATE | _SETTINGS, id="plain"),
        pytest.param([["config", "show", "s3://bucket", "/mnt"], ["config", "check", "FILE"]], _LATE, id="config"),
        pytest.param(
            [[name, "--help"] for name in COMMANDS if name not in _ASK_SETTINGS], _LATE | _SETTINGS, id="help"
        ),
        pytest.param([[name, "--help"] for name in _ASK_SETTINGS - {"service"}], _LATE, id="help-settings"),
        pytest.param([["service", "--help"]], _LATE - {"subprocess"}, id="service"),
        pytest.param([["version"]], _LATE - {"importlib.metadata", "random"} | _SETTINGS, id="version"),
    ],
)
def test_commands_load_nothing_that_they_do_not_need(calls: list[list[str]], late: set[str], tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text('source = "s3://bucket"\nmountpoint = "/mnt"\n')
    script = """
import sys
from fanoutfs.cli import main
calls, late = eval(sys.argv[1])
for words in calls:
    assert main(words) == 0, words
    assert not late & set(sys.modules), (words, late & set(sys.modules))
"""
    calls = [[str(tmp_path / "file.toml") if word == "FILE" else word for word in words] for words in calls]
    command = [sys.executable, "-c", script, repr((calls, late))]
    # A variable that is no setting is answered with the nearest name, which takes difflib to find.
    env = {name: value for name, value in os.environ.items() if not name.startswith("FANOUTFS_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode == 0, done.stderr


def _own(name: str, uid: int | None = None) -> MountInfo:
    owner = os.geteuid() if uid is None else uid
    return MountInfo(1, 0, "0:50", Path(name), (), FSTYPE, "s3://bucket", (f"user_id={owner}",))


@pytest.mark.parametrize("command", ["upgrade", "drain", "top"])
def test_without_a_name_only_the_only_mount_is_meant(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "fanoutfs_mounts", lambda: [_own("/mnt/a"), _own("/mnt/b")])
    assert _run(command) == errors.UsageError.exit_code
    assert "/mnt/a, /mnt/b" in _line(capsys)
    monkeypatch.setattr(target, "fanoutfs_mounts", lambda: [_own("/mnt/c", os.geteuid() + 1)])
    assert _run(command) == errors.NotMountedError.exit_code
    assert _line(capsys) == "nothing is mounted"


def test_the_only_mount_may_lie_beside_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "fanoutfs_mounts", lambda: [_own("/mnt/c", os.geteuid() + 1), _own("/mnt/a")])
    assert target.find_mount_by_name(None) == Path("/mnt/a")


def test_a_mount_and_all_mounts_exclude_each_other(capsys: Capture) -> None:
    assert _run("upgrade", "--all", "/mnt/a") == errors.UsageError.exit_code
    assert "--all" in _line(capsys)


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


def _all_commands() -> list[list[str]]:
    names: list[list[str]] = []
    for name in COMMANDS:
        command = commands.get_command(click.Context(commands), name)
        inner = command.commands if isinstance(command, click.Group) else None
        names += [[name]] if inner is None else [[name, each] for each, one in inner.items() if not one.hidden]
    return names


@pytest.mark.parametrize("words", _all_commands(), ids=" ".join)
def test_help_of_every_command_shows_an_example_that_it_would_take(words: list[str], capsys: Capture) -> None:
    assert _run(*words, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"Examples?: .*fanoutfs {' '.join(words)}\b", text)


def test_completion_offers_commands_and_options() -> None:
    script = ["bash", "-c", 'eval "$("$0" -m fanoutfs completion bash)" && complete -p fanoutfs', sys.executable]
    assert subprocess.run(script, capture_output=True, check=False).returncode == 0
    for words, expected in (("fanoutfs dr", "plain,drain"), ("fanoutfs mount --cache-s", "plain,--cache-size")):
        done = subprocess.run(
            [sys.executable, "-m", "fanoutfs"],
            env={
                **os.environ,
                "_FANOUTFS_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(len(words.split()) - 1),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == [expected]
