"""Processes that are killed or stopped: no reader sees an error or a wrong byte, and the mount stays."""

import mmap
import os
import random
import signal
import struct
from pathlib import Path
from typing import Any

from fanoutfs.cli.client import call
from fanoutfs.errors import FanoutError
from fanoutfs.keeper.mountinfo import find_mount
from fanoutfs.records import KIB, MIB
from tests.fault.children import Children, content, digest, read_digest
from tests.fault.conftest import Mounter
from tests.support.mounts import Mount, processes_of, run_command, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

KILLS = 20
READERS = 8


def status_of(mount: Mount) -> dict[str, Any]:
    """Return the status as soon as a core answers: one that is killed drops its connections."""

    def ask() -> dict[str, Any] | None:
        try:
            return call(mount.path, "status")
        except FanoutError:
            return None

    status: dict[str, Any] = wait_until(ask, "the core answers")
    return status


def wait_for_core(mount: Mount, old_pid: int) -> dict[str, Any]:
    """Return the status of the core that replaced this one."""

    def replaced() -> dict[str, Any] | None:
        status = status_of(mount)
        return status if status["core_pid"] != old_pid else None

    status: dict[str, Any] = wait_until(replaced, f"core {old_pid} is replaced")
    return status


def storm(root: Path, expected: dict[str, str], seed: int, progress: mmap.mmap, slot: int) -> int:
    """Read random files in random ways until the word behind all slots is set; return how many were read."""
    chance = random.Random(seed)
    names = sorted(expected)
    reads = 0
    while not struct.unpack_from("<Q", progress, READERS * 8)[0]:
        name = chance.choice(names)
        fd = os.open(root / name, os.O_RDONLY)
        try:
            chunks = []
            while chunk := os.read(fd, chance.choice((4 * KIB, 64 * KIB, MIB))):
                chunks.append(chunk)
            found = digest(b"".join(chunks))
            assert found == expected[name], f"wrong bytes in {name}, seed {seed}, read {reads}"
            if chance.random() < 0.7:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        if chance.random() < 0.1:
            directory = chance.choice(("small", "large", ""))
            assert set(os.listdir(root / directory)) >= {
                Path(n).name for n in names if Path(n).parent.name == directory
            }
        if chance.random() < 0.1:
            assert not os.path.exists(root / f"small/absent-{chance.random()}")
        reads += 1
        struct.pack_into("<Q", progress, slot * 8, reads)
    return reads


def test_random_kills_under_a_read_storm_are_invisible(bucket: Bucket, mount_of: Mounter, children: Children) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed={seed}")
    chance = random.Random(seed)
    expected = {}
    for index in range(60):
        body = content(seed + index, chance.randrange(1, 100 * KIB))
        bucket.put(f"small/{index}", body)
        expected[f"small/{index}"] = digest(body)
    for index in range(10):
        body = content(seed + 1000 + index, chance.randrange(MIB, 10 * MIB))
        bucket.put(f"large/{index}", body)
        expected[f"large/{index}"] = digest(body)
    # Too small for all of it: there is always something cold.
    mount = mount_of(bucket.url, "--cache-size", "40MiB", "--fronts", "3", endpoint=bucket.endpoint, env=bucket.env)
    progress = mmap.mmap(-1, 4096)
    readers = [children.start(storm, mount.path, expected, seed + n, progress, n) for n in range(READERS)]

    def counts() -> list[int]:
        assert all(reader.is_running for reader in readers), children.results([r for r in readers if not r.is_running])
        return list(struct.unpack_from(f"<{READERS}Q", progress, 0))

    killed = {"core": 0, "front": 0}
    for kill in range(KILLS):
        before = counts()
        wait_until(lambda: sum(counts()) >= sum(before) + 2 * READERS, f"readers went on before kill {kill}", 60)
        status = status_of(mount)
        kind = chance.choice(("core", "front", "front"))
        victim = status["core_pid"] if kind == "core" else chance.choice(status["front_pids"])
        os.kill(victim, signal.SIGKILL)
        killed[kind] += 1
        wait_until(
            lambda: victim not in ((now := status_of(mount))["core_pid"], *now["front_pids"]),
            f"{kind} {victim} is replaced",
        )
    before = counts()
    wait_until(lambda: all(now > then for now, then in zip(counts(), before, strict=True)), "every reader went on", 60)
    struct.pack_into("<Q", progress, READERS * 8, 1)
    reads = children.results(readers)
    print(f"reads={sum(reads)} killed={killed}")
    counters = mount.counters()
    assert (counters["restarts_core"], counters["restarts_front"]) == (killed["core"], killed["front"])
    assert counters["poison_requests"] == 0
    assert counters["verify_failures"] == 0
    info = find_mount(mount.path)
    assert info is not None
    assert info.fstype == "fuse.fanoutfs"


def test_all_fronts_killed_at_once_readers_go_on(bucket: Bucket, mount_of: Mounter, children: Children) -> None:
    body = content(1, 8 * MIB)
    bucket.put("file", body)
    mount = mount_of(bucket.url, "--fronts", "4", endpoint=bucket.endpoint, env=bucket.env)
    for round_number in range(3):
        pids = status_of(mount)["front_pids"]
        readers = [children.start(read_digest, mount.path / "file", 64 * KIB) for _ in range(4)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert children.results(readers) == [digest(body)] * 4
        os.listdir(mount.path)
        wait_until(lambda: mount.counters()["restarts_front"] == 4 * (round_number + 1), "every front counted once")
        forget_pages(mount.path / "file")
    assert mount.counters()["restarts_core"] == 0


def forget_pages(path: Path) -> None:
    """Make the kernel forget the cached pages of one file, so that the next read reaches a front."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def test_stopped_core_does_not_block_cached_reads(bucket: Bucket, mount_of: Mounter, children: Children) -> None:
    large, small = content(1, 12 * MIB), content(2, 40 * KIB)
    bucket.put("d/large", large)
    bucket.put("d/small", small)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    assert read_digest(mount.path / "d/large") == digest(large)
    assert read_digest(mount.path / "d/small") == digest(small)
    core = status_of(mount)["core_pid"]
    os.kill(core, signal.SIGSTOP)
    try:
        for _ in range(3):
            forget_pages(mount.path / "d/large")
            forget_pages(mount.path / "d/small")
            readers = [children.start(read_digest, mount.path / "d" / name) for name in ("large", "small") * 2]
            assert children.results(readers, 20) == [digest(large), digest(small)] * 2
            assert children.start(os.listdir, mount.path / "d").result(20) == ["large", "small"]
            assert children.start(os.path.exists, mount.path / "d/absent").result(20) is False
    finally:
        os.kill(core, signal.SIGCONT)
    assert mount.counters()["restarts_core"] == 0


def test_core_killed_during_a_fill_reader_gets_bytes_from_the_next_one(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    large, small = content(1, 3 * MIB), content(2, 3 * KIB)
    bucket.put("large", large)
    bucket.put("small", small)
    mount = mount_of(bucket.url, endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    for kill, (name, body, after) in enumerate((("large", large, MIB // 2), ("small", small, 0))):
        proxy.fault("stall", match=name, count=10, method="GET", after=after)
        reader = children.start(read_digest, mount.path / name)
        wait_until(lambda: proxy.stats()["under_way"] >= 1, "a fill is in progress")
        proxy.clear()
        os.kill(status_of(mount)["core_pid"], signal.SIGKILL)
        assert reader.result() == digest(body)
        assert mount.counters()["restarts_core"] == kill + 1


def test_requests_in_flight_when_the_core_is_killed_go_on_side_by_side(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    # One after the other, each waiting for a slow store, they would take many times op_timeout.
    bodies = {f"file{index}": content(index, 2 * KIB + index) for index in range(READERS)}
    for name, body in bodies.items():
        bucket.put(name, body)
    mount = mount_of(bucket.url, "--op-timeout", "9s", endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.fault("stall", match="file", count=1000, method="GET")
    readers = [children.start(read_digest, mount.path / name) for name in bodies]
    wait_until(lambda: proxy.stats()["under_way"] == READERS, "every reader waits")
    core = status_of(mount)["core_pid"]
    os.kill(core, signal.SIGKILL)
    wait_for_core(mount, core)
    wait_until(lambda: proxy.stats()["under_way"] == READERS, "every reader waits again")
    proxy.clear()
    assert children.results(readers) == [digest(body) for body in bodies.values()]


def test_keeper_killed_children_die_and_the_next_mount_takes_over(bucket: Bucket, mount_of: Mounter) -> None:
    large, small = content(1, 3 * MIB), content(2, 3 * KIB)
    bucket.put("large", large)
    bucket.put("small", small)
    mount = mount_of(bucket.url, endpoint=bucket.endpoint, env=bucket.env)
    assert read_digest(mount.path / "large") == digest(large)
    assert read_digest(mount.path / "small") == digest(small)
    mount.wait_for_fills()  # readers have the bytes before the index has them
    os.kill(status_of(mount)["keeper_pid"], signal.SIGKILL)
    wait_until(lambda: not processes_of(mount.path.parent), "every process is gone")
    result = run_command("status", str(mount.path))
    assert result.returncode != 0
    mount.start()
    assert read_digest(mount.path / "large") == digest(large)
    assert read_digest(mount.path / "small") == digest(small)
    assert mount.counters()["backend_gets"] == 0, "what was cached is used"


def test_sigterm_during_fills_ends_in_order(
    bucket: Bucket, proxy: Proxy, mount_of: Mounter, children: Children
) -> None:
    bucket.put("large", content(1, 20 * MIB))
    bucket.put("small", content(2, 3 * KIB))
    bucket.put("d/e", b"x")
    mount = mount_of(bucket.url, endpoint=proxy.endpoint, env=bucket.env)
    os.listdir(mount.path)
    proxy.fault("stall", count=1000, method="GET")
    children.start(read_digest, mount.path / "large")
    children.start(read_digest, mount.path / "small")
    children.start(os.listdir, mount.path / "d")
    wait_until(lambda: proxy.stats()["under_way"] >= 3, "two fills and a listing are in progress")
    os.kill(status_of(mount)["keeper_pid"], signal.SIGTERM)
    wait_until(lambda: not processes_of(mount.path.parent), "the daemon has ended")
    assert find_mount(mount.path) is None
    # In order means by itself: a core that had to be killed after its grace time never says so.
    assert "core ends" in mount.log()
    assert mount.log().rstrip().endswith("ended")
