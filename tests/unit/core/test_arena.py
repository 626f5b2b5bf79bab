"""Fills through the arena: readers do not wait for the disk, slots come back, nothing is promised too early."""

import os
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from fanoutfs.backend.base import Backend, Landing
from fanoutfs.cache.arena import Arena
from fanoutfs.cache.blocks import write_directly
from fanoutfs.core import fill as fill_module
from fanoutfs.core.admission import Urgency
from fanoutfs.core.arena import ArenaSlots
from fanoutfs.core.fetch import fetch_version
from fanoutfs.core.grace import Grace
from fanoutfs.core.largefill import Fill
from fanoutfs.errors import CacheFullError, TransientError
from fanoutfs.index.format import Inode
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
    store = write_directly

    def wait_and_store(*arguments: Any) -> None:
        assert may_write.wait(30), "nobody let the disk write"
        store(*arguments)

    monkeypatch.setattr(fill_module, "write_directly", wait_and_store)
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


async def test_what_was_read_is_stored_before_a_core_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_core(tmp_path, arena_slots=2) as core:
        inode = await core.put("a", os.urandom(2 * MIB + 5))
        await core.fills.store_arrived()  # nothing is under way
        may_write = held_disk(monkeypatch)
        await core.fills.ensure(inode.ino, 0, inode.size_bytes)
        stored = trio.Event()

        async def store() -> None:
            await core.fills.store_arrived()
            assert core.blocks(inode.ino) == 0b1_1111_1111
            stored.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store)
            await trio.testing.wait_all_tasks_blocked()
            assert not stored.is_set()
            may_write.set()


def halved_fetch(monkeypatch: pytest.MonkeyPatch, half: int) -> tuple[threading.Event, list[Exception]]:
    """Let half of a range arrive, the rest after the event; an exception put into the list is raised instead."""
    may_go_on = threading.Event()
    failures: list[Exception] = []
    fetch = fetch_version

    def fetch_halves(backend: Backend, inode: Inode, start: int, end: int, into: Landing) -> memoryview:
        body = fetch(backend, inode, start, end)
        into.put(body[:half])
        assert may_go_on.wait(30), "nobody let the rest arrive"
        if failures:
            raise failures.pop()
        return into.put(body)

    monkeypatch.setattr(fill_module, "fetch_version", fetch_halves)
    return may_go_on, failures


async def test_reader_goes_on_when_what_it_wants_has_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_core(tmp_path, arena_slots=2) as core:
        content = os.urandom(5 * MIB + 5)
        inode = await core.put("a", content)
        may_go_on, _failures = halved_fetch(monkeypatch, 2 * MIB + 1)
        core.fills.fetch_ahead(inode.ino)
        with trio.fail_after(30):
            await core.fills.ensure(inode.ino, MIB, MIB)
            assert read_arena(core, inode.ino, len(content)) == content[: 2 * MIB + 1]
            may_go_on.set()
            await core.fills.ensure(inode.ino, 0, len(content))
        assert read_arena(core, inode.ino, len(content)) == content
        await settled(core, inode.ino)
        assert core.cached(inode) == content
        assert core.backend.calls["get"] == 1


async def test_fetch_that_fails_half_way_keeps_its_first_half_for_readers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_core(tmp_path, arena_slots=2) as core:
        content = os.urandom(4 * MIB)
        inode = await core.put("a", content)
        may_go_on, failures = halved_fetch(monkeypatch, 2 * MIB)
        failures.append(TransientError("cut"))
        core.fills.fetch_ahead(inode.ino)
        with trio.fail_after(30):
            await core.fills.ensure(inode.ino, 0, MIB)
            may_go_on.set()
            with pytest.raises(TransientError):
                await core.fills.ensure(inode.ino, 0, len(content))
        await settled(core, inode.ino)
        assert core.blocks(inode.ino) == 0
        assert read_arena(core, inode.ino, len(content)) == content[: 2 * MIB]
        await core.fills.ensure(inode.ino, 0, len(content))
        await settled(core, inode.ino)
        assert core.cached(inode) == content


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

        def refuse(*_arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(fill_module, "write_directly", refuse)
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


async def test_waiters_of_one_fetch_go_on_each_when_its_bytes_have_come(tmp_path: Path) -> None:
    async with running_core(tmp_path, arena_slots=1) as core:
        inode = await core.put("a", bytes(4 * MIB))
    fill = Fill(inode, 4, 12, Urgency.DEMAND)  # from 1 MiB on
    passed: list[int] = []

    async def wait(end: int) -> None:
        await fill.wait_readable(end)
        passed.append(end)

    async with trio.open_nursery() as nursery:
        for end in (2 * MIB, 4 * MIB, 3 * MIB, 9 * MIB):
            nursery.start_soon(wait, end)
        await trio.testing.wait_all_tasks_blocked()
        assert (passed, fill.wanted) == ([], MIB)
        fill.shown = 2 * MIB  # (as the thread that receives does)
        fill.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert (sorted(passed), fill.wanted) == ([2 * MIB, 3 * MIB], 3 * MIB)
        await wait(3 * MIB)  # who comes now does not wait
        fill.shown = 3 * MIB
        fill.wake()
    assert sorted(passed) == [2 * MIB, 3 * MIB, 3 * MIB, 4 * MIB, 9 * MIB]


async def test_slot_is_free_before_it_is_needed() -> None:
    class HeldGrace:
        may_end = trio.Event()

        async def wait(self) -> None:
            await self.may_end.wait()

    grace = HeldGrace()
    slots = ArenaSlots(Arena(8 * PART_BYTES), cast("Grace", grace))
    taken: list[int | None] = []

    async def take(count: int) -> None:
        for _each in range(count):
            taken.append(await slots.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slots.run)
        nursery.start_soon(take, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert not taken
        grace.may_end.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(taken) == 4
        grace.may_end = trio.Event()  # fronts are busy from now on: the next four are free already
        await take(4)
        assert sorted(cast("list[int]", taken)) == list(range(8))
        assert await slots.take() is None
        nursery.cancel_scope.cancel()
