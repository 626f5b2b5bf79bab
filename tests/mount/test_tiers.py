"""`fanoutfs info` and `tier ls|du` on real mounts: each state is seen as it is, and bytes add up."""

import json
import os
import random
from pathlib import Path
from typing import Any

from fanoutfs.records import MIB
from tests.mount import kernel
from tests.mount.test_import import fill
from tests.support.mounts import run_command, wait_until
from tests.support.servers import Bucket

SIZE = 10 * MIB


def info(*paths: Path) -> list[dict[str, Any]]:
    """Return what `fanoutfs info --json` says."""
    result = run_command("info", "--json", *map(str, paths))
    assert result.returncode == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def usage(*paths: Path) -> dict[str, tuple[int, int]]:
    """Return {tier: (files, bytes)} as `tier du --json` says, without the empty ones."""
    result = run_command("tier", "du", "--json", *map(str, paths))
    assert result.returncode == 0, result.stderr
    tiers = json.loads(result.stdout)["tiers"]
    return {tier: (each["files"], each["bytes"]) for tier, each in tiers.items() if each["files"] or each["bytes"]}


def test_a_file_is_remote_then_cached_in_part_then_whole(bucket: Bucket) -> None:
    bucket.put("data/big", os.urandom(SIZE))
    with kernel.mounted_bucket(bucket, "--max-readahead", "0B") as mount:
        path = mount.path / "data/big"
        (before,) = info(path)
        assert (before["tier"], before["share_cached"], before["size_bytes"]) == ("remote", 0, SIZE)
        assert before["object_key"] == f"{bucket.prefix}data/big"
        assert before["etag"] and before["last_access_ns"] is None
        with open(path, "rb", buffering=0) as stream:
            assert len(stream.read(4096)) == 4096
        mount.wait_for_fills()
        (partly,) = info(path)
        assert partly["tier"] == "cached"
        assert 0 < partly["cached_bytes"] < SIZE
        assert usage(mount.path)["remote"] == (0, SIZE - partly["cached_bytes"])
        kernel.read_all(path)
        mount.wait_for_fills()
        (whole,) = info(path)
        assert (whole["tier"], whole["share_cached"]) == ("cached", 1)
        assert usage(mount.path) == {"cached": (1, SIZE)}
        wait_until(lambda: info(path)[0]["last_access_ns"], "the front has told that it was read")
        assert os.getxattr(path, "user.fanoutfs.tier") == b"cached"
        assert os.getxattr(path, "user.fanoutfs.cached") == f"{SIZE}/{SIZE}".encode()


def test_a_read_at_random_fetches_nothing_before_it_and_little_behind(bucket: Bucket) -> None:
    body = random.Random(3).randbytes(6 * MIB)
    bucket.put("large", body)
    with kernel.mounted_bucket(bucket) as mount:
        fd = os.open(mount.path / "large", os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            assert os.pread(fd, 4096, 2 * MIB) == body[2 * MIB : 2 * MIB + 4096]
        finally:
            os.close(fd)
        mount.wait_for_fills()
        assert mount.counters()["backend_bytes"] <= 2 * MIB


def test_dirty_and_local_files_are_told_from_those_in_the_store(bucket: Bucket) -> None:
    fill(bucket, ["d/a", "d/b"])
    with kernel.mounted_bucket(bucket, "--upload-delay", "1h", "--upload-deadline", "1h") as mount:
        (mount.path / "d/new").write_bytes(b"x" * 1000)
        (mount.path / "d/new.tmp").write_bytes(b"x" * 500)
        os.chmod(mount.path / "d/a", 0o600)
        new, never, changed = info(mount.path / "d/new", mount.path / "d/new.tmp", mount.path / "d/a")
        assert (new["tier"], new["etag"], new["object_key"]) == ("dirty", "", "")
        assert new["key"].endswith("d/new")
        assert never["tier"] == "local"
        assert "--no-upload" in never["why"]
        assert changed["tier"] == "remote"
        assert "metadata" in changed["why"]
        found = usage(mount.path / "d")
        assert found["dirty"] == (1, 1000)
        assert found["local"] == (1, 500)
        assert found["remote"] == (2, 6)
        gauges = json.loads(run_command("stats", "--json", str(mount.path)).stdout)["gauges"]
        assert gauges["uploads_queued"] + gauges["local_files"] == 3
        assert (gauges["uploads_failing"], gauges["pins"]) == (0, 0)
        assert gauges["oldest_dirty_age"] >= 0 and gauges["staged"] >= 1500
        listed = run_command("tier", "ls", "-R", str(mount.path)).stdout.splitlines()
        assert [line.split()[0] for line in listed] == ["directory", "remote", "remote", "dirty", "local"]
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        (uploaded,) = info(mount.path / "d/new")
        assert uploaded["tier"] == "cached" and uploaded["etag"]
        gauges = json.loads(run_command("stats", "--json", str(mount.path)).stdout)["gauges"]
        assert (gauges["uploads_queued"], gauges["local_files"]) == (0, 1)


def test_files_and_bytes_of_each_tier_are_counted_for_metrics_and_status(bucket: Bucket) -> None:
    for name in ("cached", "pinned", "remote"):
        bucket.put(name, name.encode() * 10_000)
    options = ("--upload-delay", "1h", "--upload-deadline", "1h")
    with kernel.mounted_bucket(bucket, *options) as mount:
        assert kernel.read_all(mount.path / "cached") == b"cached" * 10_000
        assert run_command("pin", str(mount.path / "pinned")).returncode == 0
        assert run_command("evict", str(mount.path / "remote")).returncode == 0
        (mount.path / "dirty").write_bytes(b"x" * 7)
        (mount.path / "kept.part").write_bytes(b"y" * 5)
        expected = {"remote": 1, "cached": 1, "pinned": 1, "dirty": 1, "local": 1, "uploading": 0, "archived": 0}

        def counted() -> dict[str, Any]:
            return dict(mount.status()["tiering"].get("tiers", {}))

        wait_until(lambda: {tier: use["files"] for tier, use in counted().items()} == expected, "they are counted", 90)
        assert {tier: use["bytes"] for tier, use in counted().items()} == {
            "remote": 60_000,
            "cached": 60_000,
            "pinned": 60_000,
            "dirty": 7,
            "local": 5,
            "uploading": 0,
            "archived": 0,
        }
        told = run_command("status", str(mount.path)).stdout
        assert "files in" in told and "dirty 1 (7B)" in told and "archived" not in told.split("files in")[1][:200]
        gauges = {
            line.split("{")[0]: float(line.split()[-1])
            for line in run_command("stats", "--prometheus", str(mount.path)).stdout.splitlines()
            if line.startswith("fanoutfs_tier_")
        }
        assert gauges["fanoutfs_tier_local_bytes"] == 5
        assert gauges["fanoutfs_tier_remote_files"] == 1


def test_what_is_not_there_is_said_in_one_line_with_an_exit_code(bucket: Bucket) -> None:
    bucket.put("a", b"x")
    with kernel.mounted_bucket(bucket) as mount:
        result = run_command("info", str(mount.path / "a"), str(mount.path / "absent"))
        assert result.returncode == 20
        assert "no such file" in result.stdout
        assert "remote" in result.stdout
    assert run_command("info", "/nowhere").returncode == 12
