"""The sampler that announces: orders, epochs, batches, failures.  No torch: a sampler is anything that iterates."""

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fanoutfs import torch as helper
from fanoutfs.errors import DaemonDiedError
from fanoutfs.torch import AnnouncingSampler, sample_paths


class Shuffled:
    """A sampler whose order depends on the epoch, as a DistributedSampler's."""

    batch_size = 7

    def __init__(self, count: int) -> None:
        self.count = count
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter([(index + self.epoch) % self.count for index in range(self.count)])


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """(name, paths) of each announcement."""
    calls: list[tuple[str, list[str]]] = []

    def announce(paths: Iterable[str], _mount: object, *, name: str) -> None:
        calls.append((name, list(paths)))

    monkeypatch.setattr(helper, "announce", announce)
    return calls


def test_each_epoch_is_announced_under_the_same_name(announced: list[tuple[str, list[str]]]) -> None:
    sampler = AnnouncingSampler(Shuffled(3), ["/a", "/b", "/c"])
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert list(sampler) == [(index + epoch) % 3 for index in range(3)]
        sampler.wait_announced(30)
    (first, paths), (second, later) = announced
    assert first == second
    assert (paths, later) == (["/a", "/b", "/c"], ["/b", "/c", "/a"])
    assert len(sampler) == 3
    assert sampler.batch_size == 7


def test_two_samplers_have_plans_of_their_own(announced: list[tuple[str, list[str]]]) -> None:
    samplers = [AnnouncingSampler(Shuffled(1), ["/a"]) for _n in range(2)]
    for sampler in samplers:
        iter(sampler)
        sampler.wait_announced(30)
    assert announced[0][0] != announced[1][0]


def test_batches_are_announced_file_by_file(announced: list[tuple[str, list[str]]]) -> None:
    sampler = AnnouncingSampler([[2, 0], (1,)], ["/a", "/b", "/c"], name="batches")
    assert list(sampler) == [[2, 0], (1,)]
    sampler.wait_announced(30)
    assert announced == [("batches", ["/c", "/a", "/b"])]


def test_epoch_broken_off_stops_announcing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    waiting, go_on = threading.Event(), threading.Event()

    def announce(paths: Iterator[str], _mount: object, *, name: str) -> None:
        next(paths)
        waiting.set()
        assert go_on.wait(30)
        seen.append(len(list(paths)))

    monkeypatch.setattr(helper, "announce", announce)
    sampler = AnnouncingSampler(Shuffled(1000), ["/a"] * 1000)
    iter(sampler)
    assert waiting.wait(30)
    epoch = sampler._epoch
    assert epoch is not None
    epoch._is_stopped = True
    go_on.set()
    sampler.wait_announced(30)
    assert seen == [0]


def test_announcement_that_fails_warns_once_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def announce(_paths: Iterable[str], _mount: object, *, name: str) -> None:
        raise DaemonDiedError("nobody there")

    monkeypatch.setattr(helper, "announce", announce)
    warned: list[Any] = []
    monkeypatch.setattr("warnings.warn", lambda *arguments, **_options: warned.append(arguments))
    sampler = AnnouncingSampler(Shuffled(2), ["/a", "/b"])
    for _epoch in range(3):
        assert list(sampler) == [0, 1]
        sampler.wait_announced(30)
    assert len(warned) == 1


def test_sampler_that_was_never_iterated_can_be_pickled() -> None:
    copy = pickle.loads(pickle.dumps(AnnouncingSampler([1, 0], ["/a", "/b"])))
    assert len(copy) == 2


def test_paths_of_an_image_folder_and_of_a_subset_of_it() -> None:
    folder = SimpleNamespace(samples=[("/a", 0), ("/b", 1), ("/c", 0)])
    assert sample_paths(folder) == ["/a", "/b", "/c"]
    assert sample_paths(SimpleNamespace(dataset=folder, indices=[2, 0])) == ["/c", "/a"]
    with pytest.raises(TypeError, match="has no `samples`"):
        sample_paths(object())


@pytest.mark.parametrize("statement", ["from fanoutfs import announce", "import fanoutfs.torch"])
def test_jobs_load_none_of_the_daemons_libraries(statement: str) -> None:
    script = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"trio", "pyfuse3", "obstore", "lmdb", "torch", "click"} & set(result.stdout.split())
