"""Changes that requests ask for, on a real index: names, objects that depart, what is dirty, exactly once."""

import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.errors import FanoutError, StaleInodeError
from fanoutfs.index.attributes import RemoveXattr, SetAttributes, SetXattr
from fanoutfs.index.changes import RENAME_EXCHANGE, RENAME_NOREPLACE, Link, MakeNode, Rename, Rmdir, Unlink
from fanoutfs.index.format import Departed, Dirty, Inode, attr_times_ns
from fanoutfs.index.operations import FreeOrphans
from fanoutfs.index.places import Places
from fanoutfs.index.requests import Request
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.records import ROOT_INO, Version
from fanoutfs.wire.kernel import Opcode
from fanoutfs.wire.relay import TOKEN_RESENT
from tests.unit.indexes import NOW_NS, apply, enter_listing, file, folder, open_index

FILE, DIR = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
_NUMBER = [1000]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[IndexEnvironment]:
    """An index whose root has the file `old` and the directory `dir` with `inside`, both from the store."""
    with open_index(tmp_path) as environment:
        enter_listing(environment, [folder("dir"), file("old", "e1")])
        enter_listing(environment, [file("inside", "e2", prefix="dir/")], parent=ino_of(environment, "dir"))
        yield environment


def request(token: int = 0, opcode: int = 0, now_ns: int = NOW_NS + 5) -> Request:
    return Request(now_ns, token, opcode, "")


def ino_of(index: IndexEnvironment, path: str) -> int:
    ino = ROOT_INO
    with write_transaction(index) as txn:
        for name in path.split("/"):
            found = txn.entry(ino, name.encode())
            assert found is not None, path
            ino = found[0]
    return ino


def inode_of(index: IndexEnvironment, path: str) -> Inode:
    ino = ino_of(index, path)
    with write_transaction(index) as txn:
        inode = txn.inode(ino)
    assert inode is not None
    return inode


def key_of(index: IndexEnvironment, ino: int) -> str | None:
    with write_transaction(index) as txn:
        return Places.of_transaction(txn, "").key(ino)


def departed(index: IndexEnvironment) -> dict[str, int]:
    with write_transaction(index) as txn:
        return {key: record.ino for key, record in txn.changed.all_departed()}


def dirty(index: IndexEnvironment) -> dict[int, Dirty]:
    with write_transaction(index) as txn:
        return {ino: record.what for ino, record in txn.changed.all_dirty()}


def make(index: IndexEnvironment, path: str, mode: int = FILE, *, gid: int = 7, asked: Request | None = None) -> Inode:
    parent, _, name = path.rpartition("/")
    _NUMBER[0] += 1
    node = MakeNode(
        ino_of(index, parent) if parent else ROOT_INO, name.encode(), _NUMBER[0], mode, 5, gid, asked or request()
    )
    return apply(index, node.apply)


def rename(index: IndexEnvironment, old: str, new: str, flags: int = 0, asked: Request | None = None) -> int:
    (parent, name), (new_parent, new_name) = (_place(index, path) for path in (old, new))
    return apply(index, Rename(parent, name, new_parent, new_name, flags, asked or request()).apply)


def _place(index: IndexEnvironment, path: str) -> tuple[int, bytes]:
    parent, _, name = path.rpartition("/")
    return (ino_of(index, parent) if parent else ROOT_INO), name.encode()


def refuses(code: int) -> "pytest.RaisesExc[FanoutError]":
    return pytest.raises(FanoutError, check=lambda error: error.errno_code == code)


# --- making ----------------------------------------------------------------------------------------------------


def test_new_file_is_staged_local_dirty_and_has_a_path(index: IndexEnvironment) -> None:
    made = make(index, "dir/new", FILE)
    assert made.is_staged and made.is_whole and made.is_local and not made.key
    assert dirty(index) == {made.ino: Dirty.CONTENT | Dirty.META}
    assert key_of(index, made.ino) == "dir/new"
    assert attr_times_ns(inode_of(index, "dir").attr)[1] == NOW_NS + 5


def test_new_directory_is_listed_and_held_only_where_objects_departed(index: IndexEnvironment) -> None:
    made = make(index, "d", DIR)
    assert made.is_listed and made.is_local and not made.is_held and made.key == "d/"
    rename(index, "dir", "moved")
    assert make(index, "dir", DIR).is_held


def test_new_entry_takes_the_group_of_a_set_group_id_directory(index: IndexEnvironment) -> None:
    make(index, "g", DIR | stat.S_ISGID, gid=99)
    assert make(index, "g/f", gid=7).gid == 99
    below = make(index, "g/d", DIR, gid=7)
    assert below.gid == 99 and below.mode & stat.S_ISGID


@pytest.mark.parametrize(
    ("path", "code"), [("old", errno.EEXIST), ("dir", errno.EEXIST), ("x" * 256, errno.ENAMETOOLONG)]
)
def test_making_is_refused(index: IndexEnvironment, path: str, code: int) -> None:
    with refuses(code):
        make(index, path)
    assert not dirty(index)


def test_making_in_a_file_a_removed_directory_or_nowhere_is_refused(index: IndexEnvironment) -> None:
    hollow = make(index, "hollow", DIR).ino
    apply(index, Rmdir(ROOT_INO, b"hollow", request()).apply)
    for parent, code in ((ino_of(index, "old"), errno.ENOTDIR), (hollow, errno.ENOENT), (77, errno.ESTALE)):
        with refuses(code):
            apply(index, MakeNode(parent, b"n", 2000, FILE, 0, 0, request()).apply)


# --- removing --------------------------------------------------------------------------------------------------


def test_unlinked_object_departs_to_its_inode_until_the_kernel_has_forgotten_it(index: IndexEnvironment) -> None:
    ino = ino_of(index, "old")
    apply(index, Unlink(ROOT_INO, b"old", request()).apply)
    assert departed(index) == {"old": ino}
    assert apply(index, FreeOrphans((ino,)).apply) == [ino]
    assert departed(index) == {"old": 0}


def test_unlinked_new_file_leaves_nothing(index: IndexEnvironment) -> None:
    made = make(index, "new")
    apply(index, Unlink(ROOT_INO, b"new", request()).apply)
    assert not departed(index) and not dirty(index)
    with write_transaction(index) as txn:
        gone = txn.inode(made.ino)
        assert gone is not None and gone.links == 0 and gone.is_staged and txn.is_orphan(made.ino)
        assert txn.changed.name(made.ino) is None


def test_unlink_and_rmdir_refuse_each_others_things(index: IndexEnvironment) -> None:
    for operation, code in (
        (Unlink(ROOT_INO, b"dir", request()), errno.EISDIR),
        (Rmdir(ROOT_INO, b"old", request()), errno.ENOTDIR),
        (Rmdir(ROOT_INO, b"dir", request()), errno.ENOTEMPTY),
        (Unlink(ROOT_INO, b"none", request()), errno.ENOENT),
        (Rmdir(ROOT_INO, b"none", request()), errno.ENOENT),
    ):
        with refuses(code):
            apply(index, operation.apply)


def test_removed_directory_of_the_store_departs_and_a_new_one_does_not(index: IndexEnvironment) -> None:
    make(index, "new", DIR)
    apply(index, Rmdir(ROOT_INO, b"new", request()).apply)
    assert not departed(index)
    inside = ino_of(index, "dir/inside")
    apply(index, Unlink(ino_of(index, "dir"), b"inside", request()).apply)
    apply(index, Rmdir(ROOT_INO, b"dir", request()).apply)
    assert departed(index) == {"dir/": 0, "dir/inside": inside}


# --- hard links ------------------------------------------------------------------------------------------------


def link(index: IndexEnvironment, ino: int, parent: int, name: bytes) -> Inode:
    _NUMBER[0] += 1
    return apply(index, Link(ino, parent, name, _NUMBER[0], request()).apply)


def test_links_are_counted_and_the_last_one_leaves_an_orphan(index: IndexEnvironment) -> None:
    ino, parent = ino_of(index, "old"), ino_of(index, "dir")
    assert link(index, ino, parent, b"two").links == 2
    assert link(index, ino, ROOT_INO, b"three").links == 3
    assert key_of(index, ino) == "old"
    apply(index, Unlink(ROOT_INO, b"old", request()).apply)
    assert key_of(index, ino) in ("dir/two", "three") and departed(index) == {"old": ino}
    apply(index, Unlink(parent, b"two", request()).apply)
    assert key_of(index, ino) == "three" and inode_of(index, "three").links == 1
    apply(index, Unlink(ROOT_INO, b"three", request()).apply)
    with write_transaction(index) as txn:
        assert txn.is_orphan(ino) and not txn.changed.links(ino)
    assert not dirty(index)


def test_link_of_a_directory_or_an_orphan_is_refused(index: IndexEnvironment) -> None:
    ino = ino_of(index, "old")
    with refuses(errno.EPERM):
        link(index, ino_of(index, "dir"), ROOT_INO, b"x")
    apply(index, Unlink(ROOT_INO, b"old", request()).apply)
    with refuses(errno.ENOENT):
        link(index, ino, ROOT_INO, b"x")


def test_renaming_one_link_over_the_other_changes_nothing(index: IndexEnvironment) -> None:
    ino = ino_of(index, "old")
    link(index, ino, ROOT_INO, b"two")
    rename(index, "old", "two")
    assert ino_of(index, "old") == ino_of(index, "two") == ino
    assert inode_of(index, "two").links == 2


# --- renaming --------------------------------------------------------------------------------------------------


def test_renamed_object_departs_and_comes_back(index: IndexEnvironment) -> None:
    ino = ino_of(index, "old")
    rename(index, "old", "dir/new")
    assert departed(index) == {"old": ino} and dirty(index) == {ino: Dirty(0)}
    assert inode_of(index, "dir/new").is_local and key_of(index, ino) == "dir/new"
    rename(index, "dir/new", "old")
    assert not departed(index) and not dirty(index) and not inode_of(index, "old").is_local


def test_renamed_new_file_costs_nothing_in_the_store(index: IndexEnvironment) -> None:
    made = make(index, "file.part")
    rename(index, "file.part", "file")
    assert not departed(index) and key_of(index, made.ino) == "file"


def test_rename_over_a_file_leaves_its_object_to_the_orphan(index: IndexEnvironment) -> None:
    old, made = ino_of(index, "old"), make(index, "new")
    rename(index, "new", "old")
    assert ino_of(index, "old") == made.ino and departed(index) == {"old": old}
    with write_transaction(index) as txn:
        assert txn.is_orphan(old)


def test_renamed_directory_is_one_change_and_its_files_know_their_places(index: IndexEnvironment) -> None:
    directory, inside = ino_of(index, "dir"), ino_of(index, "dir/inside")
    rename(index, "dir", "moved")
    moved = inode_of(index, "moved")
    assert moved.is_held and moved.key == "dir/" and departed(index) == {"dir/": directory}
    assert key_of(index, inside) == "moved/inside"
    rename(index, "moved/inside", "out")
    assert key_of(index, inside) == "out"
    assert departed(index) == {"dir/": directory, "dir/inside": inside}


def test_directory_made_where_another_one_left_owns_nothing_there(index: IndexEnvironment) -> None:
    first = ino_of(index, "dir")
    rename(index, "dir", "a")
    second = make(index, "dir", DIR)
    rename(index, "dir", "b")
    assert departed(index)["dir/"] == first and inode_of(index, "b").key == "b/"
    assert key_of(index, second.ino) == "b/"


def test_directory_that_came_back_owns_its_prefix_again(index: IndexEnvironment) -> None:
    directory = ino_of(index, "dir")
    rename(index, "dir", "a")
    rename(index, "a", "dir")
    assert "dir/" not in departed(index) and departed(index).get("a/", directory) == directory
    assert key_of(index, ino_of(index, "dir/inside")) == "dir/inside"


@pytest.mark.parametrize(
    ("old", "new", "flags", "code"),
    [
        ("none", "x", 0, errno.ENOENT),
        ("old", "dir", 0, errno.EISDIR),
        ("dir", "old", 0, errno.ENOTDIR),
        ("hollow", "dir", 0, errno.ENOTEMPTY),
        ("old", "dir", RENAME_NOREPLACE, errno.EEXIST),
        ("old", "none", RENAME_EXCHANGE, errno.ENOENT),
        ("dir", "dir/below", 0, errno.EINVAL),
        ("dir", "dir/inside", RENAME_EXCHANGE, errno.EINVAL),
        ("old", "x", 3, errno.EINVAL),
        ("old", "y" * 256, 0, errno.ENAMETOOLONG),
    ],
)
def test_rename_is_refused(index: IndexEnvironment, old: str, new: str, flags: int, code: int) -> None:
    make(index, "hollow", DIR)
    before = dirty(index), departed(index)
    with refuses(code):
        rename(index, old, new, flags)
    assert (dirty(index), departed(index)) == before


def test_exchange_swaps_file_and_directory(index: IndexEnvironment) -> None:
    old, directory = ino_of(index, "old"), ino_of(index, "dir")
    rename(index, "old", "dir", RENAME_EXCHANGE)
    assert ino_of(index, "dir") == old and ino_of(index, "old") == directory
    assert key_of(index, old) == "dir" and key_of(index, directory) == "old/"
    assert departed(index) == {"old": old, "dir/": directory}


# --- attributes ------------------------------------------------------------------------------------------------


def test_attributes_of_a_clean_file_make_it_dirty_and_keep_its_content(index: IndexEnvironment) -> None:
    ino = ino_of(index, "old")
    changed = apply(index, SetAttributes(ino, request(), mode=0o4600, uid=3, mtime_ns=-5).apply)
    assert stat.S_IMODE(changed.mode) == 0o4600 and stat.S_ISREG(changed.mode)
    assert attr_times_ns(changed.attr) == (NOW_NS, -5, NOW_NS + 5)
    assert changed.has_attributes and changed.key == "old" and not changed.is_staged
    assert dirty(index) == {ino: Dirty.META} and key_of(index, ino) == "old"


def test_time_of_access_alone_is_not_worth_an_upload(index: IndexEnvironment) -> None:
    apply(index, SetAttributes(ino_of(index, "old"), request(), atime_ns=1).apply)
    assert not dirty(index)


def test_root_has_attributes_and_no_object(index: IndexEnvironment) -> None:
    apply(index, SetAttributes(ROOT_INO, request(), mode=0o700).apply)
    assert not dirty(index)


def test_extended_attributes_are_set_and_removed(index: IndexEnvironment) -> None:
    ino = ino_of(index, "old")
    apply(index, SetXattr(ino, b"user.a", b"1", request()).apply)
    with write_transaction(index) as txn:
        assert txn.changed.xattrs(ino) == {b"user.a": b"1"}
    apply(index, RemoveXattr(ino, b"user.a", request()).apply)
    with refuses(errno.ENODATA):
        apply(index, RemoveXattr(ino, b"user.a", request()).apply)
    with pytest.raises(StaleInodeError):
        apply(index, SetXattr(77, b"user.a", b"1", request()).apply)


# --- exactly once ----------------------------------------------------------------------------------------------


def test_request_delivered_again_is_answered_and_not_done_again(index: IndexEnvironment) -> None:
    first = request(5, Opcode.MKNOD)
    again = request(5 | TOKEN_RESENT, Opcode.MKNOD)
    made = make(index, "new", asked=first)
    assert make(index, "new", asked=again).ino == made.ino
    with refuses(errno.EEXIST):
        make(index, "new", asked=request(6 | TOKEN_RESENT, Opcode.MKNOD))
    apply(index, Unlink(ROOT_INO, b"new", request(7, Opcode.UNLINK)).apply)
    make(index, "new")
    assert apply(index, Unlink(ROOT_INO, b"new", request(7 | TOKEN_RESENT, Opcode.UNLINK)).apply) == made.ino
    assert ino_of(index, "new") != made.ino  # the file that was made since is still there


def test_token_counts_only_with_its_opcode_and_only_when_delivered_again(index: IndexEnvironment) -> None:
    make(index, "a", asked=request(5, Opcode.MKNOD))
    with refuses(errno.EEXIST):
        make(index, "a", asked=request(5, Opcode.MKNOD))
    with refuses(errno.ENOENT):
        rename(index, "b", "c", asked=request(5 | TOKEN_RESENT, Opcode.RENAME))


def test_parents_times_never_stand_still(index: IndexEnvironment) -> None:
    seen = []
    for name in ("a", "b", "c"):
        make(index, name)
        with write_transaction(index) as txn:
            root = txn.inode(ROOT_INO)
            assert root is not None
            seen.append(attr_times_ns(root.attr)[1])
    assert seen == sorted(set(seen))


def test_objects_record_names_what_departed(index: IndexEnvironment) -> None:
    inode = inode_of(index, "old")
    rename(index, "old", "new")

    def look(txn: IndexTransaction) -> Departed | None:
        return txn.changed.departed("old")

    assert apply(index, look) == Departed(inode.ino, inode.version)


def test_carried_out_requests_are_forgotten_when_many_came_after_them(index: IndexEnvironment) -> None:
    inode = make(index, "a")
    with write_transaction(index) as txn:
        for token in range(1, 20_001):
            request(token).note(txn, inode.ino)
        kept = txn.changed.applied_count
        assert 4096 <= kept <= 8192
        assert txn.changed.applied(20_000) is not None
        assert txn.changed.applied(1) is None


def test_departed_keys_of_any_length_are_found_by_prefix_and_page_by_page(index: IndexEnvironment) -> None:
    parts = ["d" * 200, "e" * 200, "ü" * 100, "g" * 200, "\udcff" * 50]
    directories = ["".join(f"{part}/" for part in parts[:depth]) for depth in range(len(parts) + 1)]
    lengths = [1, 2, 29, 77, 78, 79, 108, 109, 110, 111, 200, 255]
    keys = {f"{directory}{'n' * length}" for directory in directories for length in lengths}
    keys |= {f"{directory}{'n' * length}/" for directory in directories for length in lengths}
    keys |= set(directories[1:])
    records = {key: Departed(at, Version(f"e{at}", f"v{at}", at, NOW_NS)) for at, key in enumerate(sorted(keys))}
    assert {510, 511, 512} <= {len(key.encode("utf-8", "surrogateescape")) for key in keys}
    with write_transaction(index) as txn:
        for key, record in records.items():
            txn.changed.put_departed(key, record)
    with write_transaction(index) as txn:
        changed = txn.changed
        assert dict(changed.all_departed()) == records
        assert all(changed.departed(key) == record for key, record in records.items())
        assert changed.departed(directories[-1] + "other") is None
        for prefix in [*directories, directories[2] + "n" * 78, directories[-1] + "n" * 100]:
            found = [key for key, _record in changed.all_departed(prefix)]
            assert len(found) == len(set(found))
            assert set(found) == {key for key in keys if key.startswith(prefix)}
        for limit in (1, 7, 1000):
            pages = list(changed.departed_behind("", limit))
            while page := changed.departed_behind(pages[-1][0], limit):
                pages += page
            assert dict(pages) == records
            assert len(pages) == len(records)
        for key in sorted(keys)[::2]:
            changed.delete_departed(key)
        left = set(sorted(keys)[1::2])
        assert {key for key, _record in changed.all_departed()} == left
        assert {key for key, _record in changed.departed_behind("", 1000)} == left
