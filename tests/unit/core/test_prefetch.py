"""Siblings and plans over real fills: what is fetched, how often, and when it stops."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.errors import FanoutError, TransientError, UsageError
from fanoutfs.observe.catalog import Count
from fanoutfs.records import BLOCK_BYTES, MIB, PART_BYTES
from tests.unit.core.rig import Rig, arrived, running_core
from tests.unit.core.sender import sending

SIZE = 1000


async def put_files(core: Rig, count: int, folder: str = "d", size: int = SIZE) -> list[int]:
    """Write objects, list them, and return their inodes in listing order."""
    for index in range(count - 1):
        core.write(f"{folder}/{index:05d}", index.to_bytes(4, "little") * (size // 4))
    await core.put(f"{folder}/{count - 1:05d}", (count - 1).to_bytes(4, "little") * (size // 4))
    return [core.inode(f"{folder}/{index:05d}").ino for index in range(count)]


async def quiet(core: Rig) -> None:
    """Return when no small file is under way any more and nothing will be."""
    with trio.fail_after(30):
        while True:
            await trio.testing.wait_all_tasks_blocked(0.002)
            if not core.fills.small_under_way:
                return


async def fetched(core: Rig, ino: int, part: int) -> None:
    """Return when something of a part is cached."""
    with trio.fail_after(30):
        while not core.blocks(ino, part):
            await trio.testing.wait_all_tasks_blocked(0.002)


async def read(core: Rig, ino: int) -> None:
    """Read a small file as a front does: from the store, telling of it, or through the core."""
    if core.small.has(ino):
        core.prefetch.note_reads([ino])
    else:
        await core.fills.ensure(ino, 0, SIZE)


async def announce(core: Rig, paths: list[str], name: str = "test") -> int:
    commands = core.plans.commands()
    number = (await commands["plan_begin"]({"name": name}))["plan"]
    await commands["plan_add"]({"plan": number, "paths": paths})
    await commands["plan_end"]({"plan": number})
    return int(number)


# --- siblings --------------------------------------------------------------------------------------------------


async def test_directory_read_in_order_is_fetched_ahead_each_file_once(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64) as core:
        inos = await put_files(core, 300)
        for ino in inos:
            await read(core, ino)
            await quiet(core)
        assert core.backend.calls["get"] == 300
        assert core.count(Count.FILLS_JOINED) == 0
        assert core.count(Count.PREFETCH_USED_BYTES) == 299 * SIZE
        assert core.count(Count.PREFETCH_WASTED_BYTES) == 0


async def test_run_that_others_make_way_for_stays_near_its_reader(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64, run_bytes=8 * SIZE) as core:
        inos = await put_files(core, 300)
        core.prefetch._find_idle = lambda: 0
        for position, ino in enumerate(inos, 1):
            await read(core, ino)
            await quiet(core)
            assert not any(core.small.has(other) for other in inos[position + 8 :])
        assert core.backend.calls["get"] == 300
        assert core.count(Count.PREFETCH_USED_BYTES) > 290 * SIZE, "nearly all were fetched ahead"


async def test_reader_who_arrives_during_a_prefetch_joins_it(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64) as core:
        inos = await put_files(core, 40)
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            for ino in inos[:10]:
                nursery.start_soon(core.fills.ensure, ino, 0, SIZE)
            await arrived(gate)
            await trio.testing.wait_all_tasks_blocked()
            gate.release()
        await quiet(core)
        assert core.count(Count.FILLS_JOINED) >= 1
        assert core.backend.calls["get"] == core.count(Count.FILLS_STARTED)
        for ino in inos[:10]:
            assert core.small.is_intact(ino)


async def test_reader_overtakes_prefetches_that_wait(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64, requests=4) as core:
        inos = await put_files(core, 40)
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fills.ensure, inos[0], 0, SIZE)
            await arrived(gate, 3)  # a quarter is kept free of prefetches
            nursery.start_soon(core.fills.ensure, inos[15], 0, SIZE)
            await arrived(gate)
            fill = core.fills._smalls._table[inos[15]]
            assert fill.ticket is not None
            assert fill.ticket.admitted.is_set()
            gate.release()


async def test_reader_that_stops_leaves_a_window(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=32) as core:
        inos = await put_files(core, 400)
        for ino in inos[:100]:
            await read(core, ino)
            await quiet(core)
        assert core.backend.calls["get"] <= 100 + 32


async def test_prefetch_that_fails_does_no_harm_to_its_reader(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64) as core:
        inos = await put_files(core, 40)
        core.backend.script("get", *[TransientError("reset")] * 17)
        with pytest.raises(TransientError):
            await core.fills.ensure(inos[0], 0, SIZE)
        await quiet(core)
        failed = core.count(Count.FILLS_FAILED)
        assert failed == core.backend.calls["get"]
        assert core.admission.bytes_used == 0
        for ino in inos[20:23]:
            await core.fills.ensure(ino, 0, SIZE)


async def test_directory_read_at_random_is_swept(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64) as core:
        inos = await put_files(core, 600)
        random.Random(1).shuffle(inos)
        for ino in inos:
            await read(core, ino)
            await quiet(core)
        assert core.backend.calls["get"] == 600
        assert core.count(Count.PREFETCH_USED_BYTES) > 400 * SIZE


async def test_sweep_takes_idle_room_only(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64) as core:
        core.prefetch._find_idle = lambda: 100 * SIZE - core.count(Count.PREFETCH_BYTES)
        inos = await put_files(core, 600)
        random.Random(1).shuffle(inos)
        for ino in inos:
            await read(core, ino)
            await quiet(core)
        assert 90 * SIZE < core.count(Count.PREFETCH_BYTES) <= (100 + 16) * SIZE  # and a run from the first file
        assert core.backend.calls["get"] == 600


async def test_unknown_small_reads_are_ignored(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64) as core:
        core.prefetch.note_reads([1, 2, 1 << 40])
        assert core.backend.calls["get"] == 0


async def test_prefetch_leaves_no_reservation_and_no_thread_behind(tmp_path: Path) -> None:
    import threading

    before = threading.active_count()
    async with running_core(tmp_path, sibling_files=64) as core:
        inos = await put_files(core, 100)
        for ino in inos:
            await core.fills.ensure(ino, 0, SIZE)
        await quiet(core)
        assert core.space._reserved_bytes == 0
        assert core.admission.bytes_used == 0
        threads = list(core.fills._smalls._threads)
        assert threads
    for thread in threads:
        await trio.to_thread.run_sync(thread.join, 10)
        assert not thread.is_alive()
    assert threading.active_count() <= before + 4  # trio keeps some of its own


async def test_cache_without_room_fails_the_prefetch_and_serves_the_reader(tmp_path: Path) -> None:
    async with running_core(tmp_path, sibling_files=64, cap_bytes=1000) as core:
        inos = await put_files(core, 20)
        data = None
        with contextlib.suppress(FanoutError):
            await core.fills.ensure(inos[0], 0, SIZE)
        data = await core.fills.fetch_direct(inos[0], 0, SIZE)
        assert len(data) == SIZE
        await quiet(core)
        assert core.space._reserved_bytes == 0


# --- plans -----------------------------------------------------------------------------------------------------


async def test_plan_is_fetched_in_its_order_as_far_as_the_window(tmp_path: Path) -> None:
    async with running_core(tmp_path, plan_window_bytes=20 * SIZE) as core:
        inos = await put_files(core, 100)
        order = list(range(100))
        random.Random(5).shuffle(order)
        await announce(core, [f"d/{index:05d}" for index in order])
        await quiet(core)
        assert core.backend.calls["get"] == 20, "the consumer stands still"
        assert all(core.small.has(inos[index]) for index in order[:20])
        for index in order[:10]:
            await read(core, inos[index])
        await quiet(core)
        assert core.backend.calls["get"] == 30
        assert [plan["position"] for plan in core.plans.describe()] == [10]


async def test_whole_plan_costs_each_file_one_get_and_is_forgotten_at_its_end(tmp_path: Path) -> None:
    async with running_core(tmp_path, plan_window_bytes=20 * SIZE, sibling_files=64) as core:
        inos = await put_files(core, 200)
        order = random.Random(6).sample(range(200), 200)
        await announce(core, [f"d/{index:05d}" for index in order])
        for index in order:
            await read(core, inos[index])
        await quiet(core)
        assert core.backend.calls["get"] == 200
        assert core.plans.describe() == []
        assert core.count(Count.PREFETCH_WASTED_BYTES) == 0


async def test_unknown_paths_are_counted_named_and_skipped(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await put_files(core, 3)
        commands = core.plans.commands()
        number = (await commands["plan_begin"]({"name": "x"}))["plan"]
        paths = ["d/00000", "nowhere", "d/missing", "d/00001/below", "", "d", "d/00002"]
        answer = await commands["plan_add"]({"plan": number, "paths": paths})
        assert answer == {"unknown": 4, "examples": ["nowhere", "d/missing", "d/00001/below", ""]}
        assert await commands["plan_end"]({"plan": number}) == {"files": 3, "unknown": 4}
        await quiet(core)
        assert core.backend.calls["get"] == 2


async def test_directories_not_listed_yet_are_listed_for_a_plan_once_each(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for index in range(20):
            core.write(f"a/b/{index}", b"x" * SIZE)
        await announce(core, [f"a/b/{index}" for index in range(20)])
        await quiet(core)
        assert core.count(Count.LISTINGS) == 3
        assert core.backend.calls["get"] == 20


async def test_duplicates_in_a_plan_are_fetched_once(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await put_files(core, 5)
        await announce(core, [f"d/{index % 5:05d}" for index in range(50)])
        await quiet(core)
        assert core.backend.calls["get"] == 5


async def test_plan_under_the_same_name_replaces_the_one_before(tmp_path: Path) -> None:
    async with running_core(tmp_path, plan_window_bytes=10 * SIZE) as core:
        await put_files(core, 100)
        first = await announce(core, [f"d/{index:05d}" for index in range(50)])
        await quiet(core)
        second = await announce(core, [f"d/{index:05d}" for index in range(50, 100)])
        await quiet(core)
        assert first != second
        assert [plan["files"] for plan in core.plans.describe()] == [50]
        assert core.backend.calls["get"] == 20
        assert core.count(Count.PREFETCH_WASTED_BYTES) == 10 * SIZE
        for command in ("plan_add", "plan_end"):
            with pytest.raises(FanoutError, match="replaced"):
                await core.plans.commands()[command]({"plan": first, "paths": ["d/00000"]})


async def test_epoch_that_begins_while_another_plan_waits_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    async with running_core(tmp_path, requests=2, plan_window_bytes=40 * SIZE) as core:
        inos = await put_files(core, 60)
        commands = core.plans.commands()
        slow = (await commands["plan_begin"]({"name": "slow"}))["plan"]
        await announce(core, ["d/00059"], name="quick")
        await quiet(core)
        gate = core.backend.hold("get")
        await commands["plan_add"]({"plan": slow, "paths": [f"d/{index:05d}" for index in range(20)]})
        await trio.testing.wait_all_tasks_blocked(0.01)
        await commands["plan_add"]({"plan": slow, "paths": [f"d/{index:05d}" for index in range(20, 50)]})
        await trio.testing.wait_all_tasks_blocked(0.002)
        core.prefetch.note_reads([inos[59]])
        await announce(core, ["d/00058"], name="quick")
        gate.release()
        await quiet(core)
        assert [plan["name"] for plan in core.plans.describe()] == ["slow", "quick"]


async def test_what_an_overtaken_worker_is_still_to_read_is_due_at_once(tmp_path: Path) -> None:
    async with running_core(tmp_path, plan_window_bytes=8 * SIZE) as core:
        inos = await put_files(core, 20)
        await announce(core, [f"d/{index:05d}" for index in range(20)])
        await quiet(core)
        for index in (0, 1, 5):  # another worker has 2 to 4, and takes his time
            await read(core, inos[index])
        turns = core.plans.find_turns(set(inos))
        assert [turns.due[inos[index]] for index in (2, 3, 4, 6)] == [0, 0, 0, 0]
        assert set(turns.over) == {inos[index] for index in (0, 1, 5)}
        for index in (2, 3, 4):
            await read(core, inos[index])
        assert set(core.plans.find_turns(set(inos)).over) == set(inos[:6])


async def test_two_plans_each_have_their_window(tmp_path: Path) -> None:
    async with running_core(tmp_path, plan_window_bytes=10 * SIZE) as core:
        inos = await put_files(core, 100)
        await announce(core, [f"d/{index:05d}" for index in range(50)], "one")
        await announce(core, [f"d/{index:05d}" for index in range(45, 100)], "two")
        await quiet(core)
        assert core.backend.calls["get"] == 20
        for index in range(50):
            await read(core, inos[index])
        await quiet(core)
        assert [plan["name"] for plan in core.plans.describe()] == ["two"]
        for index in range(50, 100):
            await read(core, inos[index])
        await quiet(core)
        assert core.backend.calls["get"] == 100


async def test_plans_beyond_the_limit_push_out_the_oldest(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await put_files(core, 2)
        for number in range(17):
            await announce(core, ["d/00000", "d/00001"], f"plan {number}")
        assert [plan["name"] for plan in core.plans.describe()] == [f"plan {number}" for number in range(1, 17)]


async def test_consumer_who_skips_is_followed(tmp_path: Path) -> None:
    async with running_core(tmp_path, plan_window_bytes=10 * SIZE) as core:
        inos = await put_files(core, 200)
        await announce(core, [f"d/{index:05d}" for index in range(200)])
        await quiet(core)
        await read(core, inos[100])
        await quiet(core)
        assert core.plans.describe()[0]["position"] == 101
        assert core.backend.calls["get"] == 11, "what was passed over may still be read"


async def test_reader_who_was_there_before_the_plan_does_not_stop_it(tmp_path: Path) -> None:
    """He waits for the first file already when it is fetched for him: the window of one file must open again."""
    async with running_core(tmp_path, plan_window_bytes=1) as core:
        inodes = [await core.put(f"large{index}", b"x" * (2 * BLOCK_BYTES)) for index in range(4)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fills.ensure, inodes[0].ino, 0, BLOCK_BYTES)
            await announce(core, [f"large{index}" for index in range(4)])
        for inode in inodes[1:3]:
            await fetched(core, inode.ino, 0)
            core.fills.note_part_read(inode.ino, 0)
        await fetched(core, inodes[3].ino, 0)
        assert core.backend.calls["get"] == 4


async def test_file_that_became_shorter_while_it_is_fetched_leaves_the_window_as_it_is(tmp_path: Path) -> None:
    window_bytes = 2 * PART_BYTES
    async with running_core(tmp_path, plan_window_bytes=window_bytes) as core, sending(core, tmp_path) as sender:
        first = await core.put("first", b"f" * PART_BYTES)
        cut = await core.put("cut", b"c" * (4 * PART_BYTES))
        for index in range(8):
            await core.put(f"n{index}", b"n" * PART_BYTES)
        for part in range(2):
            await core.fills.ensure(cut.ino, part * PART_BYTES, PART_BYTES)
        await announce(core, ["first", "cut", *(f"n{index}" for index in range(8))])
        await fetched(core, cut.ino, 2)  # then the plan stands before the last part
        await sender.write("cut", 0, b"new", truncate_to=MIB)
        await sender.settled()
        assert core.inode("cut").ino == cut.ino
        core.fills.note_part_read(first.ino, 0)
        await trio.testing.wait_all_tasks_blocked(0.05)
        (plan,) = core.plans.describe()
        assert 0 < plan["ahead_bytes"] <= window_bytes
        assert not core.blocks(core.inode("n2").ino), "beyond the window"


async def test_parts_of_a_large_file_in_a_plan_are_fetched_within_the_window(tmp_path: Path) -> None:
    async with running_core(tmp_path, plan_window_bytes=PART_BYTES + 1) as core:
        inode = await core.put("large", b"x" * (4 * PART_BYTES + 1))
        await announce(core, ["large"])
        with trio.fail_after(30):
            while core.blocks(inode.ino, 1) != 0xFFFF_FFFF:
                await trio.testing.wait_all_tasks_blocked(0.002)
        assert core.blocks(inode.ino, 2) == 0
        assert core.space._is_spared((inode.ino, 1))
        core.fills.note_part_read(inode.ino, 0)
        core.fills.note_part_read(inode.ino, 1)
        with trio.fail_after(30):
            while core.blocks(inode.ino, 3) != 0xFFFF_FFFF:
                await trio.testing.wait_all_tasks_blocked(0.002)
        for part in (2, 3, 4):
            await core.fills.ensure(inode.ino, part * PART_BYTES, BLOCK_BYTES)
        await quiet(core)
        assert core.plans.describe() == [], "it is over"
        assert core.backend.calls["get"] == 5
        core.space._recent.clear()
        assert not core.space._is_spared((inode.ino, 1))


async def test_small_cache_gives_up_what_was_read_and_keeps_what_comes(tmp_path: Path) -> None:
    size = 16_000
    async with running_core(tmp_path, plan_window_bytes=20 * size, small_bytes=4 * MIB) as core:
        core.small.find_limit = lambda: 0  # no more than its share
        inos = await put_files(core, 600, size=size)  # 9.6 MB
        await announce(core, [f"d/{index:05d}" for index in range(600)])
        await quiet(core)
        misses = 0
        for ino in inos:
            misses += not core.small.has(ino)
            await read(core, ino)
            await quiet(core)
        assert core.small.evicted > 0
        # Small files go by the segment, and which ones are looked at is left to chance: 0 to 44 of them in 17 runs.
        assert misses <= 60
        assert core.backend.calls["get"] <= 600 + 60


@pytest.mark.parametrize("request_of", [dict, lambda: {"plan": 99}, lambda: {"paths": "d/00000"}])
async def test_malformed_plan_requests_are_refused(tmp_path: Path, request_of: Callable[[], dict[str, object]]) -> None:
    async with running_core(tmp_path) as core:
        with pytest.raises((UsageError, FanoutError)):
            await core.plans.commands()["plan_add"](request_of())
