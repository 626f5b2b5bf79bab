"""The push policy, against readers that are simulated: who reads how, and how much is pushed for it."""

import random
from collections.abc import Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from fanoutfs.front.pushpolicy import BATCH, PushPolicy
from fanoutfs.records import MIB

FIRST = 1 << 30
LISTED_S = 1.0
READ_S = 2.0


class World:
    """A kernel's page cache, a store and the pusher's side of the protocol, without any of them."""

    def __init__(self, files: int, size_bytes: int = 4096, limit_bytes: int = 256 * MIB) -> None:
        self.policy = PushPolicy(limit_bytes, random.Random(1))
        self.size_bytes = size_bytes
        self.files = range(FIRST, FIRST + files)
        self.pages: set[int] = set()
        self.stored = set(self.files)
        self.held = set(self.files)
        self.refused = 0
        self.pushed: list[int] = []
        self.reads = 0
        self.now_s = READ_S

    def list_all(self) -> None:
        for first in range(self.files.start, self.files.stop, 141):
            self.policy.note_listed(first, min(141, self.files.stop - first), LISTED_S)

    def push(self, batches: int) -> int:
        """Push so many batches; return how many files that were."""
        before = len(self.pushed)
        for _batch in range(batches):
            batch = self.policy.next_batch(self.now_s)
            assert len(batch) <= BATCH
            for ino in batch:
                if ino not in self.stored:
                    self.policy.settle_absent(ino)
                elif ino not in self.held:
                    self.refused += 1
                    self.policy.settle_refused(ino, self.now_s)
                elif self.policy.is_sentinel():
                    self.policy.settle_sentinel(ino)
                else:
                    self.policy.settle_pushed(self.size_bytes)
                    self.pushed.append(ino)
                    self.pages.add(ino)
            if not batch:
                break
        return len(self.pushed) - before

    def read(self, ino: int) -> None:
        if ino not in self.pages:
            self.reads += 1
            self.pages.add(ino)
            self.policy.note_read(ino, self.now_s)

    def read_all(self, inos: Iterable[int], reads_per_batch: int = 8) -> None:
        """Read in this order while the pusher pushes four times as fast as a READ is answered."""
        for number, ino in enumerate(inos):
            self.read(ino)
            if number % reads_per_batch == 0:
                self.push(1)


def interleaved(files: range, readers: int, batch: int = 64) -> Iterator[int]:
    """Four loaders, each with every fourth batch, side by side."""
    batches = [files[at : at + batch] for at in range(0, len(files), batch)]
    for group in range(0, len(batches), readers):
        for step in range(batch):
            yield from (each[step] for each in batches[group : group + readers] if step < len(each))


def slices(files: range, readers: int) -> Iterator[int]:
    size = len(files) // readers
    for step in range(size):
        yield from (files[reader * size + step] for reader in range(readers))


# --- readers that follow ---------------------------------------------------------------------------------------


def test_listing_alone_pushes_an_eighth_of_the_limit_and_no_more() -> None:
    world = World(100_000)
    world.list_all()
    world.push(100_000)
    assert 32 * MIB <= len(world.pushed) * 4096 <= 32 * MIB + BATCH * 4096
    assert world.policy.is_stalled


def test_files_are_pushed_in_the_order_of_listing() -> None:
    world = World(1000)
    world.list_all()
    world.push(1000)
    assert world.pushed == sorted(world.pushed)


def test_nothing_is_pushed_before_the_reader_had_time_to_enter_the_listing() -> None:
    world = World(100)
    world.list_all()
    world.now_s = LISTED_S + 0.001
    assert world.push(1) == 0
    pause_s = world.policy.listed_pause_s(world.now_s)
    assert pause_s is not None
    assert 0 < pause_s < 0.02
    world.now_s += pause_s
    assert world.push(1) > 0


def test_full_pass_in_order_reads_sentinels_only() -> None:
    world = World(20_000)
    world.list_all()
    world.push(100)
    world.read_all(world.files)
    assert world.reads < 20_000 / 64 * 1.2
    assert len(world.pushed) + world.reads == 20_000
    assert world.policy.outstanding_bytes < 2 * 96 * 4096


def test_full_pass_by_interleaved_loaders_reads_sentinels_only() -> None:
    world = World(20_000)
    world.list_all()
    world.push(100)
    world.read_all(interleaved(world.files, 4))
    assert world.reads < 20_000 / 64 * 1.2


def test_full_pass_in_slices_is_served_in_every_slice() -> None:
    world = World(20_000, size_bytes=100_000)
    world.list_all()
    world.push(100)
    world.read_all(slices(world.files, 4))
    assert world.reads < 20_000 / 8


def test_full_shuffled_pass_is_recognised() -> None:
    world = World(10_000)
    world.list_all()
    world.push(100)
    order = list(world.files)
    random.Random(3).shuffle(order)
    world.read_all(order)
    assert world.reads < 10_000 / 3


def test_reader_that_overtook_the_push_is_overtaken_in_turn() -> None:
    world = World(20_000)
    world.list_all()
    world.read_all(world.files[:500], reads_per_batch=1 << 30)  # the pusher did not run
    world.read_all(world.files[500:])
    assert world.reads < 500 + 19_500 / 64 * 2


# --- readers that do not ---------------------------------------------------------------------------------------


def test_abandoned_directory_stops_the_push_for_good() -> None:
    world = World(100_000)
    world.list_all()
    world.push(100_000)
    pushed = len(world.pushed)
    for _time in range(100):
        world.now_s += 10
        assert world.push(10) == 0
    assert len(world.pushed) == pushed


def test_few_random_reads_push_no_more_than_the_limit() -> None:
    limit_bytes = 16 * MIB
    world = World(1_000_000, limit_bytes=limit_bytes)
    world.list_all()
    for ino in random.Random(4).sample(world.files, 2000):
        world.read(ino)
        world.push(100)
        assert world.policy.outstanding_bytes <= limit_bytes + BATCH * 4096
    assert len(world.pushed) * 4096 <= limit_bytes + 2000 * 4096


def test_abandoned_directory_does_not_stand_in_the_way_of_the_next_one() -> None:
    world = World(200_000, limit_bytes=8 * MIB)
    world.policy.note_listed(FIRST, 100_000, LISTED_S)  # listed, and never read
    world.push(100_000)
    world.policy.note_listed(FIRST + 100_000, 100_000, LISTED_S)
    world.read_all(world.files[100_000:])
    assert world.reads < 100_000 / 8


def test_reader_that_skips_most_files_has_the_rest_given_up_and_pushes_less_and_less() -> None:
    world = World(400_000, limit_bytes=8 * MIB)
    world.list_all()
    skipping = world.files[::50]
    world.read_all(skipping, reads_per_batch=1)
    assert world.policy.sentinels_unread > 0
    assert len(world.pushed) < 8 * MIB // 4096 + len(skipping)


def test_limit_of_zero_pauses_and_a_later_one_goes_on() -> None:
    world = World(10_000)
    world.list_all()
    world.push(1)
    world.policy.limit_bytes = 0
    assert world.push(1) == 0
    world.read_all(world.files[100:200])
    assert world.push(1) == 0
    world.policy.limit_bytes = 256 * MIB
    assert world.push(1) > 0


def test_absent_files_are_tried_once_per_listing() -> None:
    world = World(1000)
    world.stored.clear()
    world.list_all()
    assert world.push(1000) == 0
    assert world.policy.next_batch(world.now_s) == []
    world.stored = set(world.files)
    assert world.push(1000) == 0
    world.list_all()
    world.push(1000)
    assert len(world.pushed) > 900


def test_files_the_kernel_does_not_hold_yet_are_tried_again_a_few_times() -> None:
    world = World(1000)
    world.held = set(world.files[:500])
    world.list_all()
    for _try in range(10):
        world.push(1000)
        world.now_s += 2
    assert len(world.pushed) > 450
    assert 500 <= world.refused <= 500 * 4
    assert world.policy.listed_pause_s(world.now_s) is None


def test_listing_that_was_entered_late_is_pushed_all_the_same() -> None:
    world = World(1000)
    world.held.clear()
    world.list_all()
    world.push(1000)
    world.held = set(world.files)
    world.now_s += 0.06
    world.push(1000)
    assert len(world.pushed) > 900


# --- pages that come and go ------------------------------------------------------------------------------------


def test_listing_again_does_not_push_again() -> None:
    world = World(5000)
    world.list_all()
    world.push(1000)
    world.read_all(world.files)
    pushed = len(world.pushed)
    world.list_all()
    assert world.push(1000) == 0
    assert len(world.pushed) == pushed


def test_read_of_what_was_pushed_long_ago_pushes_its_neighbours_again() -> None:
    world = World(5000)
    world.list_all()
    world.push(1000)
    world.read_all(world.files)
    world.pages.clear()
    world.reads = 0
    world.now_s += 60
    world.read_all(world.files)
    assert world.reads < 5000 / 64 * 3


def test_announced_files_come_first_and_in_their_order() -> None:
    world = World(1000)
    world.list_all()
    order = list(world.files)
    random.Random(5).shuffle(order)
    world.policy.announce([*order[:50], FIRST - 1, *order[:100]], READ_S)  # one twice, and one that was never listed
    pushed: list[int] = []
    while len(pushed) < 100:
        pushed += world.policy.next_batch(world.now_s)
    assert pushed[:100] == order[:100]


def test_absent_file_is_pushed_once_it_is_announced() -> None:
    world = World(200)
    world.stored.clear()
    world.list_all()
    assert world.push(100) == 0
    world.stored = set(world.files[100:])
    world.policy.announce(world.files[100:], world.now_s)
    world.push(100)
    assert len(world.pushed) > 80
    assert set(world.pushed) < world.stored


def test_file_read_before_its_announcement_arrives_is_not_pushed() -> None:
    world = World(200)
    world.stored.clear()
    world.list_all()
    world.push(100)
    world.stored = set(world.files)
    world.read_all(world.files[:150], reads_per_batch=1 << 30)
    world.policy.announce(world.files, world.now_s)
    world.push(100)
    assert set(world.pushed) <= set(world.files[150:])


def test_announced_order_finds_half_of_the_window_free_of_guesses() -> None:
    world = World(100_000)
    world.policy.announce([FIRST], READ_S)
    world.list_all()
    world.push(100_000)
    window_bytes = world.policy.window_bytes
    assert window_bytes // 2 <= world.policy.outstanding_bytes <= window_bytes // 2 + BATCH * 4096
    pause_s = world.policy.listed_pause_s(world.now_s)
    assert pause_s == 10
    order = list(world.files[50_000:60_000])
    world.policy.announce(order, world.now_s)
    world.push(1)
    assert world.pushed[-1] in order
    world.now_s += pause_s
    world.push(100_000)
    assert world.policy.is_stalled


def test_file_whose_read_is_waited_for_is_not_guessed_at() -> None:
    world = World(1000)
    waited_for = set(world.files[::100])
    for ino in waited_for:
        world.policy.leave_out(ino)  # some before their listing arrives
    world.list_all()
    world.push(1000)
    world.list_all()
    world.read_all(world.files[1:50])
    world.push(1000)
    assert len(world.pushed) > 900
    assert not waited_for & world.pages


def test_file_whose_read_was_waited_for_is_as_any_other_once_it_is_read_or_announced() -> None:
    world = World(200)
    world.list_all()
    read, announced = world.files[100], world.files[150]
    for ino in (read, announced):
        world.policy.leave_out(ino)
    world.read(read)
    world.policy.announce([announced], world.now_s)
    world.push(1)
    assert world.pushed == [announced]
    world.now_s += 100
    world.pages.clear()
    world.read(announced)  # so the kernel gave pages up: everything is to be pushed again
    world.push(100)
    assert read in world.pages


def test_sentinel_left_out_twice_vouches_for_all_that_was_pushed() -> None:
    policy = PushPolicy(64 * MIB, random.Random(1))
    for _time in range(2):
        policy.settle_pushed(1000)
        policy.settle_sentinel(FIRST)
    policy.note_read(FIRST, READ_S)
    assert policy.outstanding_bytes == 0


STEP = st.one_of(
    st.tuples(st.just("list"), st.integers(0, 900), st.integers(1, 300)),
    st.tuples(st.just("read"), st.integers(0, 1200), st.just(0)),
    st.tuples(st.just("push"), st.integers(1, 20), st.just(0)),
    st.tuples(st.just("announce"), st.integers(0, 1200), st.integers(1, 50)),
    st.tuples(st.just("leave out"), st.integers(0, 1200), st.just(0)),
    st.tuples(st.just("limit"), st.sampled_from([0, MIB, 4 * MIB]), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 5), st.just(0)),
)


@given(steps=st.lists(STEP, max_size=60), size_bytes=st.sampled_from([1, 4096, 110_000]))
def test_whatever_happens_the_budget_holds_and_the_books_balance(
    steps: list[tuple[str, int, int]], size_bytes: int
) -> None:
    world = World(1200, size_bytes, 4 * MIB)
    policy = world.policy
    for what, number, count in steps:
        pushed = len(world.pushed)
        if what == "list":
            policy.note_listed(FIRST + number, count, world.now_s)
        elif what == "read":
            world.read(FIRST + number)
        elif what == "push":
            world.push(number)
            if len(world.pushed) > pushed:
                assert policy.outstanding_bytes <= policy.window_bytes + BATCH * size_bytes
        elif what == "announce":
            policy.announce(range(FIRST + number, FIRST + number + count), world.now_s)
        elif what == "leave out":
            policy.leave_out(FIRST + number)
        elif what == "limit":
            policy.limit_bytes = number
        else:
            world.now_s += number
        assert 0 <= policy.outstanding_bytes <= len(world.pushed) * size_bytes
