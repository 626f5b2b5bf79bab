"""Latencies in buckets: percentiles as good as promised, and nothing lost between processes."""

import mmap
import random
from collections import Counter

import pytest

from fanoutfs.bench import load
from fanoutfs.bench.latencies import BYTES, Latencies


def _some(count: int) -> list[int]:
    generator = random.Random(count)
    return sorted(int(10 ** generator.uniform(0, 10)) for _ in range(count))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 0.999])
def test_percentiles_are_at_most_a_hundredth_wrong(share: float) -> None:
    seen = _some(5000)
    exact = seen[int(share * len(seen)) - 1]
    assert Latencies.of(Counter(seen)).percentile_ns(share) == pytest.approx(exact, rel=0.01)


def test_ends_and_sums_are_exact() -> None:
    seen = _some(1000)
    found = Latencies.of(Counter(seen))
    assert (found.count, found.least_ns, found.most_ns, found.sum_ns) == (1000, seen[0], seen[-1], sum(seen))
    assert found.percentile_ns(1.0) == pytest.approx(seen[-1], rel=0.01)
    assert found.percentile_ns(1.0) <= seen[-1]


def test_one_value_has_all_percentiles_and_no_deviation() -> None:
    found = Latencies.of({1000: 7})
    assert found.percentile_ns(0.01) == found.percentile_ns(0.99) == found.mean_ns == 1000
    assert found.deviation_ns == 0


def test_merged_parts_are_the_whole() -> None:
    seen = _some(900)
    parts = [Latencies.of(Counter(seen[at::3])) for at in range(3)]
    assert Latencies.merged([Latencies(), *parts]) == Latencies.of(Counter(seen))


def test_nothing_is_lost_in_shared_memory() -> None:
    whole = Latencies.of(Counter([*_some(1000), 0, 1 << 62]))
    with mmap.mmap(-1, 8 + BYTES) as memory:
        assert Latencies.read_from(memory, 8).count == 0
        whole.write_to(memory, 8)
        assert Latencies.read_from(memory, 8) == whole


def test_latencies_of_all_processes_reach_the_outcome() -> None:
    def work(index: int, slot: load.Slot) -> None:
        slot.count(2, 0)
        slot.record({100 * (index + 1): 2})

    took = load.run_together(3, work).latencies
    assert (took.count, took.least_ns, took.most_ns, took.sum_ns) == (6, 100, 300, 1200)
