"""Fills through the arena: readers do not wait for the disk, slots come back, nothing is promised too early."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fanoutfs.cache.blocks import store_blocks_directly
from fanoutfs.core import fill as fill_module
from fanoutfs.errors import CacheFullError, TransientError
from fanoutfs.records import BLOCK_BYTES, MIB, PART_BYTES
from tests.unit.core.rig import Rig, running_core


async def settled(core: Rig, ino: int) -> None:
    """Return when no fill of a file is under way."""
    with trio.fail_after(30):
        while core.fills.is_filling(ino):
            await trio.lowlevel.checkpoint()


def held_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let writes past the page cache wait for the event that is returned."""
    may_write = threading.Event()
    store = store_blocks_directly

    def wait_and_store(*arguments: Any) -> dict[int, int]:
        assert may_write.wait(30), "nobody let the disk write"
        return store(*arguments)

    monkeypatch.setattr(fill_module, "store_blocks_directly", wait_and_store)
    return may_write


def read_arena(core: Rig, ino: int, end: int) -> bytes:
    """Return what fronts would find of bytes [0, end)."""
    return b"".join(bytes(run.data) for run in core.arena.arena.runs(ino, 0, end))


async def test_reader_goes_on_before_the_bytes_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_core(tmp_path, arena_slots=2) as core:
        content = os.urandom(2 * MIB + 5)
        inode = await core.put("a", content)
        may_write = held_disk(monkeypatch)
        await core.fills.ensure(inode.ino, 0, len(content))
        assert core.blocks(inode.ino) == 0
        assert read_arena(core, inode.ino, len(content)) == content
        await core.fills.ensure(inode.ino, 0, len(content))
        may_write.set()
        await settled(core, inode.ino)
        assert core.blocks(inode.ino) == 0b1_1111_1111
        assert core.cached(inode) == content
        assert core.backend.calls["get"] == 1


async def test_every_part_of_a_file_passes_through_one_slot(tmp_path: Path) -> None:
    async with running_core(tmp_path, arena_slots=1) as core:
        content = os.urandom(3 * PART_BYTES + 5 * BLOCK_BYTES)
        inode = await core.put("a", content)
        for part in range(4):
            await core.fills.ensure(inode.ino, part * PART_BYTES, PART_BYTES)
            await settled(core, inode.ino)
        (run,) = core.arena.arena.runs(inode.ino, 0, len(content))
        assert run.data == content[3 * PART_BYTES :]
        assert core.cached(inode) == content


async def test_fill_without_a_free_slot_goes_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_core(tmp_path, arena_slots=1) as core:
        first, second = await core.put("a", os.urandom(MIB)), await core.put("b", os.urandom(MIB))
        may_write = held_disk(monkeypatch)
        await core.fills.ensure(first.ino, 0, MIB)
        await core.fills.ensure(second.ino, 0, MIB)
        assert (core.blocks(first.ino), core.blocks(second.ino)) == (0, 0b1111)
        assert core.arena.arena.runs(second.ino, 0, MIB) == []
        may_write.set()
        await settled(core, first.ino)


async def test_failed_fetch_gives_its_slot_back_unpublished(tmp_path: Path) -> None:
    async with running_core(tmp_path, arena_slots=1) as core:
        content = os.urandom(MIB)
        inode = await core.put("a", content)
        core.backend.script("get", TransientError("reset"))
        with pytest.raises(TransientError):
            await core.fills.ensure(inode.ino, 0, MIB)
        assert core.arena.arena.runs(inode.ino, 0, MIB) == []
        await core.fills.ensure(inode.ino, 0, MIB)
        assert read_arena(core, inode.ino, MIB) == content


async def test_disk_that_refuses_keeps_no_reader_from_fetched_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_core(tmp_path, arena_slots=1) as core:
        content = os.urandom(MIB)
        inode = await core.put("a", content)

        def refuse(*_arguments: Any) -> dict[int, int]:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(fill_module, "store_blocks_directly", refuse)
        await core.fills.ensure(inode.ino, 0, MIB)
        await settled(core, inode.ino)
        assert core.blocks(inode.ino) == 0
        assert read_arena(core, inode.ino, MIB) == content
        with pytest.raises(CacheFullError):
            await core.fills.ensure(inode.ino, 0, MIB)


async def test_single_blocks_take_no_slot(tmp_path: Path) -> None:
    async with running_core(tmp_path, arena_slots=1) as core:
        inode = await core.put("a", os.urandom(MIB))
        await core.fills.ensure(inode.ino, BLOCK_BYTES, 1)
        assert core.blocks(inode.ino) == 0b10
        assert core.arena.arena.runs(inode.ino, 0, MIB) == []


async def test_idle_arena_gives_its_memory_back(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with running_core(tmp_path, arena_slots=2) as core:
        inode = await core.put("a", os.urandom(PART_BYTES))
        await core.fills.ensure(inode.ino, 0, PART_BYTES)
        await settled(core, inode.ino)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.arena.run)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(31)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert core.arena.arena.runs(inode.ino, 0, PART_BYTES) == []
        assert all(bytes(core.arena.arena.buffer(slot)) == bytes(PART_BYTES) for slot in range(2))
