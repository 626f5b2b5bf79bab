"""Which disk gets a part, and what becomes of it when the disk refuses.

A further disk is a directory here; what it refuses, it refuses where its files are opened for writing.
"""

import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.config.schema import DiskDirectory
from fanoutfs.core.disks import Further, rank_disks
from fanoutfs.errors import CacheFullError
from fanoutfs.index.victims import disk_of_part
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import BUSY, DISKS, FIRST_FRONT_ROW
from fanoutfs.records import BLOCK_BYTES, GIB, MIB, PART_BYTES
from tests.unit.core.rig import Rig, running_core

PARTS = [(ino, part) for ino in range(16, 116) for part in range(100)]
ALL = (1 << 32) - 1


def test_each_disk_gets_its_share_by_weight() -> None:
    weights = {0: 1 * GIB, 1: 2 * GIB, 5: 5 * GIB, 6: 0}
    firsts = [rank_disks(part, weights)[0] for part in PARTS]
    for disk, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(firsts.count(disk) / len(PARTS) - share) < 0.02


def test_disk_that_goes_moves_no_part_of_the_others() -> None:
    weights = {0: 3, 1: 2, 2: 4}
    for part in PARTS[:1000]:
        ranked = rank_disks(part, weights)
        assert sorted(ranked) == [0, 1, 2]
        assert rank_disks(part, {0: 3, 2: 4}) == [disk for disk in ranked if disk != 1]


@asynccontextmanager
async def core_with_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arena_slots: int) -> AsyncIterator[Rig]:
    """A core with one further directory, to which all parts go."""
    (tmp_path / "core").mkdir()
    further = [Further(DiskDirectory(tmp_path / "disk"))]
    async with running_core(tmp_path / "core", arena_slots=arena_slots, further=further) as core:
        monkeypatch.setattr(core.space.disks, "_capacity", lambda disk: GIB << 20 if disk else 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.space.disks.run)
            await until_state(core, "ok")
            yield core
            nursery.cancel_scope.cancel()


async def until_state(core: Rig, state: str) -> None:
    with trio.fail_after(20):
        while core.space.disks.describe()[0]["state"] != state:
            await trio.sleep(0.005)


def refuse(core: Rig, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Have all disks but 0 refuse to be opened for writing."""

    def refusing(original: Callable[..., int]) -> Callable[..., int]:
        def open_it(*arguments: int, disk: int = 0) -> int:
            disk = disk or (arguments[-1] if len(arguments) == disk_at[original.__name__] + 1 else 0)
            if disk:
                raise OSError(code, os.strerror(code))
            return original(*arguments)

        return open_it

    disk_at = {"duplicate": 1, "open_direct": 2}
    for name in disk_at:
        monkeypatch.setattr(core.files, name, refusing(getattr(core.files, name)))


@pytest.mark.parametrize("arena_slots", [0, 4])
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ENOSPC])
async def test_refused_fill_goes_to_another_disk_with_what_it_fetched(
    code: int, arena_slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with core_with_disk(tmp_path, monkeypatch, arena_slots) as core:
        first, second = await core.put("a", os.urandom(2 * PART_BYTES)), await core.put("b", os.urandom(PART_BYTES))
        await core.fills.ensure(first.ino, 0, first.size_bytes)
        await core.fills.wait_idle(first.ino)
        number = disk_of_part(core.environment, (first.ino, 1))
        assert number == core.space.disks.describe()[0]["disk"] != 0
        refuse(core, monkeypatch, code)
        fetched = core.backend.calls.get("get", 0)
        with trio.fail_after(20):
            await core.fills.ensure(second.ino, 0, PART_BYTES)
            await core.fills.wait_idle(second.ino)
        assert core.backend.calls.get("get", 0) == fetched + 1, "each byte once"
        assert core.blocks(second.ino) == ALL
        assert disk_of_part(core.environment, (second.ino, 0)) == 0
        if code == errno.ENOSPC:
            await until_state(core, "full")
            assert core.blocks(first.ino) == ALL, "what a full disk has is good"
            return
        with trio.fail_after(20):
            while core.blocks(first.ino) or core.blocks(first.ino, 1):
                await trio.sleep(0.005)
        await until_state(core, "out")
        assert core.count(Count.DISKS_FAILED) == 1
        with trio.fail_after(20):
            while not core.shared.flags[DISKS]:
                await trio.sleep(0.005)
        assert core.space.large_bytes() == PART_BYTES


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_rest_of_a_part_on_a_disk_that_refuses_is_read_through_or_moved(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with core_with_disk(tmp_path, monkeypatch, 0) as core:
        inode = await core.put("a", content := os.urandom(PART_BYTES))
        await core.fills.ensure(inode.ino, 0, BLOCK_BYTES)
        refuse(core, monkeypatch, code)
        outcomes: list[str] = []

        async def ask(block: int) -> None:
            try:
                await core.fills.ensure(inode.ino, block * BLOCK_BYTES, BLOCK_BYTES)
                outcomes.append("cached")
            except CacheFullError:
                outcomes.append("read through")

        with trio.fail_after(20):  # two that hold the same part must not wait for each other for ever
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, 5)
                nursery.start_soon(ask, 9)
        assert len(outcomes) == 2  # read through, if another was still writing there
        await until_state(core, "full" if code == errno.ENOSPC else "out")
        for block in (5, 9):
            await core.fills.ensure(inode.ino, block * BLOCK_BYTES, BLOCK_BYTES)
        assert core.blocks(inode.ino) & (1 << 5 | 1 << 9) == 1 << 5 | 1 << 9
        assert disk_of_part(core.environment, (inode.ino, 0)) == 0
        assert core.cached(inode)[5 * BLOCK_BYTES : 6 * BLOCK_BYTES] == content[5 * BLOCK_BYTES : 6 * BLOCK_BYTES]


def leave_no_room(core: Rig, monkeypatch: pytest.MonkeyPatch, *disks: int) -> None:
    """Have these disks lack more than they hold."""
    plain = core.space._disk_excess_bytes

    def excess_bytes(disk: int, *, takes_readers: bool = True) -> int:
        return 1 << 60 if disk in disks else plain(disk, takes_readers=takes_readers)

    monkeypatch.setattr(core.space, "_disk_excess_bytes", excess_bytes)


async def test_disk_on_which_others_left_no_room_is_told_as_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with core_with_disk(tmp_path, monkeypatch, 0) as core:
        await until_state(core, "ok")
        monkeypatch.setattr(core.space.disks, "_capacity", lambda disk: 0 if disk else 1)
        await until_state(core, "full")
        monkeypatch.setattr(core.space.disks, "_capacity", lambda disk: 1)
        await until_state(core, "ok")


async def test_rest_of_a_part_on_a_disk_without_room_takes_the_part_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with core_with_disk(tmp_path, monkeypatch, 0) as core:
        inode = await core.put("a", content := os.urandom(PART_BYTES))
        await core.fills.ensure(inode.ino, 0, BLOCK_BYTES)
        ((file),) = (tmp_path / "disk").rglob(f"objects/*/{inode.ino:x}*")
        number = core.space.disks.describe()[0]["disk"]
        leave_no_room(core, monkeypatch, number)
        busy = core.shared.row(FIRST_FRONT_ROW)
        busy[BUSY] = 1  # a front that may still read what lies there
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:  # fills of one part that look for room at once
                for block in (3, 5, 9):
                    nursery.start_soon(core.fills.ensure, inode.ino, block * BLOCK_BYTES, BLOCK_BYTES)
                while core.blocks(inode.ino):
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                assert file.read_bytes()[:BLOCK_BYTES] == content[:BLOCK_BYTES]
                busy[BUSY] = 2
        assert core.blocks(inode.ino) == 1 << 3 | 1 << 5 | 1 << 9
        await core.fills.ensure(inode.ino, 0, PART_BYTES)
        assert core.blocks(inode.ino) == ALL
        assert disk_of_part(core.environment, (inode.ino, 0)) == 0
        assert core.cached(inode) == content
        assert core.count(Count.READ_THROUGH_BYTES) == 0
        assert core.space.disks.bytes_on(number) == 0
        assert not file.exists(), "it takes an inode of a disk that may lack them"


@pytest.mark.parametrize("why", ["no room anywhere", "pinned", "handed over", "another writes there"])
async def test_part_on_a_disk_without_room_stays_where_it_must(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with core_with_disk(tmp_path, monkeypatch, 0) as core, contextlib.AsyncExitStack() as stack:
        inode = await core.put("a", os.urandom(PART_BYTES))
        await core.fills.ensure(inode.ino, 0, BLOCK_BYTES)
        number = disk_of_part(core.environment, (inode.ino, 0))
        assert number
        if why == "pinned":
            core.space.is_pinned = lambda ino: ino == inode.ino
        elif why == "handed over":
            await stack.enter_async_context(core.space.handing_over(inode.ino))
        elif why == "another writes there":
            assert await stack.enter_async_context(core.space.reserved_part(1, (inode.ino, 0))) == number
        leave_no_room(core, monkeypatch, number, *([0] if why == "no room anywhere" else []))
        with pytest.raises(CacheFullError):
            await core.fills.ensure(inode.ino, BLOCK_BYTES, BLOCK_BYTES)
        assert core.blocks(inode.ino) == 1
        assert disk_of_part(core.environment, (inode.ino, 0)) == number


async def test_refusals_of_writes_that_were_under_way_count_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with core_with_disk(tmp_path, monkeypatch, 0) as core:
        number = core.space.disks.describe()[0]["disk"]
        for _write in range(6):
            core.space.disks.note_error(number, OSError(errno.ENOSPC, "no space"))
        assert core.space.disks.is_full(number)
    assert caplog.text.count("no new parts for 5 s") == caplog.text.count("no new parts for") == 1


async def test_new_parts_go_past_a_disk_without_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with core_with_disk(tmp_path, monkeypatch, 0) as core:
        number = core.space.disks.describe()[0]["disk"]
        first = await core.put("first", os.urandom(MIB))
        await core.fills.ensure(first.ino, 0, MIB)
        # Exactly as many as it should have: a new file would take one of them, and the next one make it go again.
        monkeypatch.setattr(core.files, "inodes", lambda disk=0: (100 if disk else 1000, 1000))
        second = await core.put("second", os.urandom(MIB))
        await core.fills.ensure(second.ino, 0, MIB)
        assert disk_of_part(core.environment, (second.ino, 0)) == 0
        assert disk_of_part(core.environment, (first.ino, 0)) == number
        assert core.count(Count.EVICTED_BYTES) == 0


async def test_part_that_cannot_be_read_is_fetched_to_another_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with core_with_disk(tmp_path, monkeypatch, 0) as core:
        inode = await core.put("a", content := os.urandom(PART_BYTES))
        await core.fills.ensure(inode.ino, 0, PART_BYTES)
        refuse(core, monkeypatch, errno.EIO)  # opened for a look at what is there, too
        await core.fills.discard_damaged(inode.ino, 0, PART_BYTES)
        await core.fills.ensure(inode.ino, 0, PART_BYTES)
        assert disk_of_part(core.environment, (inode.ino, 0)) == 0
        assert core.cached(inode) == content
        assert core.count(Count.VERIFY_FAILURES) == 0, "an error is no wrong byte"
        assert core.count(Count.DISK_ERRORS) >= 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arena_slots", [0, 4])
async def test_disk_that_is_full_now_and_then_costs_no_byte(
    arena_slots: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    async with core_with_disk(tmp_path, monkeypatch, arena_slots) as core:
        number = core.space.disks.describe()[0]["disk"]
        contents = [chance.randbytes(2 * PART_BYTES - 1000 * n) for n in range(3)]
        inodes = [await core.put(f"f{n}", content) for n, content in enumerate(contents)]
        plain_excess, plain_write = core.space._disk_excess_bytes, core.files.open_direct
        plain_duplicate = core.files.duplicate
        lacks_room = refuses = False

        def excess_bytes(disk: int, *, takes_readers: bool = True) -> int:
            return 1 << 60 if disk and lacks_room else plain_excess(disk, takes_readers=takes_readers)

        def open_direct(ino: int, size_bytes: int, disk: int = 0) -> int:
            if disk and refuses:
                raise OSError(errno.ENOSPC, "no space")
            return plain_write(ino, size_bytes, disk)

        def duplicate(ino: int, disk: int = 0) -> int:
            if disk and refuses and chance.random() < 0.5:
                raise OSError(errno.ENOSPC, "no space")
            return plain_duplicate(ino, disk)

        monkeypatch.setattr(core.space, "_disk_excess_bytes", excess_bytes)
        monkeypatch.setattr(core.files, "open_direct", open_direct)
        monkeypatch.setattr(core.files, "duplicate", duplicate)

        async def read(reader: random.Random) -> None:
            for _read in range(60):
                inode = reader.choice(inodes)
                offset = reader.randrange(inode.size_bytes)
                with contextlib.suppress(CacheFullError):
                    await core.fills.ensure(inode.ino, offset, reader.choice([1, MIB, 3 * MIB]))

        async def evict(reader: random.Random) -> None:
            for _eviction in range(20):
                await core.space.evict_file(reader.choice(inodes).ino)
                await trio.sleep(reader.random() / 50)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for each in range(4):
                    nursery.start_soon(read, random.Random(100 * seed + each))
                nursery.start_soon(evict, random.Random(seed))
                for _change in range(60):
                    lacks_room, refuses = chance.random() < 0.5, chance.random() < 0.5
                    core.space.disks._full_until.clear()
                    await trio.sleep(chance.random() / 100)
            for inode in inodes:  # (fills that a refused reader left behind hold their parts where they are)
                await core.fills.wait_idle(inode.ino)
            lacks_room, refuses = True, False
            for inode in [*inodes, *inodes]:  # (what moved is missing once more)
                await core.fills.ensure(inode.ino, 0, inode.size_bytes)
                await core.fills.wait_idle(inode.ino)
        held = {0: 0, number: 0}
        for inode, content in zip(inodes, contents, strict=True):
            for part in range(2):
                disk = disk_of_part(core.environment, (inode.ino, part))
                assert disk is not None
                piece = content[part * PART_BYTES : (part + 1) * PART_BYTES]
                assert os.pread(core.files.descriptor(inode.ino, disk), len(piece), part * PART_BYTES) == piece
                held[disk] += len(piece)
        assert sum(held.values()) == core.space.large_bytes() == sum(len(content) for content in contents)
        assert core.space.disks.bytes_on(number) == held[number]
        assert not core.space._writing
        assert not core.space._part_disks._writers
        assert not core.space._part_disks._placed
        assert not any(core.space.disks._reserved.values())
