"""State that is missing, broken, of another time or of somebody else: rebuilt or refused, never mixed up."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from fanoutfs.errors import FanoutError
from fanoutfs.index.format import U64
from fanoutfs.records import KIB, MIB
from tests.fault.children import Children, content, digest, read_digest
from tests.fault.conftest import Mounter
from tests.fault.test_kills import status_of
from tests.support.caches import drop_page_cache
from tests.support.mounts import Mount, processes_of, run_command, wait_until
from tests.support.servers import Bucket

PAGE = 4096


def overwrite(path: Path, start: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(start)
        stream.write(data)


def size_of(path: Path) -> int:
    return path.stat().st_size


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: overwrite(path, 0, content(99, size_of(path))),
    "garbage behind the meta pages": lambda path: overwrite(path, 2 * PAGE, content(98, size_of(path) - 2 * PAGE)),
    "zeroed": lambda path: overwrite(path, 0, bytes(size_of(path))),
    "zeroed behind the meta pages": lambda path: overwrite(path, 2 * PAGE, bytes(size_of(path) - 2 * PAGE)),
    "cut in half": lambda path: os.truncate(path, size_of(path) // 2),
    "cut to the meta pages": lambda path: os.truncate(path, 2 * PAGE),
    "cut to one page": lambda path: os.truncate(path, PAGE),
    "cut by one page": lambda path: os.truncate(path, size_of(path) - PAGE),
    "empty": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
}


def fill_cache(bucket: Bucket, mount: Mount, generation: int) -> dict[str, str]:
    """Put files of one size each, the names shifted by the generation, and read them all."""
    expected = {}
    for number in range(6):
        for kind, size in (("large", MIB + 5), ("small", 9 * KIB)):
            body = content(1000 * generation + number, size)
            bucket.put(f"{kind}{number}", body)
            expected[f"{kind}{number}"] = digest(body)
    if generation:
        # One more in front: whoever numbers anew gives each old number to another file of the same size.
        bucket.put("first", content(5, 9 * KIB))
        bucket.put("large", content(6, MIB + 5))
        expected |= {"first": digest(content(5, 9 * KIB)), "large": digest(content(6, MIB + 5))}
    return expected


def check_all(mount: Mount, expected: dict[str, str]) -> None:
    assert sorted(os.listdir(mount.path)) == sorted(expected)
    for name, wanted in expected.items():
        assert read_digest(mount.path / name) == wanted, f"wrong bytes in {name}"


def can_invalidate(mount: Mount) -> bool:
    try:
        mount.invalidate()
    except FanoutError:
        return False
    return True


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_broken_index_is_rebuilt_and_old_content_never_shows(breakage: str, bucket: Bucket, mount_of: Mounter) -> None:
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env, start=False)
    expected = fill_cache(bucket, mount, 0)
    mount.start()
    check_all(mount, expected)
    index = mount.volume() / "index.lmdb"
    mount.stop()
    BREAKAGES[breakage](index)
    expected = fill_cache(bucket, mount, 1)
    mount.start()
    # Cutting off a page that is not in use breaks nothing: then the listing is the old one.  One that is in use may be
    # met only now; who asks on the control socket is told so, who reads is not.
    wait_until(lambda: can_invalidate(mount), "the mount can list anew")
    check_all(mount, expected)
    mount.wait_for_fills()  # readers have the bytes before the index has them, and the end waits for no fill
    mount.stop()
    mount.start()
    check_all(mount, expected)
    assert mount.counters()["backend_gets"] == 0, "the new index works"


@pytest.mark.parametrize("file", ["small.lmdb", "segments/00000000"])
@pytest.mark.parametrize("breakage", [each for each in BREAKAGES if each not in ("cut to one page", "cut by one page")])
def test_broken_small_store_is_rebuilt(breakage: str, file: str, bucket: Bucket, mount_of: Mounter) -> None:
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env, start=False)
    expected = fill_cache(bucket, mount, 0)
    mount.start()
    check_all(mount, expected)
    store = mount.volume() / file
    mount.stop()
    BREAKAGES[breakage](store)
    mount.start()
    check_all(mount, expected)
    for _ in range(2):  # what was still good in the old store may be fetched once more
        mount.wait_for_fills()
        mount.stop()
        mount.start()
        check_all(mount, expected)
    assert mount.counters()["backend_gets"] == 0, "the new store works"


def test_index_of_a_newer_format_is_refused_and_left_alone(bucket: Bucket, mount_of: Mounter) -> None:
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env, start=False)
    expected = fill_cache(bucket, mount, 0)
    mount.start()
    check_all(mount, expected)
    volume = mount.volume()
    mount.wait_for_fills()
    mount.stop()
    with lmdb.open(str(volume / "index.lmdb"), subdir=False, max_dbs=8, map_size=1 << 30, lib_version=0) as env:
        settings = env.open_db(b"settings")
        with env.begin(write=True) as txn:
            old = bytes(txn.get(b"format", b"", db=settings))
            txn.put(b"format", U64.pack(99), db=settings)
    before = snapshot(volume)
    result = run_command(
        "mount", mount.source, str(mount.path), "--cache-dir", str(mount.cache), *mount.options, env=mount.env
    )
    assert result.returncode == 16
    assert "format 99" in result.stderr
    after = snapshot(volume)
    for name in before:
        if name.startswith(("objects/", "segments/")) or name in ("index.lmdb", "small.lmdb"):
            assert after[name] == before[name], name
    with lmdb.open(str(volume / "index.lmdb"), subdir=False, max_dbs=8, map_size=1 << 30, lib_version=0) as env:
        with env.begin(write=True) as txn:
            txn.put(b"format", old, db=env.open_db(b"settings", txn))
    mount.start()
    check_all(mount, expected)
    assert mount.counters()["backend_gets"] == 0


def snapshot(root: Path) -> dict[str, str]:
    """Return path → digest of everything below a directory."""
    return {
        str(path.relative_to(root)): digest(path.read_bytes()) if path.is_file() else "" for path in root.rglob("*")
    }


def test_cache_directory_removed_while_not_mounted(bucket: Bucket, mount_of: Mounter) -> None:
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env, start=False)
    expected = fill_cache(bucket, mount, 0)
    mount.start()
    check_all(mount, expected)
    mount.stop()
    shutil.rmtree(mount.cache)
    expected = fill_cache(bucket, mount, 1)
    mount.start()
    check_all(mount, expected)


@pytest.mark.parametrize("removed", ["", "volumes/*/segments", "volumes/*/objects"], ids=["all", "segments", "objects"])
def test_cache_directory_removed_while_mounted(bucket: Bucket, mount_of: Mounter, removed: str) -> None:
    expected = {"small": content(1, 5000), "large": content(2, 3 * MIB), "later": content(3, 6000)}
    for name, body in expected.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    for name in ("small", "large"):
        assert (mount.path / name).read_bytes() == expected[name]
    mount.wait_for_fills()
    for path in mount.cache.glob(removed) if removed else [mount.cache]:
        shutil.rmtree(path)
    drop_page_cache()
    for name, body in expected.items():
        assert (mount.path / name).read_bytes() == body
    result = run_command("warm", str(mount.path))
    assert result.returncode in ((0,) if removed else (0, 26)), result.stderr  # what is open goes on without a name
    assert mount.counters()["request_errors"] == 0


@pytest.mark.parametrize("other_boot", [True, False], ids=["other boot", "same boot"])
def test_small_store_of_another_boot_is_dropped_after_a_crash(
    other_boot: bool, bucket: Bucket, mount_of: Mounter
) -> None:
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env, start=False)
    expected = fill_cache(bucket, mount, 0)
    mount.start()
    check_all(mount, expected)
    mount.wait_for_fills()  # readers have the bytes before the disk has
    volume = mount.volume()
    os.kill(status_of(mount)["keeper_pid"], signal.SIGKILL)
    wait_until(lambda: not processes_of(mount.path.parent), "every process is gone")
    if other_boot:
        (volume / "boot").write_text("00000000-0000-0000-0000-000000000000\n")
    mount.start()
    check_all(mount, expected)
    assert mount.counters()["backend_gets"] == (6 if other_boot else 0), "large files stay, small ones are fetched"
    mount.stop()
    assert not (volume / "boot").exists(), "closed in order: good under any boot"


def test_files_that_the_index_does_not_know_are_collected_at_start(bucket: Bucket, mount_of: Mounter) -> None:
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env, start=False)
    expected = fill_cache(bucket, mount, 0)
    mount.start()
    check_all(mount, expected)
    objects = mount.volume() / "objects"
    bucket.put("partly", content(77, 20 * MIB))
    mount.invalidate()
    seen = set(objects.glob("*/*"))
    with open(mount.path / "partly", "rb") as stream:
        stream.read(100)
    (torn,) = set(objects.glob("*/*")) - seen
    mount.stop()
    cached_bytes = torn.stat().st_blocks * 512
    stray = objects / "ff" / "abcff"
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(bytes(MIB))
    # Bytes that the index does not promise, as a core leaves them that is killed before it commits.
    overwrite(torn, 12 * MIB, os.urandom(6 * MIB))
    mount.start()
    wait_until(lambda: not stray.exists(), "the stray file is gone")
    wait_until(lambda: torn.stat().st_blocks * 512 <= cached_bytes, "the stray bytes are gone")
    assert read_digest(mount.path / "partly") == digest(content(77, 20 * MIB))
    mount.wait_for_fills()
    before = mount.counters()["backend_gets"]
    check_all(mount, {**expected, "partly": digest(content(77, 20 * MIB))})
    assert mount.counters()["backend_gets"] == before


def test_second_daemon_on_the_same_cache_is_refused_and_touches_nothing(
    bucket: Bucket, mount_of: Mounter, children: Children
) -> None:
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env, start=False)
    expected = fill_cache(bucket, mount, 0)
    mount.start()
    check_all(mount, expected)
    mount.wait_for_fills()  # a reader is answered before its bytes are written to the cache
    other = mount.path.parent / "other"
    other.mkdir()

    def state() -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for path in mount.cache.rglob("*"):
            if path.name.startswith(("index.lmdb", "small.lmdb", "fanoutfs.log")):
                continue  # the first daemon's own work
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns)
        return found

    before = state()
    for source in (mount.source, "file:///usr/share"):
        result = run_command(
            "mount", source, str(other), "--cache-dir", str(mount.cache), *mount.options, env=mount.env
        )
        assert result.returncode == 15, result.stderr
        assert str(status_of(mount)["keeper_pid"]) in result.stderr
    assert state() == before
    assert os.listdir(other) == []
    check_all(mount, expected)


@pytest.mark.parametrize("place", ["", "lock", "volumes", "volume", "objects", "volume/volume", "log"])
def test_planted_symbolic_link_is_refused_and_its_target_left_alone(
    place: str, bucket: Bucket, mount_of: Mounter
) -> None:
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    bucket.put("file", b"x")
    volume = mount.volume()
    mount.stop()
    victim = {
        "": mount.cache,
        "lock": mount.cache / "lock",
        "volumes": mount.cache / "volumes",
        "volume": volume,
        "objects": volume / "objects",
        "volume/volume": volume / "volume",
        "log": volume / "fanoutfs.log",
    }[place]
    target = mount.path.parent / "target"
    if victim.is_dir():
        target.mkdir(mode=0o700)
    else:
        target.write_bytes(b"precious")
    victim.rename(mount.path.parent / "aside")
    victim.symlink_to(target)
    result = run_command(
        "mount", mount.source, str(mount.path), "--cache-dir", str(mount.cache), *mount.options, env=mount.env
    )
    assert result.returncode == 16, result.stderr
    assert (target.is_dir() and os.listdir(target) == []) or target.read_bytes() == b"precious"
