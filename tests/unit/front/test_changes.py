"""WRITE, FALLOCATE and LSEEK of a front, over a real index and real staging files."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fanoutfs.index.format import (
    FLAG_SEALED,
    FLAG_STAGED,
    FLAG_WHOLE,
    Inode,
    make_attr,
)
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import FIRST_FRONT_ROW, RESENDS, WRITE_LIMIT
from fanoutfs.records import BLOCK_BYTES, NO_WAITS, PART_BYTES
from fanoutfs.wire.hints import Hint, HintKind
from fanoutfs.wire.kernel import (
    FALLOCATE_IN,
    IN_HEADER_SIZE,
    LSEEK_IN,
    LSEEK_OUT,
    SETATTR_IN,
    UNIQUE_RESEND,
    WRITE_CACHE,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
    Opcode,
    SetattrValid,
)
from fanoutfs.wire.relay import Outcome, Verb, pack_done
from tests.unit.front.rig import PID, Rig, open_rig, write_body

INO = 100
LIFE = 7
MTIME_NS = 1_700_000_000_000_000_000
PUNCH_HOLE, KEEP_SIZE = 2, 1


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path) as rig:
        yield rig


def record(flags: int = FLAG_STAGED | FLAG_WHOLE, size: int = 0, mode: int = stat.S_IFREG | 0o644) -> Inode:
    attr = make_attr(INO, mode, size, MTIME_NS, 1000, 1000)
    return Inode(INO, attr, LIFE, flags, "", "", "name")


def content(rig: Rig) -> bytes:
    fd = rig.staging.descriptor(INO, LIFE)
    return os.pread(fd, os.fstat(fd).st_size, 0)


@pytest.fixture
def whole(rig: Rig) -> Rig:
    rig.staging.create(INO, LIFE)
    rig.stage(record())
    return rig


@pytest.fixture
def overlay(rig: Rig) -> Rig:
    """An object of two parts and a bit; block 1 of part 0 is local."""
    size = 2 * PART_BYTES + 100
    rig.staging.create(INO, LIFE, size)
    rig.stage(record(FLAG_STAGED, size), size, {0: 0b10})
    return rig


# --- writing a whole file ------------------------------------------------------------------------------------------


def test_write_of_a_staged_file_stays_with_the_front(whole: Rig) -> None:
    assert whole.write(INO, 3, b"abc") == 3
    assert content(whole) == b"\0\0\0abc"
    assert whole.is_core_idle()
    assert whole.shared.total(Count.WRITER_BYTES) == 3


def test_writes_are_told_to_the_core_later_and_once_a_second(whole: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    whole.write(INO, 0, b"a")
    whole.write(INO, 1, b"b")
    whole.hints_of_front().flush()
    assert whole.told() == []
    clock.now += 0.6
    whole.hints_of_front().flush()
    assert whole.told() == [Hint(HintKind.WRITTEN, INO)]
    assert whole.hints_of_front().pause_s is None
    clock.now += 0.6
    whole.write(INO, 0, b"c")
    assert whole.hints_of_front().pause_s == pytest.approx(0.5)


class Clock:
    """time.monotonic under a test's control."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_short_write_body_is_refused(whole: Rig) -> None:
    with pytest.raises(OSError) as caught:
        whole.ask(Opcode.WRITE, INO, write_body(0, b"abcdef")[:-2])
    assert caught.value.errno == errno.EINVAL
    assert content(whole) == b""


def test_write_of_an_unknown_inode_is_stale(rig: Rig) -> None:
    with pytest.raises(OSError) as caught:
        rig.write(INO, 0, b"a")
    assert caught.value.errno == errno.ESTALE


@pytest.mark.parametrize("flags", [0, FLAG_STAGED | FLAG_WHOLE | FLAG_SEALED], ids=["clean", "sealed"])
def test_write_asks_the_core_to_stage_and_goes_on_when_it_has(rig: Rig, flags: int) -> None:
    rig.put(record(flags, 10))
    unique = rig.send(Opcode.WRITE, INO, write_body(5, b"abc"))
    verb, ino, offset, size, relay_unique = rig.asked()
    assert (verb, ino, offset, size) == (Verb.STAGE, INO, 5, 3)
    assert rig.answer() is None
    rig.staging.create(INO, LIFE)
    rig.stage(record())
    rig.reply(relay_unique)
    assert rig.answer() == (unique, 0, WRITE_OUT.pack(3, 0))
    assert content(rig) == b"\0" * 5 + b"abc"


def test_another_front_finishes_a_write_that_waited(rig: Rig) -> None:
    data = os.urandom(100_000)
    rig.put(record(0, 10))
    unique = rig.send(Opcode.WRITE, INO, write_body(0, data), front=0)
    relay_unique = rig.asked()[-1]
    rig.staging.create(INO, LIFE)
    rig.stage(record())
    rig.reply(relay_unique, front=1)
    assert rig.answer() == (unique, 0, WRITE_OUT.pack(len(data), 0))
    assert content(rig) == data


def test_many_writes_that_wait_keep_their_own_bytes(rig: Rig) -> None:
    rig.put(record(0, 10))
    uniques = [rig.send(Opcode.WRITE, INO, write_body(index, bytes([index]))) for index in range(200)]
    asked = [rig.asked()[-1] for _unique in uniques]
    rig.staging.create(INO, LIFE)
    rig.stage(record())
    for number, relay_unique in enumerate(reversed(asked)):
        rig.reply(relay_unique, front=number % 2)
    assert sorted(answer[0] for _unique in uniques if (answer := rig.answer())) == uniques
    assert content(rig) == bytes(range(200))


def test_a_front_without_side_slots_waits_for_one_and_loses_nothing(rig: Rig) -> None:
    rig.put(record(0, 10))
    share = 256  # of 512 slots for two fronts
    for index in range(share + 1):
        rig.send(Opcode.WRITE, INO, write_body(index % 250, bytes([index % 250])))
    asked = [rig.asked()[-1] for _index in range(share)]
    assert rig.is_core_idle()
    rig.staging.create(INO, LIFE)
    rig.stage(record())
    rig.reply(asked[0])
    rig.reply(rig.asked()[-1])
    assert rig.shared.take_side(0, 2) is not None


def test_error_of_the_core_is_the_error_of_the_write(rig: Rig) -> None:
    rig.put(record(0, 10))
    unique = rig.send(Opcode.WRITE, INO, write_body(0, b"abc"))
    rig.reply(rig.asked()[-1], error=errno.ENOSPC)
    assert rig.answer() == (unique, errno.ENOSPC, b"")
    assert rig.shared.take_side(0, 2) == 0


NOT_YET = pack_done(Outcome.NOT_YET, NO_WAITS)


def test_write_at_the_cap_asks_until_there_is_room(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fanoutfs.front.changes.is_being_killed", lambda pid: pid != PID)
    rig.put(record(0, 10))
    unique = rig.send(Opcode.WRITE, INO, write_body(0, b"abc"))
    for turn in range(3 * 1000):  # more often than anything else is tried again
        verb, ino, offset, size, asked = rig.asked()
        assert (verb, ino, offset, size) == (Verb.STAGE, INO, 0, 3)
        rig.reply(asked, body=NOT_YET, front=turn % 2)
    assert rig.answer() is None
    rig.staging.create(INO, LIFE)
    rig.stage(record())
    rig.reply(rig.asked()[-1])
    assert rig.answer() == (unique, 0, WRITE_OUT.pack(3, 0))
    assert rig.shared.take_side(0, 2) == 0


def test_writes_that_are_handed_back_go_before_one_that_waits_for_a_side_slot(rig: Rig) -> None:
    rig.put(record(0, 10))
    share = 256  # of 512 slots for two fronts
    for index in range(share + 1):
        rig.send(Opcode.WRITE, INO, write_body(index % 250, bytes([index % 250])))
    asked = [rig.asked()[-1] for _index in range(share)]
    assert rig.is_core_idle()
    for relay_unique in asked:
        rig.reply(relay_unique, body=NOT_YET)
    again = [rig.asked()[-1] for _index in range(share)]
    rig.staging.create(INO, LIFE)
    rig.stage(record())
    for relay_unique in again:
        rig.reply(relay_unique)
    rig.reply(rig.asked()[-1])
    assert sum(rig.answer() is not None for _index in range(share + 2)) == share + 1


def test_write_that_waits_ends_with_its_process(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: set[int] = set()
    monkeypatch.setattr("fanoutfs.front.changes.is_being_killed", killed.__contains__)
    rig.put(record(0, 10))
    unique = rig.send(Opcode.WRITE, INO, write_body(0, b"abc"))
    rig.reply(rig.asked()[-1], body=NOT_YET)
    assert rig.answer() is None
    killed.add(PID)
    rig.reply(rig.asked()[-1], body=NOT_YET)
    assert rig.answer() == (unique, errno.EINTR, b"")
    assert rig.is_core_idle()
    assert rig.shared.take_side(0, 2) == 0


def test_write_beyond_what_was_granted_asks_once(whole: Rig) -> None:
    row = whole.shared.row(FIRST_FRONT_ROW)
    row[WRITE_LIMIT] = row[Count.WRITER_BYTES] + 2
    unique = whole.send(Opcode.WRITE, INO, write_body(0, b"abc"))
    verb, *_rest, relay_unique = whole.asked()
    assert verb is Verb.STAGE
    whole.reply(relay_unique)
    assert whole.answer() == (unique, 0, WRITE_OUT.pack(3, 0))
    assert whole.is_core_idle()


def test_missing_staging_file_is_the_cores_to_make(rig: Rig) -> None:
    rig.stage(record())
    unique = rig.send(Opcode.WRITE, INO, write_body(0, b"abc"))
    relay_unique = rig.asked()[-1]
    rig.staging.create(INO, LIFE)
    rig.reply(relay_unique)
    assert rig.answer() == (unique, 0, WRITE_OUT.pack(3, 0))


# --- a disk without room --------------------------------------------------------------------------------------------


class Disk:
    """os.pwrite of a disk that takes so many bytes, then fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, code: int) -> None:
        self._room = room
        self._code = code
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, fd: int, data: memoryview, offset: int) -> int:
        if not self._room:
            raise OSError(self._code, "injected")
        done = self._pwrite(fd, data[: min(self._room, 2)], offset)
        self._room -= done
        return done


def test_partial_writes_of_the_disk_are_continued(whole: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, 100, errno.EIO)
    assert whole.write(INO, 0, b"abcdefg") == 7
    assert content(whole) == b"abcdefg"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_write_without_room_asks_the_core_for_it(whole: Rig, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with monkeypatch.context() as patch:
        Disk(patch, 2, code)
        unique = whole.send(Opcode.WRITE, INO, write_body(0, b"abcdef"))
    verb, ino, offset, size, relay_unique = whole.asked()
    assert (verb, ino, offset, size) == (Verb.ROOM, INO, 0, 6)
    whole.reply(relay_unique)
    assert whole.answer() == (unique, 0, WRITE_OUT.pack(6, 0))
    assert content(whole) == b"abcdef"


def test_write_whose_room_never_comes_fails(whole: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, 0, errno.ENOSPC)
    unique = whole.send(Opcode.WRITE, INO, write_body(0, b"abcdef"))
    while not whole.is_core_idle():
        whole.reply(whole.asked()[-1])
    assert whole.answer() == (unique, errno.ENOSPC, b"")


def test_disk_error_after_some_bytes_is_a_short_write(whole: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, 4, errno.EIO)
    assert whole.write(INO, 0, b"abcdef") == 4


def test_disk_error_of_pages_written_back_is_never_a_short_write(whole: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, 4, errno.EIO)
    with pytest.raises(OSError) as caught:
        whole.write(INO, 0, b"abcdef", WRITE_CACHE)
    assert caught.value.errno == errno.EIO


# --- overlays ------------------------------------------------------------------------------------------------------


def test_write_into_a_local_block_of_an_overlay_stays_with_the_front(overlay: Rig) -> None:
    assert overlay.write(INO, BLOCK_BYTES + 5, b"abc") == 3
    assert overlay.is_core_idle()


@pytest.mark.parametrize("offset", [0, BLOCK_BYTES - 1, 2 * BLOCK_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 99])
def test_write_that_touches_a_block_of_the_object_asks_first(overlay: Rig, offset: int) -> None:
    overlay.send(Opcode.WRITE, INO, write_body(offset, b"ab"))
    assert overlay.asked()[:4] == (Verb.STAGE, INO, offset, 2)


def test_write_behind_the_object_needs_nothing_of_it(overlay: Rig) -> None:
    assert overlay.write(INO, 2 * PART_BYTES + 100, b"abc") == 3
    assert overlay.is_core_idle()


# --- set-ID bits ----------------------------------------------------------------------------------------------------


def test_write_that_may_not_keep_set_id_bits_has_the_core_clear_them_first(rig: Rig) -> None:
    rig.staging.create(INO, LIFE)
    rig.stage(record(mode=stat.S_IFREG | 0o6755))
    unique = rig.send(Opcode.WRITE, INO, write_body(0, b"abc", WRITE_KILL_SUIDGID))
    opcode, relay_unique, packet = rig.relayed()
    fields = SETATTR_IN.unpack_from(packet, IN_HEADER_SIZE)
    assert (opcode, fields[0], fields[11]) == (Opcode.SETATTR, SetattrValid.MODE, stat.S_IFREG | 0o755)
    assert content(rig) == b""
    rig.stage(record())
    rig.reply(relay_unique, body=b"attributes")
    assert rig.answer() == (unique, 0, WRITE_OUT.pack(3, 0))
    assert content(rig) == b"abc"


def test_write_to_a_plain_file_by_anybody_costs_no_question(whole: Rig) -> None:
    assert whole.write(INO, 0, b"abc", WRITE_KILL_SUIDGID) == 3


# --- redelivery -----------------------------------------------------------------------------------------------------


def test_copy_from_before_a_redelivery_never_writes(rig: Rig) -> None:
    rig.put(record(0, 10))
    unique = rig.send(Opcode.WRITE, INO, write_body(0, b"old"))
    relay_unique = rig.asked()[-1]
    rig.shared.begin_resend()
    rig.shared.drop_bodies()
    rig.shared.end_resend()
    rig.staging.create(INO, LIFE)
    rig.stage(record())
    again = rig.send(Opcode.WRITE, INO, write_body(0, b"old"), unique=unique | UNIQUE_RESEND, front=1)
    assert rig.answer() == (again, 0, WRITE_OUT.pack(3, 0))
    rig.write(INO, 0, b"new")
    rig.reply(relay_unique)  # the core answers what it was asked for the first copy
    assert rig.answer() is None
    assert content(rig) == b"new"


def test_copy_that_waits_for_a_slot_is_dropped_by_a_redelivery(rig: Rig) -> None:
    rig.put(record(0, 10))
    for _index in range(257):
        rig.send(Opcode.WRITE, INO, write_body(0, b"old"))
    rig.shared.begin_resend()
    rig.shared.drop_bodies()
    rig.shared.end_resend()
    while not rig.is_core_idle():
        rig.relayed()
    rig.turn()
    assert rig.is_core_idle()
    assert rig.shared.in_flight() == []


def test_no_request_is_taken_while_the_kernel_delivers_again(whole: Rig) -> None:
    whole.shared.begin_resend()
    unique = whole.send(Opcode.WRITE, INO, write_body(0, b"abc"))
    assert whole.answer() is None
    whole.shared.end_resend()
    whole.turn()
    assert whole.answer() == (unique, 0, WRITE_OUT.pack(3, 0))
    assert whole.shared.flags[RESENDS] == 2


# --- fallocate and lseek ---------------------------------------------------------------------------------------------


def allocate(rig: Rig, offset: int, length: int, mode: int) -> None:
    rig.ask(Opcode.FALLOCATE, INO, FALLOCATE_IN.pack(0, offset, length, mode, 0))


def test_fallocate_makes_a_staged_file_longer(whole: Rig) -> None:
    allocate(whole, 0, 10_000, 0)
    assert content(whole) == bytes(10_000)


def test_fallocate_keeps_the_size_when_told(whole: Rig) -> None:
    allocate(whole, 0, 10_000, KEEP_SIZE)
    assert content(whole) == b""


def test_punched_hole_reads_as_zeros(whole: Rig) -> None:
    whole.write(INO, 0, b"x" * 20_000)
    allocate(whole, 4096, 4096, PUNCH_HOLE | KEEP_SIZE)
    assert content(whole) == b"x" * 4096 + bytes(4096) + b"x" * (20_000 - 8192)


def test_unknown_mode_is_not_supported(whole: Rig) -> None:
    with pytest.raises(OSError) as caught:
        allocate(whole, 0, 4096, 8)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_hole_in_the_objects_blocks_is_made_after_they_are_local(overlay: Rig) -> None:
    body = FALLOCATE_IN.pack(0, BLOCK_BYTES, 2 * BLOCK_BYTES, PUNCH_HOLE | KEEP_SIZE, 0)
    unique = overlay.send(Opcode.FALLOCATE, INO, body)
    verb, _ino, offset, size, relay_unique = overlay.asked()
    assert (verb, offset, size) == (Verb.STAGE, 2 * BLOCK_BYTES, BLOCK_BYTES)
    overlay.stage(record(FLAG_STAGED, 2 * PART_BYTES + 100), 2 * PART_BYTES + 100, {0: 0b110})
    overlay.reply(relay_unique, front=1)
    assert overlay.answer() == (unique, 0, b"")


def test_fallocate_inside_the_object_allocates_nothing(overlay: Rig) -> None:
    allocate(overlay, 0, PART_BYTES, 0)
    assert os.fstat(overlay.staging.descriptor(INO, LIFE)).st_blocks == 0


def seek(rig: Rig, offset: int, whence: int) -> int:
    return int(LSEEK_OUT.unpack(rig.ask(Opcode.LSEEK, INO, LSEEK_IN.pack(0, offset, whence, 0)))[0])


def test_holes_of_a_staged_file_are_found(whole: Rig) -> None:
    whole.write(INO, 1 << 20, b"x" * 4096)
    assert seek(whole, 0, os.SEEK_DATA) == 1 << 20
    assert seek(whole, 0, os.SEEK_HOLE) == 0
    assert seek(whole, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096


def test_what_the_store_has_is_data(rig: Rig) -> None:
    rig.put(record(0, 1000))
    assert (seek(rig, 10, os.SEEK_DATA), seek(rig, 10, os.SEEK_HOLE)) == (10, 1000)


def test_holes_of_an_overlay_begin_behind_its_object(overlay: Rig) -> None:
    end = 2 * PART_BYTES + 100
    overlay.write(INO, 3 * PART_BYTES, b"x")
    assert seek(overlay, 5, os.SEEK_DATA) == 5
    assert seek(overlay, 5, os.SEEK_HOLE) >= end
    assert seek(overlay, end + BLOCK_BYTES, os.SEEK_DATA) == 3 * PART_BYTES


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
def test_seek_behind_the_end_is_enxio(whole: Rig, whence: int) -> None:
    whole.write(INO, 0, b"abc")
    with pytest.raises(OSError) as caught:
        seek(whole, 3, whence)
    assert caught.value.errno == errno.ENXIO
