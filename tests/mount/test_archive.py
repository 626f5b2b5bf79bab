"""Archived objects and storage classes: refused reads are told apart from failures, restores are asked for and awaited.

moto keeps classes and refuses to give archived objects away, as S3 does; what it does at once, the proxy plays slowly.
"""

import errno
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.records import MIB
from tests.mount import kernel
from tests.mount.test_tiers import info
from tests.support.mounts import run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

ONGOING = 'ongoing-request="true"'
BODIES = {"a/small": b"small" * 100, "a/large": os.urandom(MIB)}


def put(bucket: Bucket, key: str, body: bytes, storage_class: str = "GLACIER") -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + key, Body=body, StorageClass=storage_class)


def head(bucket: Bucket, key: str) -> dict[str, Any]:
    found: dict[str, Any] = bucket.client.head_object(Bucket=bucket.name, Key=bucket.prefix + key)
    return found


@pytest.mark.parametrize("key", list(BODIES))
def test_archived_file_gives_enodata_until_it_is_restored(moto_bucket: Bucket, key: str) -> None:
    put(moto_bucket, key, BODIES[key])
    with kernel.mounted_bucket(moto_bucket) as mount:
        path = mount.path / key
        assert path.stat().st_size == len(BODIES[key])
        for _try in range(3):
            with pytest.raises(OSError, match="No data") as refused:
                kernel.read_all(path)
            assert refused.value.errno == errno.ENODATA
        assert mount.log().count("object is archived") == 1
        (found,) = info(path)
        assert (found["tier"], found["storage_class"]) == ("archived", "GLACIER")
        assert "tier restore" in found["why"]
        result = run_command("tier", "restore", "--wait", "--days", "3", str(mount.path / "a"))
        assert result.returncode == 0, result.stderr
        assert "asked: 1" in result.stdout and "restored: 1" in result.stdout
        assert 'ongoing-request="false"' in head(moto_bucket, key)["Restore"]
        assert kernel.read_all(path) == BODIES[key]
        again = run_command("tier", "restore", str(mount.path))
        assert "asked: 0" in again.stdout and "restored: 1" in again.stdout


def test_classes_are_known_from_the_listing_and_kept_by_renames(moto_bucket: Bucket) -> None:
    put(moto_bucket, "a/rare", b"rarely read", "STANDARD_IA")
    put(moto_bucket, "a/cold", b"never read", "GLACIER")
    put(moto_bucket, "a/usual", b"often read", "STANDARD")
    with kernel.mounted_bucket(moto_bucket, "--upload-delay", "0s") as mount:
        assert sorted(os.listdir(mount.path / "a")) == ["cold", "rare", "usual"]
        (rare,) = info(mount.path / "a/rare")
        assert (rare["tier"], rare["storage_class"]) == ("remote", "STANDARD_IA")
        (cold,) = info(mount.path / "a/cold")
        assert (cold["tier"], cold["storage_class"]) == ("archived", "GLACIER")
        os.rename(mount.path / "a/rare", mount.path / "a/renamed")
        os.rename(mount.path / "a/usual", mount.path / "a/other")
        result = run_command("drain", "--wait", str(mount.path))
        assert result.returncode == 0, result.stderr
        assert head(moto_bucket, "a/renamed")["StorageClass"] == "STANDARD_IA"
        assert "StorageClass" not in head(moto_bucket, "a/other")
        (renamed,) = info(mount.path / "a/renamed")
        assert renamed["storage_class"] == "STANDARD_IA"
        assert kernel.read_all(mount.path / "a/renamed") == b"rarely read"


def test_archived_object_follows_a_rename_from_the_cache_or_once_it_is_restored(
    moto_bucket: Bucket, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[policy]]\npath = "a"\nstorage_class = "GLACIER"\n')
    put(moto_bucket, "b/cold", b"never read")
    with kernel.mounted_bucket(moto_bucket, "--upload-delay", "0s", "--policy-file", str(rules)) as mount:
        (mount.path / "a").mkdir()
        for key, body in BODIES.items():
            (mount.path / key).write_bytes(body)
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        assert head(moto_bucket, "a/large")["StorageClass"] == "GLACIER"
        for key in BODIES:
            os.rename(mount.path / key, mount.path / f"{key}-renamed")
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        os.rename(mount.path / "b/cold", mount.path / "b/renamed")
        wait_until(lambda: "to be restored" in mount.status()["changes"].get("last_error", ""), "it is told why")
        (mount.path / "c").write_bytes(b"not held up")
        wait_until(lambda: "c" in moto_bucket.keys(), "others go on")  # noqa: SIM118
        assert run_command("tier", "restore", "--days", "3", str(mount.path / "b/renamed")).returncode == 0
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        assert kernel.read_all(mount.path / "b/renamed") == b"never read", "a copy is archived, whatever its source was"
        left = parsedate_to_datetime(head(moto_bucket, "b/renamed")["Restore"].split('expiry-date="')[1].rstrip('"'))
        assert 2 < (left - datetime.now(UTC)) / timedelta(days=1) <= 4
        objects = {key for key in moto_bucket.keys() if not key.endswith("/")}  # noqa: SIM118
        assert objects == {"a/small-renamed", "a/large-renamed", "b/renamed", "c"}
        for key, body in BODIES.items():
            assert kernel.read_all(mount.path / f"{key}-renamed") == body
            assert head(moto_bucket, f"{key}-renamed")["StorageClass"] == "GLACIER"


def test_restore_waits_as_long_as_the_store_says_that_it_is_ongoing(moto_bucket: Bucket, moto_proxy: Proxy) -> None:
    put(moto_bucket, "a", b"cold")
    with kernel.mounted_bucket(moto_bucket, endpoint=moto_proxy.endpoint) as mount:
        assert (mount.path / "a").stat().st_size == 4
        for state, times in (("true", 4), ("false", 1)):
            value = f'ongoing-request="{state}"'
            moto_proxy.fault("header", match="/a", method="HEAD", count=times, name="x-amz-restore", value=value)
        told = run_command("info", str(mount.path / "a")).stdout
        assert "archived: " in told and "restore    under way" in told
        result = run_command("tier", "restore", "--wait", str(mount.path / "a"))
        assert result.returncode == 0, result.stderr
        assert "asked: 0" in result.stdout and "restored: 1" in result.stdout
        assert moto_proxy.stats()["faults_left"] == 0
        # Somebody else had asked: what is under way is awaited, not asked for again.
        assert not moto_proxy.requests(match="restore", method="POST")


@pytest.mark.parametrize("change", ["rename", "remove", "replace"])
def test_restore_waits_for_a_file_whatever_becomes_of_it(moto_bucket: Bucket, moto_proxy: Proxy, change: str) -> None:
    put(moto_bucket, "a", b"cold")
    moto_bucket.client.restore_object(Bucket=moto_bucket.name, Key="a", RestoreRequest={"Days": 1})
    with kernel.mounted_bucket(moto_bucket, "--upload-delay", "0s", endpoint=moto_proxy.endpoint) as mount:
        path = mount.path / "a"
        assert path.stat().st_size == 4
        moto_proxy.fault("header", match="/a", method="HEAD", count=1000, name="x-amz-restore", value=ONGOING)
        with subprocess.Popen(
            [sys.executable, "-m", "fanoutfs", "tier", "restore", "--wait", "--json", str(path)], stdout=subprocess.PIPE
        ) as restore:
            try:
                wait_until(lambda: len(moto_proxy.requests(match="/a", method="HEAD")) > 1, "it waits")
                if change == "rename":
                    path.rename(mount.path / "b")
                elif change == "remove":
                    path.unlink()
                else:
                    path.write_bytes(b"another")
                    moto_proxy.clear()
                told = json.loads(restore.communicate(timeout=60)[0])
            finally:
                restore.kill()
        assert restore.returncode == 0
        asked = int(change == "rename")  # of the copy, which is archived
        assert told == {"counts": {"readable": 0, "asked": asked, "ongoing": 0, "restored": 1}, "failures": []}


def test_restore_that_meets_no_object_says_so_and_ends(moto_bucket: Bucket, moto_proxy: Proxy) -> None:
    for key in ("gone", "there"):
        put(moto_bucket, key, b"cold")
    moto_bucket.client.restore_object(Bucket=moto_bucket.name, Key="there", RestoreRequest={"Days": 1})
    with kernel.mounted_bucket(moto_bucket, endpoint=moto_proxy.endpoint) as mount:
        assert sorted(os.listdir(mount.path)) == ["gone", "there"]
        for key in ("/gone", "/there"):
            moto_proxy.fault("header", match=key, method="HEAD", count=2, name="x-amz-restore", value=ONGOING)
        moto_proxy.fault("status", match="/gone", method="HEAD", count=2, status=404)
        result = run_command("tier", "restore", "--wait", str(mount.path))
        assert result.returncode == 29
        assert "restored: 1" in result.stdout and "ongoing: 0" in result.stdout
        assert len([line for line in result.stderr.splitlines() if line.startswith(f"{mount.path}/gone: ")]) == 1


def test_evict_keeps_what_could_not_be_fetched_again(moto_bucket: Bucket) -> None:
    put(moto_bucket, "a", b"x" * 1000, "STANDARD")
    with kernel.mounted_bucket(moto_bucket) as mount:
        assert kernel.read_all(mount.path / "a") == b"x" * 1000
        # A rule of the bucket archives it.
        source = {"Bucket": moto_bucket.name, "Key": moto_bucket.prefix + "a"}
        moto_bucket.client.copy_object(
            Bucket=moto_bucket.name, Key=source["Key"], CopySource=source, StorageClass="DEEP_ARCHIVE"
        )
        assert info(mount.path / "a")[0]["storage_class"] == "DEEP_ARCHIVE"
        result = run_command("evict", str(mount.path))
        assert result.returncode == 28
        assert "archived in the store" in result.stdout
        assert kernel.read_all(mount.path / "a") == b"x" * 1000


def test_what_was_uploaded_into_an_archive_stays_here(moto_bucket: Bucket, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[policy]]\npath = "cold"\nstorage_class = "GLACIER"\n')
    with kernel.mounted_bucket(moto_bucket, "--policy-file", str(rules), "--upload-delay", "0s") as mount:
        (mount.path / "cold").write_bytes(b"x" * 1000)
        (mount.path / "asked").write_bytes(b"y" * 1000)
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        push = run_command("tier", "push", "--storage-class", "DEEP_ARCHIVE", str(mount.path / "asked"))
        assert push.returncode == 0, push.stderr
        assert [head(moto_bucket, key)["StorageClass"] for key in ("cold", "asked")] == ["GLACIER", "DEEP_ARCHIVE"]
        result = run_command("evict", str(mount.path))
        assert result.returncode == 28
        assert "archived in the store" in result.stdout
        assert kernel.read_all(mount.path / "cold") == b"x" * 1000
        assert kernel.read_all(mount.path / "asked") == b"y" * 1000


def test_policy_chooses_the_class_at_upload_and_by_age(moto_bucket: Bucket, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[policy]]\npath = "at-once"\nstorage_class = "STANDARD_IA"\n'
        '[[policy]]\npath = "later"\nstorage_class = "GLACIER_IR"\nstorage_class_after = 0\n'
    )
    put(moto_bucket, "later/old", b"old", "STANDARD")
    with kernel.mounted_bucket(moto_bucket, "--policy-file", str(rules), "--upload-delay", "0s") as mount:
        (mount.path / "at-once").write_bytes(b"new")
        (mount.path / "other").write_bytes(b"new")
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        assert head(moto_bucket, "at-once")["StorageClass"] == "STANDARD_IA"
        assert "StorageClass" not in head(moto_bucket, "other")
        assert info(mount.path / "at-once")[0]["storage_class"] == "STANDARD_IA"
        os.chmod(mount.path / "at-once", 0o600)
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        assert head(moto_bucket, "at-once")["StorageClass"] == "STANDARD_IA"  # not lost with new metadata
        os.listdir(mount.path / "later")
        wait_until(lambda: head(moto_bucket, "later/old").get("StorageClass") == "GLACIER_IR", "the class has changed")
        mount.invalidate("later")
        inode = (mount.path / "later/old").stat().st_ino
        assert kernel.read_all(mount.path / "later/old") == b"old"
        assert (mount.path / "later/old").stat().st_ino == inode
        assert mount.counters()["conflicts"] == 0


def test_push_puts_what_is_in_the_store_into_a_class(moto_bucket: Bucket) -> None:
    for key in ("d/a", "d/b"):
        put(moto_bucket, key, b"x", "STANDARD")
    with kernel.mounted_bucket(moto_bucket, "--upload-delay", "1h", "--upload-deadline", "1h") as mount:
        os.listdir(mount.path / "d")
        (mount.path / "d/new").write_bytes(b"new")
        result = run_command("tier", "push", "--storage-class", "STANDARD_IA", str(mount.path / "d"))
        assert result.returncode == 0, result.stderr
        assert "uploaded: 1 files, class changed: 2" in result.stdout
        assert {head(moto_bucket, f"d/{name}")["StorageClass"] for name in ("a", "b", "new")} == {"STANDARD_IA"}
        assert {found["storage_class"] for found in info(mount.path / "d/a", mount.path / "d/new")} == {"STANDARD_IA"}
