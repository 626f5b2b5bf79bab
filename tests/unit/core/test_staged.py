"""Staged bytes: counted, capped, never evicted, and made room for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.granting import keep_staging_room
from fanoutfs.core.staged import StagedBytes
from fanoutfs.core.strays import collect_strays
from fanoutfs.errors import CacheFullError
from fanoutfs.index.format import FLAG_STAGED, FLAG_WHOLE
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import BUSY, FIRST_FRONT_ROW, WRITE_LIMIT
from fanoutfs.records import KIB, MIB
from tests.unit.core.rig import running_core


class Writer:
    """Writes staging files as fronts do."""

    def __init__(self, path: Path) -> None:
        self.files = StagingFiles(path)
        self.path = path
        self.written = 0

    def written_bytes(self) -> int:
        return self.written

    def write(self, ino: int, size_bytes: int) -> None:
        with (self.path / "staging" / StagingFiles.name(ino, ino)).open("ab") as stream:
            stream.write(bytes(size_bytes))
        self.written += size_bytes


async def test_bytes_are_exact_at_the_start_and_follow_what_is_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write(1, 3 * MIB)
    staged = StagedBytes(tmp_path, writer.written_bytes)
    assert staged.total == writer.files.used_bytes() == 3 * MIB
    writer.write(2, 100)
    assert staged.total == 3 * MIB + 100
    await staged.measure()
    assert staged.total == writer.files.used_bytes() == 3 * MIB + 4 * KIB
    staged.add(MIB)
    staged.remove(2 * MIB)
    assert staged.total == 2 * MIB + 4 * KIB
    await staged.measure()
    assert staged.total == 3 * MIB + 4 * KIB


async def test_volume_that_never_staged_anything_has_nothing(tmp_path: Path) -> None:
    staged = StagedBytes(tmp_path, lambda: 0)
    await staged.measure()
    assert staged.total == 0


async def test_files_are_looked_at_only_while_something_changes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(tmp_path)
    staged = StagedBytes(tmp_path, writer.written_bytes)
    looks = 0

    async def measure() -> None:
        nonlocal looks
        looks += 1
        await StagedBytes.measure(staged)

    monkeypatch.setattr(staged, "measure", measure)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(staged.run)
        await trio.sleep(10)
        assert looks == 0
        writer.write(1, MIB)
        await trio.sleep(10)
        assert looks == 1
        nursery.cancel_scope.cancel()


async def test_staged_bytes_count_under_the_cap_and_clean_ones_make_way(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=24 * MIB, small_bytes=4 * MIB) as core:
        inode = await core.put("a", bytes(16 * MIB))
        await core.fills.ensure(inode.ino, 0, 16 * MIB)
        held = core.space.large_bytes()
        assert held == 16 * MIB
        before = core.space.used_bytes()
        core.space.note_staged(6 * MIB)
        assert core.space.staged_bytes == 6 * MIB
        assert core.space.used_bytes() == before + 6 * MIB
        await core.room.wait(6 * MIB, 0)
        assert core.space.large_bytes() < held
        assert core.count(Count.EVICTED_BYTES) >= 4 * MIB


async def test_writer_waits_at_the_cap_until_something_is_uploaded(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with running_core(tmp_path, staging_bytes=4 * MIB) as core:
        writer = Writer(tmp_path)
        writer.write(1, 3 * MIB)
        core.space.note_staged(3 * MIB)
        assert core.space.staging_room() == MIB
        await core.room.wait(MIB, 1)
        done = trio.Event()

        async def wait() -> None:
            await core.room.wait(2 * MIB, 1)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(100)
            assert not done.is_set()
            writer.files.remove(1, 1)
            core.space.note_unstaged(3 * MIB)
            await done.wait()
        writer.files.close()


async def test_writer_is_sent_back_after_a_while_at_the_cap(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with running_core(tmp_path, staging_bytes=4 * MIB) as core:
        Writer(tmp_path).write(1, 3 * MIB)
        core.space.note_staged(3 * MIB)
        started = trio.current_time()
        assert not await core.room.wait(2 * MIB, 1, at_most_s=10)
        assert 10 <= trio.current_time() - started < 11
        assert await core.room.wait(MIB, 1, at_most_s=10)


async def test_staging_that_nothing_will_ever_leave_is_a_full_disk(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_core(tmp_path, staging_bytes=4 * MIB) as core:
        Writer(tmp_path).write(1, 3 * MIB)
        core.space.note_staged(3 * MIB)
        core.room.may_shrink = lambda: False
        assert await core.room.wait(MIB, 1), "what is left is given all the same"
        for _write in range(3):
            with pytest.raises(CacheFullError):
                await core.room.wait(2 * MIB, 1)
        assert [record.message.count("--staging-size") for record in caplog.records] == [1], "said once"
        core.room.may_shrink = lambda: True
        assert not await core.room.wait(2 * MIB, 1, at_most_s=10)


async def test_one_write_larger_than_the_cap_is_let_through(tmp_path: Path) -> None:
    async with running_core(tmp_path, staging_bytes=MIB) as core:
        await core.room.wait(2 * MIB, 0)


async def test_full_disk_is_an_error_when_nothing_moves_for_so_long(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with running_core(tmp_path, floor_bytes=1 << 60) as core:
        started = trio.current_time()
        with pytest.raises(CacheFullError):
            await core.room.wait(MIB, 25)
        assert trio.current_time() - started >= 25
        core.space.note_disk_error(OSError("full"))
        assert core.space.staging_room() == 0


async def test_clean_bytes_are_not_taken_beyond_what_staging_leaves(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=24 * MIB, small_bytes=4 * MIB) as core:
        core.space.note_staged(22 * MIB)
        with pytest.raises(CacheFullError):
            async with core.space.reserved(8 * MIB):
                pass


async def test_room_is_kept_for_what_fronts_are_granted_and_nothing_is_when_staging_is_full(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=64 * MIB, small_bytes=4 * MIB, staging_bytes=40 * MIB) as core:
        inode = await core.put("a", bytes(48 * MIB))
        for at in range(0, 48 * MIB, 8 * MIB):
            await core.fills.ensure(inode.ino, at, 8 * MIB)
        row, space = core.shared.row(FIRST_FRONT_ROW), core.space

        def fits() -> bool:
            return space.used_bytes() + space.grants.outstanding <= space.cap_bytes

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_staging_room, space)
            await wait_until(lambda: space.grants.outstanding == 5 * MIB)
            assert row[WRITE_LIMIT] == 5 * MIB // 2
            held = space.large_bytes()
            space.note_staged(8 * MIB)
            await wait_until(lambda: space.large_bytes() < held)
            await wait_until(lambda: space.grants.outstanding > 5 * MIB and fits())
            space.note_staged(32 * MIB)
            await wait_until(lambda: space.grants.outstanding == 0)
            assert row[WRITE_LIMIT] == row[Count.WRITER_BYTES]
            space.note_unstaged(32 * MIB)
            await wait_until(lambda: space.grants.outstanding > 0 and fits())
            nursery.cancel_scope.cancel()


async def test_granted_bytes_are_about_to_be_written_until_they_are(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=24 * MIB, small_bytes=4 * MIB) as core:
        row, grants = core.shared.row(FIRST_FRONT_ROW), core.space.grants
        grants.grant(8 * MIB)
        row[Count.WRITER_BYTES] += 3 * MIB
        assert grants.outstanding == 5 * MIB
        row[Count.WRITER_BYTES] += 3 * MIB  # beyond its share, because it asked
        assert grants.outstanding == 4 * MIB
        grants.grant(14 * MIB)
        with pytest.raises(CacheFullError):
            async with core.space.reserved(12 * MIB):
                pass
        grants.grant(0)
        async with core.space.reserved(12 * MIB):
            pass


async def test_file_that_becomes_clean_is_neither_evicted_nor_punched(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=24 * MIB, small_bytes=4 * MIB) as core:
        inode = await core.put("a", bytes(16 * MIB))
        await core.fills.ensure(inode.ino, 0, 16 * MIB)
        async with core.space.handing_over(inode.ino):
            with pytest.raises(CacheFullError):
                await core.room.wait(20 * MIB, 0)
            await core.space.holes.reclaim((inode.ino, 0), -1, 0)
            assert core.space.large_bytes() == 16 * MIB
            assert core.cached(inode) == bytes(16 * MIB)
        await core.room.wait(12 * MIB, 0)
        assert core.space.large_bytes() < 16 * MIB


async def test_handing_over_waits_for_the_hole_that_is_about_to_be_punched(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=24 * MIB, small_bytes=4 * MIB) as core:
        inode = await core.put("a", bytes(8 * MIB))
        await core.fills.ensure(inode.ino, 0, 8 * MIB)
        busy = core.shared.row(FIRST_FRONT_ROW)
        busy[BUSY] = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.room.wait, 20 * MIB, 30)
            await wait_until(lambda: core.space.large_bytes() == 0)
            entered = trio.Event()

            async def hand_over() -> None:
                async with core.space.handing_over(inode.ino):
                    entered.set()

            nursery.start_soon(hand_over)
            await trio.testing.wait_all_tasks_blocked()
            assert not entered.is_set()
            busy[BUSY] += 1
            await entered.wait()


async def wait_until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


async def test_strays_never_touch_what_staging_holds_under_a_second_name(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        writer = Writer(tmp_path)
        inode = await core.put("a", b"")
        writer.write(inode.ino, MIB)
        content = writer.files.path(inode.ino, inode.ino)
        cached = tmp_path / "objects" / core.files.relative_path(inode.ino)
        cached.parent.mkdir(exist_ok=True)
        cached.hardlink_to(content)
        staged = replace(inode, listed_at_ns=inode.ino, flags=FLAG_STAGED | FLAG_WHOLE)
        await core.writer.run(lambda txn: txn.put_inode(staged))
        await collect_strays(core.files, core.environment, core.reader, core.space)
        assert not cached.exists()
        assert content.stat().st_size == MIB
        assert content.stat().st_blocks * 512 == MIB
        writer.files.close()
