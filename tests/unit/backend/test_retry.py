"""The retry wrapper, on a clock turned by hand."""

import threading
from dataclasses import dataclass, field

import pytest
from obstore.store import MemoryStore

from fanoutfs.backend.faulty import FaultyBackend
from fanoutfs.backend.retry import RetryBudget, RetryingBackend, RetryPolicy, backoff_s
from fanoutfs.backend.store import StoreBackend
from fanoutfs.errors import (
    AccessDeniedError,
    CredentialsError,
    DeadlineError,
    ObjectMissingError,
    TransientError,
    VersionGoneError,
)


@dataclass
class HandClock:
    """A clock that moves when somebody sleeps."""

    now_ns: int = 0
    slept_s: list[float] = field(default_factory=list)

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_ns += int(seconds * 1e9)


@dataclass
class Rig:
    """A retrying backend over a faulty, empty store."""

    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(deadline_s=20.0))
    draw: float = 1.0

    def __post_init__(self) -> None:
        self.clock = HandClock()
        self.counted: dict[str, int] = {}
        self.faulty = FaultyBackend(StoreBackend(MemoryStore()))
        self.backend = RetryingBackend(
            self.faulty,
            self.policy,
            count=self._count,
            clock=self.clock,
            sleep=self.clock.sleep,
            draw=lambda: self.draw,
        )

    def _count(self, name: str, value: int) -> None:
        self.counted[name] = self.counted.get(name, 0) + value


def _resets(count: int, retry_after_s: float | None = None) -> list[TransientError]:
    return [TransientError("reset", retry_after_s) for _ in range(count)]


def test_transient_failures_are_repeated_with_growing_capped_pauses() -> None:
    rig = Rig(RetryPolicy(deadline_s=100, base_s=1, cap_s=4))
    rig.faulty.script("head", *_resets(5))
    with pytest.raises(ObjectMissingError):
        rig.backend.head("a")
    assert rig.clock.slept_s == [1, 2, 4, 4, 4]
    assert rig.faulty.calls["head"] == 6
    assert rig.counted == {"backend_retries": 5}


def test_jitter_scales_the_pause_down_to_nothing() -> None:
    policy = RetryPolicy(deadline_s=1, base_s=1, cap_s=8)
    assert [backoff_s(policy, repeat, None, 0.5) for repeat in (0, 1, 2, 3, 4, 4000)] == [0.5, 1, 2, 4, 4, 4]
    assert backoff_s(policy, 3, None, 0.0) == 0


def test_retry_after_of_the_store_is_honoured() -> None:
    rig = Rig(draw=0.0)
    rig.faulty.script("head", *_resets(1, retry_after_s=7.0))
    with pytest.raises(ObjectMissingError):
        rig.backend.head("a")
    assert rig.clock.slept_s == [7.0]


def test_retry_after_beyond_the_deadline_gives_up_at_once() -> None:
    rig = Rig(RetryPolicy(deadline_s=20))
    rig.faulty.script("head", *_resets(1, retry_after_s=60.0))
    with pytest.raises(DeadlineError, match="gave up after 1 try: reset"):
        rig.backend.head("a")
    assert rig.clock.slept_s == []


def test_deadline_ends_the_repeats_and_names_the_last_cause() -> None:
    rig = Rig(RetryPolicy(deadline_s=10, base_s=1, cap_s=4))
    rig.faulty.script("head", *_resets(99))
    with pytest.raises(DeadlineError, match="gave up after 4 tries: reset"):
        rig.backend.head("a")
    assert rig.clock.slept_s == [1, 2, 4]
    assert rig.counted == {"backend_retries": 3, "backend_deadlines": 1}


@pytest.mark.parametrize("error", [ObjectMissingError, VersionGoneError, AccessDeniedError, CredentialsError])
def test_lasting_failures_pass_at_once(error: type[Exception]) -> None:
    rig = Rig()
    rig.faulty.script("head", error("lasting"))
    with pytest.raises(error, match="lasting"):
        rig.backend.head("a")
    assert rig.faulty.calls["head"] == 1
    assert rig.clock.slept_s == []


def test_page_of_a_listing_is_repeated() -> None:
    rig = Rig()
    rig.faulty.script("list", *_resets(2))
    assert len(list(rig.backend.list(""))) == 1
    assert rig.counted == {"backend_retries": 2}


def test_exhausted_budget_queues_repeats_at_the_refill_rate() -> None:
    rig = Rig(RetryPolicy(deadline_s=100, base_s=0.001, cap_s=0.001, budget=2, refill_per_s=1))
    rig.faulty.script("head", *_resets(5))
    with pytest.raises(ObjectMissingError):
        rig.backend.head("a")
    assert [round(pause) for pause in rig.clock.slept_s] == [0, 0, 1, 1, 1]


def test_thousand_waiters_make_no_more_requests_than_the_budget_allows() -> None:
    budget = RetryBudget(capacity=32, refill_per_s=8, clock=HandClock())
    waits = [budget.reserve(patience_s=20.0) for _ in range(1000)]
    granted = [wait for wait in waits if wait is not None]
    assert len(granted) == 32 + 8 * 20
    assert max(granted) <= 20.0


def test_refused_reservation_takes_no_token() -> None:
    clock = HandClock()
    budget = RetryBudget(capacity=1, refill_per_s=1, clock=clock)
    assert budget.reserve(0.5) == 0
    assert [budget.reserve(0.5) for _ in range(10)] == [None] * 10
    clock.sleep(1)
    assert budget.reserve(0.5) == 0


def test_budget_never_grows_beyond_its_capacity() -> None:
    clock = HandClock()
    budget = RetryBudget(capacity=2, refill_per_s=1, clock=clock)
    clock.sleep(1000)
    assert [budget.reserve(0.0) for _ in range(3)] == [0, 0, None]


def test_close_wakes_a_sleeper() -> None:
    faulty = FaultyBackend(StoreBackend(MemoryStore()))
    faulty.script("head", TransientError("reset", retry_after_s=500.0))
    backend = RetryingBackend(faulty, RetryPolicy(deadline_s=1000))
    gate = faulty.hold("head")
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            backend.head("a")
        except DeadlineError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert gate.arrived.acquire(timeout=10)
    gate.release()
    backend.close()
    thread.join(10)
    assert [type(error) for error in outcome] == [DeadlineError]
