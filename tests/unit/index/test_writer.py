"""The group writer: order, groups, failures, cancellation."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from fanoutfs.index.writer import GroupWriter


class Store:
    """Commits lists of what was applied.  `gate` holds the first transaction open."""

    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self.gate = threading.Event()
        self.began = threading.Event()

    @contextlib.contextmanager
    def begin(self) -> Iterator[list[str]]:
        self.began.set()
        assert self.gate.wait(30), "nobody opened the gate"
        applied: list[str] = []
        yield applied
        self.commits.append(applied)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def writer(store: Store) -> Iterator[GroupWriter[list[str]]]:
    writer: GroupWriter[list[str]] = GroupWriter("test-writer", store.begin)
    yield writer
    store.gate.set()
    writer.stop()


def note(text: str) -> Callable[[list[str]], str]:
    def apply(applied: list[str]) -> str:
        applied.append(text)
        return text.upper()

    return apply


def refuse(applied: list[str]) -> None:
    applied.append("refused")
    raise ValueError("no")


async def _until_began(store: Store) -> None:
    await trio.to_thread.run_sync(store.began.wait, 30)


async def test_result_comes_back_when_committed(store: Store, writer: GroupWriter[list[str]]) -> None:
    store.gate.set()
    assert await writer.run(note("a")) == "A"
    assert store.commits == [["a"]]


async def test_what_arrives_during_a_commit_is_one_group_in_order(store: Store, writer: GroupWriter[list[str]]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, note("first"))
        await _until_began(store)
        for n in range(10):
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(writer.run, note(str(n)))
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert store.commits == [["first"], [str(n) for n in range(10)]]


async def test_failing_operation_fails_alone(store: Store, writer: GroupWriter[list[str]]) -> None:
    outcomes: list[object] = []

    async def run(apply: Callable[[list[str]], object]) -> None:
        try:
            outcomes.append(await writer.run(apply))
        except ValueError as error:
            outcomes.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, note("first"))
        await _until_began(store)
        for apply in (note("a"), refuse, note("b")):
            nursery.start_soon(run, apply)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert sorted(map(str, outcomes)) == ["A", "B", "FIRST", "no"]
    assert sorted(map(str, store.commits)) == ["['a']", "['b']", "['first']"]


async def test_cancelled_waiter_does_not_undo_its_operation(store: Store, writer: GroupWriter[list[str]]) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run, note("kept"))
            await _until_began(store)
            scope.cancel()
    store.gate.set()
    assert await writer.run(note("next")) == "NEXT"
    assert [text for group in store.commits for text in group] == ["kept", "next"]


async def test_failing_commit_reaches_everyone(store: Store) -> None:
    @contextlib.contextmanager
    def begin() -> Iterator[list[str]]:
        yield []
        raise OSError("disk")

    writer: GroupWriter[list[str]] = GroupWriter("test-writer", begin)
    with pytest.raises(OSError, match="disk"):
        await writer.run(note("a"))
    await trio.to_thread.run_sync(writer.stop)


async def test_stop_commits_what_was_submitted(store: Store) -> None:
    writer: GroupWriter[list[str]] = GroupWriter("test-writer", store.begin)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run, note("first"))
        await _until_began(store)
        nursery.start_soon(writer.run, note("second"))
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
        await trio.to_thread.run_sync(writer.stop)
    assert [text for group in store.commits for text in group] == ["first", "second"]


async def test_a_group_is_announced_until_it_is_committed_or_refused_and_a_short_change_is_not(store: Store) -> None:
    told: list[tuple[bool, int]] = []
    store.gate.set()
    writer: GroupWriter[list[str]] = GroupWriter(
        "test-writer", store.begin, note_busy=lambda is_busy: told.append((is_busy, len(store.commits)))
    )
    assert await writer.run(note("short"), is_short=True) == "SHORT"
    assert told == []
    await writer.run(note("long"))
    with pytest.raises(ValueError, match="no"):
        await writer.run(refuse)
    writer.stop()
    assert told == [(True, 1), (False, 2), (True, 2), (False, 2)]
