"""`fanoutfs doctor` as a user runs it: real kernel, real disk, real object store; nothing is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.errors import UsageError
from fanoutfs.keeper.mountinfo import read_mounts
from tests.support.mounts import mounted, run_command
from tests.support.processes import free_ports
from tests.support.servers import Bucket


def examine(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, dict[str, dict[str, Any]]]:
    result = run_command("doctor", "--json", *arguments, env=env)
    document = json.loads(result.stdout)
    assert document["exit_code"] == result.returncode
    assert result.stderr == ""
    findings = {finding["check"]: finding for finding in document["findings"]}
    assert len(findings) == len(document["findings"])
    assert [name for name, finding in findings.items() if finding["result"] == "fail" and not finding["fix"]] == []
    assert not any(info.source == "fanoutfs-doctor" for info in read_mounts())
    return result.returncode, findings


def of_bucket(bucket: Bucket, cache: Path, *options: str, **changed: str) -> tuple[int, dict[str, dict[str, Any]]]:
    options = ("--endpoint-url", bucket.endpoint, "--cache-dir", str(cache), *options)
    return examine(bucket.url, "/mnt", *options, env={**bucket.env, **changed})


def test_machine_alone_needs_no_source(tmp_path: Path) -> None:
    code, findings = examine("--cache-dir", str(tmp_path / "cache"))
    assert code == 0
    assert findings["fuse"]["result"] == findings["kernel"]["result"] == "ok"
    assert "cache_fs" in findings
    assert "list" not in findings
    assert list(tmp_path.iterdir()) == []


def test_good_bucket_passes_every_check_and_stays_as_it_was(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("deep/er/object", b"x" * 3_000_000)
    code, findings = of_bucket(bucket, tmp_path)
    assert code == 0
    asked = ("clock", "access", "list", "get", "latency", "bandwidth", "put", "conditional_put", "multipart", "delete")
    assert {name: findings[name]["result"] for name in asked} == dict.fromkeys(asked, "ok")
    assert bucket.keys() == ["deep/er/object"]


def test_read_only_puts_nothing(bucket: Bucket, tmp_path: Path) -> None:
    code, findings = of_bucket(bucket, tmp_path, "--read-only")
    assert code == 0
    assert [findings[name]["result"] for name in ("put", "conditional_put", "multipart", "get")] == ["skip"] * 4
    assert bucket.keys() == []


def test_wrong_secret_is_named_and_what_follows_is_skipped(bucket: Bucket, tmp_path: Path) -> None:
    code, findings = of_bucket(bucket, tmp_path, AWS_SECRET_ACCESS_KEY="wrong")
    assert code == 1
    assert findings["credentials"]["result"] == "fail"
    assert "wrong" not in json.dumps(findings["credentials"]["reason"])
    assert findings["put"]["result"] == findings["bandwidth"]["result"] == "skip"
    assert findings["clock"]["result"] == "ok"


def test_missing_bucket_is_named(bucket: Bucket, tmp_path: Path) -> None:
    elsewhere = Bucket(bucket.endpoint, "no-such-bucket", env=bucket.env)
    code, findings = of_bucket(elsewhere, tmp_path)
    assert code == 1
    assert findings["bucket"]["result"] == "fail"


def test_silent_endpoint_is_named(bucket: Bucket, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    nobody = Bucket(f"http://127.0.0.1:{port}", "bucket", env=bucket.env)
    code, findings = of_bucket(nobody, tmp_path)
    assert code == 1
    assert findings["reach"]["result"] == "fail"
    assert findings["clock"]["result"] == "skip"


def test_running_mount_is_looked_at(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with mounted(f"file://{source}") as mount:
        _code, findings = examine(f"file://{source}", str(mount.path), "--cache-dir", str(mount.cache))
    assert findings["read_ahead"]["reason"].startswith("4096 KiB at ")


@pytest.mark.parametrize("options", [("--cache-size", "20480"), ("--nonsense",)])
def test_wrong_option_is_one_line(options: tuple[str, ...]) -> None:
    result = run_command("doctor", *options)
    assert result.returncode == UsageError.exit_code
    assert result.stderr.count("\n") == 1
