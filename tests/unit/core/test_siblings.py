"""Which siblings to fetch: pure policy, against a directory of numbered files."""

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fanoutfs.core.siblings import Run, Siblings

SIZE = 1000
BASE = 1 << 20


class World:
    """A directory of `count` small files, and a cache into which what is wanted arrives at once."""

    def __init__(
        self, count: int, *, max_files: int = 256, max_bytes: int = 1 << 30, sweep_bytes: int = 1 << 30
    ) -> None:
        self.count = count
        self.siblings = Siblings(max_files, max_bytes, sweep_bytes)
        self.cached: set[int] = set()
        self.fetched: list[int] = []
        self.misses = 0
        self.reads = 0
        self.used_bytes = 0
        self.wasted_bytes = 0

    def read(self, index: int) -> None:
        self.reads += 1
        if index in self.cached:
            run = self.siblings.note_hit(BASE + index)
        else:
            self.misses += 1
            self.cached.add(index)
            run = self.siblings.note_miss("d/", BASE + index, b"%08d" % index, is_first=index == 0)
        if run is not None:
            self.extend(run)
        self.used_bytes, self.wasted_bytes = self.siblings.learnt.used_bytes, self.siblings.learnt.wasted_bytes

    def extend(self, run: Run) -> None:
        wanted = self.siblings.wanted(run)
        start = int(run.edge) + 1 if run.edge else 0
        found = range(start, min(self.count, start + wanted))
        files = [(BASE + index, 0 if index in self.cached else SIZE) for index in found]
        self.fetched += [index for index in found if index not in self.cached]
        self.cached.update(found)
        if wanted:
            is_end = start + wanted >= self.count
            self.siblings.note_fetched(run, b"%08d" % (found[-1] if found else start - 1), files, is_end=is_end)

    def give_up(self) -> int:
        """Return how many fetched files nobody read."""
        return len(self.fetched) * SIZE - self.used_bytes


def test_reading_in_order_misses_only_at_the_beginning() -> None:
    world = World(2000)
    for index in range(2000):
        world.read(index)
    assert world.misses == 1
    assert world.give_up() == world.wasted_bytes == 0


def test_reading_in_order_from_the_middle_begins_with_the_second_file() -> None:
    world = World(2000)
    for index in range(1000, 2000):
        world.read(index)
    assert world.misses == 2


def test_four_loaders_in_turn_and_four_in_quarters_are_followed() -> None:
    in_turn = World(2000)
    for index in range(2000):
        in_turn.read(index ^ 3)  # each four in reverse
    assert in_turn.misses <= 5
    in_quarters = World(2000)
    for index in range(2000):
        in_quarters.read(index % 4 * 500 + index // 4)
    assert in_quarters.misses <= 8


def test_single_read_fetches_nothing_but_at_the_beginning_of_a_directory() -> None:
    world = World(2000)
    world.read(700)
    assert world.fetched == []
    world.read(0)
    assert world.fetched == list(range(1, 17))


def test_reader_that_stops_leaves_a_window_at_most() -> None:
    world = World(100_000, max_files=64)
    for index in range(5000):
        world.read(index)
    assert len(world.fetched) <= 5000 + 64


def test_window_is_bounded_in_bytes() -> None:
    world = World(100_000, max_bytes=20 * SIZE)
    for index in range(500):
        world.read(index)
    assert world.give_up() <= (20 + 16) * SIZE


def test_window_grows_only_while_readers_wait() -> None:
    world = World(10_000)
    world.read(0)
    (run,) = world.siblings._runs.values()
    for index in range(1, 500):
        world.read(index)
    assert run.window == 16
    for index in range(500, 600):
        late = world.siblings.note_hit(BASE + index, is_late=True)
        assert late is run
        world.extend(run)
    assert 16 < run.window <= 256


def test_every_tenth_file_stops_the_run() -> None:
    world = World(1 << 20)
    for index in range(200):
        world.read(index)
    for index in range(200, 1 << 20, 10):
        world.read(index)
    assert len(world.fetched) < 4000
    assert world.wasted_bytes > 0


def test_small_directory_read_at_random_is_not_taken_for_one_read_in_order() -> None:
    world = World(500, sweep_bytes=0)
    chance = random.Random(6)
    order = list(range(1, 500))
    for _epoch in range(8):
        chance.shuffle(order)
        world.cached.clear()
        for index in order:
            world.read(index)
    # One in four is near one of the last 16 here.
    assert len(world.fetched) < 100


def test_directory_read_at_random_is_swept_whole() -> None:
    world = World(5000)
    order = list(range(5000))
    random.Random(1).shuffle(order)
    for index in order:
        world.read(index)
    assert world.misses < 500
    assert world.wasted_bytes == 0


def test_few_random_reads_cost_a_fixed_factor() -> None:
    world = World(1 << 20)
    for index in random.Random(2).sample(range(1 << 20), 50):
        world.read(index)
    assert len(world.fetched) <= 50 * 17


def test_sweeps_stay_within_their_bytes() -> None:
    world = World(1 << 20, sweep_bytes=300 * SIZE)
    for index in random.Random(3).sample(range(1 << 20), 2000):
        world.read(index)
    assert world.siblings._swept_bytes <= (300 + 256) * SIZE


def test_sweep_ends_when_its_files_are_evicted_before_they_are_read() -> None:
    world = World(1 << 20)
    order = random.Random(4).sample(range(1 << 20), 20)
    for index in order:
        world.read(index)
    for _n in range(3000):
        world.cached.clear()  # everything is evicted at once
        world.read(random.Random(_n).choice(world.fetched))
    assert len(world.fetched) < 2 * 3000
    assert world.wasted_bytes > 0


def test_run_goes_on_over_cached_files_as_far_as_the_push_does() -> None:
    world = World(2000)
    world.cached = set(range(30, 1500))
    for index in range(30):
        world.read(index)
    (run,) = world.siblings._runs.values()
    while pushed := [ino for ino, (_ordinal, size_bytes) in run.ahead.items() if not size_bytes]:
        for ino in pushed:
            if world.siblings.note_pushed(ino) is run:
                world.extend(run)
    assert run.edge_ino - BASE >= 1500, "what comes behind the cached files is being fetched"
    assert world.misses < 5


def test_pushed_files_count_as_used_once_one_further_on_is_read() -> None:
    world = World(2000)
    for index in range(100):
        world.read(index)
    siblings = world.siblings
    (run,) = siblings._runs.values()
    ahead_bytes = run.ahead_bytes
    for index in range(100, 103):
        siblings.note_pushed(BASE + index)
    assert run.ahead_bytes == ahead_bytes
    world.read(103)
    assert world.used_bytes == (len(world.fetched) - len(run.ahead)) * SIZE
    assert not siblings.is_ahead(BASE + 100)
    for index in range(104, 1000, 2):  # every other file from the page cache
        siblings.note_pushed(BASE + index)
        world.read(index + 1)
    assert world.wasted_bytes == 0
    assert world.misses < 10


@settings(deadline=None, max_examples=60)
@given(
    reads=st.lists(st.integers(0, 400), max_size=300),
    max_files=st.integers(1, 64),
    evictions=st.sets(st.integers(0, 299)),
    pushes=st.lists(st.integers(0, 400), min_size=1),
)
@example(reads=[0, 0], max_files=1, evictions={1}, pushes=[9])  # a second run fetches what the first one lost unread
def test_books_balance_whatever_is_read_and_pushed(
    reads: list[int], max_files: int, evictions: set[int], pushes: list[int]
) -> None:
    world = World(401, max_files=max_files)
    for number, index in enumerate(reads):
        if number in evictions:
            world.cached.clear()
        siblings = world.siblings
        siblings.note_pushed(BASE + pushes[number % len(pushes)])
        world.read(index)
        runs = list(siblings._runs.values())
        assert sum(len(run.ahead) for run in runs) == len(siblings._owners)
        assert all(run.ahead_bytes == sum(size for _at, size in run.ahead.values()) for run in runs)
        assert siblings._swept_bytes == sum(run.ahead_bytes for run in runs if run.is_sweep)
        ahead = sum(run.ahead_bytes for run in runs)
        assert world.used_bytes + world.wasted_bytes + ahead == len(world.fetched) * SIZE
