"""Space under policies: quotas, inodes, a failing disk, kills; nothing evicted that must stay, nothing deleted there.

`test_epochs_over_four_times_the_cache` is the whole of it at once: readers, a checkpoint writer and policies over a
data set of four times the cache, with the cap sampled all the while.
"""

import hashlib
import json
import mmap
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanoutfs.records import KIB, MIB
from tests.fault.children import Children, content, digest, read_digest
from tests.fault.conftest import Mounter
from tests.fault.disks import sized_disk
from tests.fault.test_fills import gets
from tests.fault.test_kills import forget_pages
from tests.fault.test_space import free_bytes, mount_on, put_files, read_passes, watch_free
from tests.support.du import occupied_bytes
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

CAP = 32 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 96 MiB."""
    with sized_disk(tmp_path, 96 * MIB) as path:
        yield path


def fetched(mount: Mount) -> int:
    return mount.counters()["backend_bytes"]


def stop_uploads(mount: Mount) -> None:
    result = run_command("drain", "--wait", str(mount.path))
    assert result.returncode == 0, result.stderr


def write_aside(path: Path, body: bytes) -> None:
    """Write a file as training does: it is uploaded when it is whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(body)
    part.rename(path)


def write_in_pieces(path: Path, body: bytes) -> None:
    """Write a file under its own name, a piece at a time: it is uploaded, and changed again, while it grows."""
    with open(path, "wb", buffering=0) as stream:
        for start in range(0, len(body), MIB):
            stream.write(body[start : start + MIB])


@pytest.mark.parametrize("write", [write_aside, write_in_pieces])
def test_checkpoints_never_push_the_training_set_out(
    write: Callable[[Path, bytes], None],
    disk: Path,
    bucket: Bucket,
    proxy: Proxy,
    mount_of: Mounter,
    children: Children,
) -> None:
    # Within reading's quota: what the cap leaves beside the half that is staging's, without index and margins.
    sizes = {f"train/f{n}": MIB + n for n in range(10)} | {f"train/s{n}": 9 * KIB for n in range(40)}
    training = put_files(bucket, sizes)
    options = ("--cache-size", "32MiB", "--free-space-floor", "0", "--upload-delay", "0s", "--max-readahead", "0B")
    mount = mount_of(bucket.url, *options, endpoint=proxy.endpoint, env=bucket.env, start=False)
    mount.cache = disk / "cache"
    mount.start()
    try:
        children.results([children.start(read_passes, mount.path, training, 1, 1)])
        mount.wait_for_fills()  # readers have the bytes before the index has them
        before = gets(proxy, "train/")
        assert {request.path.rpartition("train/")[2] for request in before} == {Path(name).name for name in training}
        (mount.path / "ckpt").mkdir()
        written = {}
        for n in range(12):  # 96 MiB: three times the cache
            body = random.Random(n).randbytes(8 * MIB)
            written[f"ckpt/{n}"] = hashlib.sha256(body).hexdigest()
            write(mount.path / f"ckpt/{n}", body)
            (mount.path / f"ckpt/{n}.json").write_text(json.dumps({"step": n}))
        stop_uploads(mount)
        assert mount.counters()["evicted_bytes"] > 0
        children.results([children.start(read_passes, mount.path, training, 2, 1)])
        # (Of what is written some may be fetched: a file that grows is uploaded anew, with what was there before.)
        assert gets(proxy, "train/") == before, "writing pushed out what was read"
        for name, expected in written.items():
            assert hashlib.sha256(bucket.get(name)).hexdigest() == expected
    finally:
        children.end()
        mount.stop()


def write_checkpoints(root: Path, count: int, size: int) -> dict[str, str]:
    """Write checkpoints as training does: aside, synced, renamed; keep the last three."""
    written: dict[str, str] = {}
    for n in range(count):
        body = random.Random(1000 + n).randbytes(size)
        with open(root / f"{n}.part", "wb") as stream:
            stream.write(body)
            stream.flush()
            os.fsync(stream.fileno())
        (root / f"{n}.part").rename(root / f"{n}.pt")
        written[f"{n}.pt"] = hashlib.sha256(body).hexdigest()
        if n >= 3:
            (root / f"{n - 3}.pt").unlink()
            del written[f"{n - 3}.pt"]
    return written


def read_epochs(root: Path, expected: dict[str, str], worker: int, workers: int, epochs: int) -> None:
    """Read what falls to one worker of a loader, in a new order each epoch, and verify it."""
    for epoch in range(epochs):
        order = sorted(expected)
        random.Random(epoch).shuffle(order)
        for name in order[worker::workers]:
            assert read_digest(root / name) == expected[name], f"wrong bytes in {name}"
            forget_pages(root / name)


def test_epochs_over_four_times_the_cache(
    disk: Path, bucket: Bucket, mount_of: Mounter, children: Children, tmp_path: Path
) -> None:
    chance = random.Random(3)
    sizes = {f"train/l{n:02}": chance.randrange(MIB, 3 * MIB) for n in range(58)}
    sizes |= {f"train/s{n:03}": chance.randrange(KIB, 100 * KIB) for n in range(250)}
    total = sum(sizes.values())
    assert total > 3.8 * CAP
    expected = put_files(bucket, sizes)
    pinned = {name: expected[name] for name in ("train/l00", "train/s000", "train/s001")}
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[policy]]\npath = "train/s1*"\nevict_after = "1s"\n'
        '[[policy]]\npath = "ckpt"\nupload_after = 0\nevict_after = "2s"\n'
    )
    empty_bytes = free_bytes(disk)
    options = ("--cache-size", "32MiB", "--free-space-floor", "0", "--policy-file", str(rules), "--fronts", "2")
    mount = mount_on(mount_of, bucket, disk / "cache", *options)
    epochs = 3
    try:
        (mount.path / "ckpt").mkdir()
        for name in pinned:
            assert run_command("pin", str(mount.path / name)).returncode == 0
        stop = mmap.mmap(-1, 4096)
        watcher = children.start(watch_free, disk, stop)
        readers = [children.start(read_epochs, mount.path, expected, worker, 2, epochs) for worker in range(2)]
        writer = children.start(write_checkpoints, mount.path / "ckpt", 8, 4 * MIB)
        children.results(readers, 240)
        written = writer.result(120)
        stop[0] = 1
        fewest, looks = watcher.result()
        counters = mount.counters()
        most = empty_bytes - fewest
        print(f"most={most / MIB:.2f} of {CAP / MIB:.0f} MiB in {looks} looks, data={total / MIB:.0f} MiB")
        least = epochs * total - (epochs - 1) * CAP  # if all of the cap were the readers'
        print(f"fetched={counters['backend_bytes'] / MIB:.1f} MiB in {epochs} epochs of {total / MIB:.1f}, "
              f"least possible {least / MIB:.1f}: {counters['backend_bytes'] / least:.2f} times as much")  # fmt: skip
        assert most <= CAP
        assert occupied_bytes(mount.cache) <= CAP
        assert counters["verify_failures"] == 0
        assert counters["request_errors"] == 0
        assert counters["backend_bytes"] < epochs * total * 1.05, "more was fetched than with no cache at all"
        mount.wait_for_fills()
        before = fetched(mount)
        read_passes(mount.path, pinned, 5, 1)
        assert fetched(mount) == before, "a pinned byte was evicted"
        stop_uploads(mount)
        assert set(bucket.keys()) == set(expected) | {"ckpt/"} | {f"ckpt/{name}" for name in written}
        for name, sha in written.items():
            assert hashlib.sha256(bucket.get(f"ckpt/{name}")).hexdigest() == sha
    finally:
        children.end()
        mount.stop()


def du_of(mount: Mount) -> dict[str, int]:
    """Return what du(1) would say of the parts of a volume."""
    volume = mount.volume()
    return {
        "objects": occupied_bytes(volume / "objects", with_directories=False),
        "staging": occupied_bytes(volume / "staging", with_directories=False),
        "index": (volume / "index.lmdb").lstat().st_blocks * 512,
        "small": (volume / "small.lmdb").lstat().st_blocks * 512
        + occupied_bytes(volume / "segments", with_directories=False),
    }


def check_accounts(mount: Mount) -> None:
    """Compare the books with the disk."""

    def settled() -> bool:
        found, status = du_of(mount), mount.status()
        cache, staged = status["cache"], status["changes"]["staged_bytes"]
        parts = sum(1 for each in (mount.volume() / "objects").rglob("*") if each.is_file())
        slack = 4096 * (parts + 1)  # a part may end within a page
        print(found, cache, staged)
        return bool(
            0 <= found["objects"] - cache["large_bytes"] <= slack
            and abs(found["small"] - cache["small_bytes"]) <= 64 * KIB
            and found["index"] == cache["index_bytes"]
            and abs(found["staging"] - staged) <= 8 * KIB
            and sum(found.values()) <= cache["used_bytes"]
            and abs(cache["used_bytes"] - cache["reserve_bytes"] - sum(found.values())) <= slack + 72 * KIB
        )

    wait_until(settled, "the accounts agree with du")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_accounts_are_exact_after(how: str, bucket: Bucket, mount_of: Mounter) -> None:
    expected = put_files(bucket, {f"l{n}": 3 * MIB + 7 * n for n in range(6)} | {f"s{n}": 5000 for n in range(50)})
    options = ("--upload-delay", "1h", "--upload-deadline", "1h", "--cache-size", "64MiB")
    mount = mount_of(bucket.url, *options, endpoint=bucket.endpoint, env=bucket.env)
    for name in expected:
        assert read_digest(mount.path / name) == expected[name]
    (mount.path / "dirty").write_bytes(os.urandom(2 * MIB))
    (mount.path / "dirty-small").write_bytes(os.urandom(5000))
    assert run_command("evict", str(mount.path / "l3")).returncode == 0
    mount.wait_for_fills()
    if how == "restart":
        mount.stop()
    else:
        status = mount.status()
        subprocess.run(["umount", "-l", mount.path], check=True)
        for pid in (status["keeper_pid"], status["core_pid"], *status["front_pids"]):
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
    wait_until(lambda: run_command("mount", mount.source, str(mount.path), "--cache-dir", str(mount.cache),
                                   *mount.options, env=mount.env).returncode == 0, "the mount is back")  # fmt: skip
    check_accounts(mount)
    for name in expected:
        assert read_digest(mount.path / name) == expected[name]


def free_inodes(path: Path) -> int:
    return os.statvfs(path).f_favail


def test_disk_with_few_inodes_is_no_hindrance(
    tmp_path: Path, bucket: Bucket, mount_of: Mounter, children: Children
) -> None:
    expected = put_files(bucket, {f"f{n:03}": 130 * KIB + n for n in range(120)})
    with sized_disk(tmp_path, 96 * MIB, "-N", "400") as disk:
        floor = free_inodes(disk) - 80  # our folders, databases and segments take some, too
        options = ("--cache-size", "80MiB", "--free-space-floor", "0", "--free-inode-floor", str(floor))
        mount = mount_on(mount_of, bucket, disk / "cache", *options)
        try:
            for seed in range(2):
                children.results([children.start(read_passes, mount.path, expected, seed, 1)])
                mount.wait_for_fills()
                assert free_inodes(disk) >= floor - 16  # fills under way at once may each make a file
            counters = mount.counters()
            assert counters["evicted_bytes"] + counters["read_through_bytes"] > 0
            assert counters["verify_failures"] == 0
            # Somebody else takes all that are left.
            with pytest.raises(OSError, match="space"):
                for n in range(1000):
                    (disk / f"junk{n}").touch()
            children.results([children.start(read_passes, mount.path, expected, 7, 1)])
            assert mount.counters()["restarts_core"] == 0
        finally:
            children.end()
            mount.stop()


def test_disk_that_fails_to_write_costs_readers_nothing(
    tmp_path: Path, bucket: Bucket, mount_of: Mounter, children: Children
) -> None:
    """The disk's image lies on a file system that is full: what is written to a new place of it is EIO."""
    first = put_files(bucket, {f"a{n}": 2 * MIB + n for n in range(4)} | {f"b{n}": 20 * KIB for n in range(20)})
    later = {f"later{n}": content(500 + n, 2 * MIB + n) for n in range(6)}
    for name, body in later.items():
        bucket.put(name, body)
    (tmp_path / "backing").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", tmp_path / "backing"], check=True)
    try:
        with sized_disk(tmp_path / "backing", 96 * MIB) as disk:
            mount = mount_on(mount_of, bucket, disk / "cache", "--free-space-floor", "0")
            try:
                children.results([children.start(read_passes, mount.path, first, 1, 1)])
                os.sync()
                with open(tmp_path / "backing/junk", "wb", buffering=0) as junk, pytest.raises(OSError, match="space"):
                    while junk.write(bytes(MIB)):
                        pass
                expected = first | {name: digest(body) for name, body in later.items()}
                children.results([children.start(read_passes, mount.path, expected, seed, 1) for seed in (2, 3)])
                assert mount.counters()["read_through_bytes"] > 0
                assert mount.counters()["restarts_core"] == 0
                (tmp_path / "backing/junk").unlink()
            finally:
                children.end()
                mount.stop()
    finally:
        subprocess.run(["umount", "-l", tmp_path / "backing"], check=False)


def test_policy_evicts_but_never_deletes_from_the_store(bucket: Bucket, mount_of: Mounter, tmp_path: Path) -> None:
    expected = put_files(bucket, {f"d/f{n}": 5000 + n for n in range(30)} | {"d/large": 2 * MIB})
    rules = tmp_path / "rules.toml"
    rules.write_text('[[policy]]\nevict_after = "10ms"\nstorage_class = "STANDARD"\nstorage_class_after = 0\n')
    mount = mount_of(bucket.url, "--policy-file", str(rules), endpoint=bucket.endpoint, env=bucket.env)
    deadline = time.monotonic() + 60
    for _round in range(3):
        read_passes(mount.path, expected, 1, 1)
        before = mount.counters()["evicted_bytes"]
        wait_until(lambda: mount.counters()["evicted_bytes"] > before or time.monotonic() > deadline, "policy evicts")
    for name in expected:
        forget_pages(mount.path / name)
    read_passes(mount.path, expected, 2, 1)
    counters = mount.counters()
    assert counters["backend_deletes"] == 0
    assert counters["objects_deleted"] == 0
    assert set(bucket.keys()) == set(expected)
