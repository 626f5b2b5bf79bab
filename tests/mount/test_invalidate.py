"""`fanoutfs invalidate`: the store is asked again, whatever was known; nothing that was changed here is lost."""

import json
import os

import pytest

from tests.fault.test_kills import forget_pages
from tests.mount import kernel
from tests.support.mounts import Mount, run_command
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

TTLS = pytest.mark.parametrize("ttl", ["1h", "indefinite"])


def invalidate(mount: Mount, path: str = "", *options: str, code: int = 0) -> dict[str, object]:
    done = run_command("invalidate", str(mount.path / path), *options, "--json")
    assert done.returncode == code, done.stderr
    (document,) = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


@TTLS
def test_what_changed_in_the_store_is_seen_at_the_next_use(ttl: str, bucket: Bucket) -> None:
    bucket.put("d/old", b"old")
    bucket.put("d/gone", b"gone")
    bucket.put("d/below/x", b"1")
    with kernel.mounted_bucket(bucket, "--metadata-ttl", ttl) as mount:
        assert sorted(os.listdir(mount.path / "d")) == ["below", "gone", "old"]
        assert os.listdir(mount.path / "d/below") == ["x"]
        assert (mount.path / "d/old").read_bytes() == b"old"
        assert not (mount.path / "d/new").exists()
        bucket.put("d/old", b"newer")
        bucket.put("d/new", b"new")
        bucket.put("d/below/y", b"2")
        bucket.delete("d/gone")
        assert sorted(os.listdir(mount.path / "d")) == ["below", "gone", "old"]
        assert not (mount.path / "d/new").exists()
        assert invalidate(mount, "d")["directories"] == 2
        assert (mount.path / "d/new").read_bytes() == b"new"
        assert (mount.path / "d/old").read_bytes() == b"newer"
        assert not (mount.path / "d/gone").exists()
        assert sorted(os.listdir(mount.path / "d")) == ["below", "new", "old"]
        assert sorted(os.listdir(mount.path / "d/below")) == ["x", "y"]


@TTLS
def test_a_name_nobody_knows_is_found_after_it(ttl: str, bucket: Bucket) -> None:
    bucket.put("d/old", b"old")
    with kernel.mounted_bucket(bucket, "--metadata-ttl", ttl) as mount:
        os.listdir(mount.path / "d")
        assert not (mount.path / "d/new").exists()
        bucket.put("d/new", b"new")
        assert invalidate(mount, "d/new")["directories"] == 1
        assert (mount.path / "d/new").read_bytes() == b"new"


def test_only_what_is_below_is_listed_again_and_only_when_used(bucket: Bucket) -> None:
    for name in ("a/x", "a/b/y", "other/z"):
        bucket.put(name, b"1")
    with kernel.mounted_bucket(bucket) as mount:
        for name in ("", "a", "a/b", "other"):
            os.listdir(mount.path / name)
        before = mount.counters()["listings"]
        assert invalidate(mount, "a")["directories"] == 2
        os.listdir(mount.path / "other")
        os.listdir(mount.path)
        assert mount.counters()["listings"] == before
        os.listdir(mount.path / "a")
        os.listdir(mount.path / "a")
        assert mount.counters()["listings"] == before + 1


def test_what_was_changed_here_stays(bucket: Bucket) -> None:
    bucket.put("d/theirs", b"1")
    with kernel.mounted_bucket(bucket, "--upload-delay", "1h", "--upload-deadline", "1h") as mount:
        os.listdir(mount.path / "d")
        (mount.path / "d/ours").write_bytes(b"ours")
        (mount.path / "made").mkdir()
        (mount.path / "made/file").write_bytes(b"made")
        (mount.path / "d/theirs").unlink()
        document = invalidate(mount, "", "--content", code=28)
        assert document["kept_directories"] == 1
        assert list(document["kept"]) == ["not uploaded yet"]  # type: ignore[call-overload]
        assert sorted(os.listdir(mount.path)) == ["d", "made"]
        assert os.listdir(mount.path / "d") == ["ours"]
        assert (mount.path / "d/ours").read_bytes() == b"ours"
        assert (mount.path / "made/file").read_bytes() == b"made"
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
    assert sorted(key for key in bucket.keys() if not key.endswith("/")) == ["d/ours", "made/file"]  # noqa: SIM118


def test_content_is_fetched_again(bucket: Bucket) -> None:
    bodies = {"d/small": b"s" * 3000, "d/large": os.urandom(3 << 20), "e/other": b"o" * 3000}
    for name, body in bodies.items():
        bucket.put(name, body)
    with kernel.mounted_bucket(bucket) as mount:
        for name, body in bodies.items():
            assert kernel.read_all(mount.path / name) == body
        mount.wait_for_fills()
        before = mount.counters()["backend_bytes"]
        document = invalidate(mount, "d", "--content")
        assert (document["freed_files"], document["freed_bytes"]) == (2, 3000 + (3 << 20))
        for name, body in bodies.items():
            assert kernel.read_all(mount.path / name) == body  # out of the kernel's page cache, too
            forget_pages(mount.path / name)
        assert mount.counters()["backend_bytes"] - before == 3000 + (3 << 20)


def test_with_the_store_down_the_names_serve_on(bucket: Bucket, proxy: Proxy) -> None:
    bucket.put("d/x", b"1")
    with kernel.mounted_bucket(bucket, "--op-timeout", "2s", endpoint=proxy.endpoint) as mount:
        assert (mount.path / "d/x").read_bytes() == b"1"
        mount.wait_for_fills()
        proxy.fault("status", count=100_000, status=503)
        assert invalidate(mount)["directories"] == 2
        assert os.listdir(mount.path / "d") == ["x"]
        assert (mount.path / "d/x").read_bytes() == b"1"
        proxy.clear()
