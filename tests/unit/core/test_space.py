"""The cap: room is made before bytes are written, and never where somebody writes."""

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.core.durable import Durable
from fanoutfs.core.occupied import FIXED_BYTES
from fanoutfs.core.tidying import tidy
from fanoutfs.errors import CacheFullError
from fanoutfs.eviction.reuse import TICKS
from fanoutfs.index.transaction import write_transaction
from fanoutfs.index.victims import PartId
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import BUSY, FIRST_FRONT_ROW, bump
from fanoutfs.records import KIB, MIB, PART_BYTES
from tests.unit.core.rig import Rig, arrived, running_core


def on_disk(core: Rig, path: Path) -> int:
    """Return what everything occupies."""
    files = [found for found in (path / "objects").rglob("*") if found.is_file()]
    objects = sum(found.stat().st_blocks * 512 for found in files)
    return objects + core.small.file_bytes() + core.environment.file_bytes()


async def test_cache_never_occupies_more_than_its_cap(tmp_path: Path) -> None:
    cap = 40 * MIB
    async with running_core(tmp_path, cap_bytes=cap) as core:
        inode = await core.put("a", os.urandom(12 * PART_BYTES))
        for part in range(12):
            await core.fills.ensure(inode.ino, part * PART_BYTES, PART_BYTES)
            assert on_disk(core, tmp_path) <= cap
            assert core.blocks(inode.ino, part) == (1 << 32) - 1
        assert core.count(Count.EVICTED_BYTES) >= 12 * PART_BYTES - cap
        assert core.space.large_bytes() >= cap // 2, "far less is kept than fits"


async def test_many_files_of_one_block_make_room_for_a_large_part(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=40 * MIB) as core:
        for n in range(150):
            core.write(f"f{n:03}", os.urandom(200 * KIB))
        large = await core.put("large", os.urandom(PART_BYTES))
        for n in range(150):
            await core.fills.ensure(core.inode(f"f{n:03}").ino, 0, MIB)
        await core.fills.ensure(large.ino, 0, PART_BYTES)
        assert core.blocks(large.ino) == (1 << 32) - 1
        assert core.space.used_bytes() <= 40 * MIB


async def test_fills_wait_while_far_more_was_committed_than_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, synced = [0], trio.Event()

    async def catch_up(_durable: Durable) -> None:
        waiting[0] += 1
        await synced.wait()

    async with running_core(tmp_path, few_commits_of_bytes=MIB) as core:
        inodes = [await core.put("large", os.urandom(PART_BYTES)), await core.put("small", os.urandom(KIB))]
        while core.space.has_room():
            with write_transaction(core.environment) as txn:
                txn.add_totals(1, 1)
        monkeypatch.setattr(Durable, "catch_up", catch_up)
        async with trio.open_nursery() as nursery:
            for inode in inodes:
                nursery.start_soon(core.fills.ensure, inode.ino, 0, KIB)
            with trio.fail_after(30):
                while waiting[0] < len(inodes):
                    await trio.testing.wait_all_tasks_blocked()
            assert core.count(Count.BACKEND_GETS) == 0
            synced.set()
        assert core.blocks(inodes[0].ino) == 1
        assert core.small.has(inodes[1].ino)


async def test_index_grows_little_until_fills_wait_for_a_sync(tmp_path: Path) -> None:
    cache_bytes = 32 * MIB
    async with running_core(tmp_path, few_commits_of_bytes=cache_bytes) as core:
        files = []
        for n in range(75):
            files.append(await core.put(f"f{n:03}", os.urandom(200 * KIB)))
            core.environment.sync()  # so that hardly any page is free
        before_bytes = core.environment.file_bytes()
        while core.space.has_room():
            await core.fills.ensure(files.pop().ino, 0, MIB)
        assert core.environment.file_bytes() - before_bytes <= cache_bytes // 40


async def test_part_that_is_being_written_is_never_evicted(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=20 * MIB) as core:
        first = await core.put("a", os.urandom(PART_BYTES))
        second = await core.put("b", os.urandom(PART_BYTES))
        third = await core.put("c", os.urandom(PART_BYTES))
        await core.fills.ensure(first.ino, 0, PART_BYTES)
        async with core.space.reserved_part(0, (first.ino, 0)):
            await core.fills.ensure(second.ino, 0, PART_BYTES)
            await core.fills.ensure(third.ino, 0, PART_BYTES)
            assert core.blocks(first.ino) == (1 << 32) - 1
            assert core.blocks(second.ino) == 0


async def test_fill_of_a_part_waits_until_its_hole_is_punched(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=20 * MIB) as core:
        content = os.urandom(PART_BYTES)
        first = await core.put("a", content)
        second = await core.put("b", os.urandom(PART_BYTES))
        third = await core.put("c", os.urandom(PART_BYTES))
        await core.fills.ensure(first.ino, 0, PART_BYTES)
        await core.fills.ensure(second.ino, 0, PART_BYTES)
        busy = core.shared.row(FIRST_FRONT_ROW)
        busy[BUSY] = 1  # a front that may still read what goes: the eviction has to wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fills.ensure, third.ino, 0, PART_BYTES)
            while not core.space.holes._evicting:
                await trio.lowlevel.checkpoint()
            ((ino, _part),) = core.space.holes._evicting
            while core.blocks(ino):
                await trio.lowlevel.checkpoint()
            before = core.backend.calls["get"]
            entered = False

            async def write() -> None:
                nonlocal entered
                async with core.space.reserved_part(0, (ino, 0)):
                    entered = True

            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            assert not entered
            assert core.backend.calls["get"] == before
            busy[BUSY] = 2
        assert core.blocks(third.ino) == (1 << 32) - 1


async def test_floor_of_free_space_is_respected(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    async with running_core(tmp_path, floor_bytes=2 * free) as core:
        inode = await core.put("a", os.urandom(MIB))
        with pytest.raises(CacheFullError):
            await core.fills.ensure(inode.ino, 0, MIB)


async def test_floor_of_free_space_holds_while_the_index_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    floor = 512 * MIB
    async with running_core(tmp_path, floor_bytes=floor) as core:
        needed = core.small.growth_bytes + FIXED_BYTES + MIB
        core.space.hold(MIB)
        for free, is_enough in ((floor + needed - 1, False), (floor + needed, True)):
            monkeypatch.setattr(core.space._files, "free_bytes", lambda free=free: free)
            assert core.space.has_room() is is_enough
        core.space.release(MIB)


async def test_disk_that_refused_is_left_alone_for_a_while(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(MIB))
        core.space.note_disk_error(OSError("no space"))
        with pytest.raises(CacheFullError):
            await core.fills.ensure(inode.ino, 0, MIB)
        mock_clock.jump(6.0)
        await core.fills.ensure(inode.ino, 0, MIB)


async def test_reservation_counts_until_it_is_given_back(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=20 * MIB) as core:
        inode = await core.put("a", os.urandom(16 * MIB))
        async with core.space.reserved(10 * MIB):
            with pytest.raises(CacheFullError):
                await core.fills.ensure(inode.ino, 0, 16 * MIB)
        await core.fills.ensure(inode.ino, 0, 16 * MIB)


async def test_concurrent_fills_stay_below_the_cap(tmp_path: Path) -> None:
    cap = 40 * MIB
    async with running_core(tmp_path, cap_bytes=cap) as core:
        inode = await core.put("a", os.urandom(12 * PART_BYTES))
        full = 0

        async def read(part: int) -> None:
            nonlocal full
            try:
                await core.fills.ensure(inode.ino, part * PART_BYTES, PART_BYTES)
            except CacheFullError:
                full += 1

        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            for part in range(12):
                nursery.start_soon(read, part)
            await arrived(gate)
            gate.release()
        assert on_disk(core, tmp_path) <= cap
        assert full < 12


async def fill_small(core: Rig, count: int) -> None:
    """Store files of 16 KiB."""
    items = [(ino, memoryview(os.urandom(16 * KIB))) for ino in range(1 << 40, (1 << 40) + count)]
    assert all(await core.small.put_many(items))


async def test_small_files_make_way_when_nothing_large_is_left(tmp_path: Path) -> None:
    cap = 20 * MIB
    async with running_core(tmp_path, cap_bytes=cap) as core:
        inode = await core.put("a", os.urandom(PART_BYTES))
        await fill_small(core, 800)
        before = core.small.file_bytes()
        assert before > 12 * MIB
        await core.fills.ensure(inode.ino, 0, PART_BYTES)
        assert core.blocks(inode.ino) == (1 << 32) - 1
        assert before - core.small.file_bytes() > MIB
        assert core.small.file_bytes() > 8 * MIB, "far more was given up than was needed"
        assert on_disk(core, tmp_path) <= cap


async def test_what_goes_is_judged_by_what_was_read_until_now(tmp_path: Path) -> None:
    """A clock that stands still between two evictions makes all that was read meanwhile the same age."""
    cap = 20 * MIB
    async with running_core(tmp_path, cap_bytes=cap) as core:
        await fill_small(core, 800)
        reads = core.space._reads
        before = reads.tick
        ticks = []

        def judge(inos: Collection[int], *, stored: int, mean_bytes: int) -> Mapping[int, float]:
            ticks.append(reads.tick)
            return reads.judge_small(inos, stored=stored, mean_bytes=mean_bytes)

        core.small.judge = judge
        bump(core.row, Count.READER_BYTES, cap // 2)
        async with core.space.reserved(8 * MIB):
            assert min(ticks) >= before + TICKS // 2


async def test_new_part_is_tried_as_a_newcomer_once_it_is_spared_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried while it is spared, it would have had its turn, and stay long after its only read."""
    async with running_core(tmp_path, cap_bytes=200 * MIB) as core:
        tried: list[PartId] = []
        monkeypatch.setattr(core.space.victims._chooser, "note_new", lambda part, _now: tried.append(part))
        inode = await core.put("a", os.urandom(12 * PART_BYTES))
        for part in range(12):
            await core.fills.ensure(inode.ino, part * PART_BYTES, PART_BYTES)
        spared = list(core.space._recent)
        assert spared == [(inode.ino, part) for part in (9, 10, 11)]
        assert tried == [(inode.ino, part) for part in range(9)]


async def test_large_files_make_way_before_small_ones(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=40 * MIB) as core:
        inode = await core.put("a", os.urandom(6 * PART_BYTES))
        await fill_small(core, 800)
        before = core.small.file_bytes()
        for part in range(6):
            await core.fills.ensure(inode.ino, part * PART_BYTES, PART_BYTES)
        assert core.small.file_bytes() == before
        assert on_disk(core, tmp_path) <= 40 * MIB


async def test_dead_bytes_of_small_files_go_within_the_cap(tmp_path: Path) -> None:
    cap = 24 * MIB
    async with running_core(tmp_path, cap_bytes=cap) as core:
        inode = await core.put("a", os.urandom(2 * PART_BYTES))
        await fill_small(core, 600)
        await core.fills.ensure(inode.ino, 0, PART_BYTES)
        before = core.small.file_bytes()
        await core.small.drop_many(range((1 << 40) + 1, (1 << 40) + 600, 2))
        most = 0
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, on_disk(core, tmp_path))
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(watch)
            assert await tidy(core.small, core.space) > 4
            nursery.cancel_scope.cancel()
        assert most <= cap
        assert core.small.file_bytes() < before * 2 / 3
        assert core.small.find_sparse() is None
        assert all(core.small.is_intact(ino) for ino in range(1 << 40, (1 << 40) + 600, 2))


async def test_what_was_written_here_goes_before_what_was_read(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=52 * MIB) as core:
        read = [await core.put(f"read{n}", os.urandom(PART_BYTES)) for n in range(3)]
        written = [await core.put(f"written{n}", os.urandom(PART_BYTES)) for n in range(3)]
        for inode in (*read, *written):
            await core.fills.ensure(inode.ino, 0, PART_BYTES)
        for inode in written:
            core.space.written_here.note_written(inode.ino)
        core.space.written_here.note_read(written[1].ino)  # by now it is the readers', too
        core.space._recent.clear()
        for n in range(2):
            more = await core.put(f"more{n}", os.urandom(PART_BYTES))
            await core.fills.ensure(more.ino, 0, PART_BYTES)
        assert [bool(core.blocks(inode.ino)) for inode in written] == [False, True, False]
        assert all(core.blocks(inode.ino) for inode in read)


async def test_what_is_fetched_to_be_uploaded_anew_goes_before_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_core(tmp_path) as core:
        base = await core.put("base", os.urandom(PART_BYTES))
        monkeypatch.setattr(core.fills, "_is_staged", lambda ino: ino == base.ino)
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fills.store, base, 0, PART_BYTES)
            await arrived(gate)
            assert core.space.written_here.choose(1, lambda _part: False) == {}  # and yet it is remembered
            gate.release()
        assert core.space.written_here.choose(1, lambda _part: False) == {(base.ino, 0): PART_BYTES}


async def test_file_handed_over_while_victims_are_chosen_is_not_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_core(tmp_path, cap_bytes=40 * MIB) as core:
        written = await core.put("written", os.urandom(PART_BYTES))
        read = [await core.put(f"read{n}", os.urandom(PART_BYTES)) for n in range(3)]
        for inode in (written, *read):
            await core.fills.ensure(inode.ino, 0, PART_BYTES)
        core.space.written_here.note_written(written.ino)
        choose = core.space.victims.choose
        async with contextlib.AsyncExitStack() as stack:

            async def choose_meanwhile(wanted_bytes: int, is_spared: Callable[[PartId], bool]) -> dict[PartId, int]:
                await stack.enter_async_context(core.space.handing_over(written.ino))
                return await choose(wanted_bytes, is_spared)

            monkeypatch.setattr(core.space.victims, "choose", choose_meanwhile)
            async with core.space.reserved(2 * PART_BYTES):
                assert core.blocks(written.ino) == (1 << 32) - 1
                assert not all(core.blocks(inode.ino) for inode in read)


async def test_file_that_is_written_and_uploaded_again_does_not_count_as_the_readers(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=48 * MIB, staging_bytes=24 * MIB) as core:
        read = [await core.put(f"read{n}", os.urandom(PART_BYTES)) for n in range(2)]
        written = [await core.put(f"written{n}", os.urandom(PART_BYTES)) for n in range(2)]
        for inode in (*read, *written):
            await core.fills.ensure(inode.ino, 0, PART_BYTES)
        core.space._recent.clear()
        async with contextlib.AsyncExitStack() as stack:
            for inode in written:  # more than the cap leaves beside staging, with what was read; but not readers'
                core.space.written_here.note_written(inode.ino)
                await stack.enter_async_context(core.space.handing_over(inode.ino))
            with pytest.raises(CacheFullError):
                async with core.space.reserved(2 * PART_BYTES, takes_readers=False):
                    raise AssertionError("what was read made way")
            with pytest.raises(CacheFullError):
                async with core.space.reserved_part(2 * PART_BYTES, (written[0].ino, 1), takes_readers=False):
                    raise AssertionError("what was read made way")
        assert all(core.blocks(inode.ino) for inode in read)
        async with core.space.reserved(2 * PART_BYTES, takes_readers=False):
            assert all(core.blocks(inode.ino) for inode in read)
            assert not all(core.blocks(inode.ino) for inode in written)


async def test_a_pinned_file_is_never_evicted_and_fills_fail_when_nothing_else_is_there(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=30 * MIB) as core:
        pinned = await core.put("pinned", os.urandom(2 * PART_BYTES))
        core.space.is_pinned = lambda ino: ino == pinned.ino
        for part in range(2):
            await core.fills.ensure(pinned.ino, part * PART_BYTES, PART_BYTES)
        core.space._recent.clear()
        for n in range(4):
            other = await core.put(f"other{n}", os.urandom(PART_BYTES))
            await core.fills.ensure(other.ino, 0, PART_BYTES)
            core.space._recent.clear()
        large = await core.put("large", os.urandom(2 * PART_BYTES))
        with pytest.raises(CacheFullError):
            await core.fills.ensure(large.ino, 0, 2 * PART_BYTES)
        assert all(core.blocks(pinned.ino, part) == (1 << 32) - 1 for part in range(2))


async def test_pinned_small_files_survive_the_eviction_of_their_segments(tmp_path: Path) -> None:
    async with running_core(tmp_path, small_bytes=4 * MIB) as core:
        core.small.find_limit = lambda: 0  # no more than its share
        first = 1 << 40
        pinned = range(first, first + 400, 10)
        contents = {ino: os.urandom(8 * KIB) for ino in range(first, first + 400)}
        core.small.note_kept_changed(lambda ino: ino in pinned)
        for start in range(first, first + 400, 20):
            batch = [(ino, memoryview(contents[ino])) for ino in range(start, start + 20)]
            await core.small.put_many(batch)
            assert core.small.file_bytes() <= 4 * MIB
        for round_ in range(8):
            more = [(first + 1000 + 50 * round_ + n, memoryview(os.urandom(8 * KIB))) for n in range(50)]
            await core.small.put_many(more)
            assert core.small.file_bytes() <= 4 * MIB
        assert core.small.evicted > 300
        with core.small.reader.begin() as txn:
            for ino in pinned:
                found = core.small.reader.get(txn, ino)
                assert found is not None and bytes(found) == contents[ino]


async def test_store_of_pinned_files_only_refuses_more_instead_of_giving_one_up(tmp_path: Path) -> None:
    async with running_core(tmp_path, small_bytes=2 * MIB) as core:
        core.small.find_limit = lambda: 0
        core.small.note_kept_changed(lambda _ino: True)
        stored = []
        for n in range(300):
            stored += await core.small.put_many([((1 << 40) + n, memoryview(os.urandom(16 * KIB)))])
        assert stored[0] and not stored[-1]
        assert core.small.evicted == 0
        assert all(core.small.has((1 << 40) + n) for n, is_stored in enumerate(stored) if is_stored)


async def test_small_files_take_what_is_free_and_give_it_to_large_ones(tmp_path: Path) -> None:
    cap = 96 * MIB  # of which the index takes some 20: nothing is synced here
    async with running_core(tmp_path, cap_bytes=cap, small_bytes=16 * MIB) as core:
        for n in range(700):
            core.write(f"small/{n:03}", os.urandom(100 * KIB))
        await core.put("small/last", b"last")
        smalls = [core.inode(f"small/{n:03}") for n in range(700)]
        for inode in smalls:
            await core.fills.ensure(inode.ino, 0, inode.size_bytes)
            assert core.space.used_bytes() - core.small.growth_bytes <= cap
        assert core.small.file_bytes() > 60 * MIB
        large = await core.put("large", os.urandom(9 * PART_BYTES))
        for part in range(5):
            await core.fills.ensure(large.ino, part * PART_BYTES, PART_BYTES)
            core.space._recent.clear()
            assert core.space.used_bytes() - core.small.growth_bytes <= cap
        assert core.space.large_bytes() == 5 * PART_BYTES
        assert core.small.file_bytes() > 14 * MIB, "of its share nothing is taken"
        for part in range(5, 9):
            await core.fills.ensure(large.ino, part * PART_BYTES, PART_BYTES)
            core.space._recent.clear()
        assert core.small.file_bytes() > 14 * MIB, "large ones make way for each other"
        before = core.space.large_bytes()
        for inode in smalls[:250]:  # 25 MB
            await core.fills.ensure(inode.ino, 0, inode.size_bytes)
        # A scan over small files drives nothing out but small files.
        assert core.space.large_bytes() >= before - PART_BYTES
        assert core.space.used_bytes() - core.small.growth_bytes <= cap


async def test_watermarks_keep_the_cache_between_them(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=100 * MIB) as core:
        inode = await core.put("a", os.urandom(9 * PART_BYTES))
        for part in range(9):
            await core.fills.ensure(inode.ino, part * PART_BYTES, PART_BYTES)
        core.space._recent.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.space.keep_below, 70 * MIB, 40 * MIB)
            with trio.fail_after(30):
                while core.space.used_bytes() > 40 * MIB:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert core.space.used_bytes() > 20 * MIB, "far more was given up than was asked for"


async def test_evicted_file_leaves_no_file_behind(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(3 * PART_BYTES))
        await core.fills.ensure(inode.ino, 0, 3 * PART_BYTES)
        assert await core.space.evict_file(inode.ino) == 3 * PART_BYTES
        assert not [found for found in (tmp_path / "objects").rglob("*") if found.is_file()]
        assert core.space.large_bytes() == 0
        await core.fills.ensure(inode.ino, 0, PART_BYTES)
        assert core.cached(inode)[:PART_BYTES] == (core.source / "a").read_bytes()[:PART_BYTES]
