"""What the index is after a power cut, whatever of the writes since its last sync reached the disk."""

import errno
import os
import random
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanoutfs.errors import StoreBrokenError
from fanoutfs.index import savepoint, store
from fanoutfs.index.store import FILE_NAME, IndexEnvironment
from fanoutfs.index.transaction import write_transaction

PAGE_BYTES = 4096


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> "Power":
    return Power(monkeypatch)


class Power:
    """Lets the index believe that the machine was started anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.boots = 0
        self.cut()

    def cut(self) -> None:
        self.boots += 1
        instance = self.boots.to_bytes(16, "big")
        self._monkeypatch.setattr(store, "instance_of", lambda _directory: instance)


def put(environment: IndexEnvironment, content: dict[bytes, bytes]) -> None:
    with environment.env.begin(write=True) as txn:
        for key, value in content.items():
            txn.put(key, value, db=environment.entries)


def everything(environment: IndexEnvironment) -> dict[bytes, bytes]:
    with environment.env.begin() as txn, txn.cursor(db=environment.entries) as cursor:
        return {bytes(key): bytes(value) for key, value in cursor}


def some(chance: random.Random, count: int) -> dict[bytes, bytes]:
    return {b"%d" % chance.randrange(300): chance.randbytes(chance.choice((20, 900))) for _n in range(count)}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), commits=st.integers(1, 40))
def test_whatever_reached_the_disk_since_the_last_sync_the_index_is_as_it_was_then(
    tmp_path_factory: pytest.TempPathFactory, seed: int, commits: int
) -> None:
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        power = Power(monkeypatch)
        directory = tmp_path_factory.mktemp("volume")
        index = directory / FILE_NAME
        environment = IndexEnvironment(directory, writable=True)
        synced = everything(environment)
        on_disk = index.read_bytes()
        points = (directory / savepoint.FILE_NAME).read_bytes()
        for _commit in range(commits):
            put(environment, some(chance, chance.randrange(1, 6)))
            if not chance.randrange(8):
                environment.sync()
                synced = everything(environment)
                on_disk, points = index.read_bytes(), (directory / savepoint.FILE_NAME).read_bytes()
        in_memory = index.read_bytes()
        environment.close()

        pages = []
        for at in range(0, len(in_memory), PAGE_BYTES):
            if chance.randrange(2):
                pages.append(in_memory[at : at + PAGE_BYTES])
            else:
                pages.append(on_disk[at : at + PAGE_BYTES] or bytes(PAGE_BYTES))
        index.write_bytes(b"".join(pages))
        (directory / savepoint.FILE_NAME).write_bytes(points)
        power.cut()
        environment = IndexEnvironment(directory, writable=True)
        assert environment.is_in_doubt
        assert everything(environment) == synced
        put(environment, {b"after": b"it"})
        assert everything(environment) == synced | {b"after": b"it"}
        environment.close()


def test_without_a_power_cut_the_last_commit_is_there(tmp_path: Path, power: Power) -> None:
    environment = IndexEnvironment(tmp_path, writable=True)
    put(environment, {b"a": b"1"})
    assert not environment.is_synced
    environment.close()  # (nothing is written at the end: a kill does as much)
    environment = IndexEnvironment(tmp_path, writable=True)
    assert not environment.is_in_doubt
    assert environment.is_synced
    assert everything(environment) == {b"a": b"1"}
    power.cut()
    environment.close()
    environment = IndexEnvironment(tmp_path, writable=True)
    assert everything(environment) == {b"a": b"1"}
    environment.close()


def test_index_that_was_never_synced_is_refused(tmp_path: Path) -> None:
    savepoint.SavePoints(tmp_path).begin()
    (tmp_path / FILE_NAME).write_bytes(bytes(8192))
    with pytest.raises(lmdb.CorruptedError):
        IndexEnvironment(tmp_path, writable=True)


def test_index_of_before_save_points_is_taken_as_it_is(tmp_path: Path, power: Power) -> None:
    environment = IndexEnvironment(tmp_path, writable=True)
    put(environment, {b"a": b"1"})
    environment.close()
    (tmp_path / savepoint.FILE_NAME).unlink()
    power.cut()
    environment = IndexEnvironment(tmp_path, writable=True)
    assert everything(environment) == {b"a": b"1"}
    environment.close()


def test_save_point_of_another_file_does_not_count(tmp_path: Path, power: Power) -> None:
    environment = IndexEnvironment(tmp_path, writable=True)
    environment.sync()
    put(environment, {b"a": b"1"})
    environment.close()
    content = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).rename(tmp_path / "aside")
    (tmp_path / FILE_NAME).write_bytes(content)
    power.cut()
    environment = IndexEnvironment(tmp_path, writable=True)
    assert everything(environment) == {b"a": b"1"}
    environment.close()


@pytest.mark.parametrize("slot", [0, 1])
def test_torn_save_point_leaves_the_one_before(tmp_path: Path, power: Power, slot: int) -> None:
    environment = IndexEnvironment(tmp_path, writable=True)
    for number in range(2 + slot):
        put(environment, {b"%d" % number: b""})
        environment.sync()
    environment.close()
    path = tmp_path / savepoint.FILE_NAME
    content = bytearray(path.read_bytes())
    points = savepoint.SavePoints(tmp_path)
    newest = points._sequence
    points.close()
    content[newest % 2 * 4096 + 100] ^= 1
    path.write_bytes(content)
    points = savepoint.SavePoints(tmp_path)
    assert points._sequence == newest - 1
    points.close()


def test_instance_is_the_same_as_long_as_the_mount_is(tmp_path: Path) -> None:
    assert savepoint.instance_of(tmp_path) == savepoint.instance_of(tmp_path)
    assert savepoint.instance_of(tmp_path) != savepoint.instance_of(Path("/proc"))


def test_failed_sync_fails_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = IndexEnvironment(tmp_path, writable=True)
    environment.sync()
    put(environment, {b"a": b"1"})

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "disk")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError):
            environment.sync()
    with pytest.raises(OSError):
        environment.sync()
    assert not environment.is_synced
    environment.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_sync_without_room_for_the_save_point_goes_back_to_the_one_before_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, power: Power, code: int
) -> None:
    def fail(_fd: int, _data: bytes, _offset: int) -> int:
        raise OSError(code, os.strerror(code))

    environment = IndexEnvironment(tmp_path, writable=True)
    put(environment, {b"a": b"1"})
    environment.sync()
    put(environment, {b"b": b"2"})
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            environment.sync()
    environment.close()
    power.cut()
    environment = IndexEnvironment(tmp_path, writable=True)
    assert everything(environment) == {b"a": b"1"}
    put(environment, {b"c": b"3"})
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match=os.strerror(code)):
            environment.sync()
    environment.sync()
    environment.close()
    power.cut()
    environment = IndexEnvironment(tmp_path, writable=True)
    assert everything(environment) == {b"a": b"1", b"c": b"3"}
    environment.close()


def test_index_whose_header_could_not_be_written_is_to_be_opened_anew_and_kept(tmp_path: Path) -> None:
    environment = IndexEnvironment(tmp_path, writable=True)
    with pytest.raises(StoreBrokenError, match="opened anew"), write_transaction(environment):
        raise lmdb.PanicError("Update of meta page failed")
    assert environment.stopped.is_set() and not environment.broken.is_set()
    environment.close()
