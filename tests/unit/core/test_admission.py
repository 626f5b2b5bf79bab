"""The budget: bounds, order, and release in every state."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fanoutfs.core.admission import Admission, Ticket

MEMORY, REQUESTS = 100, 4


def test_demand_is_admitted_before_prefetch_that_came_first() -> None:
    admission = Admission(MEMORY, 1)
    running = admission.enqueue(10, is_demand=True)
    prefetch = admission.enqueue(10, is_demand=False)
    demand = admission.enqueue(10, is_demand=True)
    admission.release(running)
    assert demand.admitted.is_set()
    assert not prefetch.admitted.is_set()
    admission.release(demand)
    assert prefetch.admitted.is_set()


def test_prefetch_leaves_a_quarter_to_a_reader_who_comes_now() -> None:
    admission = Admission(MEMORY, REQUESTS)
    ahead = [admission.enqueue(1, is_demand=False) for _n in range(10)]
    assert sum(ticket.admitted.is_set() for ticket in ahead) == 3
    assert admission.enqueue(1, is_demand=True).admitted.is_set()


def test_prefetch_leaves_a_quarter_of_the_memory() -> None:
    admission = Admission(MEMORY, 100)
    ahead = [admission.enqueue(25, is_demand=False) for _n in range(4)]
    assert [ticket.admitted.is_set() for ticket in ahead] == [True, True, True, False]
    assert admission.enqueue(25, is_demand=True).admitted.is_set()


def test_one_always_goes_however_large() -> None:
    admission = Admission(MEMORY, REQUESTS)
    assert admission.enqueue(10 * MEMORY, is_demand=False).admitted.is_set()
    assert not admission.enqueue(1, is_demand=True).admitted.is_set()


def test_promoted_ticket_overtakes_other_prefetch() -> None:
    admission = Admission(MEMORY, 1)
    running = admission.enqueue(1, is_demand=True)
    first, second = (admission.enqueue(1, is_demand=False) for _n in range(2))
    admission.promote(second)
    admission.release(running)
    assert second.admitted.is_set()
    assert not first.admitted.is_set()


def test_promoting_an_admitted_ticket_changes_nothing() -> None:
    admission = Admission(MEMORY, REQUESTS)
    ticket = admission.enqueue(1, is_demand=False)
    admission.promote(ticket)
    admission.release(ticket)
    assert admission.bytes_used == 0


class Budget(RuleBasedStateMachine):
    """Any sequence of enqueue, promote and release."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(MEMORY, REQUESTS)
        self.tickets: list[Ticket] = []

    @rule(size=st.integers(0, 2 * MEMORY), is_demand=st.booleans())
    def enqueue(self, size: int, is_demand: bool) -> None:
        self.tickets.append(self.admission.enqueue(size, is_demand=is_demand))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def promote(self, data: Any) -> None:
        self.admission.promote(data.draw(st.sampled_from(self.tickets)))

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
    def demand_waits_in_order(self) -> None:
        waiting = [ticket for ticket in self.tickets if ticket.is_demand and not ticket.admitted.is_set()]
        assert set(map(id, waiting)) == set(map(id, self.admission._demand))

    def teardown(self) -> None:
        for ticket in self.tickets:
            self.admission.release(ticket)
        assert self.admission.bytes_used == 0


TestBudget = Budget.TestCase
TestBudget.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(sizes=st.lists(st.tuples(st.integers(0, 2 * MEMORY), st.booleans()), min_size=1, max_size=30))
def test_everything_is_admitted_in_the_end(sizes: list[tuple[int, bool]]) -> None:
    admission = Admission(MEMORY, REQUESTS)
    waiting = [admission.enqueue(size, is_demand=is_demand) for size, is_demand in sizes]
    for _step in range(len(sizes)):
        ticket = next(ticket for ticket in waiting if ticket.admitted.is_set())
        waiting.remove(ticket)
        admission.release(ticket)
    assert not waiting
