"""What marks tell: gaps become kinds, what was never read waits, a restart loses nothing that matters."""

from pathlib import Path

import pytest

from fanoutfs.core.reads import Reads
from fanoutfs.eviction.reuse import ONCE
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import FIRST_FRONT_ROW, TICK, SharedState, mark_of
from fanoutfs.records import MIB
from tests.unit.core.announced import Announced

CAP = 256 * MIB
"""A tick is 1 MiB."""


class Bench:
    """Reads over shared memory, with a front that reads."""

    def __init__(self, path: Path, shared: SharedState | None = None) -> None:
        self.shared = shared or SharedState()
        self.reads = Reads(self.shared, path, CAP)

    def read(self, ino: int, part: int = 0) -> None:
        self.shared.read_marks[mark_of(ino, part)] = self.shared.flags[TICK]

    def move(self, mib: int) -> None:
        self.shared.row(FIRST_FRONT_ROW)[Count.READER_BYTES] += mib * MIB
        self.reads.advance()

    def kind(self, ino: int) -> int:
        self.reads.judge(self.reads.large, ino)
        return self.reads._kinds[mark_of(ino)]


def test_time_goes_on_with_bytes_that_moved(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    start = bench.reads.tick
    assert start > 0
    bench.move(5)
    assert bench.reads.tick == start + 5


def test_what_is_read_again_is_of_another_kind(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.read(7)
    assert bench.kind(7) == ONCE
    bench.move(100)
    bench.read(7)
    assert bench.kind(7) > ONCE


def test_reads_of_one_pass_are_one_use(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.read(7)
    assert bench.kind(7) == ONCE
    bench.move(2)
    bench.read(7)
    assert bench.kind(7) == ONCE


def test_filled_ahead_waits_for_its_first_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.read(8)
    for _n in range(10):
        bench.move(20)
        bench.kind(8)
        bench.read(8)
    bench.reads.note_filled(7)
    bench.move(2)
    bench.reads.large.learn()
    waiting, read = (bench.reads.judge(bench.reads.large, ino)[1] for ino in (7, 8))
    assert waiting > read
    bench.read(7)
    assert bench.kind(7) == ONCE


def test_reader_served_while_it_was_fetched_is_the_one_it_waited_for(tmp_path: Path) -> None:
    """Large files are read from memory before they are on the disk."""
    bench = Bench(tmp_path)
    bench.move(5)
    begun = bench.reads.tick
    bench.read(7)
    bench.move(3)
    bench.reads.note_filled(7, since=begun)
    assert bench.kind(7) == ONCE


def test_orders_say_what_small_files_are_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due soon counts alike, since it is one hit in a segment of many; what is over is worth less than all."""
    bench = Bench(tmp_path)
    bench.reads.orders = Announced({1: 0, 2: 30, 3: 500, 4: 900}, {5: 1000, 6: 1000})
    learnt = {3: 0.0001, 6: 0.0002, 7: 0.5}
    monkeypatch.setattr(bench.reads, "judge", lambda _model, ino: (0, learnt.get(ino, 0.01)))
    worth = bench.reads.judge_small(range(1, 8), stored=7, mean_bytes=MIB)
    assert worth == {1: 4 / 256, 2: 4 / 256, 3: 1 / 500, 4: 0.01, 5: 1 / 1000, 6: 0.0002, 7: 0.5}
    assert bench.reads.worth_after(6, MIB) is None
    bench.reads.orders.lately[6] = 1000
    assert bench.reads.worth_after(6, MIB) == 1 / 1000


def test_hot_is_worth_more_than_what_was_read_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in range(600):
        bench.read(1 + number % 3)
        bench.read(1000 + number)
        for ino in (1, 2, 3, 1000 + number):
            bench.reads.judge(bench.reads.large, ino)
        bench.move(10)
    bench.reads.large.learn()
    hot = bench.reads.judge(bench.reads.large, 1)[1]
    cold = bench.reads.judge(bench.reads.large, 1000 + 599)[1]
    assert hot > 2 * cold


def test_marks_and_what_was_learnt_survive_a_restart(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for _pass in range(4):
        for ino in range(1, 60):
            bench.read(ino)
            bench.kind(ino)
            bench.move(7)
    bench.reads.large.learn()
    before = [bench.reads.judge(bench.reads.large, ino) for ino in range(1, 60)]
    bench.reads.save()
    again = Bench(tmp_path)
    assert again.reads.tick >= bench.reads.tick
    assert [again.reads.judge(again.reads.large, ino) for ino in range(1, 60)] == before
    assert before[0][1] > 0


def test_core_that_is_replaced_keeps_what_fronts_marked(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.read(7)
    bench.kind(7)
    bench.reads.save()
    bench.move(50)
    bench.read(7)
    successor = Bench(tmp_path, bench.shared)
    assert successor.reads.tick == bench.reads.tick
    assert successor.kind(7) > ONCE


def test_damaged_file_is_passed_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.read(7)
    bench.reads.save()
    (tmp_path / "reads").write_bytes(b"nothing of ours")
    assert Bench(tmp_path).reads.tick == 1
