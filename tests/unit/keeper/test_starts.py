"""When a core is started again, and when requests no longer wait for one."""

from itertools import pairwise

from fanoutfs.keeper.starts import Starts


def fail_until(starts: Starts, until: float, error: str = "disk") -> list[float]:
    """Have starts fail, each after a tenth of a second; return when they began."""
    began, now = [], 0.0
    while now < until:
        starts.plan(now)
        began.append(starts.due_at)
        starts.begin(starts.due_at)
        now = began[-1] + 0.1
        starts.fail(error, now)
    return began


def test_starts_begin_at_once_and_then_ever_more_slowly() -> None:
    began = fail_until(Starts(), 30)
    pauses = [round(after - before - 0.1, 6) for before, after in pairwise(began)]
    assert began[0] == 0
    assert pauses[:6] == [0.0, 0.1, 0.2, 0.5, 1.0, 1.0]
    assert set(pauses[6:]) == {1.0, 5.0}


def test_requests_are_refused_after_ten_seconds_of_failures_and_no_longer_when_a_core_is_ready() -> None:
    starts = Starts()
    fail_until(starts, 8)
    assert not starts.refuses
    starts.begin(10)
    starts.fail("disk", 10.1)
    assert starts.refuses
    assert starts.describe(10.1) == {
        "core": "failing",
        "failures": starts.failures,
        "failing_s": 10.1,
        "error": "disk",
        "refuses": True,
    }
    starts.begin(15)
    assert starts.succeed(15.5) == 0.5
    assert not starts.refuses
    assert starts.describe(15.5)["core"] == "serving"


def test_one_start_that_takes_very_long_refuses_nobody() -> None:
    starts = Starts()
    starts.begin(0)
    starts.fail("not ready", 120)
    assert not starts.refuses


def test_the_same_failure_is_news_until_requests_are_refused() -> None:
    starts = Starts()
    starts.begin(0)
    assert starts.fail("disk", 0.1)
    fail_until(starts, 12)
    starts.begin(20)
    assert not starts.fail("disk", 20.1)
    starts.begin(25)
    assert starts.fail("another one", 25.1)


def test_core_that_lived_or_was_killed_starts_at_once() -> None:
    starts = Starts()
    for now in range(6):
        starts.begin(now)
        starts.succeed(now)
        starts.note_death(now + 0.5, was_killed=False)
    starts.plan(10)
    assert starts.due_at == 11
    starts.note_death(10, was_killed=True)
    starts.plan(10)
    assert starts.due_at == 10


def test_core_that_is_started_is_waited_for() -> None:
    starts = Starts()
    starts.plan(100)
    assert (starts.due_at, starts.describe(100)["core"]) == (100, "starting")
    starts.begin(100)
    assert (starts.due_at, starts.describe(101)["core"]) == (0, "starting")
