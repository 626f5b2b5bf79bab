"""New files that a front makes without the core, and all those that it leaves to the core."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from fanoutfs.cache.staging import KEY_XATTR, StagingFiles
from fanoutfs.index.changes import MakeNode
from fanoutfs.index.format import FLAG_HELD, FLAG_LISTED, FLAG_LOCAL, Inode, make_attr
from fanoutfs.index.requests import Request
from fanoutfs.index.transaction import write_transaction
from fanoutfs.observe.shared import INDEX_BUSY
from fanoutfs.wire.hints import HintKind
from fanoutfs.wire.kernel import (
    ATTR,
    ENTRY_OUT_HEAD,
    IN_HEADER,
    MKNOD_IN,
    UNIQUE_RESEND,
    Opcode,
)
from fanoutfs.wire.relay import TOKEN_RESENT, make_token
from tests.unit.front.rig import GID, UID, Rig, open_rig
from tests.unit.indexes import NOW_NS

DIRECTORY = 50
FIRST = 1000
FILE = stat.S_IFREG | 0o640


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A rig with a directory that was made here, and two numbers for each front."""
    with open_rig(tmp_path) as rig:
        put_directory(rig, FLAG_LISTED | FLAG_LOCAL)
        rig.shared.spares.is_open = True
        for front in range(2):
            for ino in range(FIRST + 10 * front, FIRST + 10 * front + 2):
                os.close(rig.staging.make(ino, ino))
                rig.shared.spares.give(front, ino)
        yield rig


def put_directory(rig: Rig, flags: int, mode: int = 0o755, gid: int = 7) -> None:
    directory = Inode(
        DIRECTORY, make_attr(DIRECTORY, stat.S_IFDIR | mode, 0, 1, 0, gid), NOW_NS, flags, "", "", "folder/"
    )
    with write_transaction(rig.environment) as txn:
        txn.put_inode(directory)
        txn.put_entry(1, b"folder", directory)
        txn.changed.put_name(DIRECTORY, 1, b"folder")


def body(name: bytes, mode: int = FILE) -> bytes:
    return MKNOD_IN.pack(mode, 0, 0o022, 0) + name + b"\0"


def inode(rig: Rig, ino: int) -> Inode | None:
    with write_transaction(rig.environment) as txn:
        return txn.inode(ino)


def is_relayed(rig: Rig, unique: int) -> bool:
    """Tell whether the core got the request with its token, unchanged, and the kernel no answer."""
    assert rig.answer() is None
    opcode, _relay_unique, packet = rig.relayed()
    pid = IN_HEADER.unpack_from(packet)[6]
    return (opcode, pid) == (Opcode.MKNOD, make_token(unique))


def test_a_file_is_made_without_the_core(rig: Rig) -> None:
    answer = rig.ask(Opcode.MKNOD, DIRECTORY, body(b"new"))
    ino, _generation, entry_valid_s, _attr_valid_s, _nsec, _nsec2 = ENTRY_OUT_HEAD.unpack_from(answer)
    attr = ATTR.unpack_from(answer, ENTRY_OUT_HEAD.size)
    assert (ino, entry_valid_s) == (FIRST, 60)
    assert (attr[0], attr[1], attr[9:13]) == (FIRST, 0, (FILE, 1, UID, GID))
    found = inode(rig, FIRST)
    assert found is not None and found.is_staged and found.is_whole and found.is_local and found.life == FIRST
    with write_transaction(rig.environment) as txn:
        assert txn.entry(DIRECTORY, b"new") == (FIRST, stat.S_IFREG >> 12)
        assert txn.changed.dirty(FIRST) is not None
        assert txn.changed.applied(make_token(2)) == (Opcode.MKNOD, FIRST)
    assert os.getxattr(rig.staging.path(FIRST, FIRST), KEY_XATTR) == b"folder/new"
    assert rig.is_core_idle()
    assert rig.shared.spares.counts(0) == (2, 1)
    assert rig.shared.spares.counts(1) == (2, 0)
    assert rig.write(FIRST, 0, b"content") == 7


def test_the_answer_shows_the_time_of_its_making(rig: Rig) -> None:
    os.utime(rig.staging.path(FIRST, FIRST), ns=(5, 5))
    attr = ATTR.unpack_from(rig.ask(Opcode.MKNOD, DIRECTORY, body(b"new")), ENTRY_OUT_HEAD.size)
    assert attr[4] > NOW_NS // 10**9


def test_the_group_comes_from_a_directory_that_hands_it_on(rig: Rig) -> None:
    put_directory(rig, FLAG_LISTED | FLAG_LOCAL, mode=0o2755, gid=77)
    attr = ATTR.unpack_from(rig.ask(Opcode.MKNOD, DIRECTORY, body(b"new")), ENTRY_OUT_HEAD.size)
    assert attr[12] == 77


def test_a_name_that_is_there_is_refused_and_the_number_is_kept(rig: Rig) -> None:
    rig.ask(Opcode.MKNOD, DIRECTORY, body(b"new"))
    with pytest.raises(FileExistsError):
        rig.ask(Opcode.MKNOD, DIRECTORY, body(b"new"))
    assert rig.shared.spares.counts(0) == (2, 1)
    assert inode(rig, FIRST + 1) is None


def test_a_name_that_is_too_long_is_refused(rig: Rig) -> None:
    with pytest.raises(OSError) as caught:
        rig.ask(Opcode.MKNOD, DIRECTORY, body(b"n" * 256))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_the_core_makes_what_there_is_no_number_for(rig: Rig) -> None:
    for name in (b"a", b"b"):
        rig.ask(Opcode.MKNOD, DIRECTORY, body(name))
    assert is_relayed(rig, rig.send(Opcode.MKNOD, DIRECTORY, body(b"c")))
    assert rig.shared.spares.counts(0) == (2, 2)


class _StoppedForWriters:
    """An LMDB environment whose header could not be written: it refuses every change from then on."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def begin(self, write: bool = False, **options: Any) -> Any:
        if write:
            raise lmdb.PanicError("mdb_txn_begin: MDB_PANIC: Update of meta page failed or environment had fatal error")
        return self._env.begin(**options)


def test_a_front_that_cannot_change_the_index_any_more_leaves_it_to_the_core_and_ends_when_idle(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(rig.environment, "env", _StoppedForWriters(rig.environment.env))
        assert is_relayed(rig, rig.send(Opcode.MKNOD, DIRECTORY, body(b"name")))
    assert rig.fronts[0].handlers.is_over
    rig.fronts[0].worker.run()  # (returns at once)
    assert inode(rig, FIRST) is None


def close(rig: Rig) -> None:
    rig.shared.spares.is_open = False


def make_busy(rig: Rig) -> None:
    rig.shared.flags[INDEX_BUSY] = 1


def move_pin(rig: Rig) -> None:
    rig.shared.pin[1] += 1


def lose_core(rig: Rig) -> None:
    rig.shared.pin[0] += 1


def lose_staging_file(rig: Rig) -> None:
    rig.staging.remove(FIRST, FIRST)


def unlist(rig: Rig) -> None:
    put_directory(rig, 0)


def hold_unlisted(rig: Rig) -> None:
    put_directory(rig, FLAG_HELD)


def forget_directory(rig: Rig) -> None:
    with write_transaction(rig.environment) as txn:
        txn.delete_inode(DIRECTORY)


@pytest.mark.parametrize(
    "prepare",
    [close, make_busy, move_pin, lose_core, lose_staging_file, unlist, hold_unlisted, forget_directory],
)
def test_the_core_makes_what_needs_more(rig: Rig, prepare: Callable[[Rig], None]) -> None:
    prepare(rig)
    assert is_relayed(rig, rig.send(Opcode.MKNOD, DIRECTORY, body(b"new")))
    assert inode(rig, FIRST) is None
    assert rig.shared.spares.counts(0) == (2, 0)


def test_the_core_makes_what_is_no_regular_file(rig: Rig) -> None:
    assert is_relayed(rig, rig.send(Opcode.MKNOD, DIRECTORY, body(b"pipe", stat.S_IFIFO | 0o600)))


def test_the_core_makes_what_is_delivered_again(rig: Rig) -> None:
    unique = rig.send(Opcode.MKNOD, DIRECTORY, body(b"new"), unique=8 | UNIQUE_RESEND)
    assert make_token(unique) & TOKEN_RESENT
    assert is_relayed(rig, unique)


def test_a_shorter_request_than_there_is_gets_einval(rig: Rig) -> None:
    with pytest.raises(OSError) as caught:
        rig.ask(Opcode.MKNOD, DIRECTORY, MKNOD_IN.pack(FILE, 0, 0, 0) + b"\0")
    assert caught.value.errno == errno.EINVAL


def test_a_successor_counts_what_was_committed_and_not_counted(rig: Rig) -> None:
    request = Request(NOW_NS, 5, Opcode.MKNOD, "")
    with write_transaction(rig.environment) as txn:
        MakeNode(DIRECTORY, b"new", FIRST, FILE, UID, GID, request, life=FIRST).apply(txn)
    rig.fronts[0].handlers.creating.settle()
    assert rig.shared.spares.counts(0) == (2, 1)
    assert [hint.kind for hint in rig.told()] == [HintKind.MADE]
    rig.fronts[0].handlers.creating.settle()
    assert rig.shared.spares.counts(0) == (2, 1)


def test_the_core_is_told_at_once_when_few_numbers_are_left_and_else_by_and_by(rig: Rig) -> None:
    for ino in range(FIRST + 2, FIRST + 10):
        os.close(rig.staging.make(ino, ino))
        rig.shared.spares.give(0, ino)
    told = []
    for number in range(10):
        rig.ask(Opcode.MKNOD, DIRECTORY, body(b"%d" % number))
        told.append(sum(hint.kind is HintKind.MADE for hint in rig.told()))
    assert told[:5] == [0] * 5
    assert sum(told) >= 2
    assert told[-1] == 1
    pause_s = rig.hints_of_front().pause_s
    assert pause_s is None or pause_s > 0


def test_a_file_of_one_front_is_written_by_the_other(rig: Rig) -> None:
    unique = rig.send(Opcode.MKNOD, DIRECTORY, body(b"new"), front=1)
    answer = rig.answer()
    assert answer is not None and answer[:2] == (unique, 0)
    assert ENTRY_OUT_HEAD.unpack_from(answer[2])[0] == FIRST + 10
    assert rig.write(FIRST + 10, 0, b"content") == 7
    with (rig.path / "staging" / StagingFiles.name(FIRST + 10, FIRST + 10)).open("rb") as stream:
        assert stream.read() == b"content"
