"""Sequences of operations: what must hold after any of them."""

import tempfile
from itertools import islice
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fanoutfs.index.format import INO_KEY, PART_KEY, PART_VALUE, TOTALS, unpack_inode
from fanoutfs.index.operations import Child, DropBlocks, FreeOrphans, PutBlocks, blocks_bytes
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES, ROOT_INO
from tests.unit.indexes import apply, enter_listing, file, folder, open_index

CHILDREN = st.one_of(
    st.builds(file, st.sampled_from("abcd"), st.sampled_from("12"), st.integers(0, 3), st.sampled_from([1, 2])),
    st.builds(folder, st.sampled_from("abcd")),
)
LISTINGS = st.lists(st.lists(CHILDREN, max_size=6, unique_by=lambda child: child.key), max_size=3)
"""Pages.  A name may be file and directory, in either order, on one page or on two."""


def shown(pages: list[list[Child]]) -> dict[bytes, Child]:
    """Return what a listing should show: the directory wins, otherwise the last observation of a file."""
    found: dict[bytes, Child] = {}
    for child in [child for page in pages for child in page]:
        known = found.get(child.name)
        if known is None or known.version is not None:
            found[child.name] = child
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(LISTINGS, min_size=1, max_size=8))
def test_index_equals_the_last_listing_and_no_number_is_reused(listings: list[list[list[Child]]]) -> None:
    with tempfile.TemporaryDirectory() as path, open_index(Path(path)) as index:
        owners: dict[int, str] = {}
        for pages in listings:
            ordered = in_order(pages)
            enter_listing(index, *ordered)
            expected = shown(ordered)
            found = apply(index, lambda txn: {name: (ino, txn.inode(ino)) for name, ino, _d in txn.entries(ROOT_INO)})
            assert set(found) == set(expected)
            for name, (ino, inode) in found.items():
                child = expected[name]
                assert inode is not None
                assert inode.key == child.key
                assert inode.is_dir == (child.version is None)
                identity = inode.key if child.version is None else f"{inode.key} {inode.etag} {inode.size_bytes}"
                assert owners.setdefault(ino, identity) == identity
                if child.version is not None:
                    assert inode.version == child.version
            check(index)


def in_order(pages: list[list[Child]]) -> list[list[Child]]:
    """Return pages of the same sizes as a store shows them: each key once, in order."""
    found = {child.key: child for page in pages for child in page}
    rest = iter(sorted(found.values(), key=lambda child: child.key))
    return [list(islice(rest, len(page))) for page in pages]


def check(index: IndexEnvironment) -> None:
    """Check totals and orphans against a full count."""
    with index.env.begin() as txn:
        inodes = {INO_KEY.unpack(key)[0]: unpack_inode(0, value) for key, value in txn.cursor(db=index.inodes)}
        named = {int.from_bytes(value[:8], "little") for _key, value in txn.cursor(db=index.entries)}
        orphans = {INO_KEY.unpack(key)[0] for key, _value in txn.cursor(db=index.orphans)}
        totals = TOTALS.unpack(txn.get(b"totals", db=index.settings) or bytes(16))
    assert set(inodes) == named | orphans | {ROOT_INO}
    assert not named & orphans
    files = [inodes[ino] for ino in named if not inodes[ino].is_dir]
    assert totals == (len(files), sum(inode.size_bytes for inode in files))


SIZES = (BLOCK_BYTES * 2 + 7, PART_BYTES, PART_BYTES * 2 + 1)
BLOCK_CHANGES = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 2), st.integers(0, 80), st.integers(1, 40)),
    st.tuples(st.just("drop"), st.integers(0, 2), st.integers(0, 2), st.integers(-1, (1 << 32) - 1)),
    st.tuples(st.just("free"), st.integers(0, 2), st.just(0), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(BLOCK_CHANGES, max_size=30))
def test_cached_bytes_equal_the_sum_over_the_block_maps(changes: list[tuple[str, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as path, open_index(Path(path)) as index:
        enter_listing(index, [file(str(n), size=size) for n, size in enumerate(SIZES)])
        inos = [ino for _name, ino, _dtype in apply(index, lambda txn: txn.entries(ROOT_INO))]
        for kind, which, at, value in changes:
            ino, size = inos[which], SIZES[which]
            if kind == "put":
                part = at // PART_BLOCKS
                last = min(-(-size // BLOCK_BYTES), (part + 1) * PART_BLOCKS)
                blocks = range(at, min(at + value, last))
                if blocks:
                    checksums = {block % PART_BLOCKS: block for block in blocks}
                    apply(index, PutBlocks(ino, part, checksums).apply)
            elif kind == "drop":
                apply(index, DropBlocks(ino, at, value).apply)
            else:
                apply(index, FreeOrphans((ino,)).apply)
            with index.env.begin() as txn:
                total = 0
                for key, record in txn.cursor(db=index.blocks):
                    owner, part = PART_KEY.unpack(key)
                    total += blocks_bytes(SIZES[inos.index(owner)], part, PART_VALUE.unpack(record)[0])
            assert apply(index, lambda txn: txn.cached_bytes) == total
