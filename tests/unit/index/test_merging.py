"""Listings merged page by page, in either order in which stores list: exact at the end, never wrong on the way."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanoutfs.index import removal
from fanoutfs.index.format import DT_DIR
from fanoutfs.index.merging import BEGIN, END, Frontier, MergeNames
from fanoutfs.index.operations import ChangeKind, Child
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import ROOT_INO
from tests.unit.indexes import NOW_NS, OWNER, apply, enter_listing, file, folder, open_index

# "-" and "." sort before "/": the names that tell the two orders apart.
NAMES = st.text(alphabet="a-.0", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
LISTING = st.frozensets(st.tuples(NAMES, st.booleans()), max_size=12)
"""(name, is a directory): the same name may be both."""


def entries(index: IndexEnvironment, parent: int = ROOT_INO) -> dict[bytes, tuple[int, bool]]:
    return {name: (ino, dtype == DT_DIR) for name, ino, dtype in apply(index, lambda txn: txn.entries(parent))}


def in_order(listing: frozenset[tuple[str, bool]], *, is_tree: bool) -> list[Child]:
    by_tree = sorted(listing)
    ordered = by_tree if is_tree else sorted(listing, key=lambda each: each[0] + "/" * each[1])
    return [folder(name) if is_dir else file(name) for name, is_dir in ordered]


def shown(listing: frozenset[tuple[str, bool]]) -> dict[bytes, bool]:
    """What a directory shows: the directory wins."""
    return {name.encode(): (name, True) in listing for name, _is_dir in listing}


@settings(max_examples=300, deadline=None)
@given(
    listings=st.lists(LISTING, min_size=2, max_size=4),
    is_tree=st.booleans(),
    page=st.integers(1, 4),
    limit=st.sampled_from([1, 3, 1000]),
)
def test_merge_ends_at_what_was_listed_and_never_loses_what_stayed(
    listings: list[frozenset[tuple[str, bool]]], is_tree: bool, page: int, limit: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as path,
        pytest.MonkeyPatch.context() as patch,
        open_index(Path(path)) as index,
    ):
        patch.setattr(removal, "REMOVALS_PER_APPLY", limit)
        for number, listing in enumerate(listings):
            before_it = entries(index)
            staying = {name: known for name, known in before_it.items() if shown(listing).get(name) == known[1]}
            children = in_order(listing, is_tree=is_tree)
            pages = [children[at : at + page] for at in range(0, len(children), page)]
            reached = BEGIN
            deferred: tuple[Child, ...] = ()
            for each, end in [*((each, None) for each in pages), ([], END)]:
                assert not any(reached.has_passed(child) for child in each)
                after = end or reached.advanced(each)
                merge = MergeNames(
                    ROOT_INO, tuple(each), reached, after, OWNER, NOW_NS, deferred, number if after is END else None
                )
                while not (result := apply(index, merge.apply)).is_done:
                    assert len(result.changes) <= limit
                assert apply(index, merge.apply).changes == []
                now = entries(index)
                assert {name: now.get(name) for name in staying} == staying
                reached, deferred = after, result.deferred
            assert {name: is_dir for name, (_ino, is_dir) in entries(index).items()} == shown(listing)


def test_child_that_should_have_come_earlier_is_recognised() -> None:
    reached = BEGIN.advanced([file("b")])
    assert reached.has_passed(file("a"))
    assert reached.has_passed(folder("a"))
    assert not reached.has_passed(file("c"))


@pytest.mark.parametrize("first", [["a-1", "a/"], ["a/", "a-1"]], ids=["key order", "tree order"])
def test_both_orders_are_in_order(first: list[str]) -> None:
    reached = Frontier()
    for name in first:
        child = folder(name[:-1]) if name.endswith("/") else file(name)
        assert not reached.has_passed(child)
        reached = reached.advanced([child])


def test_removal_of_a_large_tree_takes_several_transactions_and_is_never_left_unreachable(
    index: IndexEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "REMOVALS_PER_APPLY", 10)
    enter_listing(index, [folder("d")])
    directory = entries(index)[b"d"][0]
    enter_listing(index, [file(f"{number:02d}", prefix="d/") for number in range(25)], parent=directory)
    merge = MergeNames(ROOT_INO, (), BEGIN, END, OWNER, NOW_NS, (), NOW_NS)
    left = []
    while not (result := apply(index, merge.apply)).is_done:
        assert len(result.changes) == 10
        assert entries(index)[b"d"][0] == directory
        left.append(len(entries(index, directory)))
    assert left == [15, 5]
    assert [change.kind for change in result.changes] == [ChangeKind.REMOVED] * 6
    assert entries(index) == {}
