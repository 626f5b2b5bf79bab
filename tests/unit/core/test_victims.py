"""Parts are chosen by what they are worth, announced orders included; what is spared stays."""

import itertools
from pathlib import Path

import pytest

from fanoutfs.core.reads import Reads
from fanoutfs.core.turns import Turns
from fanoutfs.core.victims import Victims
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.victims import PartId, list_parts
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import FIRST_FRONT_ROW, TICK, SharedState, mark_of
from fanoutfs.records import MIB, PART_BYTES
from tests.unit.core.announced import Announced
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

    def pass_time(self) -> None:
        """Nothing is in its first use any more."""
        self.shared.row(FIRST_FRONT_ROW)[Count.READER_BYTES] += 8 * PART_BYTES


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
    cache.reads.orders = Announced(due)
    chosen = await cache.victims.choose((FILES - 8) * PART_BYTES, spare_none)
    assert not {ino for ino, _part in chosen} & set(due)


async def test_file_that_another_order_has_read_stays_for_the_one_that_comes_to_it(cache: Cache) -> None:
    for _pass in range(3):
        for ino in cache.inos:
            cache.read(ino)
    cache.reads.large.learn()
    cache.pass_time()
    orders = Announced({ino: ahead for ahead, ino in enumerate(cache.inos)})
    orders.lately = dict.fromkeys(cache.inos[:32], 1000)  # of a job that was killed, say
    cache.reads.orders = orders
    chosen = await cache.victims.choose(8 * PART_BYTES, spare_none)
    assert not {ino for ino, _part in chosen} & set(cache.inos[:32])


async def test_what_an_order_has_been_through_goes_before_what_it_comes_to(cache: Cache) -> None:
    for _pass in range(6):
        for ino in cache.inos:
            cache.read(ino)
    cache.reads.large.learn()
    # By what was learnt, the files read longest ago come next.
    over, due = cache.inos[: FILES // 4], cache.inos[FILES // 4 :]
    cache.reads.orders = Announced({ino: ahead for ahead, ino in enumerate(due)}, dict.fromkeys(over, len(due)))
    chosen = await cache.victims.choose(FILES // 4 * PART_BYTES, spare_none)
    assert {ino for ino, _part in chosen} == set(over)


async def test_file_read_since_the_last_look_is_known_to_be_over(cache: Cache) -> None:
    for ino in cache.inos:
        cache.read(ino)
    due = {ino: ahead for ahead, ino in enumerate(cache.inos)}
    cache.reads.orders = orders = Announced(due)
    await cache.victims.choose(PART_BYTES, spare_none)
    newcomer = cache.inos[0]
    orders.lately[newcomer] = FILES
    cache.victims.note_settled((newcomer, 0))
    for ino in cache.inos[1:8]:
        cache.read(ino)
    assert await cache.victims.choose(PART_BYTES, spare_none) == {(newcomer, 0): PART_BYTES}


async def test_orders_are_looked_at_again_before_anything_announced_goes(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They went on since the last look: files read meanwhile go, not the last one of those still to be read."""
    monkeypatch.setattr("fanoutfs.core.victims._LOOK_PAUSE", 0)
    for ino in cache.inos:
        cache.read(ino)
    cache.pass_time()
    cache.reads.orders = orders = Announced({ino: ahead for ahead, ino in enumerate(cache.inos)})
    (last,) = await cache.victims.choose(PART_BYTES, spare_none)
    assert last[0] == cache.inos[-1]
    read = cache.inos[:3]
    orders.turns = Turns(
        {ino: ahead for ahead, ino in enumerate(cache.inos[3:])}, dict.fromkeys(read, len(cache.inos) - 3)
    )
    chosen = await cache.victims.choose(3 * PART_BYTES, spare_none)
    assert {ino for ino, _part in chosen} == set(read)


async def test_new_order_is_looked_at_at_once(cache: Cache) -> None:
    for ino in cache.inos:
        cache.read(ino)
    cache.pass_time()
    cache.reads.orders = Announced({ino: ahead for ahead, ino in enumerate(cache.inos)})
    await cache.victims.choose(PART_BYTES, spare_none)
    cache.reads.orders = orders = Announced({ino: ahead for ahead, ino in enumerate(reversed(cache.inos))})
    orders.revision = 2
    (chosen,) = await cache.victims.choose(PART_BYTES, spare_none)
    assert chosen[0] == cache.inos[0]


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
