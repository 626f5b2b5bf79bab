"""`fanoutfs config`: what is shown and what is refused."""

import json
from pathlib import Path

import pytest

from fanoutfs.cli import main

Capture = pytest.CaptureFixture[str]

TEXT = 'source = "s3://bucket"\nmountpoint = "/mnt/data"\nprofile = "serving"\ncache_size = "1TiB"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data.toml"
    path.write_text(TEXT)
    return path


def test_show_tells_who_said_what(file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANOUTFS_REQUESTS", "7")
    assert main(["config", "show", "--config", str(file), "--origin", "--json", "--no-read-only"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["source"] == {"value": "s3://bucket", "origin": f"{file}:1"}
    assert shown["cache_size"] == {"value": 1 << 40, "origin": f"{file}:4"}
    assert shown["requests"] == {"value": 7, "origin": "FANOUTFS_REQUESTS"}
    assert shown["read_only"] == {"value": False, "origin": "--read-only"}
    assert shown["small_cache_share"] == {"value": 0.1, "origin": "profile serving"}
    assert shown["op_timeout"] == {"value": 25.0, "origin": "default"}


def test_what_show_prints_is_a_file_that_means_the_same(file: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["config", "show", "--config", str(file), "--origin"]) == 0
    again = tmp_path / "again.toml"
    again.write_text(capsys.readouterr().out)
    assert main(["config", "show", "--config", str(file)]) == 0
    first = capsys.readouterr().out
    assert main(["config", "show", "--config", str(again)]) == 0
    assert capsys.readouterr().out == first


def test_arguments_go_above_the_file(file: Path, capsys: Capture) -> None:
    assert main(["config", "show", "s3://other", "--config", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["source"], shown["mountpoint"]) == ("s3://other", "/mnt/data")


def test_check_tells_every_mistake_and_exits_2(file: Path, capsys: Capture) -> None:
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"
    file.write_text(TEXT + 'cach_size = "1G"\nfronts = 99\n')
    assert main(["config", "check", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{file}:5: unknown key cach_size: did you mean cache_size?",
        f"{file}:6: fronts: at most 16, not 99",
        "fanoutfs: 2 mistakes",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mount"], "name a SOURCE and a MOUNTPOINT, or a configuration"),
        (["mount", "s3://bucket"], "where? name a MOUNTPOINT"),
        (["mount", "no-such-name"], "no configuration /etc/fanoutfs/no-such-name.toml"),
        (["mount", "/srv/data", "/mnt"], "for a directory write file:///srv/data"),
        (["mount", "--config", "/no/such/file.toml"], "/no/such/file.toml: No such file or directory"),
    ],
)
def test_what_names_no_mount_is_refused(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
