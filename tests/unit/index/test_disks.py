"""Further disks in the index: numbers, what they hold, and the way out of service."""

from pathlib import Path

import pytest

from fanoutfs.errors import DiskGoneError
from fanoutfs.index.disks import (
    BYTES,
    IN_USE,
    MOUNTED_ON,
    CloseDisk,
    EnterDisk,
    ForgetDisk,
    ForgetMounts,
    known_disks,
    mount_setting,
)
from fanoutfs.index.format import KnownDisk, disk_bytes_setting, disk_setting, unpack_disk
from fanoutfs.index.operations import DropBlocks, FreeOrphans, PutBlocks
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import disk_of_part, present_blocks
from fanoutfs.records import BLOCK_BYTES, PART_BYTES
from tests.unit.indexes import apply, enter_listing, file


def enter(index: IndexEnvironment, name: str) -> int:
    disk = KnownDisk(Path(f"/{name}/volumes/x"), f"token of {name}")
    return apply(index, EnterDisk(disk, Path(f"/{name}"), Path("/")).apply)


def make_file(index: IndexEnvironment, parts: int, name: str = "a") -> int:
    changes, _hidden = enter_listing(index, [file(name, size=parts * PART_BYTES)])
    return changes[0].ino


def bytes_of(index: IndexEnvironment, disk: int | None = None) -> int:
    name = b"cached_bytes" if disk is None else disk_bytes_setting(disk)
    with index.env.begin() as txn:
        return int.from_bytes(txn.get(name, db=index.settings) or b"", "little")


def forget(index: IndexEnvironment, disk: int) -> int:
    """Forget all; return in how many transactions."""
    start: tuple[int, int] | None = (0, 0)
    count = 0
    while start is not None:
        start = apply(index, ForgetDisk(disk, start).apply)
        count += 1
    return count


def test_numbers_are_never_given_out_twice(index: IndexEnvironment) -> None:
    assert [enter(index, "a"), enter(index, "b")] == [1, 2]
    apply(index, CloseDisk(2).apply)
    forget(index, 2)
    assert enter(index, "b") == 3
    reader = IndexReader(index)
    with reader.begin() as txn:
        found = known_disks(reader.settings(txn, IN_USE))
    assert {number: disk.folder for number, disk in found.items()} == {
        1: Path("/a/volumes/x"),
        3: Path("/b/volumes/x"),
    }
    assert reader.disk_folder(3) == Path("/b/volumes/x")
    assert reader.disk_folder(2) is None


def test_bytes_are_counted_for_each_disk_and_all(index: IndexEnvironment) -> None:
    one, ino = enter(index, "a"), make_file(index, 2)
    apply(index, PutBlocks(ino, 0, {0: 1, 1: 2}, one).apply)
    apply(index, PutBlocks(ino, 1, {0: 3}).apply)
    assert (bytes_of(index), bytes_of(index, one)) == (3 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert apply(index, DropBlocks(ino, 0, 1).apply) == (1, BLOCK_BYTES, one)
    assert (bytes_of(index), bytes_of(index, one)) == (2 * BLOCK_BYTES, BLOCK_BYTES)
    assert [disk_of_part(index, (ino, part)) for part in range(3)] == [one, 0, None]
    assert present_blocks(index, (ino, 0), one) == 0b10
    assert present_blocks(index, (ino, 0), 0) == 0
    assert apply(index, FreeOrphans((ino,)).apply) == [ino]
    assert (bytes_of(index), bytes_of(index, one)) == (0, 0)


def test_disk_out_of_service_gets_no_block(index: IndexEnvironment) -> None:
    one, ino = enter(index, "a"), make_file(index, 1)
    apply(index, CloseDisk(one).apply)
    with pytest.raises(DiskGoneError):
        apply(index, PutBlocks(ino, 0, {0: 1}, one).apply)
    assert bytes_of(index) == 0


def test_part_filled_elsewhere_holds_nothing_of_before(index: IndexEnvironment) -> None:
    one, ino = enter(index, "a"), make_file(index, 1)
    apply(index, PutBlocks(ino, 0, {0: 1, 1: 2}, one).apply)
    apply(index, CloseDisk(one).apply)
    apply(index, PutBlocks(ino, 0, {5: 6}).apply)
    assert present_blocks(index, (ino, 0)) == 1 << 5
    assert disk_of_part(index, (ino, 0)) == 0
    assert (bytes_of(index), bytes_of(index, one)) == (BLOCK_BYTES, 0)


def test_forgetting_goes_on_where_a_core_died(index: IndexEnvironment) -> None:
    one, two = enter(index, "a"), enter(index, "b")
    ino = make_file(index, 4500)
    with_disk = {part: (one, two, 0)[part % 3] for part in range(4500)}
    apply(
        index, lambda txn: [PutBlocks(ino, part, {part % 32: 7}, disk).apply(txn) for part, disk in with_disk.items()]
    )
    apply(index, CloseDisk(one).apply)
    assert apply(index, ForgetDisk(one).apply) is not None, "not all in one transaction"
    reader = IndexReader(index)
    with reader.begin() as txn:
        assert disk_bytes_setting(one) in reader.settings(txn, BYTES), "so that the next core goes on"
    assert forget(index, one) == 2
    with reader.begin() as txn:
        assert set(reader.settings(txn, BYTES)) == {disk_bytes_setting(two)}
        assert set(reader.disks(txn, ino)) == {0, two}
    assert bytes_of(index, two) == 1500 * BLOCK_BYTES
    assert bytes_of(index) == 3000 * BLOCK_BYTES


def test_mount_points_of_directories_that_are_not_named_are_forgotten(index: IndexEnvironment) -> None:
    enter(index, "a")
    enter(index, "b")
    apply(index, ForgetMounts(frozenset({mount_setting(Path("/b"))})).apply)
    reader = IndexReader(index)
    with reader.begin() as txn:
        assert reader.settings(txn, MOUNTED_ON) == {mount_setting(Path("/b")): b"/"}


def test_stored_form() -> None:
    assert disk_setting(10) == b"disk/0000000a"
    assert disk_bytes_setting(10) == b"disk_bytes/0000000a"
    packed = KnownDisk(Path("/mnt/\udcff"), "ab").pack()
    assert packed == b'{"path": "/mnt/\\udcff", "token": "ab"}'
    assert unpack_disk(packed) == KnownDisk(Path("/mnt/\udcff"), "ab")
