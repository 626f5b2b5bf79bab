"""Files filled one after the other: what is paid for before it is fetched, and how much is under way."""

from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.core import filling as filling_module
from fanoutfs.core.filling import Filling
from fanoutfs.core.rate import Rate
from fanoutfs.errors import FanoutError, TransientError
from fanoutfs.index.format import Inode
from fanoutfs.records import BLOCK_BYTES, PART_BYTES
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


class Ends:
    """What became of the files."""

    def __init__(self) -> None:
        self.errors: dict[str, FanoutError | None] = {}

    def __call__(self, path: str, _inode: Inode, error: FanoutError | None) -> None:
        self.errors[path] = error


def filling(core: Rig, rate: Rate | None = None) -> tuple[Filling, Ends]:
    ends = Ends()
    return Filling(core.reader, core.fills, rate or Rate(None), ends), ends


async def test_nothing_is_asked_of_the_store_before_it_was_paid_for(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("big", bytes(2 * PART_BYTES + 5))
        await core.fills.ensure(inode.ino, PART_BYTES, BLOCK_BYTES)
        before = core.backend.calls["get"]
        rate = PaidByHand()
        made, ends = filling(core, rate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.add, "big", inode)
            for asked, size in enumerate((PART_BYTES, PART_BYTES - BLOCK_BYTES, 5), 1):
                await trio.testing.wait_all_tasks_blocked()
                assert core.backend.calls["get"] == before + asked - 1
                rate.permits.release()
                with trio.fail_after(30):
                    while core.backend.calls["get"] < before + asked:
                        await trio.sleep(0.001)
                assert rate.taken[-1] == size
        await made.finish()
        assert ends.errors == {"big": None}
        assert core.cached(inode) == bytes(2 * PART_BYTES + 5)
        await made.add("big", inode)
        assert len(rate.taken) == 3


async def test_parts_of_one_file_under_way_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling_module, "_PARTS", 2)
    async with running_core(tmp_path) as core:
        inode = await core.put("big", bytes(5 * PART_BYTES))
        gate = core.backend.hold("get")
        made, _ends = filling(core)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.add, "big", inode)
            await arrived(gate, 3)
            await trio.testing.wait_all_tasks_blocked()
            assert core.backend.calls["get"] == 3
            gate.release()
        await made.finish()
        assert core.backend.calls["get"] == 5


async def test_file_that_fails_is_not_fetched_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling_module, "_PARTS", 1)
    async with running_core(tmp_path, requests=1) as core:
        inode = await core.put("big", bytes(5 * PART_BYTES))
        core.backend.script("get", TransientError("reset"))
        made, ends = filling(core)
        await made.add("big", inode)
        await made.finish()
        assert core.backend.calls["get"] == 2
        assert str(ends.errors["big"]) == "reset"
