"""Which directories are listed again, and when.  Time jumps."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fanoutfs.core.freshness import Freshness, epoch_s
from fanoutfs.errors import StaleInodeError, TransientError
from fanoutfs.index.format import FLAG_LISTED, Inode, directory_inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from tests.unit.indexes import NOW_NS, OWNER, apply, open_index

TTL_S = 60.0


class Listings:
    """Notes what is listed and when; a listing marks the directory."""

    def __init__(self, index: IndexEnvironment) -> None:
        self.index = index
        self.listed: list[tuple[int, float]] = []
        self.error: Exception | None = None

    def age_ns(self, directory: Inode) -> int | None:
        return self.now_ns() - directory.listed_at_ns

    async def refresh(self, ino: int) -> None:
        self.listed.append((ino, trio.current_time()))
        if self.error is not None:
            raise self.error
        self.mark(ino)

    def mark(self, ino: int) -> None:
        """Enter a listed directory."""
        inode = replace(directory_inode(ino, "d/", NOW_NS, OWNER), listed_at_ns=self.now_ns(), flags=FLAG_LISTED)
        apply(self.index, lambda txn: txn.put_inode(inode))

    @staticmethod
    def now_ns() -> int:
        return NOW_NS + int(trio.current_time() * 1e9)


class Notifier:
    """Notes epochs."""

    has_epoch = True

    def __init__(self) -> None:
        self.epochs: list[float] = []

    async def expire_all_names(self) -> None:
        self.epochs.append(trio.current_time())


class Parts:
    """A freshness task over an index, and its neighbours."""

    def __init__(self, index: IndexEnvironment, ttl_s: float = TTL_S) -> None:
        self.listings = Listings(index)
        self.notifier = Notifier()
        listings: Any = self.listings
        notifier: Any = self.notifier
        self.freshness = Freshness(
            listings=listings, reader=IndexReader(index), notifier=notifier, metadata_ttl_s=ttl_s
        )


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    with open_index(tmp_path) as index:
        yield Parts(index)


async def run_for(parts: Parts, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await parts.freshness.run()


async def test_idle_mount_lists_nothing(parts: Parts, autojump_clock: trio.testing.MockClock) -> None:
    parts.listings.mark(20)
    await run_for(parts, 3600)
    assert parts.listings.listed == []
    assert len(parts.notifier.epochs) == 6 - 1 or len(parts.notifier.epochs) == 6


async def test_active_directory_is_listed_once_a_ttl(parts: Parts, autojump_clock: trio.testing.MockClock) -> None:
    parts.listings.mark(20)
    parts.freshness.note_used(20)
    await run_for(parts, 5 * TTL_S + 30)
    times = [at for ino, at in parts.listings.listed if ino == 20]
    assert len(times) == 4 or len(times) == 5
    assert all(TTL_S <= later - earlier <= TTL_S + 5 for earlier, later in itertools.pairwise(times))


async def test_directory_that_nobody_uses_any_more_is_left_alone_after_two_epochs(
    parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    parts.listings.mark(20)
    parts.freshness.note_used(20)
    await run_for(parts, 10 * epoch_s(TTL_S))
    assert parts.freshness.active == 0
    assert max(at for _ino, at in parts.listings.listed) <= 2 * epoch_s(TTL_S) + TTL_S


async def test_used_directory_stays_active_over_epochs(parts: Parts, autojump_clock: trio.testing.MockClock) -> None:
    parts.listings.mark(20)
    with trio.move_on_after(5 * epoch_s(TTL_S)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parts.freshness.run)
            while True:
                parts.freshness.note_used(20)
                await trio.sleep(TTL_S)
    assert parts.freshness.active == 1
    assert len(parts.listings.listed) >= 40


async def test_failed_listing_is_tried_again_a_ttl_later(parts: Parts, autojump_clock: trio.testing.MockClock) -> None:
    parts.listings.mark(20)
    parts.freshness.note_used(20)
    parts.listings.error = TransientError("down")
    await run_for(parts, 4 * TTL_S)
    times = [at for _ino, at in parts.listings.listed]
    assert 2 <= len(times) <= 4
    assert all(later - earlier >= TTL_S for earlier, later in itertools.pairwise(times))


async def test_directory_that_is_gone_is_no_longer_active(parts: Parts, autojump_clock: trio.testing.MockClock) -> None:
    parts.listings.mark(20)
    parts.freshness.note_used(20)
    parts.freshness.note_used(4711)  # never was in the index
    parts.listings.error = StaleInodeError("gone")
    await run_for(parts, 4 * TTL_S)
    assert parts.freshness.active == 0
    assert len(parts.listings.listed) == 1


async def test_directory_that_was_never_listed_is_not_listed_in_the_background(
    parts: Parts, autojump_clock: trio.testing.MockClock
) -> None:
    parts.freshness.note_used(1)
    await run_for(parts, 4 * TTL_S)
    assert parts.listings.listed == []


async def test_source_that_never_changes_is_never_listed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with open_index(tmp_path) as index:
        parts = Parts(index, float("inf"))
        parts.freshness.note_used(1)
        await parts.freshness.run()
        assert parts.listings.listed == []


def test_epoch_is_ten_ttls_and_at_least_half_a_minute() -> None:
    assert (epoch_s(60), epoch_s(1), epoch_s(float("inf"))) == (600, 30, float("inf"))
