"""Listings ahead of who walks through directories: how many, where, and when there are none."""

from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.core import listahead
from fanoutfs.core.listahead import ListAhead, find_directory
from fanoutfs.observe.catalog import Count
from fanoutfs.records import ROOT_INO
from tests.unit.core.rig import Rig, running_core


async def walking(core: Rig, directories: int, files: int = 1, ttl_s: float = float("inf")) -> ListAhead:
    """Make a tree of directories d000, d001, … with files between them, and know their names only."""
    for number in range(directories):
        core.write(f"d{number:03}.txt", b"between")
        for each in range(files):
            core.write(f"d{number:03}/{each}", b"1")
    await core.listings.refresh(ROOT_INO)
    ahead = ListAhead(core.reader, core.listings, "", ttl_s)
    core.filesystem.on_first_use = ahead.note_first_use
    return ahead


def listed(core: Rig, directories: int) -> list[int]:
    return [number for number in range(directories) if core.inode(f"d{number:03}").is_listed]


async def touch(core: Rig, number: int) -> None:
    """List a directory as a reader does whom no front can answer, and wait for what that begins."""
    inode = core.inode(f"d{number:03}")
    if not inode.is_listed:
        await core.filesystem.make_listed(inode.ino)
    await trio.testing.wait_all_tasks_blocked()
    while any(core.listings.is_under_way(core.inode(f"d{other:03}").ino) for other in range(100)):
        await trio.testing.wait_all_tasks_blocked()


async def test_walk_in_order_is_listed_ahead_in_growing_steps(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await walking(core, 100)
        await touch(core, 0)
        assert listed(core, 100) == [0]
        await touch(core, 1)
        assert listed(core, 100) == list(range(6))
        for number in range(2, 6):
            await touch(core, number)
        assert listed(core, 100) == list(range(6))
        await touch(core, 6)
        assert listed(core, 100) == list(range(23))
        for number in range(7, 24):
            await touch(core, number)
        assert listed(core, 100) == list(range(88))
        assert core.count(Count.LISTINGS) == 1 + 88, "each once"


async def test_walk_ends_with_the_last_directory(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await walking(core, 100)
        for number in range(95, 100):
            await touch(core, number)
        assert listed(core, 100) == list(range(95, 100))


@pytest.mark.parametrize("order", [(5,), (5, 7, 9, 11), (9, 8, 7), (5, 50, 6, 51)], ids=str)
async def test_directories_in_no_order_are_listed_singly(tmp_path: Path, order: tuple[int, ...]) -> None:
    async with running_core(tmp_path) as core:
        await walking(core, 100)
        for number in order:
            await touch(core, number)
        assert listed(core, 100) == sorted(order)


async def test_nothing_is_listed_ahead_that_is_old_when_the_reader_comes(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await walking(core, 100, ttl_s=1.0)
        for number in range(5):
            await touch(core, number)
        assert listed(core, 100) == list(range(5))


async def test_big_directories_are_not_listed_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listahead, "_BIG_NAMES", 20)
    async with running_core(tmp_path) as core:
        await walking(core, 100, files=20)
        for number in range(5):
            await touch(core, number)
        assert listed(core, 100) == list(range(5))


async def test_reader_who_comes_while_a_directory_is_listed_ahead_joins_and_changes_nothing(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        ahead = await walking(core, 100)
        await touch(core, 0)
        third = core.inode("d002")
        gate = core.backend.hold("list")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(touch, core, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert core.listings.is_under_way(third.ino)
            ahead.note_first_use(third)
            gate.release()
        await touch(core, 2)
        assert listed(core, 100) == list(range(6))
        await touch(core, 6)
        assert listed(core, 100) == list(range(23))


async def test_key_without_a_path_leads_nowhere(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await walking(core, 2)
        assert find_directory(core.reader, "", "d001/") == core.inode("d001").ino
        assert find_directory(core.reader, "", "") == ROOT_INO
        assert find_directory(core.reader, "", "nowhere/d001/") == 0
