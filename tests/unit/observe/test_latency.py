"""Histograms: which bucket, whose row, what a reader makes of them."""

import os

import pytest

from fanoutfs.observe.latency import (
    BACKEND_BASE,
    BOUNDS_NS,
    BUCKETS,
    CORE_BASE,
    FRONT_BASE,
    Call,
    Latencies,
    observe,
)
from fanoutfs.wire.kernel import Opcode


@pytest.mark.parametrize(
    ("elapsed_ns", "bucket"),
    [(0, 0), (4095, 0), (4096, 1), (8191, 1), (8192, 2), (10**9, 18), (1 << 40, BUCKETS - 1), (1 << 63, BUCKETS - 1)],
)
def test_bucket_holds_what_is_below_its_bound_and_not_below_the_one_before(elapsed_ns: int, bucket: int) -> None:
    latencies = Latencies(1)
    observe(latencies.row(0), FRONT_BASE + Opcode.READ, elapsed_ns)
    (found,) = latencies.measured()
    assert found.counts.index(1) == bucket
    assert found.count == 1
    if bucket < len(BOUNDS_NS):
        assert (0 if bucket == 0 else BOUNDS_NS[bucket - 1]) <= elapsed_ns < BOUNDS_NS[bucket]


def test_rows_of_all_processes_add_up_and_series_stay_apart() -> None:
    latencies = Latencies(3)
    observe(latencies.row(0), FRONT_BASE + Opcode.READ, 5000)
    observe(latencies.row(2), FRONT_BASE + Opcode.READ, 7000)
    observe(latencies.row(2), CORE_BASE + Opcode.READ, 9_000_000)
    observe(latencies.row(1), Call.DELETE, 1)
    front, core, call = latencies.measured()
    assert (front.count, front.sum_ns) == (2, 12000)
    assert front.labels == {"opcode": "read", "answered_by": "front"}
    assert core.labels == {"opcode": "read", "answered_by": "core"}
    assert call.labels == {"call": "delete"}
    assert [series.is_backend for series in (front, core, call)] == [False, False, True]


def test_child_writes_are_seen_by_the_parent() -> None:
    latencies = Latencies(1)
    pid = os.fork()
    if pid == 0:
        observe(latencies.row(0), Call.GET, 12345)
        os._exit(0)
    os.waitpid(pid, 0)
    (found,) = latencies.measured()
    assert found.sum_ns == 12345


def test_quantile_is_the_bound_of_the_bucket_it_falls_into() -> None:
    latencies = Latencies(1)
    row = latencies.row(0)
    for _n in range(98):
        observe(row, Call.GET, 5000)
    observe(row, Call.GET, 10**6)
    observe(row, Call.GET, 1 << 50)
    (found,) = latencies.measured()
    assert found.quantile_ns(0.5) == 8192
    assert found.quantile_ns(0.99) == 1 << 20
    assert found.quantile_ns(1.0) == BOUNDS_NS[-1]


def test_every_opcode_has_a_series_below_the_next_kind() -> None:
    assert max(Opcode) < CORE_BASE - FRONT_BASE
    assert CORE_BASE + max(Opcode) < BACKEND_BASE


def test_opcode_of_a_newer_kernel_is_shown_by_its_number() -> None:
    latencies = Latencies(1)
    observe(latencies.row(0), FRONT_BASE + 63, 1)
    (found,) = latencies.measured()
    assert found.labels["opcode"] == "63"
