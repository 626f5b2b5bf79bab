"""The index on a disk that is full of what others wrote: changes go on."""

import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fanoutfs.errors import IndexFullError
from fanoutfs.index.store import ROOM_BYTES, IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import KIB, MIB
from tests.fault.disks import sized_disk

FIRST, FILES = 1000, 2000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with sized_disk(tmp_path, 8 * MIB) as path:
        yield path


def fill(disk: Path) -> None:
    """Leave no free block."""
    with open(disk / "others", "wb", buffering=0) as stream:
        for size in (64 * KIB, KIB):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
        os.fsync(stream.fileno())


def change(txn: IndexTransaction, day: int, step: int = 20) -> None:
    """Change a record in each of many pages."""
    for ino in range(FIRST, FIRST + FILES, step):
        txn.tiers.put_accessed(ino, day)


def commit(environment: IndexEnvironment, day: int, step: int = 20) -> None:
    with write_transaction(environment) as txn:
        change(txn, day, step)


@pytest.fixture
def environment(disk: Path) -> Iterator[IndexEnvironment]:
    """An index with some hundred pages, synced, on a disk that is full."""
    environment = IndexEnvironment(disk, writable=True)
    commit(environment, 1, step=1)
    environment.sync()
    fill(disk)
    yield environment
    environment.close()


def test_there_is_room_for_some_changes_on_a_full_disk(environment: IndexEnvironment) -> None:
    before = environment.file_bytes()
    size_bytes = os.stat(environment.env.path()).st_size
    days = iter(range(2, 100))
    while os.stat(environment.env.path()).st_size == size_bytes:  # pages of the transactions before are taken first
        commit(environment, next(days))
    assert environment.file_bytes() == before  # what it grew by was its own already
    with pytest.raises(IndexFullError, match=r"index refused a change"):
        for day in days:
            commit(environment, day)
    environment.sync()
    commit(environment, 100)


async def test_changes_go_on_for_ever_on_a_full_disk(environment: IndexEnvironment) -> None:
    writer: GroupWriter[IndexTransaction] = GroupWriter(
        "index-writer", partial(write_transaction, environment), make_room=environment.make_room
    )
    try:
        for day in range(2, 200):
            await writer.run(partial(change, day=day), is_short=bool(day % 2))
    finally:
        writer.stop()
    with environment.env.begin() as txn:
        assert txn.stat(environment.accessed)["entries"] == FILES
    assert environment.file_bytes() <= environment.env.info()["last_pgno"] * 4096 + 2 * ROOM_BYTES


def test_sync_succeeds_where_no_room_can_be_had(environment: IndexEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "injected")

    monkeypatch.setattr(environment, "_take_room", refuse)
    commit(environment, 2)
    environment.sync()
    assert environment.is_synced
