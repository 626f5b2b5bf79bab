"""One announced order: position, window and books, against a consumer who does what he likes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fanoutfs.core.plan import SLACK_FILES, Plan

SIZE = 100


def make_plan(inos: list[int], window_files: int = 50) -> Plan:
    plan = Plan(1, "test", window_files * SIZE, window_files * SIZE)
    plan.extend(inos)
    plan.is_complete = True
    return plan


def fetch(plan: Plan, cached: set[int]) -> int:
    """Fetch what there is room for; return how many files that were not cached."""
    count = 0
    while plan.has_room():
        ino = plan.inos[plan.edge]
        if ino not in cached and not plan.fits(SIZE):
            break
        plan.note_fetched(ino, *((0, SIZE) if ino in cached else (SIZE, 0)))
        count += ino not in cached
        cached.add(ino)
        plan.step()
    return count


def test_fetch_stops_at_the_window_while_nobody_reads() -> None:
    plan = make_plan(list(range(1000)), window_files=50)
    assert fetch(plan, set()) == 50
    assert fetch(plan, set()) == 0


def test_consumer_out_of_order_within_the_slack_loses_nothing() -> None:
    plan, cached = make_plan(list(range(5000)), window_files=200), set[int]()
    fetch(plan, cached)
    for start in range(0, 5000, 100):  # batches of 100 in any order
        for ino in random.Random(start).sample(range(start, start + 100), 100):
            assert plan.note_read(ino, is_missing=False)
            fetch(plan, cached)
    assert plan.is_over
    assert (plan.used_bytes, plan.wasted_bytes) == (5000 * SIZE, 0)


def test_consumer_who_skips_is_followed() -> None:
    plan, cached = make_plan(list(range(10_000))), set[int]()
    fetch(plan, cached)
    assert plan.note_read(3000, is_missing=True)
    assert plan.position == plan.edge == 3001
    assert fetch(plan, cached) == 0, "what was passed over may still be read: it counts against the window"


def test_second_reader_of_a_file_is_not_taken_for_the_next_epoch() -> None:
    plan = make_plan([*range(40), *range(40)], window_files=8)
    fetch(plan, set())
    assert plan.note_part_read(12, SIZE, 3 * SIZE, is_missing=True)
    assert plan.position == 13
    for read_bytes in (SIZE, 2 * SIZE):  # another worker; and the first one, in the file's next part
        plan.note_part_read(12, read_bytes, 3 * SIZE, is_missing=True)
        assert plan.position == 13
    plan.note_read(12, is_missing=True)
    assert plan.position == 13
    for ino in range(13, 40):
        plan.note_read(ino, is_missing=True)
    assert plan.note_part_read(12, SIZE, 3 * SIZE, is_missing=True), "its turn in the next epoch"
    assert plan.position == 53


def test_window_full_of_large_files_read_without_a_sign_opens_again() -> None:
    """Those whose pages the kernel had: no READ tells of them.  (Reads of small ones are told, but late.)"""
    plan, cached = make_plan(list(range(1000)), window_files=2), set[int]()
    fetch(plan, cached)
    late = 0
    for ino in range(2, 1000):
        late += ino not in cached
        plan.note_part_read(ino, SIZE, SIZE, is_missing=ino not in cached)
        fetch(plan, cached)
    assert late == 1


def test_window_opens_as_room_is_made() -> None:
    """Fetching ahead costs nothing in the room of files that were cached and have been read."""
    plan, cached = make_plan(list(range(1000)), window_files=50), set(range(0, 1000, 4))
    plan.least_bytes = SIZE
    assert fetch(plan, cached) == 1
    for ino in range(100):
        assert plan.note_read(ino, is_missing=ino not in cached)
        fetch(plan, cached)
        assert plan.ahead_bytes <= max(SIZE, SIZE * (ino // 4))
    assert plan.ahead_bytes == 24 * SIZE, "the one cached file that was read last may still be read"
    for ino in range(100, 1000):
        assert plan.note_read(ino, is_missing=ino not in cached)
        fetch(plan, cached)
    assert plan.spent_bytes >= 249 * SIZE


def test_window_opens_for_what_a_reader_fetched_himself() -> None:
    plan = make_plan(list(range(100)), window_files=50)
    plan.least_bytes = 0
    assert not plan.fits(SIZE)
    assert plan.note_part_read(0, SIZE, SIZE, is_missing=True)
    assert not plan.fits(SIZE), "it is still being read"
    assert plan.note_part_read(1, SIZE, SIZE, is_missing=True)
    assert plan.edge == 2
    assert fetch(plan, set()) == 1


def test_last_file_may_go_beyond_the_whole_window_but_not_beyond_a_smaller_one() -> None:
    plan = make_plan(list(range(100)), window_files=2)
    assert plan.fits(3 * SIZE)
    plan.least_bytes = SIZE
    assert not plan.fits(3 * SIZE)
    assert plan.fits(SIZE)


def test_window_is_open_while_the_cache_is_empty() -> None:
    plan = make_plan(list(range(1000)), window_files=50)
    plan.least_bytes, plan.idle_bytes = SIZE, 20 * SIZE
    assert fetch(plan, set()) == 20
    plan.idle_bytes = 1000 * SIZE
    assert fetch(plan, set()) == 30


def test_files_read_last_are_known() -> None:
    plan, cached = make_plan([*range(20_000), 0]), set[int]()
    fetch(plan, cached)
    for ino in range(19_999):
        plan.note_read(ino, is_missing=False)
        fetch(plan, cached)
    assert plan.was_read_lately(19_998)
    assert not plan.was_read_lately(19_999)
    assert not plan.was_read_lately(0)
    assert plan.files_left == 2


def test_what_lies_far_behind_counts_as_wasted() -> None:
    plan = make_plan(list(range(3 * SLACK_FILES)))
    fetch(plan, set())
    for ino in range(3000, 2 * SLACK_FILES, 3000):
        plan.note_read(ino, is_missing=True)
    assert plan.wasted_bytes == 50 * SIZE
    assert plan.has_room()


def test_consumer_who_skips_very_far_is_followed_after_a_while() -> None:
    plan = make_plan(list(range(500_000)))
    assert not plan.note_read(400_000, is_missing=True)
    assert any(plan.note_read(ino, is_missing=True) for ino in range(400_001, 400_300))


def push(plan: Plan, under_way: int = -1) -> list[int]:
    """Push what is ready, and return it."""
    ready = plan.take_ready(lambda ino: ino == under_way)
    plan.note_pushed(ready)
    return ready


def test_ready_files_are_pushed_in_order_up_to_the_first_one_under_way() -> None:
    order = random.Random(1).sample(range(1000), 1000)
    plan = make_plan(order, window_files=50)
    fetch(plan, set())
    assert push(plan, under_way=order[10]) == order[:10]
    assert push(plan, under_way=order[10]) == []
    assert push(plan) == [ino for ino in order[10:50] if ino not in (order[12], order[25], order[38])]


def test_what_is_left_out_of_the_push_is_known_when_it_is_fetched() -> None:
    plan = make_plan(list(range(100)), window_files=20)
    left_out = set[int]()
    while plan.has_room():
        if plan.note_fetched(plan.edge, SIZE):
            left_out.add(plan.edge)
        plan.step()
    assert left_out == {5, 11, 17}
    assert push(plan) == [ino for ino in range(20) if ino not in left_out]


def test_consumer_who_reads_the_page_cache_is_followed_by_what_was_left_out() -> None:
    plan, cached = make_plan(list(range(1000)), window_files=20), set[int]()
    pushed = set[int]()
    late = 0
    for ino in range(1000):
        fetch(plan, cached)
        pushed |= set(push(plan))
        late += ino not in cached
        if ino not in pushed:
            assert plan.note_read(ino, is_missing=ino not in cached)
    assert late == 0
    assert len(pushed) > 800
    assert plan.is_over
    assert (plan.used_bytes, plan.wasted_bytes, plan.ahead_bytes) == (1000 * SIZE, 0, 0)


def test_pushed_file_counts_as_read_however_late_the_core_hears_of_it() -> None:
    plan = make_plan(list(range(100)))
    fetch(plan, set())
    assert plan.note_read(20, is_missing=False)
    assert plan.note_pushed(range(20))
    assert not plan.note_pushed(range(20, 40))
    assert plan.ahead_bytes == 29 * SIZE


def test_push_that_was_overtaken_goes_on_ahead_of_the_consumer() -> None:
    plan = make_plan(list(range(1000)), window_files=50)
    fetch(plan, set())
    assert push(plan, under_way=5) == [0, 1, 2, 3, 4]
    assert plan.note_read(9, is_missing=False)
    assert push(plan)[0] == 30


@pytest.mark.parametrize("is_missing", [False, True])
def test_file_that_is_not_in_the_plan_is_not_claimed(is_missing: bool) -> None:
    plan = make_plan(list(range(100)))
    fetch(plan, set())
    assert not plan.note_read(12345, is_missing=is_missing)
    assert plan.position == 0


def test_duplicates_are_fetched_once_while_cached() -> None:
    plan, cached = make_plan([1, 2, 1, 3, 1, 2]), set[int]()
    assert fetch(plan, cached) == 3
    for ino in (1, 2, 1, 3, 1, 2):
        plan.note_read(ino, is_missing=False)
    assert not plan.ahead
    assert plan.used_bytes == 3 * SIZE


def test_replaced_plan_counts_what_was_not_read() -> None:
    plan = make_plan(list(range(100)))
    fetch(plan, set())
    plan.note_read(0, is_missing=False)
    plan.give_up()
    assert plan.take_learnt() == (SIZE, 49 * SIZE)
    assert plan.take_learnt() == (0, 0)


def test_large_file_is_read_part_by_part() -> None:
    plan = make_plan([7, 8], window_files=10)
    for _part in range(4):
        plan.note_fetched(7, 250)
        plan.edge_part += 1
    assert not plan.has_room()
    assert plan.is_ahead(7, 0)
    assert plan.note_part_read(7, 250, 2000)
    assert plan.ahead_bytes == 750
    assert not plan.is_ahead(7, 0)
    assert plan.is_ahead(7, 250)
    assert plan.note_part_read(7, 250, 2000), "a second reader of the same part changes nothing"
    assert plan.ahead_bytes == 750
    assert plan.note_part_read(7, 2000, 2000)
    assert plan.ahead_bytes == 0


@settings(deadline=None, max_examples=100)
@given(
    inos=st.lists(st.integers(0, 60), max_size=120),
    reads=st.lists(st.tuples(st.integers(0, 70), st.booleans()), max_size=200),
    window_files=st.integers(1, 40),
)
def test_books_balance_whatever_is_read(inos: list[int], reads: list[tuple[int, bool]], window_files: int) -> None:
    plan, cached = make_plan(inos, window_files), set[int]()
    fetched = fetch(plan, cached)
    for ino, is_evicted in reads:
        if is_evicted:
            cached.discard(ino)
        plan.note_read(ino, is_missing=is_evicted)
        fetched += fetch(plan, cached)
        assert plan.ahead_bytes == sum(file.fetched_bytes for file in plan.ahead.values())
        assert plan.ahead_bytes <= window_files * SIZE
        assert plan.used_bytes + plan.wasted_bytes + plan.ahead_bytes == fetched * SIZE
        assert plan.position <= plan.edge <= len(inos)
