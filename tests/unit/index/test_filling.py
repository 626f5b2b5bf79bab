"""Attributes that objects carry, entered once and only where nothing was set here."""

import stat
from dataclasses import replace

import pytest

from fanoutfs.index.filling import FillAttributes, ObjectAttributes
from fanoutfs.index.format import DT_LNK, DT_REG, FLAG_ATTRS, FLAG_LOCAL, Dirty, DirtyRecord
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import ROOT_INO
from tests.unit.index.test_keeping import found
from tests.unit.indexes import NOW_NS, apply, enter_listing, file, version

LINK = ObjectAttributes(mode=stat.S_IFLNK | 0o777, uid=3, gid=4, mtime_ns=5, target=b"there")


def fill(index: IndexEnvironment, attributes: ObjectAttributes, etag: str = "1") -> None:
    operation = FillAttributes(ROOT_INO, b"a", found(index, "a").ino, version(etag), attributes)
    apply(index, operation.apply)


def test_link_gets_its_target_and_type(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a")])
    fill(index, replace(LINK, xattrs={b"user.k": b"v", b"security.k": b"no"}))
    inode = found(index, "a")
    assert stat.S_ISLNK(inode.mode)
    assert inode.flags & FLAG_ATTRS
    assert inode.version.mtime_ns == 5
    assert apply(index, lambda txn: txn.entry(ROOT_INO, b"a")) == (inode.ino, DT_LNK)
    assert apply(index, lambda txn: txn.changed.target(inode.ino)) == b"there"
    assert apply(index, lambda txn: txn.changed.xattrs(inode.ino)) == {b"user.k": b"v"}


@pytest.mark.parametrize(
    ("mode", "target", "shown"),
    [
        (0o106755, None, 0o100755),
        (stat.S_IFDIR | 0o700, None, 0o100700),
        (stat.S_IFLNK | 0o777, None, 0o100777),
        (stat.S_IFIFO | 0o600, None, stat.S_IFIFO | 0o600),
        (None, None, 0o100644),
    ],
)
def test_modes_that_a_file_cannot_have_are_not_taken(
    index: IndexEnvironment, mode: int | None, target: bytes | None, shown: int
) -> None:
    enter_listing(index, [file("a")])
    fill(index, ObjectAttributes(mode=mode, target=target))
    assert found(index, "a").mode == shown
    assert found(index, "a").has_attributes


def test_other_version_and_what_was_changed_here_stay(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a")])
    before = found(index, "a")
    fill(index, LINK, etag="2")
    assert found(index, "a") == before
    apply(index, lambda txn: txn.changed.put_dirty(before.ino, DirtyRecord(NOW_NS, NOW_NS, Dirty.META)))
    fill(index, LINK)
    assert found(index, "a") == before
    apply(index, lambda txn: txn.changed.delete_dirty(before.ino))
    for flag in (FLAG_ATTRS, FLAG_LOCAL):
        apply(index, lambda txn, flag=flag: txn.put_inode(replace(before, flags=flag)))  # type: ignore[misc]
        fill(index, LINK)
        assert apply(index, lambda txn: txn.entry(ROOT_INO, b"a")) == (before.ino, DT_REG)
