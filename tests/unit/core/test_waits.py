"""Which phases of a fill somebody waited for."""

from dataclasses import dataclass

from fanoutfs.core.waits import Fetched, waits_of
from fanoutfs.records import NO_WAITS, Waits


@dataclass
class Phases:
    begun_ns: int
    fetching_ns: int
    fetched_ns: int
    is_again: bool = False


def test_who_starts_a_fill_waits_for_all_of_it() -> None:
    assert waits_of([Phases(100, 130, 200)], 100, 250) == Waits(backend_ns=70, queue_ns=30, disk_ns=50)


def test_who_comes_later_waits_for_the_rest() -> None:
    assert waits_of([Phases(100, 130, 200)], 150, 210) == Waits(backend_ns=50, queue_ns=0, disk_ns=10)
    assert waits_of([Phases(100, 130, 200)], 220, 250) == Waits(backend_ns=0, queue_ns=0, disk_ns=30)


def test_of_several_the_one_that_was_fetched_last_counts() -> None:
    fast, slow = Phases(100, 100, 110), Phases(100, 180, 200, is_again=True)
    assert waits_of([slow, fast], 100, 200) == Waits(backend_ns=20, queue_ns=80, disk_ns=0, is_again=True)


def test_fill_that_got_no_turn_is_queue_all_the_time() -> None:
    assert waits_of([Phases(100, 0, 0)], 100, 500) == Waits(backend_ns=0, queue_ns=400, disk_ns=0)
    assert waits_of([], 100, 500) == NO_WAITS


def test_fetched_twice_is_told_unless_the_first_time_failed() -> None:
    fetched = Fetched()
    assert not fetched.note(16, 0, 0b0011)
    assert not fetched.note(16, 0, 0b1100)
    assert not fetched.note(17, 0, 0b0001)
    assert fetched.note(16, 0, 0b0100)
    fetched.forget(16, 0, 0b0100)
    assert not fetched.note(16, 0, 0b0100)
