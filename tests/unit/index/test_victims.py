"""Choosing parts at random: spread, limits, and what is spared."""

import random
from collections import Counter

import pytest

from fanoutfs.index.operations import PutBlocks
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import choose_parts, random_part
from fanoutfs.records import BLOCK_BYTES, KIB, MIB, PART_BYTES, ROOT_INO
from tests.unit.indexes import apply, enter_listing, file


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    random.seed(4)


def fill(index: IndexEnvironment, sizes: list[int]) -> list[int]:
    """Enter files of these sizes with every part cached; return their inodes."""
    enter_listing(index, [file(f"{n:06}", size=size) for n, size in enumerate(sizes)])
    inos = [ino for _name, ino, _dtype in apply(index, lambda txn: txn.entries(ROOT_INO))]
    for ino, size in zip(inos, sizes, strict=True):
        blocks = -(-size // BLOCK_BYTES)
        for part in range(-(-blocks // 32)):
            checksums = dict.fromkeys(range(min(32, blocks - part * 32)), 0)
            apply(index, PutBlocks(ino, part, checksums).apply)
    return inos


def draw(index: IndexEnvironment, times: int) -> Counter[tuple[int, int]]:
    with index.env.begin() as txn, txn.cursor(db=index.blocks) as cursor:
        found = [random_part(cursor) for _n in range(times)]
    return Counter(part for part in found if part is not None)


def test_empty_map_has_no_victim(index: IndexEnvironment) -> None:
    assert not draw(index, 1)
    assert choose_parts(index, MIB, lambda _part: False) == {}


@pytest.mark.parametrize(("files", "parts"), [(1, 40), (40, 1), (8, 5)])
def test_parts_are_drawn_evenly(index: IndexEnvironment, files: int, parts: int) -> None:
    fill(index, [parts * PART_BYTES] * files)
    found = draw(index, 100 * 40)
    assert len(found) == files * parts
    # 100 expected each; six standard deviations of a Poisson draw.
    assert 40 <= min(found.values()) <= max(found.values()) <= 160


def test_choice_holds_as_many_bytes_as_wanted_however_small_the_files(index: IndexEnvironment) -> None:
    fill(index, [129 * KIB] * 400)
    chosen = choose_parts(index, 8 * MIB, lambda _part: False)
    assert sum(chosen.values()) >= 8 * MIB
    assert set(chosen.values()) == {129 * KIB}


def test_spared_parts_are_never_chosen(index: IndexEnvironment) -> None:
    inos = fill(index, [4 * PART_BYTES] * 3)
    spared = {(inos[0], 0), (inos[1], 2)}
    chosen = choose_parts(index, 12 * PART_BYTES, spared.__contains__)
    assert not spared & set(chosen)
    assert len(chosen) == 10


def test_choice_ends_when_everything_is_spared(index: IndexEnvironment) -> None:
    fill(index, [PART_BYTES])
    assert choose_parts(index, MIB, lambda _part: True) == {}
