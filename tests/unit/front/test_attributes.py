"""Attributes that a front changes without the core, and all those that it leaves to the core."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fanoutfs.index.format import (
    FLAG_ATTRS,
    FLAG_LOCAL,
    FLAG_SEALED,
    FLAG_STAGED,
    FLAG_WHOLE,
    Dirty,
    DirtyRecord,
    Inode,
    make_attr,
    with_links,
)
from fanoutfs.index.transaction import write_transaction
from fanoutfs.observe.shared import INDEX_BUSY
from fanoutfs.wire.hints import HintKind
from fanoutfs.wire.kernel import ATTR, ATTR_OUT_HEAD, SETATTR_IN, UNIQUE_RESEND, Opcode, SetattrValid
from fanoutfs.wire.relay import make_token
from tests.unit.front.rig import GID, UID, Rig, open_rig
from tests.unit.indexes import NOW_NS

INO, LIFE = 100, 101
STAGED = FLAG_STAGED | FLAG_WHOLE | FLAG_LOCAL | FLAG_ATTRS
BEFORE_1970 = (1 << 64) - 5


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A rig with a staged file of seven bytes."""
    with open_rig(tmp_path) as rig:
        rig.shared.spares.is_open = True
        os.write(rig.staging.create(INO, LIFE), b"content")
        put(rig, STAGED)
        yield rig


def put(rig: Rig, flags: int, mode: int = stat.S_IFREG | 0o644, links: int = 1) -> None:
    inode = with_links(Inode(INO, make_attr(INO, mode, 0, 1, UID, GID), LIFE, flags, "", "", ""), links)
    with write_transaction(rig.environment) as txn:
        txn.put_inode(inode)
        txn.put_entry(1, b"name", inode)
        txn.changed.put_name(INO, 1, b"name")
        txn.changed.put_dirty(INO, DirtyRecord(5, 6, Dirty.CONTENT))


def body(valid: int, **fields: int) -> bytes:
    values = [0] * 16
    names = {"size": 3, "atime": 5, "mtime": 6, "atimensec": 8, "mtimensec": 9, "mode": 11, "uid": 13, "gid": 14}
    values[0] = valid
    for name, value in fields.items():
        values[names[name]] = value
    return SETATTR_IN.pack(*values)


def answered(rig: Rig, valid: int, **fields: int) -> tuple[int, ...]:
    """Return the attributes that a SETATTR is answered with."""
    answer = rig.ask(Opcode.SETATTR, INO, body(valid, **fields))
    assert rig.is_core_idle()
    return ATTR.unpack_from(answer, ATTR_OUT_HEAD.size)


def record(rig: Rig) -> tuple[Inode, DirtyRecord]:
    with write_transaction(rig.environment) as txn:
        inode, dirty = txn.inode(INO), txn.changed.dirty(INO)
    assert inode is not None and dirty is not None
    return inode, dirty


def test_a_mode_is_set_without_the_core(rig: Rig) -> None:
    before = rig.staging.stat(INO, LIFE)
    attr = answered(rig, SetattrValid.MODE, mode=stat.S_IFREG | 0o400)
    assert (attr[1], attr[9]) == (7, stat.S_IFREG | 0o400)
    inode, dirty = record(rig)
    assert inode.mode == stat.S_IFREG | 0o400
    assert dirty.what == Dirty.CONTENT | Dirty.META
    assert (dirty.since_ns, dirty.changed_ns > 6) == (5, True)
    after = rig.staging.stat(INO, LIFE)
    assert after.st_mtime_ns == before.st_mtime_ns
    assert after.st_ctime_ns >= before.st_ctime_ns
    with write_transaction(rig.environment) as txn:
        assert txn.changed.applied(make_token(2)) == (Opcode.SETATTR, INO)
    rig.hints_of_front()._say_written()
    assert [(hint.kind, hint.ino) for hint in rig.told()] == [(HintKind.WRITTEN, INO)]


def test_an_owner_is_set_without_the_core(rig: Rig) -> None:
    attr = answered(rig, SetattrValid.UID | SetattrValid.GID, uid=7, gid=8)
    assert attr[11:13] == (7, 8)


def test_set_id_bits_go_with_the_owner(rig: Rig) -> None:
    put(rig, STAGED, stat.S_IFREG | 0o6755)
    attr = answered(rig, SetattrValid.UID, uid=7)
    assert attr[9] == stat.S_IFREG | 0o755


def test_times_are_those_of_the_staging_file(rig: Rig) -> None:
    valid = SetattrValid.ATIME | SetattrValid.MTIME
    attr = answered(rig, valid, atime=3, atimensec=4, mtime=BEFORE_1970, mtimensec=6)
    assert (attr[3], attr[6]) == (3, 4)
    assert (attr[4], attr[7]) == (BEFORE_1970, 6)
    assert rig.staging.stat(INO, LIFE).st_mtime_ns == -5 * 10**9 + 6


def test_times_of_now_are_of_now(rig: Rig) -> None:
    now = SetattrValid.ATIME_NOW | SetattrValid.MTIME_NOW
    attr = answered(rig, SetattrValid.ATIME | SetattrValid.MTIME | now, mtime=5)
    assert attr[3] == attr[4] > NOW_NS // 10**9


def close(rig: Rig) -> None:
    rig.shared.spares.is_open = False


def make_busy(rig: Rig) -> None:
    rig.shared.flags[INDEX_BUSY] = 1


def move_pin(rig: Rig) -> None:
    rig.shared.pin[1] += 1


def lose_staging_file(rig: Rig) -> None:
    rig.staging.remove(INO, LIFE)


def seal(rig: Rig) -> None:
    put(rig, STAGED | FLAG_SEALED)


def make_clean(rig: Rig) -> None:
    put(rig, FLAG_ATTRS)


def link(rig: Rig) -> None:
    put(rig, STAGED, links=2)


def unlink(rig: Rig) -> None:
    put(rig, STAGED, links=0)


@pytest.mark.parametrize("prepare", [close, make_busy, move_pin, lose_staging_file, seal, make_clean, link, unlink])
def test_the_core_changes_what_needs_more(rig: Rig, prepare: Callable[[Rig], None]) -> None:
    prepare(rig)
    before = record(rig)
    rig.send(Opcode.SETATTR, INO, body(SetattrValid.MODE, mode=stat.S_IFREG | 0o400))
    assert rig.answer() is None
    assert rig.relayed()[0] == Opcode.SETATTR
    assert record(rig) == before


def test_the_core_changes_sizes(rig: Rig) -> None:
    rig.send(Opcode.SETATTR, INO, body(SetattrValid.SIZE | SetattrValid.MTIME | SetattrValid.MTIME_NOW))
    assert rig.relayed()[0] == Opcode.SETATTR
    assert rig.staging.stat(INO, LIFE).st_size == 7


def test_the_core_changes_what_is_delivered_again(rig: Rig) -> None:
    rig.send(Opcode.SETATTR, INO, body(SetattrValid.MODE, mode=0o400), unique=8 | UNIQUE_RESEND)
    assert rig.relayed()[0] == Opcode.SETATTR
