"""Parts are chosen by what they are worth, announced orders included; what is spared stays."""

import itertools
from pathlib import Path

import pytest

from fanoutfs.core.reads import Reads
from fanoutfs.core.victims import Victims
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import PartId, list_parts
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import FIRST_FRONT_ROW, TICK, SharedState, mark_of
from fanoutfs.records import MIB, PART_BYTES
from tests.unit.index.test_victims import fill

FILES = 64
CAP = FILES * PART_BYTES


class Cache:
    """Files of one part each, all cached, and a front that reads them."""

    def __init__(self, index: IndexEnvironment, path: Path) -> None:
        self.inos = fill(index, [PART_BYTES] * FILES)
        self.shared = SharedState()
        self.reads = Reads(self.shared, path, CAP)
        self.victims = Victims(index, self.reads)

    def read(self, ino: int) -> None:
        self.shared.row(FIRST_FRONT_ROW)[Count.READER_BYTES] += PART_BYTES
        self.reads.advance()
        self.shared.read_marks[mark_of(ino)] = self.shared.flags[TICK]
        self.reads.judge(self.reads.large, ino)


@pytest.fixture
def cache(index: IndexEnvironment, tmp_path: Path) -> Cache:
    return Cache(index, tmp_path)


def spare_none(_part: PartId) -> bool:
    return False


async def test_repeated_pass_evicts_what_was_read_last(cache: Cache) -> None:
    for _pass in range(6):
        for ino in cache.inos:
            cache.read(ino)
    for ino in cache.inos[: FILES // 2]:
        cache.read(ino)
    cache.reads.large.learn()
    chosen = await cache.victims.choose(4 * PART_BYTES, spare_none)
    assert len(chosen) == 4
    assert {cache.inos.index(ino) for ino, _part in chosen} <= set(range(FILES // 4, FILES // 2))


async def test_announced_file_stays(cache: Cache) -> None:
    for _pass in range(3):
        for ino in cache.inos:
            cache.read(ino)
    cache.reads.large.learn()
    due = {ino: ahead for ahead, ino in enumerate(reversed(cache.inos[-8:]))}
    cache.reads.find_due = lambda _inos: due
    chosen = await cache.victims.choose((FILES - 8) * PART_BYTES, spare_none)
    assert not {ino for ino, _part in chosen} & set(due)


async def test_spared_part_is_never_chosen(cache: Cache) -> None:
    spared = set(cache.inos[::2])
    chosen = await cache.victims.choose(FILES * PART_BYTES, lambda part: part[0] in spared)
    assert {ino for ino, _part in chosen} == set(cache.inos) - spared


async def test_choice_holds_what_is_wanted_and_not_much_more(cache: Cache) -> None:
    chosen = await cache.victims.choose(10 * MIB, spare_none)
    assert 10 * MIB <= sum(chosen.values()) <= 10 * MIB + PART_BYTES
    assert set(chosen.values()) == {PART_BYTES}


@pytest.mark.parametrize("begin", ["first", "middle", "last"])
def test_long_map_is_listed_in_part(index: IndexEnvironment, monkeypatch: pytest.MonkeyPatch, begin: str) -> None:
    """Two runs of 256, wherever they begin: one that comes to the end of the map goes on at its beginning."""
    inos = fill(index, [16 * PART_BYTES] * 40)
    everything = list_parts(index)
    assert len(everything) == 640
    some = list_parts(index, 512)
    assert 256 <= len(some) == len(set(some)) <= 512
    at = {"first": 0, "middle": 320, "last": 639}[begin]
    monkeypatch.setattr("fanoutfs.index.victims.random", Chosen(inos[at // 16], at % 16))
    run = list_parts(index, 256)
    assert run == [*everything[at:], *everything[:at]][:256]


class Chosen:
    """In the place of the module `random`: draws one inode, then one part, over and over."""

    def __init__(self, ino: int, part: int) -> None:
        self._draws = itertools.cycle((ino, part))

    def randint(self, low: int, high: int) -> int:
        draw = next(self._draws)
        assert low <= draw <= high
        return draw
