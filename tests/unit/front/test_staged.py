"""Staged inodes as readers see them: attributes and content are those of the staging file."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.index.format import FLAG_LISTED, FLAG_STAGED, FLAG_WHOLE, Inode, make_attr
from fanoutfs.index.transaction import write_transaction
from fanoutfs.records import BLOCK_BYTES, PART_BYTES, ROOT_INO
from fanoutfs.wire.kernel import (
    ATTR,
    ATTR_OUT_HEAD,
    ENTRY_OUT_HEAD,
    READ_IN,
    Opcode,
)
from fanoutfs.wire.relay import Verb
from tests.unit.front.rig import Rig, open_rig

INO, LIFE = 100, 7
OLD_NS = 1_600_000_000_000_000_000
NEW_NS = 1_700_000_000_123_456_789


@pytest.fixture(params=[False, True], ids=["read-write", "read-only"])
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    with open_rig(tmp_path, read_only=request.param) as rig:
        yield rig


def record(flags: int, size: int = 10, mode: int = stat.S_IFREG | 0o640) -> Inode:
    return Inode(INO, make_attr(INO, mode, size, OLD_NS, 5, 6), LIFE, flags, "", "", "name")


def stage(rig: Rig, data: bytes) -> None:
    fd = rig.staging.create(INO, LIFE)
    os.pwrite(fd, data, 0)
    os.utime(fd, ns=(NEW_NS, NEW_NS))
    rig.stage(record(FLAG_STAGED | FLAG_WHOLE))


def name_it(rig: Rig, *, flags: int = FLAG_STAGED | FLAG_WHOLE) -> None:
    """Make the root listed, with one name in it."""
    root = Inode(ROOT_INO, make_attr(ROOT_INO, stat.S_IFDIR | 0o755, 0, 0, 0, 0), 1, FLAG_LISTED, "", "", "")
    with write_transaction(rig.environment) as txn:
        txn.put_inode(root)
        txn.put_entry(ROOT_INO, b"name", record(flags))


def assert_new(attr: bytes, size: int) -> None:
    fields = ATTR.unpack(attr)
    assert (fields[0], fields[1]) == (INO, size)
    assert fields[4] * 10**9 + fields[7] == NEW_NS
    assert fields[9:13] == (stat.S_IFREG | 0o640, 1, 5, 6)


def test_getattr_shows_size_and_time_of_the_staging_file(rig: Rig) -> None:
    stage(rig, b"x" * 1234)
    assert_new(rig.ask(Opcode.GETATTR, INO, bytes(16))[ATTR_OUT_HEAD.size :], 1234)


def test_lookup_shows_size_and_time_of_the_staging_file(rig: Rig) -> None:
    stage(rig, b"x" * 1234)
    name_it(rig)
    assert_new(rig.ask(Opcode.LOOKUP, ROOT_INO, b"name\0")[ENTRY_OUT_HEAD.size :], 1234)


def test_readdirplus_shows_size_and_time_of_the_staging_file(rig: Rig) -> None:
    stage(rig, b"x" * 1234)
    name_it(rig)
    body = rig.ask(Opcode.READDIRPLUS, ROOT_INO, READ_IN.pack(0, 2, 4096, 0, 0, 0, 0))
    assert_new(body[ENTRY_OUT_HEAD.size : ENTRY_OUT_HEAD.size + ATTR.size], 1234)


def test_lookup_the_core_answered_shows_what_was_written_since(rig: Rig) -> None:
    stage(rig, b"x" * 1234)
    unique = rig.send(Opcode.LOOKUP, ROOT_INO, b"name\0")  # the root is not listed: the core is asked
    relay_unique = rig.relayed()[1]
    head = ENTRY_OUT_HEAD.pack(INO, 0, 60, 60, 0, 0)
    rig.reply(relay_unique, body=head + make_attr(INO, stat.S_IFREG | 0o640, 10, OLD_NS, 5, 6))
    answer = rig.answer()
    assert answer is not None
    assert answer[:2] == (unique, 0)
    assert_new(answer[2][ENTRY_OUT_HEAD.size :], 1234)


def test_blocks_of_an_overlay_are_those_of_its_size(rig: Rig) -> None:
    rig.staging.create(INO, LIFE, PART_BYTES)
    rig.stage(record(FLAG_STAGED), PART_BYTES)
    fields = ATTR.unpack(rig.ask(Opcode.GETATTR, INO, bytes(16))[ATTR_OUT_HEAD.size :])
    assert fields[1:3] == (PART_BYTES, PART_BYTES // 512)


def test_getattr_without_the_staging_file_is_asked_of_the_core(rig: Rig) -> None:
    rig.stage(record(FLAG_STAGED | FLAG_WHOLE))
    rig.send(Opcode.GETATTR, INO, bytes(16))
    assert rig.relayed()[0] == Opcode.GETATTR


def test_readdirplus_without_the_staging_file_gives_the_name_only(rig: Rig) -> None:
    rig.stage(record(FLAG_STAGED | FLAG_WHOLE))
    name_it(rig)
    body = rig.ask(Opcode.READDIRPLUS, ROOT_INO, READ_IN.pack(0, 2, 4096, 0, 0, 0, 0))
    assert ENTRY_OUT_HEAD.unpack_from(body)[0] == 0
    assert b"name" in body


def test_read_comes_from_the_staging_file(rig: Rig) -> None:
    stage(rig, b"0123456789")
    assert rig.read(INO, 2, 4) == b"2345"
    assert rig.read(INO, 8, 100) == b"89"
    assert rig.read(INO, 10, 100) == b""
    assert rig.is_core_idle()


def test_read_of_a_local_block_of_an_overlay_comes_from_the_staging_file(rig: Rig) -> None:
    fd = rig.staging.create(INO, LIFE, PART_BYTES)
    os.pwrite(fd, b"new", BLOCK_BYTES)
    rig.stage(record(FLAG_STAGED), PART_BYTES, {0: 0b10})
    assert rig.read(INO, BLOCK_BYTES, 5) == b"new\0\0"
    assert rig.is_core_idle()


def test_read_of_an_objects_block_asks_for_it_and_goes_on(rig: Rig) -> None:
    fd = rig.staging.create(INO, LIFE, PART_BYTES)
    rig.stage(record(FLAG_STAGED), PART_BYTES, {0: 0b10})
    unique = rig.send(Opcode.READ, INO, READ_IN.pack(0, 10, 5, 0, 0, 0, 0))
    verb, ino, offset, size, relay_unique = rig.asked()
    assert (verb, ino, offset, size) == (Verb.LOCALISE, INO, 10, 5)
    os.pwrite(fd, b"clean", 10)
    rig.stage(record(FLAG_STAGED), PART_BYTES, {0: 0b11})
    rig.reply(relay_unique, front=1)
    assert rig.answer() == (unique, 0, b"clean")


def test_descriptors_of_removed_files_are_closed(rig: Rig) -> None:
    stage(rig, b"x")
    rig.read(INO, 0, 1)
    other = rig.fronts[1].staging
    other.stat(INO, LIFE)
    rig.staging.remove(INO, LIFE)
    assert other.has_open
    other.close_removed()
    assert not other.has_open


@pytest.mark.parametrize(
    ("mode", "expected"), [(stat.S_IFREG | 0o644, errno.EINVAL), (stat.S_IFDIR | 0o755, errno.EINVAL)]
)
def test_readlink_of_what_is_no_link_is_einval(rig: Rig, mode: int, expected: int) -> None:
    rig.put(record(0, mode=mode))
    with pytest.raises(OSError) as caught:
        rig.ask(Opcode.READLINK, INO)
    assert caught.value.errno == expected


def test_readlink_returns_the_target(rig: Rig) -> None:
    rig.put(record(0, mode=stat.S_IFLNK | 0o777))
    with write_transaction(rig.environment) as txn:
        txn.changed.put_target(INO, b"../there")
    assert rig.ask(Opcode.READLINK, INO) == b"../there"


def test_readlink_of_a_link_known_from_the_store_only_is_the_cores(rig: Rig) -> None:
    rig.put(record(0, mode=stat.S_IFLNK | 0o777))
    rig.send(Opcode.READLINK, INO)
    assert rig.relayed()[0] == Opcode.READLINK


def test_listing_goes_on_where_it_stood_though_the_entry_is_gone_and_freed(rig: Rig) -> None:
    root = Inode(ROOT_INO, make_attr(ROOT_INO, stat.S_IFDIR | 0o755, 0, 0, 0, 0), 1, FLAG_LISTED, "", "", "")
    names = [b"%02d" % number for number in range(40)]
    with write_transaction(rig.environment) as txn:
        txn.put_inode(root)
        for number, name in enumerate(names):
            inode = Inode(200 + number, make_attr(200 + number, stat.S_IFREG, 0, 0, 0, 0), 0, 0, "", "", "")
            txn.put_inode(inode)
            txn.put_entry(ROOT_INO, name, inode)
    first = rig.ask(Opcode.READDIR, ROOT_INO, READ_IN.pack(0, 2, 32 * 20, 0, 0, 0, 0))
    seen = [name for name in names if name in first]
    last = names.index(seen[-1])
    assert 0 < last < 39
    with write_transaction(rig.environment) as txn:
        for number in range(last + 1):
            txn.delete_entry(ROOT_INO, names[number])
            txn.delete_inode(200 + number)
    unique = rig.send(Opcode.READDIR, ROOT_INO, READ_IN.pack(0, 200 + last, 4096, 0, 0, 0, 0), front=1)
    answer = rig.answer()
    assert answer is not None
    assert answer[:2] == (unique, 0)
    assert [name for name in names if name in answer[2]] == names[last + 1 :]
