"""Stall time, on trio's own clock, which jumps."""

import trio
import trio.testing

from fanoutfs.core.stalls import Stalls
from fanoutfs.observe.catalog import ANSWERED_BASE, Count
from fanoutfs.observe.shared import CORE_ROW, FIRST_FRONT_ROW, SharedState
from fanoutfs.wire.kernel import Opcode


class TrioClock:
    def wall_ns(self) -> int:
        return 0

    def monotonic_ns(self) -> int:
        return round(trio.current_time() * 1e9)


def counted(shared: SharedState) -> tuple[float, float]:
    return shared.total(Count.STALL_SOME_NS) / 1e9, shared.total(Count.STALL_FULL_NS) / 1e9


async def test_overlapping_waits_count_once_and_idle_time_not_at_all(autojump_clock: trio.testing.MockClock) -> None:
    shared = SharedState()
    stalls = Stalls(shared, 2, shared.row(CORE_ROW), TrioClock())

    async def wait(after_s: float, length_s: float) -> None:
        await trio.sleep(after_s)
        with stalls.waiting():
            await trio.sleep(length_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 0, 2)
        nursery.start_soon(wait, 1, 2)
        nursery.start_soon(wait, 10, 1)
    some, full = counted(shared)
    assert round(some, 6) == 4
    assert full == 0  # nobody sampled


async def test_full_is_only_the_time_in_which_no_front_answers(autojump_clock: trio.testing.MockClock) -> None:
    shared = SharedState()
    stalls = Stalls(shared, 1, shared.row(CORE_ROW), TrioClock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalls.run)
        await trio.sleep(1)
        with stalls.waiting():
            await trio.sleep(1.001)
            for _n in range(100):  # another reader is served meanwhile
                shared.row(FIRST_FRONT_ROW)[ANSWERED_BASE + Opcode.READ] += 1
                await trio.sleep(0.01)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    some, full = counted(shared)
    assert round(some, 3) == 2.001
    assert 0.9 < full <= 1.06
