"""The budget: bounds, order, and release in every state."""

from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fanoutfs.core.admission import Admission, Ticket, Urgency

MEMORY, REQUESTS = 100, 4


def test_demand_is_admitted_before_prefetch_that_came_first() -> None:
    admission = Admission(MEMORY, 1)
    running = admission.enqueue(10, Urgency.DEMAND)
    prefetch = admission.enqueue(10, Urgency.PREFETCH)
    demand = admission.enqueue(10, Urgency.DEMAND)
    admission.release(running)
    assert demand.admitted.is_set()
    assert not prefetch.admitted.is_set()
    admission.release(demand)
    assert prefetch.admitted.is_set()


def test_prefetch_leaves_a_quarter_to_a_reader_who_comes_now() -> None:
    admission = Admission(MEMORY, REQUESTS)
    ahead = [admission.enqueue(1, Urgency.PREFETCH) for _n in range(10)]
    assert sum(ticket.admitted.is_set() for ticket in ahead) == 3
    assert admission.enqueue(1, Urgency.DEMAND).admitted.is_set()


def test_prefetch_leaves_a_quarter_of_the_memory() -> None:
    admission = Admission(MEMORY, 100)
    ahead = [admission.enqueue(25, Urgency.PREFETCH) for _n in range(4)]
    assert [ticket.admitted.is_set() for ticket in ahead] == [True, True, True, False]
    assert admission.enqueue(25, Urgency.DEMAND).admitted.is_set()


def test_one_always_goes_however_large() -> None:
    admission = Admission(MEMORY, REQUESTS)
    assert admission.enqueue(10 * MEMORY, Urgency.PREFETCH).admitted.is_set()
    assert not admission.enqueue(1, Urgency.DEMAND).admitted.is_set()


def test_promoted_ticket_overtakes_other_prefetch() -> None:
    admission = Admission(MEMORY, 1)
    running = admission.enqueue(1, Urgency.DEMAND)
    first, second = (admission.enqueue(1, Urgency.PREFETCH) for _n in range(2))
    admission.promote(second, Urgency.DEMAND)
    admission.release(running)
    assert second.admitted.is_set()
    assert not first.admitted.is_set()


def test_promoting_an_admitted_ticket_changes_nothing() -> None:
    admission = Admission(MEMORY, REQUESTS)
    ticket = admission.enqueue(1, Urgency.PREFETCH)
    admission.promote(ticket, Urgency.DEMAND)
    admission.release(ticket)
    assert admission.bytes_used == 0


def test_background_waits_for_prefetch_and_prefetch_for_demand() -> None:
    admission = Admission(MEMORY, 1)
    running = admission.enqueue(1, Urgency.DEMAND)
    background, prefetch, demand = (admission.enqueue(1, urgency) for urgency in sorted(Urgency, reverse=True))
    for ticket in (demand, prefetch, background):
        assert not ticket.admitted.is_set()
        admission.release(running)
        assert ticket.admitted.is_set()
        running = ticket


def test_prefetch_of_what_waits_in_the_background_pulls_it_forward_and_never_back() -> None:
    admission = Admission(MEMORY, 1)
    running = admission.enqueue(1, Urgency.DEMAND)
    other, ticket = (admission.enqueue(1, Urgency.BACKGROUND) for _n in range(2))
    admission.promote(ticket, Urgency.PREFETCH)
    admission.promote(ticket, Urgency.BACKGROUND)
    assert ticket.urgency is Urgency.PREFETCH
    admission.release(running)
    assert ticket.admitted.is_set()
    assert not other.admitted.is_set()


async def test_others_begin_when_no_reader_waits(autojump_clock: trio.testing.MockClock) -> None:
    admission = Admission(MEMORY, 1)
    running = admission.enqueue(1, Urgency.DEMAND)
    await admission.let_readers_first(1)
    assert trio.current_time() == 0
    reader = admission.enqueue(1, Urgency.DEMAND)
    await admission.let_readers_first(1)
    assert trio.current_time() == 1, "but not for ever"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admission.let_readers_first, 100)
        await trio.testing.wait_all_tasks_blocked()
        admission.release(running)
    assert trio.current_time() == 1
    assert reader.admitted.is_set()


class Budget(RuleBasedStateMachine):
    """Any sequence of enqueue, promote and release."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(MEMORY, REQUESTS)
        self.tickets: list[Ticket] = []

    @rule(size=st.integers(0, 2 * MEMORY), urgency=st.sampled_from(Urgency))
    def enqueue(self, size: int, urgency: Urgency) -> None:
        self.tickets.append(self.admission.enqueue(size, urgency))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), urgency=st.sampled_from(Urgency))
    def promote(self, data: Any, urgency: Urgency) -> None:
        self.admission.promote(data.draw(st.sampled_from(self.tickets)), urgency)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        self.tickets.remove(ticket)
        self.admission.release(ticket)

    @invariant()
    def bounds_hold_and_are_exact(self) -> None:
        admitted = [ticket for ticket in self.tickets if ticket.admitted.is_set()]
        used = sum(ticket.size_bytes for ticket in admitted)
        assert self.admission.bytes_used == used
        assert len(admitted) <= REQUESTS
        assert used <= MEMORY or len(admitted) == 1

    @invariant()
    def nothing_waits_while_nothing_runs(self) -> None:
        assert not self.tickets or any(ticket.admitted.is_set() for ticket in self.tickets)

    @invariant()
    def who_waits_is_in_the_queue_of_its_urgency(self) -> None:
        for urgency in Urgency:
            waiting = [each for each in self.tickets if each.urgency is urgency and not each.admitted.is_set()]
            assert set(map(id, waiting)) == set(map(id, self.admission._waiting[urgency]))

    @invariant()
    def others_are_told_whether_a_reader_waits(self) -> None:
        waits = any(each.urgency is Urgency.DEMAND and not each.admitted.is_set() for each in self.tickets)
        assert self.admission.has_reader_waiting == waits
        assert self.admission._no_reader_waits.is_set() != waits

    def teardown(self) -> None:
        for ticket in self.tickets:
            self.admission.release(ticket)
        assert self.admission.bytes_used == 0


TestBudget = Budget.TestCase
TestBudget.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(sizes=st.lists(st.tuples(st.integers(0, 2 * MEMORY), st.sampled_from(Urgency)), min_size=1, max_size=30))
def test_everything_is_admitted_in_the_end(sizes: list[tuple[int, Urgency]]) -> None:
    admission = Admission(MEMORY, REQUESTS)
    waiting = [admission.enqueue(size, urgency) for size, urgency in sizes]
    for _step in range(len(sizes)):
        ticket = next(ticket for ticket in waiting if ticket.admitted.is_set())
        waiting.remove(ticket)
        admission.release(ticket)
    assert not waiting
