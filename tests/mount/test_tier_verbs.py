"""The verbs of tiering on real mounts: evict, pin, push, policies that change without a remount."""

import os
import random
from pathlib import Path

import pytest

from fanoutfs.records import KIB, MIB
from tests.fault.test_kills import forget_pages
from tests.mount import kernel
from tests.mount.test_tiers import info, usage
from tests.support.du import occupied_bytes
from tests.support.mounts import Mount, mounted, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

SMALL = {f"d/s{n:02}": random.Random(n).randbytes(5 * KIB) for n in range(20)}
LARGE = {f"d/l{n}": random.Random(n).randbytes(3 * MIB + n) for n in range(3)}


def put(bucket: Bucket, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        bucket.put(name, body)


def verify(mount: Mount, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        assert kernel.read_all(mount.path / name) == body
        forget_pages(mount.path / name)


def fetched(mount: Mount) -> int:
    return mount.counters()["backend_bytes"]


def tier(path: Path) -> str:
    return os.getxattr(path, "user.fanoutfs.tier").decode()


def cache_bytes(mount: Mount) -> int:
    """Return what file data occupies in the cache: objects and segments."""
    folders = (mount.volume() / "objects", mount.volume() / "segments", mount.volume() / "staging")
    return sum(occupied_bytes(folder, with_directories=False) for folder in folders)


def test_evict_frees_the_disk_and_the_bytes_come_back_right(bucket: Bucket) -> None:
    put(bucket, SMALL | LARGE)
    total = sum(map(len, (SMALL | LARGE).values()))
    with kernel.mounted_bucket(bucket) as mount:
        verify(mount, SMALL | LARGE)
        mount.wait_for_fills()
        assert usage(mount.path) == {"cached": (23, total)}
        result = run_command("evict", str(mount.path / "d"))
        assert result.returncode == 0, result.stderr
        assert "of 23 files" in result.stdout
        assert usage(mount.path) == {"remote": (23, total)}
        assert cache_bytes(mount) <= 64 * KIB
        before = fetched(mount)
        verify(mount, SMALL | LARGE)
        assert fetched(mount) - before == total
        assert mount.counters()["verify_failures"] == 0
        assert sorted(bucket.keys()) == sorted(SMALL | LARGE)  # nothing was deleted there


def test_evict_says_what_stays_and_why(bucket: Bucket) -> None:
    put(bucket, SMALL)
    with kernel.mounted_bucket(bucket, "--upload-delay", "1h", "--upload-deadline", "1h") as mount:
        verify(mount, SMALL)
        (mount.path / "d/new").write_bytes(b"x" * 1000)
        assert run_command("pin", str(mount.path / "d/s07")).returncode == 0
        result = run_command("evict", str(mount.path))
        assert result.returncode == 28
        assert "of 1 files: not uploaded yet" in result.stdout
        assert "of 1 files: pinned" in result.stdout
        assert "of 19 files" in result.stdout
        assert (mount.path / "d/new").read_bytes() == b"x" * 1000
        assert tier(mount.path / "d/s07") == "pinned"
        assert tier(mount.path / "d/s08") == "remote"


def test_pin_fetches_survives_a_restart_and_is_lifted_below(bucket: Bucket, proxy: Proxy) -> None:
    put(bucket, SMALL | LARGE)
    with kernel.mounted_bucket(bucket, endpoint=proxy.endpoint) as mount:
        result = run_command("pin", str(mount.path / "d"))
        assert result.returncode == 0, result.stderr
        assert "23 of 23 files" in result.stdout
        assert run_command("unpin", str(mount.path / "d/l1")).returncode == 0
        mount.stop()
        mount.start()
        before = fetched(mount)
        assert run_command("evict", str(mount.path)).returncode == 28
        assert {tier(mount.path / name) for name in SMALL} == {"pinned"}
        assert [tier(mount.path / name) for name in LARGE] == ["pinned", "remote", "pinned"]
        verify(mount, {name: body for name, body in (SMALL | LARGE).items() if name != "d/l1"})
        assert fetched(mount) == before
        assert run_command("unpin", str(mount.path / "d")).returncode == 0
        assert run_command("evict", str(mount.path)).returncode == 0
        assert set(usage(mount.path)) == {"remote"}
    assert run_command("pin", "/nowhere").returncode == 12


def test_pinned_files_stay_while_twice_the_cache_is_read(bucket: Bucket) -> None:
    scan = {f"scan/l{n:02}": random.Random(n).randbytes(3 * MIB) for n in range(14)}
    crumbs = {f"scan/s{n:03}": random.Random(n).randbytes(60 * KIB) for n in range(300)}
    put(bucket, SMALL | LARGE | scan | crumbs)
    with kernel.mounted_bucket(bucket, "--cache-size", "30MiB", "--max-readahead", "0B") as mount:
        assert run_command("pin", str(mount.path / "d")).returncode == 0
        before = fetched(mount)
        verify(mount, scan | crumbs)
        assert fetched(mount) - before >= sum(map(len, (scan | crumbs).values()))
        assert mount.counters()["evicted_bytes"] > 0
        mount.wait_for_fills()
        before = fetched(mount)
        verify(mount, SMALL | LARGE)
        assert fetched(mount) == before, "a pinned byte was evicted"


def test_push_uploads_what_policy_holds_back_but_not_what_it_keeps(bucket: Bucket, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[policy]]\nname = "held"\npath = "*.hold"\nupload_after = "never"\n'
        '[[policy]]\nname = "scratch"\npath = "scratch"\nkeep_local = true\n'
    )
    with kernel.mounted_bucket(bucket, "--policy-file", str(rules), "--upload-delay", "0s") as mount:
        (mount.path / "scratch").mkdir()
        (mount.path / "scratch/a").write_bytes(b"mine")
        (mount.path / "b.hold").write_bytes(b"held")
        (mount.path / "c").write_bytes(b"goes by itself")
        wait_until(lambda: "c" in set(bucket.keys()), "what no policy holds back is uploaded")
        expected = {"scratch/a": "local", "b.hold": "local", "c": "cached"}
        wait_until(lambda: {name: tier(mount.path / name) for name in expected} == expected, "each is in its tier")
        assert "policy 'held'" in run_command("tier", "explain", str(mount.path / "b.hold")).stdout
        result = run_command("tier", "push", str(mount.path))
        assert result.returncode == 29
        assert "uploaded: 1 files" in result.stdout
        assert "scratch/a: a policy keeps it local" in result.stderr
        assert bucket.get("b.hold") == b"held"
        assert "scratch/a" not in set(bucket.keys())
        assert run_command("evict", str(mount.path)).returncode == 28
        assert (mount.path / "scratch/a").read_bytes() == b"mine"


def test_object_of_a_file_that_is_renamed_to_where_policy_keeps_files_local_comes_along(
    bucket: Bucket, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[policy]]\npath = "scratch"\nkeep_local = true\n[[policy]]\npath = "held"\nupload_after = "never"\n'
    )
    put(bucket, LARGE)
    with kernel.mounted_bucket(bucket, "--policy-file", str(rules), "--upload-delay", "0s") as mount:
        for directory, name in (("scratch", "l0"), ("held", "l1")):
            (mount.path / directory).mkdir()
            (mount.path / "d" / name).rename(mount.path / directory / name)
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        objects = sorted(key for key in bucket.keys() if not key.endswith("/"))  # noqa: SIM118
        assert objects == ["d/l2", "held/l1", "scratch/l0"]
        assert bucket.get("scratch/l0") == LARGE["d/l0"]
        assert bucket.get("held/l1") == LARGE["d/l1"]
        (mount.path / "scratch/l0").write_bytes(b"changed")
        wait_until(lambda: tier(mount.path / "scratch/l0") == "local", "what changes stays here")
        assert bucket.get("scratch/l0") == LARGE["d/l0"]


@pytest.mark.parametrize("rule", ["keep_local = true", 'upload_after = "never"'])
def test_no_policy_takes_the_last_object_of_a_file_that_was_changed_and_renamed(
    rule: str, bucket: Bucket, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(f'[[policy]]\npath = "kept"\n{rule}\n')
    put(bucket, {"kept/replaced": b"r1", "kept/moved": b"m1", "free": b"f1", "kept/small/a": b"a1"} | LARGE)
    with kernel.mounted_bucket(bucket, "--policy-file", str(rules), "--upload-delay", "30s") as mount:
        kept = mount.path / "kept"
        (kept / "new").write_bytes(b"r2")
        assert run_command("drain", "--wait", str(kept)).returncode == 0  # (policy has been asked about it)
        (kept / "new").rename(kept / "replaced")
        for path, target in ((kept / "moved", kept / "there"), (mount.path / "free", kept / "caught")):
            with path.open("ab") as stream:
                stream.write(b"+")
            path.rename(target)
        with (mount.path / "d/l0").open("r+b") as stream:
            stream.write(b"first bytes")
        (mount.path / "d/l0").rename(kept / "l0")
        (kept / "small/a").unlink()  # a user's act
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        left = {key: bucket.get(key) for key in bucket.keys() if not key.endswith("/")}  # noqa: SIM118
        before = {"kept/replaced": b"r1", "kept/there": b"m1", "kept/caught": b"f1", "kept/l0": LARGE["d/l0"]}
        assert left == before | {name: LARGE[name] for name in ("d/l1", "d/l2")}
        now = {"kept/replaced": b"r2", "kept/there": b"m1+", "kept/caught": b"f1+"}
        now |= {"kept/l0": b"first bytes" + LARGE["d/l0"][11:]}
        verify(mount, now)
        assert all(tier(mount.path / name) == "local" for name in now)
        rules.write_text("")
        assert run_command("tier", "reload", str(mount.path)).returncode == 0
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        left = {key: bucket.get(key) for key in bucket.keys() if not key.endswith("/")}  # noqa: SIM118
        assert left == now | {name: LARGE[name] for name in ("d/l1", "d/l2")}
        assert not [name for name in kept.iterdir() if "conflict" in name.name]


def test_changed_policies_hold_without_a_remount(bucket: Bucket, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[policy]]\npath = "*.hold"\nupload_after = "never"\n')
    put(bucket, SMALL)
    with kernel.mounted_bucket(bucket, "--policy-file", str(rules), "--upload-delay", "0s") as mount:
        verify(mount, SMALL)
        (mount.path / "a.hold").write_bytes(b"held")
        wait_until(lambda: tier(mount.path / "a.hold") == "local", "it is known to be held back")
        rules.write_text('[[policy]]\npath = "d"\nevict_after = "50ms"\n')
        assert "1 policies" in run_command("tier", "reload", str(mount.path)).stdout
        wait_until(lambda: "a.hold" in set(bucket.keys()), "what is not held back any more is uploaded")
        wait_until(lambda: usage(mount.path / "d") == {"remote": (20, 20 * 5 * KIB)}, "old files are evicted")
        rules.write_text("[[policy]]\nevict_after = 'soon'\n")
        broken = run_command("tier", "reload", str(mount.path))
        assert broken.returncode != 0 and "rules.toml:2" in broken.stderr
        verify(mount, SMALL)
        assert sorted(bucket.keys()) == sorted([*SMALL, "a.hold"])  # no policy deletes from the store


def test_plan_tells_what_would_move_and_does_it_when_asked(bucket: Bucket, proxy: Proxy, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[policy]]\npath = "d/l*"\npin = true\n[[policy]]\npath = "d"\nevict_after = "1h"\n')
    put(bucket, SMALL | LARGE)
    proxy.fault("status", match="/d/l", method="GET", status=403, count=1000)
    options = ("--endpoint-url", proxy.endpoint, "--policy-file", str(rules))
    with mounted(bucket.url, *options, env=bucket.env) as mount:
        verify(mount, SMALL)
        told = run_command("tier", "plan", "--dry-run", str(mount.path)).stdout
        assert told.split()[0] == "fetch" and "3 files" in told
        failed = run_command("tier", "plan", "--now", str(mount.path))
        assert failed.returncode == 29 and len(failed.stderr.splitlines()) == 4
        assert tier(mount.path / "d/l0") == "pinned"
        proxy.clear()
        before = fetched(mount)
        assert run_command("tier", "plan", "--now", str(mount.path)).returncode == 0
        assert fetched(mount) - before == sum(map(len, LARGE.values()))
        assert run_command("tier", "plan", str(mount.path)).stdout.strip() == "nothing"
        assert info(mount.path / "d/l0")[0]["share_cached"] == 1


def test_what_a_policy_pins_is_fetched_unasked_with_new_files_and_new_versions(
    bucket: Bucket, proxy: Proxy, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[policy]]\npath = "d/l*"\npin = true\n')
    put(bucket, SMALL | LARGE)
    options = ("--endpoint-url", proxy.endpoint, "--policy-file", str(rules), "--metadata-ttl", "1s")
    with mounted(bucket.url, *options, env=bucket.env) as mount:

        def is_here(name: str) -> bool:
            return float(info(mount.path / name)[0]["share_cached"]) == 1

        verify(mount, {name: SMALL[name] for name in list(SMALL)[:1]})
        wait_until(lambda: all(map(is_here, LARGE)), "as soon as the names are known")
        assert run_command("tier", "plan", str(mount.path)).stdout.strip() == "nothing"
        proxy.fault("status", match="/d/l", method="GET", status=500, count=100_000)
        verify(mount, LARGE)
        proxy.clear()
        put(bucket, {"d/late": b"late" * 100_000})
        wait_until(lambda: "late" in os.listdir(mount.path / "d"), "it is listed")
        wait_until(lambda: is_here("d/late"), "a new file is fetched")
        put(bucket, {"d/l0": b"new" * 500_000})
        wait_until(lambda: (mount.path / "d/l0").stat().st_size == 1_500_000, "the new version is seen")
        wait_until(lambda: is_here("d/l0"), "and fetched")
        assert not any(map(is_here, list(SMALL)[1:]))


@pytest.mark.parametrize("arguments", [("evict",), ("pin",), ("unpin",), ("tier", "du"), ("tier", "push")])
def test_wrong_usage_is_one_line(arguments: tuple[str, ...]) -> None:
    result = run_command(*arguments)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
