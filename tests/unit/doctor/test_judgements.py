"""What the doctor makes of what it sees."""

import dataclasses
import resource
from pathlib import Path

import pytest

from fanoutfs.cache.disks import begin_anew, note_used, open_disk
from fanoutfs.config.schema import DiskDirectory, MountConfig
from fanoutfs.doctor.disk import check_disk, check_inodes, check_space, describe_kind
from fanoutfs.doctor.findings import FAIL, OK, SKIP, WARN, Finding, exit_code
from fanoutfs.doctor.machine import (
    cgroup_limit_bytes,
    check_cold_memory,
    check_descriptors,
    check_memory,
    describe_offer,
)
from fanoutfs.doctor.store import judge_latency, judge_skew
from fanoutfs.keeper.mountinfo import MountInfo
from fanoutfs.records import GIB, MIB
from fanoutfs.wire.kernel import InitFlag
from fanoutfs.wire.messages import WANTED_FLAGS, KernelOffer

CONFIG = MountConfig("memory://", Path("/nonexistent"), fronts=2)


def test_only_a_failure_fails() -> None:
    assert exit_code([Finding("a", OK, ""), Finding("b", WARN, ""), Finding("c", SKIP, "")]) == 0
    assert exit_code([Finding("a", OK, ""), Finding("b", FAIL, "")]) == 1


def test_old_kernel_is_told_by_what_it_lacks_and_which_one_has_it() -> None:
    new = describe_offer(KernelOffer(7, 45, 0, WANTED_FLAGS), "6.18")
    assert (new.result, new.fix) == (OK, "")
    old = describe_offer(KernelOffer(7, 38, 0, WANTED_FLAGS & ~InitFlag.HAS_RESEND), "6.5")
    assert old.result == WARN
    assert "no resend: a crash of the daemon fails" in old.reason
    assert "no epoch" in old.reason
    assert old.fix == "Linux 6.16 or later has all of it"
    middle = describe_offer(KernelOffer(7, 44, 0, WANTED_FLAGS & ~InitFlag.HAS_RESEND), "6.17")
    assert middle.fix.startswith("Linux 6.9 ")


def test_descriptors() -> None:
    assert check_descriptors(resource.RLIM_INFINITY).result == OK
    assert check_descriptors(1 << 20).result == OK
    assert check_descriptors(1024).result == WARN


@pytest.mark.parametrize(
    ("limit", "available", "result"),
    [
        (None, 64 * GIB, OK),
        (None, 300 * MIB, FAIL),
        (512 * MIB, 64 * GIB, FAIL),
        (1 * GIB, 64 * GIB, WARN),
        (8 * GIB, 64 * GIB, OK),
        (8 * GIB, 100 * MIB, FAIL),
    ],
)
def test_memory_is_the_smaller_of_limit_and_what_is_there(limit: int | None, available: int, result: str) -> None:
    assert check_memory(CONFIG, limit, available).result == result


def test_cgroup_limit_is_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    proc, sys = tmp_path / "proc", tmp_path / "sys"
    (proc / "self").mkdir(parents=True)
    folder = sys / "fs/cgroup/system.slice/a.service"
    folder.mkdir(parents=True)
    (proc / "self/cgroup").write_text("0::/system.slice/a.service\n")
    assert cgroup_limit_bytes(proc, sys) is None
    (folder / "memory.max").write_text("max\n")
    (folder.parent / "memory.max").write_text(f"{GIB}\n")
    assert cgroup_limit_bytes(proc, sys) == GIB
    (folder / "memory.max").write_text(f"{MIB}\n")
    assert cgroup_limit_bytes(proc, sys) == MIB


def kind(fstype: str) -> str:
    info = MountInfo(1, 0, "8:1", Path("/"), (), fstype, "/dev/x", ())
    return describe_kind(info, Path("/cache")).result


def test_file_systems_of_the_cache() -> None:
    assert [kind(name) for name in ("ext4", "xfs", "tmpfs", "nfs4", "fuse.sshfs", "strange")] == [
        OK,
        OK,
        WARN,
        FAIL,
        FAIL,
        WARN,
    ]


def test_space_and_inodes() -> None:
    assert check_space(CONFIG, CONFIG.free_space_floor).result == FAIL
    tight = check_space(CONFIG, 10 * GIB)
    assert (tight.result, tight.fix.split(",")[0]) == (WARN, "--cache-size 9.50GiB")
    assert check_space(CONFIG, 30 * GIB).result == OK
    assert [check_inodes(*counts).result for counts in ((0, 0), (10**6, 10**6), (10**6, 5000), (10**6, 10))] == [
        OK,
        OK,
        WARN,
        FAIL,
    ]


def test_skew_and_latency() -> None:
    assert [judge_skew(seconds).result for seconds in (0.3, -59, 61, -899, 901, -(10**6))] == [
        OK,
        OK,
        WARN,
        WARN,
        FAIL,
        FAIL,
    ]
    assert "100 s behind" in judge_skew(-100).reason
    assert judge_latency(0.002, 0.1, 128).result == OK
    slow = judge_latency(0.2, 0.3, 128)
    assert (slow.result, "640 small files/s" in slow.reason) == (WARN, True)


def test_further_directories_are_looked_at_and_those_left_behind_named(tmp_path: Path) -> None:
    disk, left = tmp_path / "disk", tmp_path / "left"
    volume = tmp_path / "cache/volumes/0123456789abcdef"
    volume.mkdir(parents=True)
    opened = open_disk(left, volume.name)
    begin_anew(opened)
    (opened.folder / "objects/file").write_bytes(b"x" * MIB)
    opened.close()
    note_used(volume, left)
    config = MountConfig(
        "s3://bucket", tmp_path / "mnt", cache_dir=tmp_path / "cache", cache_disks=(DiskDirectory(disk),)
    )
    found = {finding.reason: finding for finding in check_disk(config) if finding.check == "cache_disks"}
    same, forgotten = found.values()
    assert (same.result, same.reason) == (WARN, f"{disk} is on no disk of its own")
    assert (forgotten.result, f"rm -r {left}/volumes" in forgotten.fix) == (WARN, True)
    assert "still holds 1" in forgotten.reason
    config = dataclasses.replace(config, cache_disks=(DiskDirectory(left),))
    assert not [finding for finding in check_disk(config) if "still holds" in finding.reason]


def test_kernel_that_pages_out_cold_memory_is_told() -> None:
    assert check_cold_memory(is_paged_out=False).result == OK
    told = check_cold_memory(is_paged_out=True)
    assert told.result == WARN
    assert "DAMON" in told.reason
