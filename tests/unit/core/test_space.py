"""The cap: room is made before bytes are written, and never where somebody writes."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.core.tidying import tidy
from fanoutfs.errors import CacheFullError
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import BUSY, FIRST_FRONT_ROW
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


async def test_part_that_is_being_written_is_never_evicted(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=20 * MIB) as core:
        first = await core.put("a", os.urandom(PART_BYTES))
        second = await core.put("b", os.urandom(PART_BYTES))
        third = await core.put("c", os.urandom(PART_BYTES))
        await core.fills.ensure(first.ino, 0, PART_BYTES)
        async with core.space.reserved(0, (first.ino, 0)):
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
            while not core.space._evicting:
                await trio.lowlevel.checkpoint()
            ((ino, _part),) = core.space._evicting
            while core.blocks(ino):
                await trio.lowlevel.checkpoint()
            before = core.backend.calls["get"]
            entered = False

            async def write() -> None:
                nonlocal entered
                async with core.space.reserved(0, (ino, 0)):
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
