"""Several processes change one index: what a killed one leaves, and when the last sync is not kept any more."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fanoutfs.index.store import IndexEnvironment
from tests.unit.indexes import open_index

OWNER = """
import sys, pathlib
from fanoutfs.index.store import IndexEnvironment
words = memoryview(bytearray(16)).cast("Q")
environment = IndexEnvironment(pathlib.Path(sys.argv[1]), writable=True)
environment.show_pin(words)
print(*words, flush=True)
sys.stdin.read()
"""
WRITER = """
import sys, pathlib
from fanoutfs.index.store import IndexEnvironment
environment = IndexEnvironment(pathlib.Path(sys.argv[1]), writable=True, is_owner=False)
with environment.env.begin(write=True) as txn:
    txn.put(b"unfinished", b"x", db=environment.settings)
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def process(script: str, path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a script; yield it and the first line it says.  It is killed at the end, wherever it is."""
    child = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        yield child, child.stdout.readline()
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with open_index(tmp_path):
        return tmp_path


@pytest.fixture
def front(path: Path) -> Iterator[IndexEnvironment]:
    environment = IndexEnvironment(path, writable=True, is_owner=False)
    yield environment
    environment.close()


def has_pin(front: IndexEnvironment, words: memoryview) -> bool:
    with front.env.begin(write=True):
        return front.has_pin(words)


def test_a_process_killed_in_a_transaction_leaves_nothing_of_it_and_stops_nobody(
    path: Path, front: IndexEnvironment
) -> None:
    with process(WRITER, path) as (_child, said):
        assert said == "writing\n"
    with front.env.begin(write=True) as txn:
        assert txn.get(b"unfinished", db=front.settings) is None
        txn.put(b"finished", b"x", db=front.settings)
    with front.env.begin() as txn:
        assert txn.get(b"finished", db=front.settings) == b"x"


def test_the_pin_outlives_its_process_until_a_lock_is_taken_over(path: Path, front: IndexEnvironment) -> None:
    with process(OWNER, path) as (owner, said):
        words = memoryview(bytearray(16)).cast("Q")
        words[0], words[1] = map(int, said.split())
        assert words[0] == owner.pid
        assert has_pin(front, words)
        words[1] += 1
        assert not has_pin(front, words)
        words[1] -= 1
        with process(WRITER, path):
            pass
        assert has_pin(front, words)
    assert has_pin(front, words)
    with process(WRITER, path):
        pass
    assert not has_pin(front, words)


def test_only_its_owner_makes_an_index(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        IndexEnvironment(tmp_path, writable=True, is_owner=False)
    assert list(tmp_path.iterdir()) == []
