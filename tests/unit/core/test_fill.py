"""Fills: each byte once, errors shared and forgotten, nobody's cancellation is anybody else's."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.backend.faulty import short
from fanoutfs.core.admission import Urgency
from fanoutfs.errors import (
    CacheFullError,
    DeadlineError,
    FanoutError,
    InvariantError,
    StaleInodeError,
    TransientError,
    VersionGoneError,
)
from fanoutfs.index.tiering import Repack
from fanoutfs.observe.catalog import Count
from fanoutfs.records import BLOCK_BYTES, KIB, MIB, PART_BYTES, ROOT_INO
from tests.unit.core.rig import arrived, running_core


async def test_many_readers_of_one_range_cause_one_get(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        content = os.urandom(MIB)
        inode = await core.put("a", content)
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            for _n in range(50):
                nursery.start_soon(core.fills.ensure, inode.ino, 0, MIB)
            await arrived(gate)
            assert core.fills.is_filling(inode.ino)
            assert core.blocks(inode.ino) == 0
            gate.release()
        assert core.backend.calls["get"] == 1
        assert core.count(Count.FILLS_JOINED) == 49
        assert not core.fills.is_filling(inode.ino)
        assert core.blocks(inode.ino) == 0b1111
        assert core.cached(inode) == content
        assert core.admission.bytes_used == 0


async def test_overlapping_ranges_fetch_each_block_once(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(MIB))
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fills.ensure, inode.ino, 0, 2 * BLOCK_BYTES)
            await arrived(gate)
            nursery.start_soon(core.fills.ensure, inode.ino, BLOCK_BYTES, 2 * BLOCK_BYTES)
            await arrived(gate)
            gate.release()
        assert core.backend.calls["get"] == 2
        assert core.blocks(inode.ino) == 0b0111
        await core.fills.ensure(inode.ino, 0, 3 * BLOCK_BYTES)
        assert core.backend.calls["get"] == 2


async def test_range_over_a_part_border_is_two_gets(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        content = os.urandom(PART_BYTES + 5)
        inode = await core.put("a", content)
        await core.fills.ensure(inode.ino, PART_BYTES - 1, 100)
        assert core.backend.calls["get"] == 2
        assert (core.blocks(inode.ino, 0), core.blocks(inode.ino, 1)) == (1 << 31, 1)
        await core.fills.ensure(inode.ino, 0, 1 << 40)
        assert core.cached(inode) == content


async def test_read_behind_the_end_fetches_nothing(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(MIB))
        await core.fills.ensure(inode.ino, MIB, 4096)
        assert core.backend.calls["get"] == 0


async def test_small_file_is_fetched_whole_into_the_small_store(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", b"x" * (128 * KIB))
        async with trio.open_nursery() as nursery:
            for offset in (0, 5, 100_000):
                nursery.start_soon(core.fills.ensure, inode.ino, offset, 1)
        assert core.backend.calls["get"] == 1
        assert core.small.is_intact(inode.ino)


async def test_error_reaches_everyone_and_is_not_remembered(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(MIB))
        core.backend.script("get", TransientError("reset"))
        gate = core.backend.hold("get")
        errors: list[FanoutError] = []

        async def read() -> None:
            try:
                await core.fills.ensure(inode.ino, 0, MIB)
            except FanoutError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for _n in range(3):
                nursery.start_soon(read)
            await arrived(gate)
            gate.release()
        assert [type(error) for error in errors] == [TransientError] * 3
        assert not core.fills.is_filling(inode.ino)
        assert core.admission.bytes_used == 0
        await core.fills.ensure(inode.ino, 0, MIB)
        assert core.backend.calls["get"] == 2


async def test_cancelling_the_first_reader_does_not_cancel_the_fill(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(MIB))
        gate = core.backend.hold("get")
        first = trio.CancelScope()

        async def read_first() -> None:
            with first:
                await core.fills.ensure(inode.ino, 0, MIB)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_first)
            await arrived(gate)
            nursery.start_soon(core.fills.ensure, inode.ino, 0, MIB)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            gate.release()
        assert first.cancelled_caught
        assert core.backend.calls["get"] == 1
        assert core.blocks(inode.ino) == 0b1111


async def test_prefetched_range_that_a_reader_wants_overtakes_the_rest(tmp_path: Path) -> None:
    async with running_core(tmp_path, requests=1, readahead_bytes=64 * MIB) as core:
        inode = await core.put("a", os.urandom(5 * PART_BYTES))
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fills.ensure, inode.ino, 0, 1)
            await arrived(gate)
            core.fills.note_part_read(inode.ino, 1)
            core.fills.note_part_read(inode.ino, 2)
            ahead = core.fills._table[inode.ino]
            assert ahead, "nothing is being prefetched"
            last = ahead[max(ahead)]
            assert not last.is_demand
            nursery.start_soon(core.fills.ensure, inode.ino, max(ahead) * BLOCK_BYTES, 1)
            await trio.testing.wait_all_tasks_blocked()
            assert last.is_demand
            assert last.ticket is not None
            assert last.ticket.urgency is Urgency.DEMAND
            gate.release()


@pytest.mark.parametrize("size", [1000, MIB], ids=["small", "large"])
async def test_whoever_waits_until_a_file_is_left_alone_waits_for_no_other_fill(tmp_path: Path, size: int) -> None:
    """A writer, say: behind read-ahead the fills of a `warm` may take long."""
    async with running_core(tmp_path, requests=1) as core:
        reader, warmed, ahead = [await core.put(name, os.urandom(size)) for name in ("reader", "warmed", "ahead")]
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fills.ensure, reader.ino, 0, 1)
            await arrived(gate)
            (background,) = core.fills.fetch_ahead(warmed.ino)
            (other,) = core.fills.fetch_ahead(ahead.ino)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(core.fills.wait_idle, warmed.ino)
            await trio.testing.wait_all_tasks_blocked()
            assert (background.urgency, other.urgency) == (Urgency.DEMAND, Urgency.BACKGROUND)
            gate.release()
            await background.done.wait()
        assert background.error is None


async def test_object_that_changed_gives_estale(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(MIB))
        core.write("a", os.urandom(MIB))
        with pytest.raises(VersionGoneError):
            await core.fills.ensure(inode.ino, 0, MIB)


@pytest.mark.parametrize("size", [100, MIB])
async def test_object_that_is_gone_gives_estale_not_enoent(tmp_path: Path, size: int) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(size))
        (core.source / "a").unlink()
        with pytest.raises(VersionGoneError):
            await core.fills.ensure(inode.ino, 0, size)
        with pytest.raises(VersionGoneError):
            await core.fills.fetch_direct(inode.ino, 0, size)


async def test_unknown_inode_and_directory_are_stale(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for ino in (ROOT_INO, 12345):
            with pytest.raises(StaleInodeError):
                await core.fills.ensure(ino, 0, 1)
            core.fills.note_part_read(ino, 0)


async def test_body_of_a_wrong_length_is_never_published(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name, size in (("large", MIB), ("small", 100)):
            inode = await core.put(name, os.urandom(size))
            core.backend.script("get", short)
            with pytest.raises(InvariantError):
                await core.fills.ensure(inode.ino, 0, size)
            assert core.blocks(inode.ino) == 0
            assert not core.small.has(inode.ino)


async def test_fill_that_takes_too_long_is_a_deadline_and_goes_on(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    async with running_core(tmp_path, op_timeout_s=25.0) as core:
        inode = await core.put("a", os.urandom(MIB))
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(DeadlineError):
                    await core.fills.ensure(inode.ino, 0, MIB)

            nursery.start_soon(read)
            await arrived(gate)
            mock_clock.jump(26.0)
        with pytest.raises(DeadlineError):  # who queues behind need not wait as long
            await core.fills.ensure(inode.ino, 0, MIB)
        gate.release()
        mock_clock.jump(2.0)
        await core.fills.ensure(inode.ino, 0, MIB)
        assert core.backend.calls["get"] == 1


async def test_cache_without_room_is_read_through(tmp_path: Path) -> None:
    async with running_core(tmp_path, cap_bytes=MIB) as core:
        content = os.urandom(4 * MIB)
        inode = await core.put("a", content)
        with pytest.raises(CacheFullError):
            await core.fills.ensure(inode.ino, 0, 4 * MIB)
        assert await core.fills.fetch_direct(inode.ino, 5, MIB) == content[5 : 5 + MIB]
        assert await core.fills.fetch_direct(inode.ino, 4 * MIB - 3, MIB) == content[-3:]
        assert len(await core.fills.fetch_direct(inode.ino, 4 * MIB, MIB)) == 0
        assert core.count(Count.READ_THROUGH_BYTES) == MIB + 3
        assert core.admission.bytes_used == 0


async def test_inode_freed_during_its_fill_leaves_no_file(tmp_path: Path) -> None:
    from fanoutfs.index.operations import FreeOrphans

    async with running_core(tmp_path) as core:
        inode = await core.put("a", os.urandom(MIB))
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(StaleInodeError):
                    await core.fills.ensure(inode.ino, 0, MIB)

            nursery.start_soon(read)
            await arrived(gate)
            await core.writer.run(FreeOrphans((inode.ino,)).apply)
            gate.release()
        assert not (tmp_path / "objects" / core.files.relative_path(inode.ino)).exists()


@pytest.mark.parametrize("is_small", [True, False])
async def test_file_that_changes_its_place_during_its_fill_is_asked_for_again(tmp_path: Path, is_small: bool) -> None:
    async with running_core(tmp_path) as core:
        content = os.urandom(100 * KIB)
        inode = await core.put("a", content)
        if is_small:
            assert await core.writer.run(Repack(inode.ino, is_small=False).apply)
        gate = core.backend.hold("get")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.fills.ensure, inode.ino, 0, len(content))  # no error
            await arrived(gate)
            assert await core.writer.run(Repack(inode.ino, is_small).apply)
            gate.release()
        path = tmp_path / "objects" / core.files.relative_path(inode.ino)
        assert (path.exists(), core.blocks(inode.ino), core.small.has(inode.ino)) == (False, 0, not is_small)
        await core.fills.ensure(inode.ino, 0, len(content))
        assert core.blocks(inode.ino) == (0 if is_small else 1)
        assert core.small.has(inode.ino)
        assert await core.writer.run(Repack(inode.ino, is_small=not is_small).apply) is is_small


async def test_damaged_blocks_are_dropped_and_fetched_again(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        content = os.urandom(MIB)
        inode = await core.put("a", content)
        await core.fills.ensure(inode.ino, 0, MIB)
        os.pwrite(core.files.descriptor(inode.ino), bytes([content[BLOCK_BYTES] ^ 1]), BLOCK_BYTES)
        await core.fills.discard_damaged(inode.ino, 0, MIB)
        assert core.blocks(inode.ino) == 0b1101
        assert core.count(Count.VERIFY_FAILURES) == 1
        await core.fills.ensure(inode.ino, 0, MIB)
        assert core.cached(inode) == content
        await core.fills.discard_damaged(inode.ino, 0, MIB)
        assert core.count(Count.VERIFY_FAILURES) == 1
