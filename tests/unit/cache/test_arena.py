"""The arena: what is published is found, cut to the range asked for; what was withdrawn is not."""

from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.cache.arena import Arena, Run, gaps
from fanoutfs.records import BLOCK_BYTES, PART_BYTES

INO = 77


def filled(arena: Arena, slot: int, value: int, ino: int, first_block: int, length: int) -> None:
    """Publish a run of equal bytes."""
    arena.buffer(slot)[:length] = bytes([value]) * length
    arena.publish(slot, ino, first_block, length)


def test_published_run_is_found_and_cut_to_the_range() -> None:
    arena = Arena(2 * PART_BYTES)
    filled(arena, 1, 5, INO, 4, 3 * BLOCK_BYTES)
    (run,) = arena.runs(INO, 0, 5 * BLOCK_BYTES)
    assert (run.start, run.end) == (4 * BLOCK_BYTES, 5 * BLOCK_BYTES)
    assert bytes(run.data) == b"\5" * BLOCK_BYTES
    (run,) = arena.runs(INO, 5 * BLOCK_BYTES + 10, 100 * BLOCK_BYTES)
    assert (run.start, run.end) == (5 * BLOCK_BYTES + 10, 7 * BLOCK_BYTES)


def test_other_file_other_range_and_withdrawn_slot_are_not_found() -> None:
    arena = Arena(2 * PART_BYTES)
    filled(arena, 0, 5, INO, 4, BLOCK_BYTES)
    assert arena.runs(INO + 1, 0, PART_BYTES) == []
    assert arena.runs(INO, 5 * BLOCK_BYTES, 6 * BLOCK_BYTES) == []
    arena.withdraw(0)
    assert arena.runs(INO, 0, PART_BYTES) == []


def test_runs_of_several_slots_come_in_order() -> None:
    arena = Arena(3 * PART_BYTES)
    filled(arena, 0, 2, INO, 32, BLOCK_BYTES)
    filled(arena, 1, 9, INO + 1, 31, BLOCK_BYTES)
    filled(arena, 2, 1, INO, 31, BLOCK_BYTES)
    runs = arena.runs(INO, 31 * BLOCK_BYTES + 1, 33 * BLOCK_BYTES)
    assert [(run.start, run.data[0]) for run in runs] == [(31 * BLOCK_BYTES + 1, 1), (32 * BLOCK_BYTES, 2)]


def test_memory_given_back_is_zero_and_its_neighbours_stay() -> None:
    arena = Arena(3 * PART_BYTES)
    for slot in range(3):
        filled(arena, slot, 7, INO + slot, 0, PART_BYTES)
    arena.withdraw(1)
    arena.give_back(1)
    assert bytes(arena.buffer(1)) == bytes(PART_BYTES)
    assert bytes(arena.buffer(0)) == bytes(arena.buffer(2)) == b"\7" * PART_BYTES


@given(
    bounds=st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted),
    spans=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=5),
)
def test_gaps_and_runs_together_are_the_range(bounds: list[int], spans: list[tuple[int, int]]) -> None:
    start, end = bounds
    cut = [(max(start, low), min(end, low + length)) for low, length in spans]
    runs = sorted(
        (Run(low, memoryview(bytes(high - low))) for low, high in cut if low < high), key=lambda run: run.start
    )
    covered = {at for run in runs for at in range(run.start, run.end)}
    missing = [at for low, high in gaps(runs, start, end) for at in range(low, high)]
    assert len(missing) == len(set(missing))
    assert covered.isdisjoint(missing)
    assert covered | set(missing) == set(range(start, end))
