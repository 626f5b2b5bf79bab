"""What the index remembers for tiering, and when it forgets it."""

from dataclasses import replace
from pathlib import Path

import pytest

from fanoutfs.index.format import Inode
from fanoutfs.index.operations import FreeOrphans
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.tiering import PINS, NoteAccess, NoteStored, PutPins, unpack_pins
from fanoutfs.index.tiers import StoredAs
from fanoutfs.records import ROOT_INO
from tests.unit.indexes import apply, enter_listing, file, open_index


def known(environment: IndexEnvironment, name: bytes) -> Inode:
    reader = IndexReader(environment)
    with reader.begin() as txn:
        inode = reader.inode(txn, reader.child(txn, ROOT_INO, name) or 0)
    assert inode is not None
    return inode


def test_access_and_class_are_forgotten_with_the_inode(tmp_path: Path) -> None:
    with open_index(tmp_path) as environment:
        enter_listing(environment, [file("a", "1"), file("b", "1")])
        inode, reader = known(environment, b"a"), IndexReader(environment)
        apply(environment, NoteAccess({inode.ino: 5, 999_999: 5}).apply)
        apply(environment, NoteStored(inode.ino, "1", StoredAs("GLACIER", is_archived=True)).apply)
        with reader.begin() as txn:
            assert reader.tiers(txn).accessed_ns(inode.ino) == 5
            assert reader.tiers(txn).accessed_ns(999_999) is None
            assert reader.tiers(txn).stored_as(inode.ino) == StoredAs("GLACIER", is_archived=True)
        enter_listing(environment, [file("b", "1")])
        apply(environment, FreeOrphans((inode.ino,)).apply)
        with reader.begin() as txn:
            assert reader.tiers(txn).accessed_ns(inode.ino) is None
            assert reader.tiers(txn).stored_as(inode.ino) == StoredAs()


def test_class_of_another_version_is_not_taken(tmp_path: Path) -> None:
    with open_index(tmp_path) as environment:
        enter_listing(environment, [file("a", "2")])
        inode, reader = known(environment, b"a"), IndexReader(environment)
        apply(environment, NoteStored(inode.ino, "1", StoredAs("GLACIER")).apply)
        with reader.begin() as txn:
            assert reader.tiers(txn).stored_as(inode.ino) == StoredAs()


def test_class_of_a_listing_is_noted_where_it_is_news(tmp_path: Path) -> None:
    rare, cold = StoredAs("STANDARD_IA"), StoredAs("GLACIER", is_archived=True)
    with open_index(tmp_path) as environment:
        reader = IndexReader(environment)

        def list_again(stored: StoredAs | None) -> StoredAs:
            enter_listing(environment, [replace(file("f", "1"), stored=stored)])
            with reader.begin() as txn:
                return reader.tiers(txn).stored_as(known(environment, b"f").ino)

        assert list_again(rare) == rare
        assert list_again(None) == rare, "a store that does not say does not mean that it is not so"
        assert list_again(cold) == cold, "a rule of the bucket moved it"
        apply(environment, NoteStored(known(environment, b"f").ino, "1", StoredAs("GLACIER")).apply)
        assert list_again(cold) == StoredAs("GLACIER"), "it was restored, which keeps its class"


@pytest.mark.parametrize("path", ["", "a/b", "x" * 1024, "not-utf8-\udcff"])
def test_pins_of_any_path_are_kept_and_forgotten(tmp_path: Path, path: str) -> None:
    with open_index(tmp_path) as environment:
        reader = IndexReader(environment)

        def pins() -> dict[str, bool]:
            with reader.begin() as txn:
                return unpack_pins(reader.settings(txn, PINS))

        apply(environment, PutPins({path: True, "other": False}, 7).apply)
        assert pins() == {path: True, "other": False}
        apply(environment, PutPins({path: None}, 8).apply)
        assert pins() == {"other": False}


def test_index_of_before_gets_the_new_databases(tmp_path: Path) -> None:
    with open_index(tmp_path) as environment:
        enter_listing(environment, [file("a", "1")])
        environment.env.open_db(b"accessed")
        with environment.env.begin(write=True) as txn:
            txn.drop(environment.accessed)
            txn.drop(environment.stored)
    with open_index(tmp_path) as environment:
        inode = known(environment, b"a")
        apply(environment, NoteAccess({inode.ino: 5}).apply)
        with IndexReader(environment).begin() as txn:
            assert IndexReader(environment).tiers(txn).accessed_ns(inode.ino) == 5
