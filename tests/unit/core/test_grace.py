"""Grace periods, on a clock that jumps."""

import trio
import trio.testing

from fanoutfs.core.grace import Grace
from fanoutfs.observe.shared import BUSY, FIRST_FRONT_ROW, SharedState


async def test_idle_fronts_are_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    shared = SharedState()
    shared.row(FIRST_FRONT_ROW)[BUSY] = 8
    await Grace(shared, 2).wait()
    assert trio.current_time() == 0


async def test_busy_front_is_waited_for_until_it_is_idle(autojump_clock: trio.testing.MockClock) -> None:
    shared = SharedState()
    row = shared.row(FIRST_FRONT_ROW + 1)
    row[BUSY] = 7
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Grace(shared, 2).wait)
        await trio.sleep(5)
        assert nursery.child_tasks
        row[BUSY] = 8
        await trio.sleep(0.01)
        assert not nursery.child_tasks


async def test_front_that_went_on_to_another_request_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    shared = SharedState()
    row = shared.row(FIRST_FRONT_ROW)
    row[BUSY] = 7
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Grace(shared, 1).wait)
        await trio.sleep(1)
        row[BUSY] = 9
        await trio.sleep(0.01)
        assert not nursery.child_tasks


async def test_fronts_that_do_not_run_are_not_looked_at(autojump_clock: trio.testing.MockClock) -> None:
    shared = SharedState()
    shared.row(FIRST_FRONT_ROW + 3)[BUSY] = 1
    await Grace(shared, 2).wait()


async def test_dead_front_is_not_waited_for_once_the_keeper_cleared_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    shared = SharedState()
    shared.row(FIRST_FRONT_ROW)[BUSY] = 7
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Grace(shared, 1).wait)
        await trio.sleep(1)
        shared.clear_front_activity(0)
        await trio.sleep(0.01)
        assert not nursery.child_tasks
