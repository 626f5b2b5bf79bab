"""Syncs of the index: early where the cache is small, so that pages which wait for one do not take its room."""

import contextlib
import errno
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.core.durable import Durable
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import MIB

COMMITS = 15
CAP_BYTES = 4 * MIB * COMMITS


def count_up(txn: IndexTransaction) -> None:
    """Change one record."""
    txn.add_totals(1, 1)


async def test_index_of_a_small_cache_does_not_grow_by_what_waits_for_a_sync(
    tmp_path: Path, mock_clock: trio.testing.MockClock
) -> None:
    environment = IndexEnvironment(tmp_path, writable=True)
    environment.sync()
    durable = Durable(environment, CAP_BYTES)
    writer: GroupWriter[IndexTransaction] = GroupWriter(
        "test-writer", partial(write_transaction, environment), durable.note_committed
    )
    sizes = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durable.run)
        for round_ in range(20):
            for _commit in range(COMMITS - 1):
                await writer.run(count_up, is_short=round_ % 2 == 0)
            await trio.testing.wait_all_tasks_blocked()
            assert environment.unsynced_commits == COMMITS - 1
            await writer.run(count_up, is_short=round_ % 2 == 0)
            while not environment.is_synced:  # the clock stands: only because of that one
                await trio.lowlevel.checkpoint()
            sizes.append(environment.file_bytes())
        nursery.cancel_scope.cancel()
    writer.stop()
    environment.close()
    assert max(sizes[3:]) == sizes[3]
    assert sizes[3] < MIB


async def test_large_cache_waits_for_the_time_to_sync(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    environment = IndexEnvironment(tmp_path, writable=True)
    environment.sync()
    durable = Durable(environment, 1024 * MIB)
    writer: GroupWriter[IndexTransaction] = GroupWriter(
        "test-writer", partial(write_transaction, environment), durable.note_committed
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durable.run)
        await trio.testing.wait_all_tasks_blocked()
        for _commit in range(8 * COMMITS):
            await writer.run(count_up)
        await trio.testing.wait_all_tasks_blocked()
        assert environment.unsynced_commits == 8 * COMMITS
        for _look in range(2):
            mock_clock.jump(0.6)
            await trio.testing.wait_all_tasks_blocked()
        while not environment.is_synced:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    writer.stop()
    environment.close()


class HeldSync:
    """A disk whose syncs do not end before they may; or fail."""

    def __init__(self, environment: IndexEnvironment) -> None:
        self.environment = environment
        self.may_end = threading.Event()
        self.fails = False
        self._sync = environment.sync

    def __call__(self) -> None:
        assert self.may_end.wait(30), "nobody let the sync end"
        if self.fails:
            raise OSError(errno.EIO, "no such luck")
        self._sync()


@contextlib.contextmanager
def far_behind(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Durable, HeldSync]]:
    """Commit four times as much as is waited for, before a sync that does not end yet."""
    environment = IndexEnvironment(path, writable=True)
    environment.sync()
    durable = Durable(environment, CAP_BYTES)
    held = HeldSync(environment)
    monkeypatch.setattr(environment, "sync", held)
    for _commit in range(4 * COMMITS):
        assert not durable.is_behind
        with write_transaction(environment) as txn:
            count_up(txn)
    assert durable.is_behind
    try:
        yield durable, held
    finally:
        held.may_end.set()
        environment.close()


async def test_slow_sync_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with far_behind(tmp_path, monkeypatch) as (durable, held):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(durable.run)
            held.may_end.set()
            while durable.is_behind:
                await durable.catch_up()
            assert held.environment.is_synced
            nursery.cancel_scope.cancel()


async def test_sync_that_does_not_end_is_waited_for_a_moment_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    with far_behind(tmp_path, monkeypatch) as (durable, held):
        returned = trio.Event()

        async def catch_up() -> None:
            await durable.catch_up()
            returned.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(durable.run)
            nursery.start_soon(catch_up)
            await trio.testing.wait_all_tasks_blocked()
            assert not returned.is_set()
            mock_clock.jump(1.1)
            await returned.wait()
            assert durable.is_behind
            held.may_end.set()
            nursery.cancel_scope.cancel()


async def test_sync_that_failed_is_waited_for_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with far_behind(tmp_path, monkeypatch) as (durable, held):
        held.fails = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(durable.run)
            nursery.start_soon(durable.catch_up)
            await trio.testing.wait_all_tasks_blocked()
            held.may_end.set()
        assert not durable.is_behind
        await durable.catch_up()
