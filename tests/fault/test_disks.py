"""Several cache directories, each on a disk of its own (ext4 in a loop device): sick, full, away, back, not named.

EIO comes from the file system itself: after the GOINGDOWN ioctl ext4 answers every read and every write with it, also
those of pages that are in memory.
"""

import contextlib
import json
import mmap
import os
import random
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fanoutfs.keeper.mountinfo import find_mount
from fanoutfs.records import MIB
from tests.fault.children import Children, content, read_digest
from tests.fault.conftest import Mounter
from tests.fault.severaldisks import (
    DEADLINE_S,
    check_accounts,
    disk_state,
    read_all,
    readers,
    states,
    wait_for,
    wait_in_service,
)
from tests.fault.sickdisk import Disk, run
from tests.fault.test_kills import forget_pages
from tests.fault.test_space import put_files
from tests.support.du import occupied_bytes
from tests.support.mounts import Mount, run_command, wait_until
from tests.support.servers import Bucket


def put_later(bucket: Bucket, mount: Mount) -> dict[str, str]:
    """Put files that were not there before."""
    later = put_files(bucket, {f"later/large{n}": 9 * MIB + n for n in range(8)})
    mount.invalidate()
    return later


def test_parts_are_spread_and_found_again_after_restart_and_kill(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], children: Children
) -> None:
    # Where a part goes is by chance: that one of three disks gets none of 31 happens once in 100,000 runs.
    expected = put_files(bucket, {"huge": 240 * MIB + 17} | {f"large{n}": 5 * MIB + n for n in range(8)})
    one, two = make_disk(), make_disk()
    mount = mount_it(one, two)
    wait_in_service(mount, 2)
    read_all(mount, expected)
    check_accounts(mount, one, two)
    assert all(each["large_bytes"] > 8 * MIB for each in mount.status()["cache"]["disks"])
    info = json.loads(run_command("info", "--json", str(mount.path / "huge")).stdout)[0]
    assert sum(info["parts_in"].values()) == 31
    assert set(info["parts_in"]) == {str(path) for path in (mount.cache, one.cache, two.cache)}

    mount.stop()
    mount.start()
    assert states(mount) == ["ok", "ok"], "known disks are in service from the first moment"
    read_all(mount, expected)
    check_accounts(mount, one, two)

    mount.status()
    os.kill(mount.status()["core_pid"], signal.SIGKILL)
    wait_for(mount, lambda: mount.counters()["restarts_core"] == 1, "the core came back")
    read_all(mount, expected)
    os.kill(mount.status()["keeper_pid"], signal.SIGKILL)
    wait_until(lambda: run_command("umount", str(mount.path)).returncode == 0 or find_mount(mount.path) is None, "gone")
    mount.start()
    read_all(mount, expected)
    check_accounts(mount, one, two)
    counters = mount.counters()
    assert counters["backend_gets"] == 0, "all of it was still there"
    assert counters["verify_failures"] == 0


def test_disk_with_io_errors_goes_out_of_service_and_comes_back(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], children: Children
) -> None:
    expected = put_files(bucket, {f"large{n}": 9 * MIB + n for n in range(16)})
    disk = make_disk()
    mount = mount_it(disk)
    wait_in_service(mount)
    read_all(mount, expected)
    held = disk_state(mount)["large_bytes"]
    assert held > 8 * MIB
    with readers(mount, expected, children):
        disk.fail()
        found = wait_for(
            mount, lambda: (now := disk_state(mount))["state"] == "out" and now, "the disk is out of service"
        )
        assert "Input/output error" in found["reason"]
        wait_for(mount, lambda: mount.status()["cache"]["large_bytes"] >= 144 * MIB, "everything is cached elsewhere")
    counters = mount.counters()
    assert counters["disks_failed"] >= 1
    assert counters["request_errors"] == 0
    assert "cache directory out of service" in mount.log()
    # Nobody holds the disk: it can be taken out and replaced by another one.
    wait_for(mount, disk.can_be_unmounted, "nobody has anything open there")
    run("mkfs.ext4", "-q", "-F", "-m", "0", disk.image)
    disk.mount()
    with readers(mount, expected, children):
        wait_for(mount, lambda: disk_state(mount)["state"] == "ok", "the new disk is in service")
    read_all(mount, put_later(bucket, mount))
    assert disk_state(mount)["large_bytes"] > 0
    read_all(mount, expected)


def test_disk_unmounted_under_load_is_let_go_and_not_replaced_by_what_is_below(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], children: Children
) -> None:
    expected = put_files(bucket, {f"large{n}": 9 * MIB + n for n in range(16)})
    disk = make_disk()
    mount = mount_it(disk)
    wait_in_service(mount)
    with readers(mount, expected, children):
        wait_for(mount, lambda: disk_state(mount)["large_bytes"] > 8 * MIB, "the disk is in use")
        (objects,) = disk.cache.glob("volumes/*/objects")
        held = objects / "held"
        held.touch()
        disk.unmount(lazy=True)
        wait_for(mount, lambda: disk_state(mount)["state"] == "out", "the disk is out of service")
        wait_for(mount, lambda: "nothing is mounted" in disk_state(mount)["reason"], "it was tried again")
    assert not disk.cache.exists(), "the file system below was left alone"
    # The lazy unmount is over once nobody has anything open there.
    wait_for(mount, lambda: "image" not in _loops(disk), "the kernel let go of the disk")
    disk.mount()
    with readers(mount, expected, children):
        wait_for(mount, lambda: disk_state(mount)["state"] == "ok", "the disk is in service again")
        assert objects.exists()
        assert not held.exists(), "what it held before is gone"
    read_all(mount, expected)
    check_accounts(mount, disk)
    assert mount.counters()["request_errors"] == 0


def _loops(disk: Disk) -> str:
    return subprocess.run(["losetup", "-j", disk.image], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("kind", ["read-only", "emptied", "covered"])
def test_disk_that_changed_under_us_is_noticed(
    kind: str, bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], children: Children
) -> None:
    expected = put_files(bucket, {f"large{n}": 9 * MIB + n for n in range(6)})
    disk, other = make_disk(), make_disk()
    mount = mount_it(disk)
    wait_in_service(mount)
    read_all(mount, expected)
    with readers(mount, expected, children):
        if kind == "read-only":
            disk.make_read_only()
            read_all(mount, put_later(bucket, mount))  # which is when somebody writes
        elif kind == "emptied":
            emptied = (disk.cache / "volumes").rename(disk.path / "emptied")
            # The core may make a file there while it is emptied, as long as the disk is in service.
            wait_for(mount, lambda: not subprocess.run(["rm", "-rf", emptied], check=False).returncode, "it is empty")
        else:
            run("mount", "--bind", other.path, disk.path)
        wait_for(mount, lambda: mount.counters()["disks_failed"] == 1, "the disk is out of service")
        if kind == "read-only":
            assert "ead-only" in wait_for(
                mount, lambda: disk_state(mount).get("reason"), "why the disk is out of service"
            )
            wait_for(mount, disk.can_be_unmounted, "nobody has anything open there")
            disk.repair()
            disk.mount()
        wait_for(mount, lambda: disk_state(mount)["state"] == "ok", "the disk is in service again")
    read_all(mount, expected)
    assert mount.counters()["request_errors"] == 0
    mount.stop()
    if kind == "covered":
        run("umount", disk.path)


def test_directories_come_and_go_between_mounts(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount]
) -> None:
    expected = put_files(bucket, {f"large{n}": 9 * MIB + n for n in range(8)})
    one, two = make_disk(), make_disk()
    mount = mount_it(one)
    wait_in_service(mount)
    read_all(mount, expected)
    mount.stop()
    left = occupied_bytes(one.cache)
    assert left >= MIB  # that none of 16 parts is there happens once in 50,000 runs

    plain = mount.options
    mount.options = tuple(str(two.cache) if each == str(one.cache) else each for each in plain)
    mount.start()
    wait_in_service(mount)
    read_all(mount, expected)
    check_accounts(mount, two)
    assert mount.counters()["verify_failures"] == 0
    assert occupied_bytes(one.cache) == left, "what is not named is left alone"
    mount.stop()

    mount.options = tuple(f"{one.cache}:{two.cache}" if each == str(one.cache) else each for each in plain)
    mount.start()
    wait_in_service(mount, 2)
    read_all(mount, expected)
    check_accounts(mount, one, two)
    assert mount.counters()["verify_failures"] == 0


def test_known_disk_is_found_under_another_name(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount]
) -> None:
    expected = put_files(bucket, {f"large{n}": 9 * MIB + n for n in range(4)})
    disk = make_disk()
    mount = mount_it(disk)
    wait_in_service(mount)
    read_all(mount, expected)
    mount.stop()
    moved = disk.cache.rename(disk.path / "moved")
    mount.options = tuple(str(moved) if each == str(disk.cache) else each for each in mount.options)
    mount.start()
    read_all(mount, expected)
    assert mount.counters()["backend_gets"] == 0


def test_two_mounts_do_not_share_a_further_directory(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], mount_of: Mounter
) -> None:
    disk = make_disk()
    mount = mount_it(disk)
    wait_in_service(mount)
    other = mount_of(
        bucket.url, "--cache-disks", str(disk.cache), endpoint=bucket.endpoint, env=bucket.env, start=False
    )
    result = run_command("mount", other.source, str(other.path), "--cache-dir", str(other.cache), *other.options,
                         env=other.env)  # fmt: skip
    assert result.returncode == 15, result.stderr
    assert "in use by another daemon" in result.stderr


def test_what_is_written_over_parts_on_a_further_disk_arrives(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount]
) -> None:
    body = bytearray(content(1, 30 * MIB))
    bucket.put("large", bytes(body))
    disk = make_disk()
    mount = mount_it(disk, options=("--upload-delay", "0"))
    wait_in_service(mount)
    path = mount.path / "large"
    for number in range(4):
        assert path.read_bytes() == bytes(body)
        mount.wait_for_fills()
        with open(path, "r+b") as stream:
            for _write in range(3):
                at = random.Random(number).randrange(len(body) - MIB)
                piece = content(100 + number, MIB - number)
                stream.seek(at)
                stream.write(piece)
                body[at : at + len(piece)] = piece
            stream.seek(len(body))
            stream.write(b"more" * 1000)
            body += b"more" * 1000
            stream.flush()
            os.fsync(stream.fileno())
        wait_for(mount, lambda: not mount.status()["changes"]["dirty"], "it is uploaded")
        forget_pages(path)
    assert path.read_bytes() == bytes(body)
    assert bucket.get("large") == bytes(body)
    check_accounts(mount, disk)
    assert mount.counters()["verify_failures"] == 0


def test_disk_that_does_not_answer_is_told_and_harms_nobody_once_it_does(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], children: Children
) -> None:
    # Where a part goes is by chance: that none of 24 goes to the further disk happens once in ten million runs.
    expected = put_files(bucket, {f"large{n}": 9 * MIB + n for n in range(12)})
    disk = make_disk()
    mount = mount_it(disk, options=("--hang-timeout", "5s"))
    wait_in_service(mount)
    os.listdir(mount.path)
    with disk.frozen():
        reader = children.start(read_all_once, mount.path, expected)
        wait_until(lambda: "no answer from a disk" in mount.log(), "the log tells of it", DEADLINE_S)
        told = run_command("status", str(mount.path))  # the core may wait itself, or only threads of it
        if told.returncode:
            assert f"waits for a disk, {disk.cache}" in told.stderr
        else:
            assert "unanswered_by_disk 0" not in told.stdout
    reader.result(DEADLINE_S)
    wait_for(mount, lambda: mount.status()["in_flight"]["unanswered_by_disk"] == 0, "it is over")
    read_all(mount, expected)
    counters = mount.counters()
    assert counters["verify_failures"] == 0
    assert counters["hangs_core"] == counters["hangs_front"] == 0, "nobody is ended for a disk's sake"


def read_all_once(root: Path, expected: dict[str, str]) -> None:
    for name, wanted in expected.items():
        assert read_digest(root / name) == wanted, f"wrong bytes in {name}"


def test_first_disk_with_io_errors_shows_no_wrong_byte_and_keeps_what_was_synced(
    bucket: Bucket, make_disk: Callable[..., Disk], mount_it: Callable[..., Mount], children: Children
) -> None:
    expected = put_files(
        bucket, {f"large{n}": 9 * MIB + n for n in range(6)} | {f"small{n}": 9000 + n for n in range(9)}
    )
    first, further = make_disk(), make_disk()
    first.cache.mkdir(mode=0o700)
    mount = mount_it(further, first=first.cache, options=("--no-upload", "*.local"))
    wait_in_service(mount)
    read_all(mount, expected)
    path = mount.path / "kept.local"
    with open(path, "wb", buffering=0) as stream:
        stream.write(content(7, 3 * MIB))
        os.fsync(stream.fileno())
    stop = mmap.mmap(-1, 4096)
    running = [children.start(read_what_can_be, mount.path, expected, seed, stop) for seed in range(3)]
    first.fail()
    with pytest.raises(OSError):
        with open(mount.path / "new", "wb", buffering=0) as stream:
            stream.write(content(8, MIB))
            os.fsync(stream.fileno())
    before = attempts(stop, len(running))
    wait_until(
        lambda: all(now >= then + 30 for now, then in zip(attempts(stop, len(running)), before, strict=True)),
        "every reader tried on",
        DEADLINE_S,
    )
    stop[0] = 1
    outcomes = children.results(running)
    print(f"(right, errors) of each reader: {outcomes}")
    children.end()
    with contextlib.suppress(Exception):
        os.kill(mount.status()["keeper_pid"], signal.SIGTERM)
    wait_until(lambda: end_mount(mount), "the mount is gone", DEADLINE_S)
    wait_until(first.can_be_unmounted, "nobody has anything open there", DEADLINE_S)
    first.mount()
    mount.start()
    read_all(mount, expected)
    assert path.read_bytes() == content(7, 3 * MIB)
    assert not (mount.path / "new").exists() or (mount.path / "new").stat().st_size in (0, MIB)
    assert sum(right for right, _errors in outcomes) > 0


def end_mount(mount: Mount) -> bool:
    run_command("umount", str(mount.path))
    return find_mount(mount.path) is None


def attempts(stop: mmap.mmap, count: int) -> list[int]:
    """Return how many reads each of so many `read_what_can_be` has tried."""
    return list(struct.unpack_from(f"<{count}Q", stop, 8))


def read_what_can_be(root: Path, expected: dict[str, str], seed: int, stop: mmap.mmap) -> tuple[int, int]:
    """Read on in spite of errors until told to stop; return how many files were right, and how many not readable."""
    chance, right, errors = random.Random(seed), 0, 0
    while not stop[0]:
        struct.pack_into("<Q", stop, 8 * (seed + 1), right + errors)
        name = chance.choice(sorted(expected))
        try:
            found = read_digest(root / name)
            forget_pages(root / name)
        except OSError:
            errors += 1
            continue
        assert found == expected[name], f"wrong bytes in {name}"
        right += 1
    return right, errors
