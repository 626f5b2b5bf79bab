"""What is to be done with a file, and what never is."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.config.policies import NEVER
from fanoutfs.index.format import Dirty
from fanoutfs.tiering.moves import Ages, Move, moves_of
from fanoutfs.tiering.policy import Decision
from fanoutfs.tiering.states import TierFacts

DEFAULT = Decision(
    rule="",
    upload_after_s=5.0,
    evict_after_s=None,
    is_pinned=False,
    is_kept_local=False,
    storage_class="",
    storage_class_after_s=None,
    pin=None,
)
EVICTS = dataclasses.replace(DEFAULT, evict_after_s=60.0)
PINS = dataclasses.replace(DEFAULT, is_pinned=True)
RECLASSES = dataclasses.replace(DEFAULT, storage_class="STANDARD_IA", storage_class_after_s=3600.0)
CACHED = TierFacts(size_bytes=100, cached_bytes=70, has_object=True)
DIRTY = TierFacts(size_bytes=100, cached_bytes=100, has_object=False, what=Dirty.CONTENT)
OLD = Ages(unread_s=1e6, unchanged_s=1e6)


@pytest.mark.parametrize(
    ("decision", "facts", "ages", "stored_class", "moves"),
    [
        (DEFAULT, CACHED, OLD, None, {}),
        (EVICTS, CACHED, OLD, None, {Move.EVICT: 70}),
        (EVICTS, CACHED, Ages(59.0, 1e6), None, {}),
        (EVICTS, CACHED, Ages(None, 1e6), None, {}),
        (EVICTS, dataclasses.replace(CACHED, cached_bytes=0), OLD, None, {}),
        (EVICTS, dataclasses.replace(CACHED, is_archived=True), OLD, None, {}),
        (PINS, dataclasses.replace(CACHED, is_pinned=True), OLD, None, {Move.FETCH: 30}),
        (PINS, dataclasses.replace(CACHED, is_archived=True), OLD, None, {}),
        (RECLASSES, CACHED, OLD, None, {Move.RECLASS: 0}),
        (RECLASSES, CACHED, OLD, "STANDARD_IA", {}),
        (RECLASSES, CACHED, Ages(1.0, 1.0), None, {}),
        (RECLASSES, dataclasses.replace(CACHED, what=Dirty.META), OLD, None, {}),
        (EVICTS, DIRTY, OLD, None, {Move.UPLOAD: 100}),
        (EVICTS, dataclasses.replace(DIRTY, is_never=True), OLD, None, {}),
    ],
)
def test_moves_follow_from_rule_state_and_age(
    decision: Decision, facts: TierFacts, ages: Ages, stored_class: str | None, moves: dict[Move, int]
) -> None:
    assert moves_of(decision, facts, ages, stored_class, is_misplaced=False) == moves


@pytest.mark.parametrize(
    ("decision", "facts", "moves"),
    [
        (DEFAULT, CACHED, {Move.REPACK: 70}),
        (DEFAULT, dataclasses.replace(CACHED, cached_bytes=0), {Move.REPACK: 0}),
        (PINS, CACHED, {Move.FETCH: 30}),
        (PINS, dataclasses.replace(CACHED, cached_bytes=0), {Move.FETCH: 100, Move.REPACK: 0}),
        (DEFAULT, dataclasses.replace(CACHED, is_archived=True), {}),
        (DEFAULT, DIRTY, {Move.UPLOAD: 100}),
    ],
)
def test_what_can_be_fetched_again_changes_its_place(
    decision: Decision, facts: TierFacts, moves: dict[Move, int]
) -> None:
    assert moves_of(decision, facts, OLD, None, is_misplaced=True) == moves


SECONDS = st.one_of(st.none(), st.floats(0, 1e9))


@given(
    st.builds(
        Decision,
        rule=st.just("x"),
        upload_after_s=st.sampled_from([0.0, NEVER]),
        evict_after_s=SECONDS,
        is_pinned=st.booleans(),
        is_kept_local=st.booleans(),
        storage_class=st.sampled_from(["", "A"]),
        storage_class_after_s=SECONDS,
        pin=st.none(),
    ),
    st.builds(
        TierFacts,
        size_bytes=st.integers(0, 100),
        cached_bytes=st.integers(0, 100),
        has_object=st.booleans(),
        what=st.sampled_from([None, Dirty.CONTENT, Dirty.META]),
        is_archived=st.booleans(),
        is_never=st.booleans(),
    ),
    st.builds(Ages, SECONDS, st.floats(0, 1e9)),
    st.booleans(),
)
def test_nothing_is_evicted_that_the_store_could_not_give_again(
    decision: Decision, facts: TierFacts, ages: Ages, is_misplaced: bool
) -> None:
    if decision.is_pinned:  # as `decide` makes them
        decision = dataclasses.replace(decision, evict_after_s=None)
    moves = moves_of(decision, facts, ages, None, is_misplaced=is_misplaced)
    if Move.EVICT in moves:
        assert facts.has_object and not facts.is_archived and not decision.is_pinned
    if moves.get(Move.REPACK):
        assert facts.has_object and not facts.is_archived and not decision.is_pinned
    assert not (Move.UPLOAD in moves and (facts.has_object or facts.is_never))
