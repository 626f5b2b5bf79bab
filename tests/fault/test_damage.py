"""Cached bytes that were damaged behind our back: noticed, fetched again, never served."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from fanoutfs.records import BLOCK_BYTES, KIB, MIB
from tests.fault.children import Children, content, digest, read_digest
from tests.fault.conftest import Mounter
from tests.fault.test_kills import forget_pages, status_of
from tests.support.mounts import Mount, wait_until
from tests.support.servers import Bucket

LARGE = content(1, 3 * MIB + 12345)
SMALL = content(2, 9 * KIB)


def cache_file(mount: Mount) -> Path:
    """Return the one cache file of a large object."""
    (path,) = (mount.volume() / "objects").glob("*/*")
    return path


def segment_file(mount: Mount) -> Path:
    """Return the file to which contents of small objects were appended last."""
    return max((mount.volume() / "segments").iterdir())


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file in place."""
    with open(path, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 0x10]))


def restart_fronts(mount: Mount) -> None:
    """Kill all fronts and wait for the next ones."""
    before = status_of(mount)["front_pids"]
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not set(before) & set(status_of(mount)["front_pids"]), "the fronts are replaced")


def make_sparse(path: Path) -> None:
    os.truncate(path, 0)
    os.truncate(path, len(LARGE))


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "first byte": lambda path: flip(path, 0),
    "in the middle": lambda path: flip(path, MIB + 5),
    "last byte": lambda path: flip(path, len(LARGE) - 1),
    "cut in half": lambda path: os.truncate(path, len(LARGE) // 2),
    "cut by one byte": lambda path: os.truncate(path, len(LARGE) - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "zeroed": lambda path: path.write_bytes(bytes(len(LARGE))),
    "sparse": make_sparse,
    "deleted": lambda path: path.unlink(),
    "replaced by a directory": replace_by_directory,
}


@pytest.mark.parametrize("restarted", [False, True], ids=["same fronts", "new fronts"])
def test_damaged_cache_file_is_noticed_and_fetched_again(
    restarted: bool, bucket: Bucket, mount_of: Mounter, children: Children
) -> None:
    # One mount for all kinds of damage, an object for each: mounting takes longer than the rest.
    for number, _damage in enumerate(DAMAGES):
        bucket.put(f"large{number}", content(number, len(LARGE)))
        bucket.put(f"other{number}", content(number, MIB))
    mount = mount_of(bucket.url, "--fill-memory=16MiB", endpoint=bucket.endpoint, env=bucket.env)
    for number, (damage, apply) in enumerate(DAMAGES.items()):
        path = mount.path / f"large{number}"
        expected = digest(content(number, len(LARGE)))
        seen = set((mount.volume() / "objects").glob("*/*"))
        assert read_digest(path) == expected
        (cached,) = set((mount.volume() / "objects").glob("*/*")) - seen
        # The arena has one slot: another file takes it, once the bytes of this one are on disk.
        mount.wait_for_fills()
        read_digest(mount.path / f"other{number}")
        mount.wait_for_fills()
        before = mount.counters()
        apply(cached)
        if restarted:
            restart_fronts(mount)
        forget_pages(path)
        assert children.start(read_digest, path).result() == expected, damage
        mount.wait_for_fills()
        after = mount.counters()
        if damage == "replaced by a directory":
            continue  # it cannot be repaired, and every read goes through
        if damage != "deleted" or restarted:  # a front that has the deleted file open reads it without noticing
            assert after["verify_failures"] > before["verify_failures"], damage
            fetched = after["backend_bytes"] - before["backend_bytes"]
            assert 0 < fetched <= len(LARGE), damage
            if damage in ("first byte", "in the middle"):
                assert fetched == BLOCK_BYTES, "only what was damaged is fetched again"
        forget_pages(path)
        assert children.start(read_digest, path).result() == expected, damage
        again = mount.counters()["backend_bytes"]
        if damage == "deleted" and not restarted:  # the second read may meet a front that has not: it fetches the rest
            assert again - before["backend_bytes"] <= len(LARGE), damage
        else:
            assert again == after["backend_bytes"], f"{damage}: cached again"
    assert mount.counters()["restarts_core"] == 0


def find_all(data: bytes, wanted: bytes) -> list[int]:
    """Return every offset at which the bytes occur."""
    found = []
    at = data.find(wanted)
    while at >= 0:
        found.append(at)
        at = data.find(wanted, at + 1)
    return found


@pytest.mark.parametrize("restarted", [False, True], ids=["same fronts", "new fronts"])
def test_damaged_small_content_is_noticed_and_fetched_again(
    restarted: bool, bucket: Bucket, mount_of: Mounter, children: Children
) -> None:
    bucket.put("small", SMALL)
    bucket.put("other", content(3, 9 * KIB))
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    assert read_digest(mount.path / "small") == digest(SMALL)
    assert read_digest(mount.path / "other") == digest(content(3, 9 * KIB))
    mount.wait_for_fills()
    ino = os.stat(mount.path / "small").st_ino
    checksum = xxhash.xxh3_64_intdigest(SMALL, ino).to_bytes(8, "little")
    for count, position in enumerate((0, 5 * KIB, len(SMALL) - 1, -1)):  # -1: the checksum beside the content's place
        store = mount.volume() / "small.lmdb" if position < 0 else segment_file(mount)
        offsets = find_all(store.read_bytes(), checksum if position < 0 else SMALL)
        assert offsets, "the content is in the store"
        for offset in offsets:
            flip(store, offset + max(0, position))
        if restarted:
            restart_fronts(mount)
        forget_pages(mount.path / "small")
        assert children.start(read_digest, mount.path / "small").result() == digest(SMALL)
        assert mount.counters()["verify_failures"] == count + 1
        assert mount.counters()["backend_gets"] == 2 + count + 1
    forget_pages(mount.path / "small")
    forget_pages(mount.path / "other")
    assert read_digest(mount.path / "small") == digest(SMALL)
    assert read_digest(mount.path / "other") == digest(content(3, 9 * KIB))
    assert mount.counters()["backend_gets"] == 6


def test_damage_while_not_mounted_is_noticed(bucket: Bucket, mount_of: Mounter) -> None:
    bucket.put("large", LARGE)
    bucket.put("small", SMALL)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    assert read_digest(mount.path / "large") == digest(LARGE)
    assert read_digest(mount.path / "small") == digest(SMALL)
    mount.wait_for_fills()  # readers have the bytes before the disk and the index have them
    cached, store = cache_file(mount), segment_file(mount)
    mount.stop()
    flip(cached, 2 * MIB)
    for offset in find_all(store.read_bytes(), SMALL[:KIB]):
        flip(store, offset + KIB)
    mount.start()
    assert read_digest(mount.path / "large") == digest(LARGE)
    assert read_digest(mount.path / "small") == digest(SMALL)
    assert mount.counters()["verify_failures"] == 2
    assert mount.counters()["backend_bytes"] == BLOCK_BYTES + len(SMALL)


@pytest.mark.parametrize("damage", ["emptied", "deleted", "replaced by a directory"])
def test_lost_segment_is_noticed_and_its_contents_are_fetched_again(
    damage: str, bucket: Bucket, mount_of: Mounter, children: Children
) -> None:
    bucket.put("small", SMALL)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    assert read_digest(mount.path / "small") == digest(SMALL)
    DAMAGES[damage](segment_file(mount))
    restart_fronts(mount)  # a front that has the file open goes on reading it
    forget_pages(mount.path / "small")
    assert children.start(read_digest, mount.path / "small").result() == digest(SMALL)
    assert mount.counters()["verify_failures"] == 1
    assert mount.counters()["restarts_core"] == 0
    mount.stop()
    mount.start()
    for _time in range(2):
        assert children.start(read_digest, mount.path / "small").result() == digest(SMALL)
        forget_pages(mount.path / "small")
