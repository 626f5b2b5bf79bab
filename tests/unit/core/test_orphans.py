"""Freeing replaced inodes once the kernel has forgotten them."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from fanoutfs.core.orphans import OrphanReaper
from fanoutfs.core.readahead import ReadAhead
from fanoutfs.index.victims import cached_parts
from fanoutfs.observe.catalog import Count
from fanoutfs.records import MIB, ROOT_INO
from tests.unit.core.rig import Rig, running_core


class Kernel:
    """Says which inodes it holds."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    async def is_held(self, ino: int) -> bool:
        return ino in self.held


def reaper(core: Rig, kernel: Any) -> OrphanReaper:
    return OrphanReaper(
        environment=core.environment,
        staging=core.staging_files,
        small=core.small,
        space=core.space,
        notifier=kernel,
        grace=core.grace,
        readahead=ReadAhead(0),
        clock=core.clock,
        row=core.row,
    )


@pytest.mark.parametrize("size", [100, MIB])
async def test_forgotten_orphan_goes_with_its_bytes_and_a_held_one_stays(tmp_path: Path, size: int) -> None:
    async with running_core(tmp_path) as core:
        kernel = Kernel()
        old = await core.put("a", os.urandom(size))
        await core.fills.ensure(old.ino, 0, size)
        new = await core.put("a", os.urandom(size))
        await core.fills.ensure(new.ino, 0, size)
        kernel.held = {old.ino}
        assert await reaper(core, kernel).sweep(0) == 0
        await core.fills.ensure(old.ino, 0, size)  # still cached: the version is gone from the store

        kernel.held = set()
        assert await reaper(core, kernel).sweep(0) == 1
        with core.reader.begin() as txn:
            assert core.reader.inode(txn, old.ino) is None
        assert not (tmp_path / "objects" / core.files.relative_path(old.ino)).exists()
        assert not core.small.has(old.ino)
        assert core.blocks(old.ino) == 0
        assert core.count(Count.ORPHANS_FREED) == 1
        await core.fills.ensure(new.ino, 0, size)
        assert core.backend.calls["get"] == 2


@pytest.mark.parametrize("is_orphan", [True, False])
async def test_what_goes_counts_until_the_disk_has_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_orphan: bool
) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(9 * MIB))
        await core.fills.ensure(inode.ino, 0, 9 * MIB)
        full_bytes = core.space.used_bytes()
        if is_orphan:
            await core.put("a", b"new")
        counted: list[int] = []
        run: Any = core.writer.run

        async def commit(change: Any) -> Any:
            result = await run(change)
            # The index has it already, and nobody was told: as others see it who run in this moment.
            counted.append(core.space.used_bytes() + core.space.holes.unpunched_bytes)
            return result

        monkeypatch.setattr(core.writer, "run", commit)
        if is_orphan:
            assert await reaper(core, Kernel()).sweep(0) == 1
        else:
            assert await core.space.evict_file(inode.ino) == 9 * MIB
        assert len(counted) == (1 if is_orphan else 2)  # (an eviction commits part by part)
        # (The reserve for each part in the index goes with it.)
        assert min(counted) > full_bytes - MIB
        assert core.space.used_bytes() < full_bytes - 8 * MIB
        assert core.space.holes.unpunched_bytes == 0


async def test_orphan_that_goes_while_its_parts_are_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(20 * MIB))
        await core.fills.ensure(inode.ino, 0, 20 * MIB)
        await core.put("a", b"new")
        victims = cached_parts(core.environment, inode.ino)
        assert len(victims) > 1
        run: Any = core.writer.run
        is_gone = False

        async def commit(change: Any) -> Any:
            nonlocal is_gone
            result = await run(change)
            if not is_gone:
                is_gone = True
                assert await reaper(core, Kernel()).sweep(0) == 1
            return result

        monkeypatch.setattr(core.writer, "run", commit)
        await core.space.holes.give_up(victims)
        assert core.space.holes.unpunched_bytes == 0
        assert not (tmp_path / "objects" / core.files.relative_path(inode.ino)).exists()


async def test_cache_file_that_cannot_be_removed_gives_its_bytes_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_core(tmp_path) as core:
        inodes = []
        for name in "abc":
            inodes.append(await core.put(name, os.urandom(9 * MIB)))
            await core.fills.ensure(inodes[-1].ino, 0, 9 * MIB)
        for name in "abc":
            await core.put(name, b"new")
        remove = core.files.remove

        def refuse(ino: int) -> None:
            if ino == inodes[0].ino:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            remove(ino)

        monkeypatch.setattr(core.files, "remove", refuse)
        assert await reaper(core, Kernel()).sweep(0) == 3
        paths = [tmp_path / "objects" / core.files.relative_path(inode.ino) for inode in inodes]
        assert [path.exists() for path in paths] == [True, False, False]
        assert core.space.holes.unpunched_bytes == 9 * MIB
        await core.space.holes.retry()
        assert core.space.holes.unpunched_bytes == 0
        assert paths[0].stat().st_blocks == 0


async def test_young_orphan_is_left_alone(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await core.put("a", b"old")
        await core.put("a", b"new and longer")
        assert await reaper(core, Kernel()).sweep(5) == 0
        core.clock.now_ns += 5
        assert await reaper(core, Kernel()).sweep(5) == 1


async def test_tree_that_is_gone_is_freed_whole(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name in ("d/a", "d/b", "d/e/c"):
            core.write(name, b"1")
        await core.listings.refresh(ROOT_INO)
        await core.listings.refresh(core.inode("d").ino)
        await core.listings.refresh(core.inode("d/e").ino)
        for name in ("d/a", "d/b", "d/e/c"):
            (core.source / name).unlink()
        (core.source / "d/e").rmdir()
        (core.source / "d").rmdir()
        await core.listings.refresh(ROOT_INO)
        assert await reaper(core, Kernel()).sweep(0) == 5


async def test_full_disk_does_not_end_the_core(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trio

    from fanoutfs.errors import DatabaseError

    sweeps = 0

    async def sweep(self: OrphanReaper, min_age_ns: int) -> int:
        nonlocal sweeps
        sweeps += 1
        raise DatabaseError("no space left on device")

    monkeypatch.setattr(OrphanReaper, "sweep", sweep)
    nothing: Any = None
    endless = OrphanReaper(
        environment=nothing,
        staging=nothing,
        small=nothing,
        space=nothing,
        notifier=nothing,
        grace=nothing,
        readahead=nothing,
        clock=nothing,
        row=nothing,
    )
    with trio.move_on_after(60):
        await endless.run()
    assert sweeps >= 10
