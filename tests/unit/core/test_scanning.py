"""The walk through a scan's keys: what each page shows of each directory, where it stands, what it refuses."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.core.scanning import LAST_CHARACTER, Order, TreeWalk, border, observed_order, shared_name
from fanoutfs.errors import DisorderedListingError
from fanoutfs.index.importing import PagePart, PageResult, unpack_place
from fanoutfs.index.merging import BEGIN, END
from fanoutfs.index.operations import Child
from fanoutfs.records import ROOT_INO, ObjectInfo, Version

STARTED_NS = 7
VERSION = Version("1", "", 1, 1)


def infos(*keys: str) -> list[ObjectInfo]:
    return [ObjectInfo(key, VERSION) for key in keys]


def walk(after: str = "", order: Order = Order.KEY, prefix: str = "") -> TreeWalk:
    return TreeWalk(prefix, ROOT_INO, after, None, STARTED_NS, order)


def shown(parts: Iterable[PagePart]) -> dict[bytes, list[bytes]]:
    """Return directory → what the page shows of it; directories end with "/"."""
    return {part.name: [child.name + (b"" if child.version else b"/") for child in part.children] for part in parts}


def enter(tree: TreeWalk, upto: str | None = None) -> tuple[PagePart, ...]:
    """Do as an import whose page was entered: every directory gets a number."""
    parts = tree.page(upto)
    result = PageResult([], 0, [100 + at for at in range(len(parts))], [() for _part in parts], True)
    tree.entered(result, tree.place(result, upto))
    return parts


def test_page_shows_each_directory_once_parents_first() -> None:
    tree = walk()
    assert tree.feed(infos("a", "d/e/x", "d/f"), STARTED_NS) == 0
    parts = enter(tree)
    assert shown(parts) == {b"": [b"a", b"d/"], b"d": [b"e/", b"f"], b"e": [b"x"]}
    assert [part.parent for part in parts] == [None, 0, 1]
    assert [part.after == END for part in parts] == [False, False, True]
    assert tree.key == "d/f"


def test_directory_is_complete_when_the_scan_leaves_it_and_saw_all_of_it() -> None:
    tree = walk()
    tree.feed(infos("d/a", "d/b"), STARTED_NS)
    assert [part.may_complete and part.after == END for part in enter(tree)] == [False, False]
    tree.feed(infos("e"), STARTED_NS)
    tree.finish(None, Order.KEY)
    parts = enter(tree)
    assert {part.name: part.may_complete and part.after == END for part in parts} == {b"": True, b"d": True}
    assert {part.name: part.ino for part in parts} == {b"": 100, b"d": 101}


def test_directory_through_which_a_border_goes_is_not_complete_in_either_shard() -> None:
    upto = "d/b" + LAST_CHARACTER
    left, right = walk(), walk(upto)
    left.feed(infos("c/x", "d/a", "d/b"), STARTED_NS)
    left.finish(upto, Order.KEY)
    right.feed(infos("d/c", "e/x"), STARTED_NS)
    right.finish(None, Order.KEY)
    of_left = {part.name: part for part in enter(left, upto)}
    of_right = {part.name: part for part in enter(right)}
    assert {name: part.may_complete for name, part in of_left.items()} == {b"": False, b"c": True, b"d": False}
    assert {name: part.may_complete for name, part in of_right.items()} == {b"": False, b"d": False, b"e": True}
    # What one takes away ends where the other begins, and neither takes away the directory they share.
    for name in (b"", b"d"):
        assert of_left[name].after == of_right[name].before
    assert of_left[b""].kept == b"d"
    assert shown(of_right.values())[b""] == [b"d/", b"e/"]


def test_shard_with_nothing_of_a_shared_directory_does_not_announce_it() -> None:
    tree = walk("d/b" + LAST_CHARACTER)
    tree.feed(infos("e"), STARTED_NS)
    tree.finish(None, Order.KEY)
    parts = tree.page(None)
    assert shown(parts) == {b"": [b"e"], b"d": []}
    assert parts[1].after == END  # so that what lies behind the border is taken away


def test_directory_begun_by_a_page_is_dated_to_the_request_for_it() -> None:
    tree = walk()
    tree.feed(infos("a/x"), 10)
    enter(tree)
    tree.feed(infos("a/y", "b/x"), 20)
    assert {part.name: part.started_ns for part in enter(tree)} == {b"": STARTED_NS, b"a": 10, b"b": 20}


@pytest.mark.parametrize(
    ("key", "hidden"), [("a//b", 1), ("../x", 1), ("d/./x", 1), ("x" * 256, 1), ("d/", 0), ("d/e/", 0)]
)
def test_key_that_cannot_be_shown_is_counted_and_a_marker_is_not(key: str, hidden: int) -> None:
    assert walk().feed(infos(key), STARTED_NS) == hidden


def test_marker_shows_an_empty_directory_and_is_no_place_to_go_on_from() -> None:
    tree = walk()
    tree.feed(infos("c", "d/"), STARTED_NS)
    assert shown(enter(tree)) == {b"": [b"c", b"d/"], b"d": []}
    assert tree.key == "c"


@pytest.mark.parametrize("keys", [("b", "a"), ("a/x", "b", "a/y"), ("b/x", "a/x")])
def test_store_that_comes_back_is_refused(keys: tuple[str, ...]) -> None:
    tree = walk()
    with pytest.raises(DisorderedListingError):
        tree.feed(infos(*keys), STARTED_NS)


def test_walk_goes_on_from_its_stored_place_as_if_nothing_had_happened() -> None:
    keys = ["a", "d/e/x", "d/e/y", "d/f", "g/x"]
    through, first = walk(), walk()
    for tree in (through, first):
        tree.feed(infos(*keys[:2]), STARTED_NS)
    parts = first.page(None)
    waiting = Child(b"d", "d", VERSION)
    result = PageResult([], 0, list(range(len(parts))), [(waiting,), (), ()], True)
    place = first.place(result, None)
    enter(through)
    resumed = TreeWalk("", ROOT_INO, "", unpack_place(place.pack()), STARTED_NS, Order.KEY)
    assert (resumed.key, resumed.keys) == ("d/e/x", 2)
    for tree in (through, resumed):
        tree.feed(infos(*keys[2:]), STARTED_NS)
        tree.finish(None, Order.KEY)
    again, straight = resumed.page(None), through.page(None)
    assert shown(again) == shown(straight)
    assert [part.before for part in again] == [part.before for part in straight]
    assert [part.may_complete for part in again] == [part.may_complete for part in straight]
    assert again[0].deferred == (waiting,)


@pytest.mark.parametrize(
    ("keys", "known", "seen"),
    [
        (["a", "b", "b/c"], Order.UNKNOWN, Order.UNKNOWN),
        (["a-1", "a/x"], Order.UNKNOWN, Order.KEY),
        (["a/x", "a-1"], Order.UNKNOWN, Order.TREE),
        (["a", "b"], Order.TREE, Order.TREE),
    ],
)
def test_order_is_seen_where_the_orders_differ(keys: list[str], known: Order, seen: Order) -> None:
    assert observed_order(known, keys) is seen


@pytest.mark.parametrize(("keys", "known"), [(["b", "a"], Order.UNKNOWN), (["a/x", "a-1"], Order.KEY)])
def test_keys_in_no_order_or_in_another_are_refused(keys: list[str], known: Order) -> None:
    with pytest.raises(DisorderedListingError):
        observed_order(known, keys)


PARTS = st.text(alphabet="a-0", min_size=1, max_size=3)
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@given(
    keys=st.sets(KEYS, max_size=12),
    key=KEYS,
    length=st.integers(1, 8),
    order=st.sampled_from([Order.KEY, Order.TREE]),
)
def test_border_divides_the_names_of_a_directory_as_it_divides_the_keys(
    keys: set[str], key: str, length: int, order: Order
) -> None:
    upto = key[:length] + LAST_CHARACTER
    edge = border("", upto, order)
    for each in keys:
        name, slash, _rest = each.partition("/")
        child = Child(name.encode(), name + slash, None if slash else VERSION)
        if child.name == shared_name("", upto) and slash:
            continue  # both shards have some of it
        is_left = order.rank(each) <= order.rank(upto)
        left = BEGIN.advanced([child])
        if is_left:
            assert not (left.name > edge.name and left.key > edge.key), "the left shard would pass its own end"
        else:
            assert not edge.has_passed(child), "the right shard would take it for one that came back"


def test_border_beside_a_directory_leaves_all_of_it_to_one_side() -> None:
    assert border("d/", "c" + LAST_CHARACTER, Order.KEY) == BEGIN
    assert shared_name("", "d/x") == b"d"
    assert shared_name("d/", "d/x") == b""
