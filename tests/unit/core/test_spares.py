"""Staging files ahead of need."""

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.numbers import Numbers
from fanoutfs.core.spares import Spares
from fanoutfs.observe.spares import RING, SpareRings
from tests.unit.core.rig import Rig, running_core


@asynccontextmanager
async def spares_of(path: Path) -> AsyncIterator[tuple[Rig, StagingFiles, Spares]]:
    async with running_core(path) as core:
        files = StagingFiles(path)
        try:
            yield core, files, Spares(files, Numbers(core.writer))
        finally:
            files.close()


async def until_ready(spares: Spares, count: int) -> None:
    with trio.fail_after(30):
        while len(spares._ready) < count:
            await trio.sleep(0)


async def test_nothing_is_made_before_the_first_file(tmp_path: Path) -> None:
    async with spares_of(tmp_path) as (_core, files, spares), trio.open_nursery() as nursery:
        nursery.start_soon(spares.run)
        await trio.testing.wait_all_tasks_blocked()
        assert list(files.all()) == []
        nursery.cancel_scope.cancel()


async def test_taken_files_are_empty_and_of_now_and_the_rest_goes_at_the_end(tmp_path: Path) -> None:
    async with spares_of(tmp_path) as (_core, files, spares):
        taken = set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spares.run)
            taken.add(await spares.take())
            await until_ready(spares, 8)
            made_ns = max(os.stat(files.path(ino, life)).st_mtime_ns for ino, life in files.all())
            for _each in range(30):
                taken.add(await spares.take())
                await until_ready(spares, 1)
            for ino in taken:
                found = files.stat(ino, ino)
                assert found.st_size == 0 and files.is_blank(ino, ino)
            assert files.stat(max(taken), max(taken)).st_mtime_ns >= made_ns
            nursery.cancel_scope.cancel()
        assert len(taken) == 31
        assert set(files.all()) == {(ino, ino) for ino in taken}


async def test_more_are_kept_ready_the_faster_they_go(tmp_path: Path) -> None:
    async with spares_of(tmp_path) as (_core, _files, spares), trio.open_nursery() as nursery:
        nursery.start_soon(spares.run)
        for _each in range(200):
            await spares.take()
            await until_ready(spares, 1)
        await until_ready(spares, 65)
        nursery.cancel_scope.cancel()


async def test_disk_that_takes_no_files_fails_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: StagingFiles, _ino: int, _life: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with spares_of(tmp_path) as (_core, _files, spares), trio.open_nursery() as nursery:
        nursery.start_soon(spares.run)
        with monkeypatch.context() as patched:
            patched.setattr(StagingFiles, "make", fail)
            for _each in range(3):
                with pytest.raises(OSError):
                    await spares.take()
                await trio.testing.wait_all_tasks_blocked()
        assert await spares.take()
        nursery.cancel_scope.cancel()


def names_in(path: Path) -> set[tuple[int, int]]:
    """Return the staging files there are."""
    files = StagingFiles(path)
    try:
        return set(files.all())
    finally:
        files.close()


class Fronts:
    """Two fronts' rings, and what they are busy with."""

    def __init__(self) -> None:
        self.rings = SpareRings(2)
        self.busy = [0, 0]
        self.given: list[int] = []
        self.made: list[int] = []

    def use(self, front: int) -> int:
        ino = self.rings.first(front)
        if ino:
            self.rings.note_used(front)
        return ino


@asynccontextmanager
async def spares_of_fronts(path: Path) -> AsyncIterator[tuple[Fronts, StagingFiles, Spares]]:
    async with running_core(path) as core:
        files, fronts = StagingFiles(path), Fronts()
        spares = Spares(files, Numbers(core.writer), fronts.rings, lambda: fronts.busy, 2)
        spares.note_given, spares.note_made = fronts.given.append, fronts.made.append
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spares.run)
                await trio.testing.wait_all_tasks_blocked()
                yield fronts, files, spares
                nursery.cancel_scope.cancel()
        finally:
            files.close()


async def until_given(spares: Spares, count: int) -> None:
    with trio.fail_after(30):
        while min(spares.given) < count:
            await trio.sleep(0)


async def test_fronts_get_theirs_after_the_first_file(tmp_path: Path) -> None:
    async with spares_of_fronts(tmp_path) as (fronts, files, spares):
        assert (fronts.use(0), fronts.use(1), list(files.all())) == (0, 0, [])
        await spares.take()
        await until_given(spares, 8)
        first, second = fronts.use(0), fronts.use(1)
        assert first != second
        assert {first, second} <= set(fronts.given)
        assert files.is_blank(first, first) and files.is_blank(second, second)
        assert len(set(fronts.given)) == len(fronts.given)


async def test_what_fronts_made_is_told_once_and_in_order(tmp_path: Path) -> None:
    async with spares_of_fronts(tmp_path) as (fronts, _files, spares):
        await spares.take()
        await until_given(spares, 8)
        used = [fronts.use(0) for _each in range(3)]
        spares.catch_up()
        spares.catch_up()
        assert fronts.made == used


async def test_a_front_that_makes_many_gets_ever_more_and_never_one_twice(tmp_path: Path) -> None:
    async with spares_of_fronts(tmp_path) as (fronts, _files, spares):
        await spares.take()
        used: list[int] = []
        while len(used) < 4 * RING:
            if ino := fronts.use(0):
                used.append(ino)
            else:
                spares.catch_up()
                await trio.sleep(0)
        assert len(set(used)) == len(used)
        spares.catch_up()
        assert fronts.made == used
        with trio.fail_after(30):
            while spares.given[0] <= RING // 2:
                await trio.sleep(0)
        assert spares.given[1] == 8


async def test_the_core_takes_back_what_is_left_when_it_ends(tmp_path: Path) -> None:
    async with spares_of_fronts(tmp_path) as (fronts, _files, spares):
        taken = await spares.take()
        await until_given(spares, 8)
        used = fronts.use(1)
    assert not fronts.rings.is_open
    assert fronts.use(0) == 0
    assert fronts.made == [used]
    assert names_in(tmp_path) == {(taken, taken), (used, used)}


async def test_after_an_end_fronts_get_new_ones(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        files, fronts = StagingFiles(tmp_path), Fronts()
        spares = Spares(files, Numbers(core.writer), fronts.rings, lambda: fronts.busy, 2)
        used = []
        for _round in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(spares.run)
                await spares.take()
                await until_given(spares, 8)
                used.append(fronts.use(0))
                assert files.is_blank(used[-1], used[-1])
                nursery.cancel_scope.cancel()
            assert spares.given == [0, 0]
        assert len(set(used)) == 2
        files.close()


async def test_the_core_takes_nothing_from_a_front_that_does_not_end_its_request(tmp_path: Path) -> None:
    async with spares_of_fronts(tmp_path) as (fronts, _files, spares):
        await spares.take()
        await until_given(spares, 8)
        fronts.busy[1] = 3
    assert names_in(tmp_path) >= {(ino, ino) for ino in fronts.given}
