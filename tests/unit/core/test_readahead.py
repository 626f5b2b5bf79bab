"""How far ahead: doubling, random access, several readers, the end of the file."""

import random

from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.core.readahead import ReadAhead
from fanoutfs.records import BLOCK_BYTES, GIB, MIB, PART_BLOCKS, PART_BYTES

CAP = 64 * MIB
CAP_BLOCKS = CAP // BLOCK_BYTES
LARGE = 10 * GIB // BLOCK_BYTES


def read_through(policy: ReadAhead, ino: int, size: int, start: int = 0, step: int = 4) -> list[range]:
    """Read sequentially; return what was fetched ahead at each access."""
    return [policy.access(ino, at, min(at + step, size) - 1, size) for at in range(start, size, step)]


def test_sequential_reader_doubles_the_window_up_to_the_cap() -> None:
    policy = ReadAhead(CAP)
    size = 8 * CAP_BLOCKS
    begun_at = 1000
    ahead = [found for found in read_through(policy, 1, size, begun_at) if found]
    reach = [len(found) for found in ahead]
    assert reach[0] == MIB // BLOCK_BYTES
    assert max(reach) <= CAP_BLOCKS
    assert reach[1] > reach[0]
    # The window, from the reader's position, reaches the cap.
    assert max(reach) >= CAP_BLOCKS // 2


def test_word_that_a_reader_is_in_a_part_begins_no_run_where_nobody_read() -> None:
    policy = ReadAhead(CAP)
    size = 100 * PART_BLOCKS
    in_part = PART_BLOCKS // 2
    policy.access(1, 7 * PART_BLOCKS + in_part, 7 * PART_BLOCKS + in_part, size)
    assert not policy.follow(1, 7, size)
    policy.access(3, in_part, in_part, size)
    assert not policy.follow(3, 0, size), "he may be anywhere in the first part, too"
    assert not policy.follow(2, 3, size), "of a file that was cached so far"
    assert not policy.follow(2, 9, size)


def test_reader_who_comes_from_part_to_part_of_what_is_cached_is_fetched_ahead_of() -> None:
    policy = ReadAhead(CAP)
    size = 100 * PART_BLOCKS
    assert not policy.follow(1, 3, size)
    found = policy.follow(1, 4, size)
    assert found.start == 4 * PART_BLOCKS + 1
    assert policy.follow(1, 5, size).stop > found.stop


def test_full_window_is_extended_part_by_part() -> None:
    policy = ReadAhead(CAP)
    ahead = [found for found in read_through(policy, 1, 8 * CAP_BLOCKS) if found]
    in_the_middle = [len(found) for found in ahead[8:-1]]
    assert in_the_middle
    assert all(PART_BLOCKS <= reach < PART_BLOCKS + 4 for reach in in_the_middle)


def test_reader_from_the_beginning_starts_with_a_larger_window() -> None:
    assert ReadAhead(CAP).access(1, 0, 0, LARGE) == range(1, PART_BLOCKS)


def test_full_window_ends_where_a_part_does() -> None:
    policy = ReadAhead(CAP)
    ahead = [found for found in read_through(policy, 1, 8 * CAP_BLOCKS, 1000, 3) if len(found) >= PART_BLOCKS]
    assert len(ahead) > 8
    assert all(found.stop % PART_BLOCKS == 0 for found in ahead)
    policy = ReadAhead(CAP)
    assert read_through(policy, 1, 4 * PART_BLOCKS + 7)[-2:] == [range(0)] * 2  # ... or the file


def test_cap_of_zero_never_fetches_ahead() -> None:
    assert not any(read_through(ReadAhead(0), 1, 4000))


def test_random_reader_gets_nothing_after_a_few_tries() -> None:
    policy = ReadAhead(CAP)
    dice = random.Random(1)
    fetched = [len(policy.access(1, at, at, LARGE)) for at in (dice.randrange(LARGE) for _n in range(300))]
    assert sum(fetched[4:]) == 0


def test_sequential_reader_is_recognised_after_random_ones() -> None:
    policy = ReadAhead(CAP)
    dice = random.Random(1)
    for _n in range(50):
        policy.access(1, at := dice.randrange(LARGE // 2), at, LARGE)
    ahead = read_through(policy, 1, LARGE, LARGE - 1000)
    assert any(ahead[1:4])


def test_several_readers_of_one_file_are_told_apart() -> None:
    policy = ReadAhead(CAP)
    starts = [n * LARGE // 8 for n in range(8)]
    fetched: dict[int, int] = dict.fromkeys(starts, 0)
    for step in range(0, 400, 4):
        for start in starts:
            fetched[start] += len(policy.access(1, start + step, start + step + 3, LARGE))
    assert min(fetched.values()) >= 400


def test_third_reader_of_a_file_that_fits_fetches_it_whole() -> None:
    policy = ReadAhead(CAP)
    size = 32 * MIB // BLOCK_BYTES
    for at in (10, 70):
        policy.access(1, at, at, size)
    assert policy.access(1, 120, 120, size) == range(size)


def test_slightly_reordered_reads_are_one_run() -> None:
    policy = ReadAhead(CAP)
    positions = list(range(0, 2000, 4))
    for n in range(0, len(positions) - 1, 2):
        positions[n], positions[n + 1] = positions[n + 1], positions[n]
    covered: set[int] = set()
    late = []
    for at in positions:
        if at >= 100 and at not in covered:
            late.append(at)
        covered.update(policy.access(1, at, at + 3, LARGE))
    assert not late


def test_forgotten_inode_starts_anew() -> None:
    policy = ReadAhead(CAP)
    read_through(policy, 1, 4000)
    policy.forget(1)
    policy.forget(2)
    assert len(policy.access(1, 1000, 1000, LARGE)) == MIB // BLOCK_BYTES


def test_table_of_inodes_is_bounded() -> None:
    policy = ReadAhead(CAP)
    for ino in range(10_000):
        policy.access(ino, 0, 0, 10)
    assert len(policy._inodes) <= 4096


@given(
    accesses=st.lists(st.tuples(st.integers(0, 299), st.integers(1, 8)), max_size=60),
    size=st.integers(1, 300),
    cap=st.sampled_from([0, BLOCK_BYTES, MIB, CAP]),
)
def test_nothing_behind_the_end_is_ever_fetched(accesses: list[tuple[int, int]], size: int, cap: int) -> None:
    policy = ReadAhead(cap)
    for first, count in accesses:
        if first < size:
            ahead = policy.access(1, first, min(first + count, size) - 1, size)
            assert ahead.start >= 0
            assert ahead.stop <= size
            assert len(ahead) <= max(cap // BLOCK_BYTES, 0) or ahead == range(size)


@given(
    size=st.integers(1, 3000),
    step=st.integers(1, 4),
    start=st.integers(0, 2999),
    cap=st.sampled_from([PART_BYTES, PART_BYTES * 3 // 2, 2 * PART_BYTES, CAP]),
)
def test_sequential_reader_finds_every_block_but_the_first_fetched_before_it_comes(
    size: int, step: int, start: int, cap: int
) -> None:
    policy = ReadAhead(cap)
    start = min(start, size - 1)
    covered: set[int] = set()
    for at in range(start, size, step):
        last = min(at + step, size) - 1
        if at > start:
            assert set(range(at, last + 1)) <= covered
        ahead = policy.access(1, at, last, size)
        assert not covered & set(ahead), "fetched ahead twice"
        covered.update(ahead)
    assert set(range(start + step, size)) <= covered
