"""A walk meets every file below a path once, whatever the sizes of its directories."""

from pathlib import Path

import pytest

from fanoutfs.core.walking import TreeWalk
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import ROOT_INO
from tests.unit.indexes import enter_listing, file, folder, open_index


def inode_of(environment: IndexEnvironment, path: str) -> Inode:
    reader = IndexReader(environment)
    with reader.begin() as txn:
        ino: int | None = ROOT_INO
        for name in path.split("/") if path else ():
            ino = reader.child(txn, ino or 0, name.encode())
        inode = reader.inode(txn, ino or 0)
    assert inode is not None, path
    return inode


def walked(environment: IndexEnvironment, path: str) -> tuple[list[str], int]:
    walk = TreeWalk(IndexReader(environment), path, inode_of(environment, path))
    found: list[str] = []
    while batch := walk.batch():
        assert len(batch) <= 256
        found += [each for each, _inode in batch]
    assert walk.batch() == []
    return found, walk.unlisted


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 600])
def test_all_files_below_are_met_once(tmp_path: Path, count: int) -> None:
    with open_index(tmp_path) as environment:
        names = [f"f{n:04}" for n in range(count)]
        enter_listing(environment, [folder("a"), folder("b"), *(file(name) for name in names)])
        for parent in "ab":
            children = [file(name, prefix=f"{parent}/") for name in names]
            enter_listing(environment, children, parent=inode_of(environment, parent).ino)
        found, unlisted = walked(environment, "")
        assert sorted(found) == sorted(names + [f"{parent}/{name}" for parent in "ab" for name in names])
        assert unlisted == 0
        assert walked(environment, "b")[0] == [f"b/{name}" for name in names]


def test_file_is_a_walk_of_itself_and_unlisted_directories_are_counted(tmp_path: Path) -> None:
    with open_index(tmp_path) as environment:
        enter_listing(environment, [folder("a"), folder("z"), file("m")])
        assert walked(environment, "m") == (["m"], 0)
        assert walked(environment, "") == (["m"], 2)
