"""The load: processes that start together, count, and never survive."""

import os
import time
from pathlib import Path

import pytest

from fanoutfs.bench import load
from fanoutfs.bench.data import make_large_file, make_small_files
from fanoutfs.records import MIB


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Four MiB of random bytes."""
    make_large_file(tmp_path / "large", 4 * MIB)
    return tmp_path / "large"


def test_hot_opens_are_shared_out_to_the_last(large: Path) -> None:
    outcome = load.run_together(7, load.hot_opens(bytes(large), 10_003, 7))
    assert (outcome.operations, outcome.bytes_read) == (10_003, 10_003 * 64)


@pytest.mark.parametrize("processes", [1, 3, 4, 9])
def test_cold_opens_cover_the_whole_file(large: Path, processes: int) -> None:
    digests = list(load.chunk_digests(large))
    for chunk in range(4):
        # Whichever chunk is wrong, somebody notices.
        broken = [*digests]
        broken[chunk] ^= 1
        with pytest.raises(load.LoadError, match=f"wrong bytes in MiB {chunk}"):
            load.run_together(processes, load.cold_opens(bytes(large), broken, processes, 1))
    assert load.run_together(processes, load.cold_opens(bytes(large), digests, processes, 2)).operations > processes


def test_sequential_read_reads_all(large: Path) -> None:
    assert load.run_together(2, load.sequential_read(bytes(large))).bytes_read == 8 * MIB


def test_small_reads_notice_a_short_file(tmp_path: Path) -> None:
    paths = [bytes(tmp_path / name) for name in make_small_files(tmp_path, 50, 100)]
    assert load.run_together(4, load.small_reads(paths, 100, 4)).operations == 50
    os.truncate(paths[17], 99)
    with pytest.raises(load.LoadError, match="not 100 bytes"):
        load.run_together(4, load.small_reads(paths, 100, 4))


def test_processes_wait_for_the_last_one(tmp_path: Path) -> None:
    def work(index: int, slot: load.Slot) -> None:
        # The parent forked everybody before anybody got here.
        siblings = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split()
        slot.count(len(siblings), 0)
        (tmp_path / str(index)).touch()
        while len(list(tmp_path.iterdir())) < 32:
            time.sleep(0.001)

    assert load.run_together(32, work, deadline_s=30.0).operations >= 32 * 32


def test_a_deadline_kills_the_processes(tmp_path: Path) -> None:
    def work(index: int, _slot: load.Slot) -> None:
        (tmp_path / str(index)).write_text(str(os.getpid()))
        time.sleep(600)

    with pytest.raises(load.LoadError, match="not finished after 1 s"):
        load.run_together(3, work, deadline_s=1.0)
    for file in tmp_path.iterdir():
        assert not Path(f"/proc/{file.read_text()}").exists()


def test_a_killed_process_is_a_failure() -> None:
    def work(index: int, slot: load.Slot) -> None:
        slot.count(1, 0)
        if index == 1:
            os.kill(os.getpid(), 9)

    with pytest.raises(load.LoadError, match="1 of 2 processes failed"):
        load.run_together(2, work)
