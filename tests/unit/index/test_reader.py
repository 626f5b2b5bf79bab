"""What fronts ask."""

from fanoutfs.index.operations import PutBlocks
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import MIB, ROOT_INO
from tests.unit.indexes import apply, enter_listing, file, folder


def test_children_come_in_name_order_and_go_on_behind_a_name(index: IndexEnvironment) -> None:
    enter_listing(index, [file("b"), file("a"), folder("c"), file("aa")])
    reader = IndexReader(index)
    with reader.begin() as txn:
        everything = list(reader.children(txn, ROOT_INO, b""))
        assert [name for name, *_rest in everything] == [b"a", b"aa", b"b", b"c"]
        assert list(reader.children(txn, ROOT_INO, b"a")) == everything[1:]
        assert list(reader.children(txn, ROOT_INO, b"ab")) == everything[2:]
        assert list(reader.children(txn, ROOT_INO, b"c")) == []
        assert list(reader.children(txn, ROOT_INO + 1, b"")) == []


def test_reader_sees_each_commit_and_orphans_stay_readable(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a", size=2 * MIB)])
    reader = IndexReader(index)
    with reader.begin() as txn:
        ino = reader.child(txn, ROOT_INO, b"a")
        assert ino is not None
        assert reader.child(txn, ROOT_INO, b"b") is None
        value = reader.inode_value(txn, ino)
        assert value is not None
        assert int.from_bytes(value[8:16], "little") == 2 * MIB
        assert reader.part_value(txn, ino, 0) is None
        assert not reader.is_orphan(txn, ino)
    apply(index, PutBlocks(ino, 0, {0: 1}).apply)
    enter_listing(index, [])
    with reader.begin() as txn:
        assert reader.part_value(txn, ino, 0) is not None
        assert reader.is_orphan(txn, ino)
        assert reader.child(txn, ROOT_INO, b"a") is None
        assert reader.inode(txn, ino) is not None
