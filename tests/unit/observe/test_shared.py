"""Memory that all processes share: rows, requests in flight, suspects, scratch."""

import os

import pytest

from fanoutfs.config import schema
from fanoutfs.observe.catalog import ANSWERED_BASE, METRICS, RELAYED_BASE, Count, message_names
from fanoutfs.observe.shared import (
    BUSY,
    CORE_ROW,
    CURRENT_UNIQUE,
    FIRST_FRONT_ROW,
    LONG_TRIAL_NS,
    MAX_FRONTS,
    RESENDS,
    SCRATCH_BYTES,
    SCRATCH_SLOTS,
    SIDE_BYTES,
    SIDE_SLOTS,
    SLOT_NODEID,
    SLOT_SEQUENCE_OPCODE,
    SLOT_SIDE,
    SLOT_STARTED_NS,
    SLOT_UNIQUE,
    SLOT_WORDS,
    SLOTS_PER_FRONT,
    STARTED_NS,
    SUSPECTS,
    SUSPICION_CRASH,
    SUSPICION_KILL,
    SUSPICION_LIMIT,
    TRIAL_NS,
    SharedState,
    bump,
)
from fanoutfs.wire.kernel import UNIQUE_RESEND, Opcode


def occupy(shared: SharedState, slot: int, unique: int, opcode: int = Opcode.READ) -> None:
    at = slot * SLOT_WORDS
    shared.inflight[at + SLOT_SEQUENCE_OPCODE] = 77 << 32 | opcode
    shared.inflight[at + SLOT_NODEID] = 16
    shared.inflight[at + SLOT_STARTED_NS] = 1
    shared.inflight[at + SLOT_UNIQUE] = unique


def test_rows_do_not_overlap_and_add_up() -> None:
    shared = SharedState()
    for row in range(FIRST_FRONT_ROW + MAX_FRONTS):
        shared.row(row)[Count.READER_BYTES] = 1
    assert shared.total(Count.READER_BYTES) == FIRST_FRONT_ROW + MAX_FRONTS
    assert len(shared.row(CORE_ROW)) == 256
    assert shared.in_flight() == []


def test_settings_allow_no_more_fronts_than_there_are_rows() -> None:
    most = schema.MountConfig.__dataclass_fields__["fronts"].metadata["most"]
    assert most <= MAX_FRONTS


def test_counters_show_every_metric_and_only_opcodes_that_occurred() -> None:
    shared = SharedState()
    shared.row(FIRST_FRONT_ROW)[ANSWERED_BASE + Opcode.READ] = 3
    shared.row(FIRST_FRONT_ROW + 1)[RELAYED_BASE + Opcode.LOOKUP] = 2
    bump(shared.row(CORE_ROW), Count.LISTINGS)
    found = shared.counters()
    assert (found["messages_read_answered"], found["messages_lookup_relayed"], found["listings"]) == (3, 2, 1)
    assert "messages_getattr_answered" not in found
    assert {metric.name for metric in METRICS} <= set(found)


def test_no_two_counters_share_a_word() -> None:
    words = [*message_names(), *(metric.count for metric in METRICS)]
    assert len(words) == len(set(words))
    assert max(words) < BUSY


def test_child_writes_are_seen_by_the_parent() -> None:
    shared = SharedState()
    pid = os.fork()
    if pid == 0:
        shared.row(CORE_ROW)[Count.LISTINGS] = 5
        shared.scratch(3)[:3] = b"abc"
        os._exit(0)
    os.waitpid(pid, 0)
    assert shared.total(Count.LISTINGS) == 5
    assert bytes(shared.scratch(3)[:3]) == b"abc"


# --- requests in flight --------------------------------------------------------------------------------------------


def test_requests_in_flight_are_found_in_any_slot() -> None:
    shared = SharedState()
    last = MAX_FRONTS * SLOTS_PER_FRONT - 1
    occupy(shared, 0, 5)
    occupy(shared, last, 6, Opcode.LOOKUP)
    found = shared.in_flight()
    assert [(request.slot, request.unique, request.opcode, request.nodeid) for request in found] == [
        (0, 5, Opcode.READ, 16),
        (last, 6, Opcode.LOOKUP, 16),
    ]
    assert all(request.age_ns > 0 for request in found)


def test_lost_requests_are_those_in_flight_and_those_fronts_worked_on() -> None:
    shared = SharedState()
    occupy(shared, 3, 5)
    shared.row(FIRST_FRONT_ROW + 1)[CURRENT_UNIQUE] = 9
    assert sorted(shared.lost_requests(2)) == [5, 9]
    shared.suspect_in_core = 5
    shared.clear_in_flight()
    shared.clear_front_activity(1)
    assert shared.lost_requests(2) == []
    assert shared.suspect_in_core == 0


def test_clearing_a_dead_front_makes_its_busy_word_even_and_moves_it() -> None:
    shared = SharedState()
    row = shared.row(FIRST_FRONT_ROW)
    row[BUSY] = 7
    shared.clear_front_activity(0)
    assert shared.busy_marks(1) == [8, 0]
    shared.clear_front_activity(0)
    assert shared.busy_marks(1) == [8, 0]


# --- suspects ------------------------------------------------------------------------------------------------------


def test_suspicion_adds_up_whether_or_not_a_request_was_resent() -> None:
    shared = SharedState()
    assert shared.suspicion(5) == 0
    assert shared.suspect(5, SUSPICION_KILL) == 1
    assert shared.suspect(UNIQUE_RESEND | 5, SUSPICION_CRASH) == 5
    assert shared.suspicion(5) == shared.suspicion(UNIQUE_RESEND | 5) == 5
    assert shared.suspicion(6) == 0


def test_third_crash_or_twelfth_kill_is_poison() -> None:
    shared = SharedState()
    assert [shared.suspect(1, SUSPICION_CRASH) >= SUSPICION_LIMIT for _n in range(3)] == [False, False, True]
    assert [shared.suspect(2, SUSPICION_KILL) >= SUSPICION_LIMIT for _n in range(12)].index(True) == 11


def test_crowded_table_gives_up_the_least_suspected() -> None:
    shared = SharedState()
    same_place = [2 * (7 + n * SUSPECTS) for n in range(17)]  # numbers whose entries begin at the same place
    for unique in same_place[:16]:
        shared.suspect(unique, 2 if unique != same_place[5] else 1)
    assert shared.suspect(same_place[16], 1) == 1
    assert shared.suspicion(same_place[16]) == 1
    assert shared.suspicion(same_place[5]) == 0
    assert all(shared.suspicion(unique) == 2 for unique in same_place[:16] if unique != same_place[5])


def test_request_that_crashes_again_and_again_is_recognised_among_all_that_can_be_in_flight() -> None:
    shared = SharedState()
    for generation in range(3):
        shared.suspect(8, SUSPICION_CRASH)
        for innocent in range(500):
            shared.suspect(100_000 * (generation + 1) + 2 * innocent, SUSPICION_CRASH)
    assert shared.suspicion(8) >= SUSPICION_LIMIT


def test_suspect_waits_while_another_is_on_trial_or_the_core_starts() -> None:
    shared = SharedState()
    assert not shared.may_try_suspect()
    shared.row(CORE_ROW)[STARTED_NS] = 1
    assert shared.may_try_suspect()
    shared.suspect_in_core = 5
    assert shared.suspect_in_core == 5
    assert not shared.may_try_suspect()
    shared.suspect_in_core = 0
    assert shared.may_try_suspect()


def test_who_was_on_trial_at_a_crash_stands_a_longer_trial_next(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = SharedState()
    shared.row(CORE_ROW)[STARTED_NS] = 1
    now = [1]
    monkeypatch.setattr("fanoutfs.observe.shared.time.monotonic_ns", lambda: now[0])
    for crashes, trial_ns in ((1, TRIAL_NS), (2, LONG_TRIAL_NS)):
        shared.suspect(5, SUSPICION_CRASH)
        assert shared.suspicion(5) == crashes * SUSPICION_CRASH
        shared.suspect_in_core = 5
        now[0] += trial_ns
        assert not shared.may_try_suspect()
        now[0] += 1
        assert shared.may_try_suspect()


# --- scratch -------------------------------------------------------------------------------------------------------


def test_scratch_slots_do_not_overlap() -> None:
    shared = SharedState()
    for slot in range(SCRATCH_SLOTS):
        shared.scratch(slot)[:] = bytes([slot]) * SCRATCH_BYTES
    for slot in range(SCRATCH_SLOTS):
        assert shared.scratch(slot) == bytes([slot]) * SCRATCH_BYTES
    shared.set_scratch_mark(SCRATCH_SLOTS - 1, 42)
    assert shared.scratch_mark(SCRATCH_SLOTS - 1) == 42
    assert shared.scratch_mark(0) == 0
    assert shared.in_flight() == []


def test_side_slots_of_fronts_are_apart_and_come_back() -> None:
    shared = SharedState()
    taken = [
        [slot for _index in range(SIDE_SLOTS) if (slot := shared.take_side(front, 2)) is not None] for front in (0, 1)
    ]
    assert [len(slots) for slots in taken] == [SIDE_SLOTS // 2] * 2
    assert set(taken[0]).isdisjoint(taken[1])
    shared.free_side(taken[1][5], 100)
    assert shared.take_side(0, 2) is None
    assert shared.take_side(1, 2) == taken[1][5]


def test_large_body_gives_its_memory_back() -> None:
    shared = SharedState()
    slot = shared.take_side(0, 1)
    assert slot is not None
    shared.side(slot)[:] = b"x" * SIDE_BYTES
    shared.free_side(slot, SIDE_BYTES)
    assert bytes(shared.side(slot)) == bytes(SIDE_BYTES)


def test_redelivery_drops_requests_with_bodies_and_no_others() -> None:
    shared = SharedState()
    for slot, side in ((0, 0), (1, 8)):
        shared.inflight[slot * SLOT_WORDS + SLOT_SIDE] = side
        shared.inflight[slot * SLOT_WORDS + SLOT_UNIQUE] = 10 + slot
    taken = shared.take_side(0, 1)
    shared.begin_resend()
    assert shared.flags[RESENDS] % 2 == 1
    shared.drop_bodies()
    shared.end_resend()
    assert shared.flags[RESENDS] == 2
    assert [request.unique for request in shared.in_flight()] == [10]
    assert shared.take_side(0, 1) == taken
