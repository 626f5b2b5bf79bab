"""Policies say which small files are kept end to end in segments, and which in cache files of their own."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fanoutfs.records import KIB, MIB
from tests.mount import kernel
from tests.mount.test_tier_verbs import put, verify
from tests.mount.test_tiers import info
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.servers import Bucket

FILES = {
    "own/small": random.Random(1).randbytes(5 * KIB),
    "own/empty": b"",
    "packed/small": random.Random(2).randbytes(5 * KIB),
    "packed/larger": random.Random(3).randbytes(900 * KIB),
    "packed/large": random.Random(4).randbytes(MIB + 1),
    "other/small": random.Random(5).randbytes(5 * KIB),
    "other/larger": random.Random(6).randbytes(900 * KIB),
}
PACKED = {"own/small": False, "packed/small": True, "packed/larger": True, "packed/large": False} | {
    "other/small": True,
    "other/larger": False,
}
OWN_FIRST = '[[policy]]\npath = "own"\npacked = false\n[[policy]]\npath = "packed"\npacked = true\n'
SWAPPED = '[[policy]]\npath = "own"\npacked = true\n[[policy]]\npath = "packed"\npacked = false\n'


def packed(mount: Mount, *names: str) -> dict[str, bool]:
    """Return where the index has the content of these: True for the small-file store."""
    return {name: each["packed"] for name, each in zip(names, info(*(mount.path / x for x in names)), strict=True)}


def large_bytes(mount: Mount) -> int:
    """Return what is cached in cache files."""
    mount.wait_for_fills()
    found: int = mount.status()["cache"]["large_bytes"]
    return found


def sizes(is_packed: dict[str, bool]) -> int:
    return sum(len(FILES[name]) for name, is_small in is_packed.items() if not is_small)


def reload(mount: Mount, directory: Path, text: str) -> None:
    """Let other policies hold."""
    (directory / "rules.toml").write_text(text)
    result = run_command("tier", "reload", str(mount.path))
    assert result.returncode == 0, result.stderr


@contextmanager
def ruled(bucket: Bucket, directory: Path, *options: str, endpoint: str = "") -> Iterator[Mount]:
    """Mount with the policies OWN_FIRST, in a file in `directory`."""
    rules = directory / "rules.toml"
    rules.write_text(OWN_FIRST)
    with kernel.mounted_bucket(bucket, "--policy-file", str(rules), *options, endpoint=endpoint) as mount:
        yield mount


def test_policy_decides_where_small_files_are_kept(bucket: Bucket, tmp_path: Path) -> None:
    put(bucket, FILES)
    with ruled(bucket, tmp_path) as mount:
        verify(mount, FILES)
        assert packed(mount, *PACKED) == PACKED
        assert large_bytes(mount) == sizes(PACKED)
        before = mount.counters()
        verify(mount, FILES)
        after = mount.counters()
        assert after["backend_bytes"] == before["backend_bytes"]
        told = run_command("tier", "explain", "--size", "5KiB", str(mount.path / "own/new"), str(mount.path / "x"))
        assert "kept      in a cache file of its own" in told.stdout
        assert "kept      with other small files" in told.stdout


def test_what_is_written_goes_where_the_policy_says(bucket: Bucket, tmp_path: Path) -> None:
    with ruled(bucket, tmp_path, "--upload-delay", "0s") as mount:
        for name, body in FILES.items():
            (mount.path / name).parent.mkdir(exist_ok=True)
            (mount.path / name).write_bytes(body)
        assert run_command("drain", "--wait", str(mount.path)).returncode == 0
        assert packed(mount, *PACKED) == PACKED
        verify(mount, FILES)
        assert large_bytes(mount) == sizes(PACKED)
        assert {name: bucket.get(name) for name in FILES} == FILES  # the store has ordinary objects


def test_changed_policy_moves_what_is_there_without_a_remount(bucket: Bucket, tmp_path: Path) -> None:
    put(bucket, FILES)
    with ruled(bucket, tmp_path) as mount:
        verify(mount, FILES)
        assert "nothing" in run_command("tier", "plan", str(mount.path)).stdout
        reload(mount, tmp_path, SWAPPED)
        wanted = PACKED | {"own/small": True, "packed/small": False, "packed/larger": False}
        wait_until(lambda: packed(mount, *PACKED) == wanted, "the policies were carried out")
        before = mount.counters()["backend_bytes"]
        verify(mount, FILES)
        moved = sum(len(FILES[name]) for name in PACKED if PACKED[name] != wanted[name])
        assert mount.counters()["backend_bytes"] - before == moved
        assert large_bytes(mount) == sizes(wanted)
        assert mount.status()["tiering"]["repacked_files"] == 3
        assert sorted(bucket.keys()) == sorted(FILES)


def test_what_is_pinned_stays_where_it_is(bucket: Bucket, tmp_path: Path) -> None:
    put(bucket, FILES)
    with ruled(bucket, tmp_path) as mount:
        verify(mount, FILES)
        assert run_command("pin", str(mount.path / "own/small")).returncode == 0
        reload(mount, tmp_path, SWAPPED)
        result = run_command("tier", "plan", "--now", "--json", str(mount.path))
        assert result.returncode == 0, result.stderr
        wait_until(lambda: packed(mount, "packed/small") == {"packed/small": False}, "the others were moved")
        assert packed(mount, "own/small") == {"own/small": False}
        before = mount.counters()["backend_bytes"]
        verify(mount, {"own/small": FILES["own/small"]})
        assert mount.counters()["backend_bytes"] == before
        assert run_command("unpin", str(mount.path / "own/small")).returncode == 0
        wait_until(lambda: packed(mount, "own/small")["own/small"], "unpinned it follows the policy")
        planned = json.loads(run_command("tier", "plan", "--json", str(mount.path)).stdout)
        assert planned["moves"]["repack"]["files"] == 0
