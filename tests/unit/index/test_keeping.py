"""What was changed here stays, what left its place here is not seen, and everything else is as the store says."""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanoutfs.index import removal
from fanoutfs.index.format import (
    DT_DIR,
    FLAG_ATTRS,
    FLAG_HELD,
    FLAG_LISTED,
    FLAG_LOCAL,
    Departed,
    Dirty,
    DirtyRecord,
    Inode,
    Ownership,
    directory_inode,
    file_inode,
    with_links,
)
from fanoutfs.index.importing import CompleteDirectory, EnterPage, PagePart
from fanoutfs.index.merging import BEGIN, END, MergeNames, NoteComplete
from fanoutfs.index.operations import ApplyChildren, ChangeKind, Child, OpenVolume, remove_leaf
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.removal import RemoveName
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import ROOT_INO, Version
from tests.unit.indexes import NOW_NS, OWNER, apply, enter_listing, file, folder, open_index, version

LATER_NS = NOW_NS + 10**9
DIRTY = DirtyRecord(NOW_NS, NOW_NS, Dirty.CONTENT)


# --- changes made here, as the operations of `changes` leave them in the index -----------------------------------


def create(txn: IndexTransaction, parent: int, name: str, *, is_dir: bool = False) -> int:
    ino = txn.new_ino()
    above = txn.inode(parent)
    assert above is not None
    if is_dir:
        inode = replace(directory_inode(ino, f"{above.key}{name}/", NOW_NS, OWNER), flags=FLAG_LOCAL | FLAG_LISTED)
    else:
        inode = file_inode(ino, above.key + name, Version("", "", 5, NOW_NS), OWNER)
        inode = replace(inode, flags=inode.flags | FLAG_LOCAL | FLAG_ATTRS)
        txn.add_totals(1, 5)
    txn.put_inode(inode)
    txn.put_entry(parent, name.encode(), inode)
    txn.changed.put_name(ino, parent, name.encode())
    txn.changed.put_dirty(ino, DIRTY)
    return ino


def unlink(txn: IndexTransaction, parent: int, name: str) -> None:
    known = txn.entry(parent, name.encode())
    assert known is not None
    inode = txn.inode(known[0])
    assert inode is not None
    if not inode.is_local:
        txn.changed.put_departed(inode.key, Departed(0, inode.version))
    txn.changed.delete_dirty(inode.ino)
    remove_leaf(txn, parent, name.encode(), inode.ino, NOW_NS)


def rename(txn: IndexTransaction, parent: int, old: str, new: str) -> None:
    known = txn.entry(parent, old.encode())
    assert known is not None
    inode = txn.inode(known[0])
    assert inode is not None
    txn.delete_entry(parent, old.encode())
    txn.put_entry(parent, new.encode(), inode)
    txn.changed.put_name(inode.ino, parent, new.encode())
    txn.changed.put_dirty(inode.ino, DIRTY)
    if not inode.is_local:
        txn.changed.put_departed(inode.key, Departed(inode.ino, inode.version))
    if inode.is_dir:
        txn.put_inode(replace(inode, flags=inode.flags | FLAG_HELD))


def change(txn: IndexTransaction, ino: int, **fields: int) -> None:
    inode = txn.inode(ino)
    assert inode is not None
    txn.put_inode(replace(inode, **fields))  # type: ignore[arg-type]


def lookup(index: IndexEnvironment, *path: str) -> Inode | None:
    def walk(txn: IndexTransaction) -> Inode | None:
        inode = txn.inode(ROOT_INO)
        for name in path:
            known = None if inode is None else txn.entry(inode.ino, name.encode())
            inode = None if known is None else txn.inode(known[0])
        return inode

    return apply(index, walk)


def found(index: IndexEnvironment, *path: str) -> Inode:
    inode = lookup(index, *path)
    assert inode is not None, path
    return inode


def tree(index: IndexEnvironment, parent: int = ROOT_INO) -> set[str]:
    """Every path there is."""
    paths = set()
    for name, ino, dtype in apply(index, lambda txn: txn.entries(parent)):
        paths.add(name.decode())
        if dtype == DT_DIR:
            paths |= {f"{name.decode()}/{below}" for below in tree(index, ino)}
    return paths


# --- any order of changes here, changes there, and listings ------------------------------------------------------


@dataclass
class Store:
    """What the object store has in one directory."""

    files: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    etags: int = 0

    def put(self, name: str) -> str:
        self.etags += 1
        self.files[name] = str(self.etags)
        return self.files[name]

    def listing(self, *, is_tree: bool) -> list[Child]:
        keys = [*self.files, *(name + "/" for name in self.folders)]
        ordered = sorted(keys, key=lambda key: (key.rstrip("/"), key) if is_tree else (key,))
        return [folder(key[:-1]) if key.endswith("/") else file(key, self.files[key]) for key in ordered]


NAMES = st.sampled_from(["a", "a-", "a.b", "b"])
STEPS = st.one_of(
    st.tuples(st.sampled_from(["create", "mkdir", "unlink", "touch", "publish", "delete there"]), NAMES, NAMES),
    st.tuples(st.sampled_from(["rename", "foreign put", "foreign delete", "foreign folder"]), NAMES, NAMES),
    st.tuples(st.sampled_from(["list by key", "list by tree"]), st.integers(1, 3), st.integers(0, 1)),
)


class Both:
    """An index and a store that change each for itself."""

    def __init__(self, index: IndexEnvironment) -> None:
        self.index = index
        self.store = Store()

    def step(self, what: str, one: str, other: str) -> None:
        inode = lookup(self.index, one)
        match what:
            case "create" | "mkdir" if inode is None:
                apply(self.index, lambda txn: create(txn, ROOT_INO, one, is_dir=what == "mkdir"))
            case "unlink" if inode is not None and not inode.is_dir:
                apply(self.index, lambda txn: unlink(txn, ROOT_INO, one))
            case "touch" if inode is not None and not inode.is_dir:
                apply(self.index, lambda txn: txn.changed.put_dirty(inode.ino, DIRTY))
            case "rename" if inode is not None and lookup(self.index, other) is None:
                apply(self.index, lambda txn: rename(txn, ROOT_INO, one, other))
            case "publish" if inode is not None and self.is_dirty(inode.ino):
                self.publish(inode, one)
            case "delete there":
                self.store.files.pop(one, None)
                apply(self.index, lambda txn: txn.changed.delete_departed(one))
            case "foreign put":
                self.store.put(one)
            case "foreign delete":
                self.store.files.pop(one, None)
                self.store.folders.discard(one)
            case "foreign folder":
                self.store.folders.add(one)

    def is_dirty(self, ino: int) -> bool:
        return apply(self.index, lambda txn: txn.changed.dirty(ino)) is not None

    def publish(self, inode: Inode, name: str) -> None:
        def publish(txn: IndexTransaction) -> None:
            flags = inode.flags & ~(FLAG_LOCAL | FLAG_HELD)
            if inode.is_dir:
                self.store.folders.discard(inode.key[:-1])
                self.store.folders.add(name)
                txn.changed.delete_departed(inode.key)
                txn.changed.delete_departed(name + "/")
                txn.put_inode(replace(inode, key=name + "/", flags=flags))
            else:
                if not inode.is_local and inode.key != name:
                    self.store.files.pop(inode.key, None)
                    txn.changed.delete_departed(inode.key)
                txn.changed.delete_departed(name)
                txn.put_inode(replace(inode, key=name, etag=self.store.put(name), flags=flags | FLAG_ATTRS))
            txn.changed.delete_dirty(inode.ino)

        apply(self.index, publish)

    def enter(self, children: list[Child], size: int) -> None:
        """List, and check every name."""
        before = {name.decode(): (txn_inode, is_kept) for name, txn_inode, is_kept in apply(self.index, self._known)}
        departed = {key for key, _record in apply(self.index, lambda txn: list_of(txn.changed.all_departed()))}
        enter_listing(self.index, *(children[at : at + size] for at in range(0, len(children), size)))
        after = {name.decode(): inode for name, inode, _is_kept in apply(self.index, self._known)}
        for name in {*before, *after, *self.store.files, *self.store.folders}:
            known, is_kept = before.get(name, (None, False))
            now = after.get(name)
            if is_kept:
                assert now == known, name
            elif name in self.store.folders and name + "/" not in departed:
                assert now is not None
                assert now.is_dir, name
            elif name in self.store.files and name not in departed:
                assert now is not None
                assert (now.is_dir, now.etag) == (False, self.store.files[name]), name
                if known is not None and known.etag == now.etag:
                    assert now.ino == known.ino
            else:
                assert now is None, name

    @staticmethod
    def _known(txn: IndexTransaction) -> list[tuple[bytes, Inode, bool]]:
        known = []
        for name, ino, _dtype in txn.entries(ROOT_INO):
            inode = txn.inode(ino)
            assert inode is not None
            is_kept = bool(inode.flags & (FLAG_LOCAL | FLAG_HELD)) or txn.changed.dirty(ino) is not None
            known.append((name, inode, is_kept))
        return known


def list_of(records: object) -> list[tuple[str, Departed]]:
    return list(records)  # type: ignore[call-overload, no-any-return]


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, min_size=3, max_size=30), st.booleans(), st.integers(1, 3))
def test_local_stays_departed_is_not_seen_and_the_rest_is_as_the_store_says(
    steps: list[tuple[str, str, str]], is_tree: bool, size: int
) -> None:
    with tempfile.TemporaryDirectory() as path, open_index(Path(path)) as index:
        both = Both(index)
        for what, one, other in steps:
            if what.startswith("list"):
                both.enter(both.store.listing(is_tree=what == "list by tree"), int(one))
            else:
                both.step(what, one, other)
        both.enter(both.store.listing(is_tree=is_tree), size)


# --- a directory that vanishes -----------------------------------------------------------------------------------

PATHS = st.dictionaries(
    st.lists(st.sampled_from("xyz"), min_size=1, max_size=4).map(tuple),
    st.sampled_from(["clean", "clean", "dirty", "local"]),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(paths=PATHS, limit=st.sampled_from([1, 2, 1000]))
def test_vanished_directory_stays_with_exactly_what_is_not_in_the_store(
    paths: dict[tuple[str, ...], str], limit: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as path,
        pytest.MonkeyPatch.context() as patch,
        open_index(Path(path)) as index,
    ):
        patch.setattr(removal, "REMOVALS_PER_APPLY", limit)
        enter_listing(index, [folder("d")])
        expected = set()
        for parts, state in paths.items():
            at = found(index, "d")
            for depth, part in enumerate(parts):
                is_dir = depth < len(parts) - 1
                name = part if is_dir else part + ".file"
                if lookup(index, "d", *parts[:depth], name) is None:
                    child = folder(name, at.key) if is_dir else file(name, prefix=at.key)
                    apply(index, ApplyChildren(at.ino, (child,), OWNER, NOW_NS).apply)
                at = found(index, "d", *parts[:depth], name)
            if state == "dirty":
                apply(index, lambda txn, ino=at.ino: txn.changed.put_dirty(ino, DIRTY))  # type: ignore[misc]
            elif state == "local":
                apply(index, lambda txn, each=at: txn.put_inode(replace(each, flags=FLAG_LOCAL)))  # type: ignore[misc]
            if state != "clean":
                leaf = (*parts[:-1], parts[-1] + ".file")
                expected |= {"/".join(("d", *leaf[:depth])) for depth in range(len(leaf) + 1)}
        merge = MergeNames(ROOT_INO, (), BEGIN, END, OWNER, NOW_NS, (), NOW_NS)
        while not (result := apply(index, merge.apply)).is_done:
            assert len(result.changes) == limit
        assert tree(index) == expected
        assert apply(index, merge.apply).changes == []


def test_more_local_names_than_one_transaction_removes_do_not_hide_what_is_gone(
    index: IndexEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "REMOVALS_PER_APPLY", 5)
    for number in range(30):
        apply(index, lambda txn, number=number: create(txn, ROOT_INO, f"a{number:02d}"))  # type: ignore[misc]
    apply(index, ApplyChildren(ROOT_INO, (file("b"),), OWNER, NOW_NS).apply)
    enter_listing(index)
    assert tree(index) == {f"a{number:02d}" for number in range(30)}


@pytest.mark.parametrize("flag", [FLAG_LOCAL, FLAG_HELD], ids=["made here", "being moved"])
def test_directory_known_here_alone_keeps_everything_below_it(index: IndexEnvironment, flag: int) -> None:
    enter_listing(index, [folder("d")])
    directory = found(index, "d")
    enter_listing(index, [file("x", prefix="d/")], parent=directory.ino)
    apply(index, lambda txn: change(txn, directory.ino, flags=flag | FLAG_LISTED))
    enter_listing(index)
    enter_listing(index, [file("y", prefix="d/")], parent=directory.ino)
    assert tree(index) == {"d", "d/x"}


# --- directories being moved -------------------------------------------------------------------------------------


def moved_directory(index: IndexEnvironment) -> Inode:
    """Return a directory, never listed, that was renamed from a to b."""
    enter_listing(index, [folder("a")])
    apply(index, lambda txn: rename(txn, ROOT_INO, "a", "b"))
    return found(index, "b")


def test_directory_moved_before_it_was_listed_learns_its_names_from_the_old_place(index: IndexEnvironment) -> None:
    directory = moved_directory(index)
    apply(index, lambda txn: create(txn, directory.ino, "mine"))
    apply(index, lambda txn: txn.changed.put_departed("a/gone", Departed(0, version("1"))))
    shown = [file(name, prefix="a/") for name in ("gone", "mine", "x")]
    mine = found(index, "b", "mine")
    enter_listing(index, [*shown, folder("y", prefix="a/")], parent=directory.ino)
    assert tree(index) == {"b", "b/mine", "b/x", "b/y"}
    assert found(index, "b", "mine") == mine
    assert found(index, "b").is_listed


def test_listed_directory_below_one_that_is_moved_is_left_as_it_is(index: IndexEnvironment) -> None:
    enter_listing(index, [folder("a")])
    enter_listing(index, [folder("sub", prefix="a/")], parent=found(index, "a").ino)
    below = found(index, "a", "sub")
    enter_listing(index, [file("x", prefix="a/sub/")], parent=below.ino)
    apply(index, lambda txn: rename(txn, ROOT_INO, "a", "b"))
    enter_listing(index, [folder("a")])
    enter_listing(index, [file("y", prefix="a/sub/")], parent=below.ino)
    apply(index, RemoveName(below.ino, b"x", NOW_NS).apply)
    apply(index, ApplyChildren(below.ino, (file("z", prefix="a/sub/"),), OWNER, NOW_NS).apply)
    assert tree(index) == {"b", "b/sub", "b/sub/x"}


def test_page_of_a_listing_that_began_before_the_move_ended_is_dropped(index: IndexEnvironment) -> None:
    directory = moved_directory(index)
    apply(index, lambda txn: change(txn, directory.ino, flags=FLAG_LISTED, key="b/"))  # type: ignore[arg-type]
    merge = MergeNames(directory.ino, (file("x", prefix="a/"),), BEGIN, END, OWNER, NOW_NS, (), NOW_NS, key="a/")
    assert apply(index, merge.apply).changes == []
    assert tree(index) == {"b"}


def test_import_leaves_moved_and_local_directories_alone(index: IndexEnvironment) -> None:
    directory = moved_directory(index)
    part = PagePart(None, directory.ino, b"", (file("x", prefix="a/"),), BEGIN, END, (), LATER_NS, True, b"", "a/")
    result = apply(index, EnterPage((part,), frozenset(), OWNER, LATER_NS).apply)
    assert result.is_done
    assert result.changes == []
    apply(index, CompleteDirectory(directory.ino, LATER_NS).apply)
    assert not found(index, "b").is_listed
    apply(index, lambda txn: change(txn, directory.ino, flags=0, key="b/"))  # type: ignore[arg-type]
    assert apply(index, EnterPage((part,), frozenset(), OWNER, LATER_NS).apply).changes == []
    assert tree(index) == {"b"}


def test_complete_directory_counts_as_fresh_and_any_other_does_not(index: IndexEnvironment) -> None:
    apply(index, lambda txn: create(txn, ROOT_INO, "d", is_dir=True))
    enter_listing(index, [folder("e")])
    for name in ("d", "e"):
        apply(index, NoteComplete(found(index, name).ino, LATER_NS).apply)
    assert found(index, "d").listed_at_ns == LATER_NS
    assert found(index, "e").listed_at_ns == 0


# --- names and links ---------------------------------------------------------------------------------------------


def test_names_settled_since_the_store_was_asked_stay_as_they_are(index: IndexEnvironment) -> None:
    enter_listing(index, [file("changed", "2"), file("uploaded")])
    settled = frozenset({b"changed", b"deleted", b"uploaded"})
    before = {name: lookup(index, name) for name in ("changed", "uploaded")}
    page = (file("changed", "1"), file("deleted"))
    merge = MergeNames(ROOT_INO, page, BEGIN, END, OWNER, NOW_NS, (), NOW_NS, settled=settled)
    assert apply(index, merge.apply).changes == []
    apply(index, ApplyChildren(ROOT_INO, page, OWNER, NOW_NS, settled).apply)
    apply(index, RemoveName(ROOT_INO, b"uploaded", NOW_NS, settled).apply)
    assert {name: lookup(index, name) for name in ("changed", "uploaded")} == before
    assert tree(index) == {"changed", "uploaded"}


def test_further_hard_link_stays_and_the_file_lives_on_when_its_object_goes(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a")])
    inode = with_links(found(index, "a"), 2)

    def link(txn: IndexTransaction) -> None:
        txn.put_inode(inode)
        cookie = txn.new_ino()
        txn.put_entry(ROOT_INO, b"b", inode, cookie)
        txn.changed.put_name(cookie, ROOT_INO, b"b")

    apply(index, link)
    changes, _hidden = enter_listing(index, [file("a", "2")])
    assert [change.kind for change in changes] == [ChangeKind.REPLACED]
    assert found(index, "b") == with_links(inode, 1)
    assert not apply(index, lambda txn: txn.is_orphan(inode.ino))
    assert found(index, "a").etag == "2"


def test_key_too_long_to_be_recorded_is_never_departed(index: IndexEnvironment) -> None:
    apply(index, lambda txn: txn.changed.put_departed("a", Departed(0, version("1"))))
    assert apply(index, lambda txn: txn.changed.departed("k" * 600)) is None


# --- attributes --------------------------------------------------------------------------------------------------


def test_time_set_here_stays_when_the_listing_says_when_it_was_uploaded(index: IndexEnvironment) -> None:
    enter_listing(index, [file("a", mtime_ns=5)])
    inode = found(index, "a")
    apply(index, lambda txn: change(txn, inode.ino, flags=inode.flags | FLAG_ATTRS))
    changes, _hidden = enter_listing(index, [file("a", mtime_ns=LATER_NS)])
    assert changes == []
    assert found(index, "a").attr == inode.attr


@pytest.mark.parametrize("state", ["attributes", "local", "staged", "dirty"])
def test_other_mount_options_leave_what_was_set_here(index: IndexEnvironment, state: str) -> None:
    enter_listing(index, [file("a"), file("b")])
    inode = found(index, "a")
    flags = {"attributes": FLAG_ATTRS, "local": FLAG_LOCAL, "staged": 4}.get(state, 0)
    apply(index, lambda txn: change(txn, inode.ino, flags=inode.flags | flags))
    if state == "dirty":
        apply(index, lambda txn: txn.changed.put_dirty(inode.ino, DIRTY))
    before = found(index, "a")
    apply(index, OpenVolume("test", Ownership(5, 6, 0o600, 0o700, 0), NOW_NS).apply)
    assert found(index, "a") == before
    assert found(index, "b").mode & 0o777 == 0o600


def test_path_of_a_kept_name_can_still_be_told(index: IndexEnvironment) -> None:
    enter_listing(index, [folder("d")])
    ino = apply(index, lambda txn: create(txn, found_in(txn, "d"), "x"))
    enter_listing(index)
    reader = IndexReader(index)
    with reader.begin() as txn:
        assert reader.path(txn, ino) == "d/x"


def found_in(txn: IndexTransaction, name: str) -> int:
    known = txn.entry(ROOT_INO, name.encode())
    assert known is not None
    return known[0]
