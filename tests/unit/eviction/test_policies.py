"""Every policy against every pattern: nobody exceeds the cap, nobody beats the future, ours comes near it."""

import random

import pytest

from fanoutfs.eviction.base import Policy
from fanoutfs.eviction.classic import LRU, Clock
from fanoutfs.eviction.density import Density
from fanoutfs.eviction.oracle import Belady
from fanoutfs.eviction.simulate import POLICIES, compare, replay
from fanoutfs.eviction.traces import PATTERNS, Access, data_bytes, parse_trace

FILES = 800
EPOCHS = 9


def made_up(pattern: str, files: int = FILES, epochs: int = EPOCHS) -> list[Access]:
    return [(key, 1) for key in PATTERNS[pattern](files, epochs, 3)]


def settled(trace: list[Access]) -> int:
    """Return where counting begins: an epoch to fill the cache, two to learn."""
    return len(trace) // EPOCHS * 3


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_policy_keeps_to_its_cap_and_knows_what_it_has(policy: type[Policy]) -> None:
    chance = random.Random(7)
    cache = policy(1000)
    held: set[int] = set()
    for _n in range(5000):
        key = min(int(chance.expovariate(0.02)), 400)
        size = 5 + key % 60
        was_held = key in cache.sizes
        assert cache.access(key, size) is was_held
        assert cache.used_bytes == sum(cache.sizes.values()) <= 1000
        held |= cache.sizes.keys()
    assert len(held) > 20


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_key_larger_than_the_cache_passes_through(policy: type[Policy]) -> None:
    cache = policy(100)
    cache.access(1, 60)
    assert not cache.access(2, 101)
    assert list(cache.sizes) == [1]


@pytest.mark.parametrize(
    ("pattern", "share"),
    [
        ("same order", 1.1),
        ("same order", 4.0),
        ("new shuffle", 1.1),
        ("new shuffle", 1.5),
        ("new shuffle", 2.0),
        ("new shuffle", 4.0),
        ("hot subset", 1.5),
        ("hot subset", 4.0),
    ],
)
def test_learnt_reuse_comes_within_5_percent_of_the_best(pattern: str, share: float) -> None:
    trace = made_up(pattern)
    cap = int(FILES / share)
    best = replay(Belady(cap, [key for key, _size in trace]), trace, settled(trace)).hit_rate
    ours = replay(Density(cap), trace, settled(trace)).hit_rate
    assert ours >= 0.95 * best, f"{ours:.3f} of {best:.3f}"


@pytest.mark.parametrize("share", [1.1, 2.0, 4.0])
def test_belady_hits_cache_by_data_set_of_each_pass(share: float) -> None:
    trace = made_up("new shuffle")
    cap = int(FILES / share)
    rate = replay(Belady(cap, [key for key, _size in trace]), trace, settled(trace)).hit_rate
    assert rate == pytest.approx(cap / FILES, abs=0.001)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nobody_beats_belady(pattern: str) -> None:
    *others, belady = compare(made_up(pattern, 120, 6), 50)
    assert [other.policy for other in others if other.hits > belady.hits] == []
    assert len(others) == len(POLICIES) + 1


def test_lru_hits_nothing_of_a_repeated_pass() -> None:
    trace = made_up("same order")
    assert replay(LRU(FILES // 2), trace).hits == 0
    assert replay(Clock(FILES // 2), trace).hits == 0


def test_other_data_set_drives_the_old_one_out() -> None:
    files = 300
    trace = [(key, 1) for key in PATTERNS["data set changes"](files, 16, 1)]
    cap = files // 2
    last = replay(Density(cap), trace, len(trace) * 15 // 16).hit_rate
    assert last >= 0.9 * cap / files


def test_trace_file_is_read_as_documented() -> None:
    trace = parse_trace(["# made by hand", "", "a/b 10", "17.3 8388608", "a/b 7"])
    assert trace == [(0, 10), (1, 8388608), (0, 10)]
    assert data_bytes(trace) == 8388618


@pytest.mark.parametrize("line", ["a", "a b", "a 1 2", "a -1"])
def test_bad_line_of_a_trace_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_trace(["ok 1", line])
