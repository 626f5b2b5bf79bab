"""Warming without a mount: what is paid for before it is fetched, and how much is under way."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fanoutfs.core import warming
from fanoutfs.core.jobs import Job
from fanoutfs.core.warming import Rate, Warm, Warming
from fanoutfs.errors import TransientError
from fanoutfs.records import BLOCK_BYTES, MIB, PART_BYTES
from tests.unit.core.rig import Rig, arrived, running_core


async def test_rate_lets_half_a_second_through_at_once_and_then_what_is_earned(
    mock_clock: trio.testing.MockClock,
) -> None:
    rate = Rate(1000)
    began = trio.current_time()
    mock_clock.autojump_threshold = 0
    for _n in range(100):
        await rate.take(100)
    # 500 were there, 100 go on credit, the others were waited for.
    assert trio.current_time() - began == pytest.approx((10_000 - 500 - 100) / 1000, abs=0.2)


async def test_rate_has_what_was_too_large_paid_off_before_the_next(mock_clock: trio.testing.MockClock) -> None:
    rate = Rate(1000)
    began = trio.current_time()
    mock_clock.autojump_threshold = 0
    await rate.take(8000)
    assert trio.current_time() == began
    await rate.take(1)
    assert trio.current_time() - began == pytest.approx(7.5, abs=0.01)


class PaidByHand(Rate):
    """Lets take() through by permits, and notes what was taken."""

    def __init__(self) -> None:
        super().__init__(None)
        self.permits = trio.Semaphore(0)
        self.taken: list[int] = []

    async def take(self, size_bytes: int) -> None:
        await self.permits.acquire()
        self.taken.append(size_bytes)


def warm(core: Rig) -> tuple[Warm, Job]:
    unused: Any = None
    job = Job("warm", None)
    made = Warming(
        jobs=core.jobs,
        reader=core.reader,
        listings=core.listings,
        imports=unused,
        fills=core.fills,
        small=core.small,
        metadata_ttl_s=float("inf"),
    )
    return Warm(made, job, only_check=False, keep_order=False, rate=None), job


async def test_nothing_is_asked_of_the_store_before_it_was_paid_for(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("big", bytes(2 * PART_BYTES + 5))
        await core.fills.ensure(inode.ino, PART_BYTES, BLOCK_BYTES)
        before = core.backend.calls["get"]
        made, job = warm(core)
        rate = PaidByHand()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(made._file, "big", inode, rate))
            for asked, size in enumerate((PART_BYTES, PART_BYTES - BLOCK_BYTES, 5), 1):
                await trio.testing.wait_all_tasks_blocked()
                assert core.backend.calls["get"] == before + asked - 1
                rate.permits.release()
                with trio.fail_after(30):
                    while core.backend.calls["get"] < before + asked:
                        await trio.sleep(0.001)
                assert rate.taken[-1] == size
        while made._window:
            await made._settle_one()
        assert job.progress["cached_files"] == 1
        assert core.cached(inode) == bytes(2 * PART_BYTES + 5)
        await made._file("big", inode, rate)
        assert len(rate.taken) == 3


async def test_parts_of_one_file_under_way_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "_PARTS", 2)
    async with running_core(tmp_path) as core:
        inode = await core.put("big", bytes(5 * PART_BYTES))
        gate = core.backend.hold("get")
        made, _job = warm(core)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made._file, "big", inode, Rate(None))
            await arrived(gate, 3)
            await trio.testing.wait_all_tasks_blocked()
            assert core.backend.calls["get"] == 3
            gate.release()
        while made._window:
            await made._settle_one()
        assert core.backend.calls["get"] == 5


async def test_file_that_fails_is_not_fetched_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warming, "_PARTS", 1)
    async with running_core(tmp_path, requests=1) as core:
        inode = await core.put("big", bytes(5 * PART_BYTES))
        core.backend.script("get", TransientError("reset"))
        made, job = warm(core)
        await made._file("big", inode, Rate(None))
        while made._window:
            await made._settle_one()
        assert core.backend.calls["get"] == 2
        assert job.progress["failed"] == 1
        assert job.result["failures"] == ["big: reset"]


async def test_cached_bytes_count_the_short_last_block(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("big", bytes(3 * MIB + 7))
        made, _job = warm(core)
        assert made._warming.cached_bytes(inode) == 0
        await core.fills.ensure(inode.ino, 3 * MIB, 7)
        assert made._warming.cached_bytes(inode) == (3 * MIB + 7) % BLOCK_BYTES
