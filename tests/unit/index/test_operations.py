"""Changes of the index, one case each."""

from dataclasses import replace
from pathlib import Path

import pytest

from fanoutfs.index.format import FIRST_INO, FORMAT_VERSION, INO_KEY, Ownership
from fanoutfs.index.operations import (
    ApplyChildren,
    Change,
    ChangeKind,
    DropBlocks,
    FreeOrphans,
    OldFormatError,
    OpenVolume,
    PutBlocks,
    blocks_bytes,
    is_same_version,
)
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import BLOCK_BYTES, KIB, MIB, PART_BYTES, ROOT_INO, Version
from tests.unit.indexes import NOW_NS, OWNER, apply, enter_listing, file, folder, open_index


def names(index: IndexEnvironment, parent: int = ROOT_INO) -> dict[bytes, int]:
    return {name: ino for name, ino, _dtype in apply(index, lambda txn: txn.entries(parent))}


def totals(index: IndexEnvironment) -> tuple[int, int]:
    reader = IndexReader(index)
    with reader.begin() as txn:
        return reader.totals(txn)


def orphans(index: IndexEnvironment) -> set[int]:
    with index.env.begin() as txn:
        return {INO_KEY.unpack(key)[0] for key, _value in txn.cursor(db=index.orphans)}


def cached_bytes(index: IndexEnvironment) -> int:
    return apply(index, lambda txn: txn.cached_bytes)


# --- listings ------------------------------------------------------------------------------------------------------


def test_first_listing_adds_everything_and_marks_the_directory(index: IndexEnvironment) -> None:
    changes, hidden = enter_listing(index, [folder("d"), file("a", size=3)], [file("b", size=4)])
    assert [(change.kind, change.name) for change in changes] == [
        (ChangeKind.ADDED, b"d"),
        (ChangeKind.ADDED, b"a"),
        (ChangeKind.ADDED, b"b"),
    ]
    assert (hidden, totals(index), orphans(index)) == (0, (2, 7), set())
    root = apply(index, lambda txn: txn.inode(ROOT_INO))
    assert root is not None
    assert root.is_listed
    assert root.listed_at_ns == NOW_NS


def test_same_listing_again_changes_nothing(index: IndexEnvironment) -> None:
    page = [folder("d"), file("a"), file("b")]
    enter_listing(index, page)
    before = names(index)
    assert enter_listing(index, page, now_ns=NOW_NS + 1) == ([], 0)
    assert names(index) == before


def test_changed_object_is_a_new_inode_and_the_old_one_an_orphan(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a", "1", 3)])
    old = names(index)[b"a"]
    changes, _hidden = enter_listing(index, [file("a", "2", 10)])
    new = names(index)[b"a"]
    assert changes == [Change(ChangeKind.REPLACED, ROOT_INO, b"a", old)]
    assert new != old
    assert orphans(index) == {old}
    assert totals(index) == (1, 10)


def test_other_time_with_the_same_etag_keeps_the_inode(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a", "1", 3)])
    ino = names(index)[b"a"]
    changes, _hidden = enter_listing(index, [file("a", "1", 3, NOW_NS + 7)])
    assert changes == [Change(ChangeKind.TOUCHED, ROOT_INO, b"a", ino)]
    assert names(index) == {b"a": ino}
    inode = apply(index, lambda txn: txn.inode(ino))
    assert inode is not None
    assert inode.version.mtime_ns == NOW_NS + 7
    assert totals(index) == (1, 3)


def test_name_that_is_gone_is_removed_with_everything_below(index: IndexEnvironment) -> None:
    enter_listing(index, [folder("d"), file("a", size=1)])
    directory = names(index)[b"d"]
    enter_listing(index, [folder("e", "d/"), file("x", size=2, prefix="d/")], parent=directory)
    below = names(index, directory)
    enter_listing(index, [file("y", size=4, prefix="d/e/")], parent=below[b"e"])
    deepest = names(index, below[b"e"])
    assert totals(index) == (3, 7)

    changes, _hidden = enter_listing(index, [file("a", size=1)])

    gone = {(ROOT_INO, b"d"): directory}
    gone |= {(directory, name): ino for name, ino in below.items()}
    gone |= {(below[b"e"], name): ino for name, ino in deepest.items()}
    assert changes[-1].ino == directory
    assert {(change.parent, change.name): change.ino for change in changes} == gone
    assert {change.kind for change in changes} == {ChangeKind.REMOVED}
    assert orphans(index) == {directory, *below.values(), *deepest.values()}
    assert totals(index) == (1, 1)
    assert names(index, directory) == names(index, below[b"e"]) == {}


def test_file_that_becomes_a_directory_is_replaced(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a", size=3)])
    old = names(index)[b"a"]
    changes, hidden = enter_listing(index, [folder("a")])
    assert changes == [Change(ChangeKind.REPLACED, ROOT_INO, b"a", old)]
    assert (hidden, totals(index)) == (0, (0, 0))


def test_directory_that_becomes_a_file_is_replaced_when_the_listing_is_complete(index: IndexEnvironment) -> None:
    enter_listing(index, [folder("a")])
    old = names(index)[b"a"]
    enter_listing(index, [file("x", size=9, prefix="a/")], parent=old)
    below = names(index, old)[b"x"]
    changes, hidden = enter_listing(index, [file("a", size=3)])
    new = names(index)[b"a"]
    assert changes == [
        Change(ChangeKind.REMOVED, old, b"x", below),
        Change(ChangeKind.REMOVED, ROOT_INO, b"a", old),
        Change(ChangeKind.ADDED, ROOT_INO, b"a", new),
    ]
    assert (hidden, totals(index)) == (0, (1, 3))


@pytest.mark.parametrize("split", [False, True], ids=["one page", "file first, prefix on the next page"])
def test_key_that_is_file_and_prefix_shows_the_directory_and_stays(index: IndexEnvironment, split: bool) -> None:
    pages = [[file("a", size=3)], [folder("a")]] if split else [[folder("a"), file("a", size=3)]]
    enter_listing(index, *pages)
    ino = names(index)[b"a"]
    assert totals(index) == (0, 0)
    for _again in range(3):
        changes, hidden = enter_listing(index, *pages)
        assert (changes, hidden) == ([], 1)
        assert names(index) == {b"a": ino}
        assert totals(index) == (0, 0)


def test_hidden_file_reappears_when_the_prefix_is_gone_and_hides_again(index: IndexEnvironment) -> None:
    both = [folder("a"), file("a", size=3)]
    enter_listing(index, both)
    enter_listing(index, [file("a", size=3)])
    assert totals(index) == (1, 3)
    enter_listing(index, both)
    assert totals(index) == (0, 0)
    enter_listing(index, [])
    assert names(index) == {}
    assert totals(index) == (0, 0)


def test_listing_of_an_orphaned_directory_changes_nothing(index: IndexEnvironment) -> None:
    # A background listing of a directory that was removed and appeared again under the same key, as another inode.
    enter_listing(index, [folder("d")])
    old = names(index)[b"d"]
    enter_listing(index, [])
    enter_listing(index, [folder("d")])
    new = names(index)[b"d"]
    enter_listing(index, [file("x", size=2, prefix="d/")], parent=new)

    changes, _hidden = enter_listing(index, [file("x", size=2, prefix="d/")], parent=old)

    assert changes == []
    assert names(index, old) == {}
    assert totals(index) == (1, 2)


def test_listing_of_a_freed_directory_changes_nothing(index: IndexEnvironment) -> None:
    assert apply(index, ApplyChildren(999, (file("a"),), OWNER, NOW_NS).apply) == []
    assert enter_listing(index, [file("a")], parent=999) == ([], 0)
    assert totals(index) == (0, 0)


def test_first_listing_keeps_names_that_a_point_lookup_entered(index: IndexEnvironment) -> None:
    apply(index, ApplyChildren(ROOT_INO, (file("a"),), OWNER, NOW_NS).apply)
    root = apply(index, lambda txn: txn.inode(ROOT_INO))
    assert root is not None
    assert not root.is_listed
    assert set(names(index)) == {b"a"}


def test_inode_numbers_begin_behind_the_reserved_ones(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a"), file("b")])
    assert sorted(names(index).values()) == [FIRST_INO, FIRST_INO + 1]


# --- versions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "found", "same"),
    [
        (Version("e", "", 1, 1), Version("e", "", 1, 2), True),
        (Version("e", "", 1, 1), Version("f", "", 1, 1), False),
        (Version("e", "", 1, 1), Version("e", "", 2, 1), False),
        (Version("e", "v1", 1, 1), Version("e", "v2", 1, 1), False),
        (Version("e", "", 1, 1), Version("e", "v2", 1, 1), True),
        (Version("", "", 1, 1), Version("", "", 1, 1), True),
        (Version("", "", 1, 1), Version("", "", 1, 2), False),
        (Version("e", "", 1, 1), Version("", "", 1, 1), True),
    ],
)
def test_versions_are_the_same_when_the_etag_says_so(known: Version, found: Version, same: bool) -> None:
    assert is_same_version(known, found) is same


# --- opening -------------------------------------------------------------------------------------------------------


def test_known_volume_is_recognised(index: IndexEnvironment) -> None:
    assert apply(index, OpenVolume("test", OWNER, NOW_NS).apply) is True


def test_index_of_another_source_is_refused(index: IndexEnvironment) -> None:
    with pytest.raises(ValueError, match="another source"):
        apply(index, OpenVolume("other", OWNER, NOW_NS).apply)


def test_index_of_a_newer_format_is_refused(index: IndexEnvironment) -> None:
    apply(index, lambda txn: txn.set_setting(b"format", (FORMAT_VERSION + 1).to_bytes(8, "little")))
    with pytest.raises(ValueError, match=f"format {FORMAT_VERSION + 1}"):
        apply(index, OpenVolume("test", OWNER, NOW_NS).apply)


def test_index_of_an_older_format_is_recognised(index: IndexEnvironment) -> None:
    apply(index, lambda txn: txn.set_setting(b"format", (1).to_bytes(8, "little")))
    with pytest.raises(OldFormatError, match="format 1"):
        apply(index, OpenVolume("test", OWNER, NOW_NS).apply)


def test_other_options_restamp_everything_but_the_content(index: IndexEnvironment) -> None:
    enter_listing(index, [folder("d"), file("a", size=64 * KIB)])
    before = names(index)
    other = Ownership(5, 6, 0o600, 0o700, 0)
    assert apply(index, OpenVolume("test", other, NOW_NS).apply) is True
    assert names(index) == before
    inode = apply(index, lambda txn: txn.inode(before[b"a"]))
    directory = apply(index, lambda txn: txn.inode(ROOT_INO))
    assert inode is not None
    assert directory is not None
    assert (inode.mode & 0o777, directory.mode & 0o777) == (0o600, 0o700)
    assert inode.is_small  # its content may lie in the small store already
    assert directory.is_listed
    assert (inode.etag, inode.size_bytes, inode.version.mtime_ns) == ("1", 64 * KIB, NOW_NS)


def test_index_survives_being_closed(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        enter_listing(index, [file("a", size=3)])
        before = names(index)
    with open_index(tmp_path) as index:
        assert names(index) == before
        assert totals(index) == (1, 3)
        enter_listing(index, [file("b")])
        assert names(index)[b"b"] > before[b"a"]


# --- blocks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "part", "mask", "expected"),
    [
        (BLOCK_BYTES, 0, 1, BLOCK_BYTES),
        (BLOCK_BYTES + 1, 0, 0b11, BLOCK_BYTES + 1),
        (BLOCK_BYTES + 1, 0, 0b10, 1),
        (BLOCK_BYTES - 1, 0, 1, BLOCK_BYTES - 1),
        (PART_BYTES, 0, (1 << 32) - 1, PART_BYTES),
        (PART_BYTES + 5, 0, (1 << 32) - 1, PART_BYTES),
        (PART_BYTES + 5, 1, 1, 5),
        (10 * MIB, 0, 0, 0),
    ],
)
def test_bytes_of_blocks_know_the_short_last_one(size: int, part: int, mask: int, expected: int) -> None:
    assert blocks_bytes(size, part, mask) == expected


def test_put_and_drop_blocks_account_for_each_byte_once(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a", size=PART_BYTES + 5)])
    ino = names(index)[b"a"]
    assert apply(index, PutBlocks(ino, 0, {0: 11, 3: 33}).apply) is True
    assert apply(index, PutBlocks(ino, 0, {3: 34}).apply) is True
    assert apply(index, PutBlocks(ino, 1, {0: 55}).apply) is True
    assert cached_bytes(index) == 2 * BLOCK_BYTES + 5
    present, checksums, disk = apply(index, lambda txn: txn.part(ino, 0))
    assert (present, checksums[0], checksums[3], disk) == (0b1001, 11, 34, 0)
    assert apply(index, lambda txn: txn.parts(ino)) == [0, 1]

    assert apply(index, DropBlocks(ino, 0, 0b1010).apply) == (0b1000, BLOCK_BYTES, 0)
    assert apply(index, DropBlocks(ino, 0, 0b1010).apply) == (0, 0, 0)
    assert apply(index, DropBlocks(ino, 1, -1).apply) == (1, 5, 0)
    assert cached_bytes(index) == BLOCK_BYTES
    assert apply(index, lambda txn: txn.parts(ino)) == [0]


def test_blocks_of_a_freed_inode_are_refused(index: IndexEnvironment) -> None:
    assert apply(index, PutBlocks(999, 0, {0: 1}).apply) is False
    assert cached_bytes(index) == 0


def test_freeing_orphans_removes_record_blocks_and_mark(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a", size=PART_BYTES * 2)])
    ino = names(index)[b"a"]
    apply(index, PutBlocks(ino, 0, {0: 1}).apply)
    apply(index, PutBlocks(ino, 1, {0: 1}).apply)
    enter_listing(index, [])
    assert apply(index, FreeOrphans((ino, 12345)).apply) == [ino]
    assert apply(index, lambda txn: txn.inode(ino)) is None
    assert apply(index, lambda txn: txn.parts(ino)) == []
    assert (orphans(index), cached_bytes(index)) == (set(), 0)


def test_failed_operation_leaves_nothing(index: IndexEnvironment) -> None:
    def fail(txn: object) -> None:
        ApplyChildren(ROOT_INO, (file("a"),), OWNER, NOW_NS).apply(txn)  # type: ignore[arg-type]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        apply(index, fail)
    assert names(index) == {}
    assert totals(index) == (0, 0)


def test_names_with_any_bytes_come_back(index: IndexEnvironment) -> None:
    odd = ["\udcff\udcfe", "new\nline", "x" * 255, " ", "\x01"]
    page = [replace(file("?"), key=name, name=name.encode("utf-8", "surrogateescape")) for name in odd]
    enter_listing(index, page)
    found = names(index)
    assert set(found) == {child.name for child in page}
    for name, ino in found.items():
        inode = apply(index, lambda txn, ino=ino: txn.inode(ino))  # type: ignore[misc]
        assert inode is not None
        assert inode.name == name
