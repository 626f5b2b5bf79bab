"""What others make of objects meanwhile, and names that share content: the bucket holds what everybody may expect."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.test_upload_arrival import contents, drain, read, tree, writable
from tests.support.mounts import run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket


def test_foreign_change_is_a_conflict_and_both_are_seen(bucket: Bucket) -> None:
    bucket.put("shared", b"base")
    with writable(bucket, delay="1h") as mount:
        (mount.path / "shared").write_bytes(b"ours")
        bucket.put("shared", b"theirs, later")
        drain(mount)
        found = contents(bucket)
        assert found.pop("shared") == b"theirs, later"
        ((name, content),) = found.items()
        assert name.startswith("shared.conflict-")
        assert content == b"ours"
        assert tree(mount.path) == {"shared": b"theirs, later", name: b"ours"}
        assert mount.status()["changes"]["conflicts"] == 1
        assert mount.status()["changes"]["dirty"] == 0


@pytest.mark.parametrize("what", ["file", "directory"])
@pytest.mark.parametrize("change", ["changed", "removed"])
@pytest.mark.parametrize("is_cached", [True, False], ids=["cached", "not cached"])
def test_renamed_file_whose_object_somebody_else_took_away(
    bucket: Bucket, what: str, change: str, is_cached: bool
) -> None:
    """What is cached is uploaded; what nobody has any more goes, and holds nothing up."""
    body, other = random.Random(1).randbytes(300_000), b"another"
    bucket.put("d/a", body)
    bucket.put("d/b", b"beside it")
    with writable(bucket, "--metadata-ttl", "indefinite") as mount:
        assert sorted(os.listdir(mount.path / "d")) == ["a", "b"]
        if is_cached:
            assert (mount.path / "d/a").read_bytes() == body
            mount.wait_for_fills()
        if change == "changed":
            bucket.put("d/a", other)
        else:
            bucket.delete("d/a")
        was, now = ("d", "e") if what == "directory" else ("d/a", "d/c")
        (mount.path / was).rename(mount.path / now)
        drain(mount)
        moved = f"{now}/a" if what == "directory" else now
        expected = {("e/b" if what == "directory" else "d/b"): b"beside it"}
        expected |= {moved: body} if is_cached else {}
        shown = tree(mount.path)
        assert {path: shown[path] for path in shown if path != "d/a"} == expected
        expected |= {"d/a": other} if change == "changed" else {}
        assert contents(bucket) == expected
        assert mount.log().count("a file is gone name=") == (not is_cached)
        changes = mount.status()["changes"]
        assert (changes["dirty"], changes["departed"], changes["failing"]) == (0, 0, 0)
        assert run_command("umount", str(mount.path)).returncode == 0
        mount.start()
        assert run_command("invalidate", str(mount.path)).returncode == 0
        assert tree(mount.path) == expected


@pytest.mark.parametrize("what", ["file", "directory"])
def test_object_of_a_kept_file_that_somebody_else_removed_holds_nothing_up(
    bucket: Bucket, tmp_path: Path, what: str
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[policy]]\npath = "kept"\nkeep_local = true\n')
    bucket.put("d/a", bytes(300_000))
    with writable(bucket, "--policy-file", str(rules), delay="5s") as mount:
        (mount.path / "d/a").write_bytes(b"changed here")
        drain(mount)
        bucket.delete("d/a")
        if what == "file":
            (mount.path / "kept").mkdir()
            (mount.path / "d/a").write_bytes(b"changed again")
            (mount.path / "d/a").rename(mount.path / "kept/a")
        else:
            (mount.path / "d/a").write_bytes(b"changed again")
            (mount.path / "d").rename(mount.path / "kept")
        drain(mount)
        assert tree(mount.path) == {"kept/a": b"changed again"}
        assert contents(bucket) == {}
        wait_until(lambda: mount.status()["changes"]["dirty"] == 0, "each has had its turn again")
        changes = mount.status()["changes"]
        assert (changes["departed"], changes["failing"]) == (0, 0)


@pytest.mark.parametrize("path", ["", "b"])
def test_drain_waits_for_the_object_of_a_further_name(bucket: Bucket, proxy: Proxy, path: str) -> None:
    with writable(bucket, endpoint=proxy.endpoint) as mount:
        (mount.path / "b").mkdir()
        (mount.path / "a").write_bytes(bytes(100_000))
        os.link(mount.path / "a", mount.path / "b/other")
        drain(mount)
        proxy.fault("hold", match="b/other", method="PUT")
        with open(mount.path / "a", "r+b") as stream:
            stream.write(b"changed")
        command = [sys.executable, "-m", "fanoutfs", "drain", "--wait", str(mount.path / path)]
        with subprocess.Popen(command) as draining:
            try:
                wait_until(lambda: proxy.stats()["held"], "the copy is asked for")
                with pytest.raises(subprocess.TimeoutExpired):
                    draining.wait(1)
            finally:
                proxy.release()
        assert draining.returncode == 0
        assert read(bucket, "b/other")[:7] == b"changed"


@pytest.mark.parametrize("upload", ["drain", "drain of the other name", "push of the other name", "umount", "fsync"])
def test_all_names_of_a_file_have_its_bytes_in_the_store(bucket: Bucket, upload: str) -> None:
    """Each hard link has an object of its own, a copy of the first one's: it is waited for like any."""
    body = bytearray(100_000)
    with writable(bucket, "-o", f"durability={'remote' if upload == 'fsync' else 'local'}") as mount:
        for directory in ("a", "b"):
            (mount.path / directory).mkdir()
        (mount.path / "a/first").write_bytes(body)
        os.link(mount.path / "a/first", mount.path / "b/other")
        for turn in range(1, 3):
            drain(mount)
            assert contents(bucket) == {"a/first": bytes(body), "b/other": bytes(body)}
            body[turn] = turn
            with open(mount.path / "a/first", "r+b", buffering=0) as stream:
                stream.seek(turn)
                stream.write(bytes((turn,)))
                if upload == "fsync":
                    os.fsync(stream.fileno())
            if upload == "drain":
                drain(mount)
            elif upload == "drain of the other name":
                drain(mount, "b")
            elif upload == "push of the other name":
                assert run_command("tier", "push", str(mount.path / "b/other")).returncode == 0
            elif upload == "umount":
                result = run_command("umount", "--drain", str(mount.path))
                assert (result.returncode, result.stderr) == (0, "")
            assert contents(bucket) == {"a/first": bytes(body), "b/other": bytes(body)}
            if upload == "umount":
                mount.start()
