"""Listings: one at a time, names at once, changes told to the kernel."""

import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.errors import DeadlineError, StaleInodeError, TransientError
from fanoutfs.observe.catalog import Count
from fanoutfs.records import ROOT_INO
from fanoutfs.wire.kernel import Notify
from tests.unit.core.rig import Rig, arrived, running_core


def names(core: Rig, ino: int = ROOT_INO) -> set[bytes]:
    with core.reader.begin() as txn:
        return {name for name, *_rest in core.reader.children(txn, ino, b"")}


def entries_told(core: Rig) -> list[bytes]:
    return [body[16:-1] for code, body in core.told() if code is Notify.INVAL_ENTRY]


async def test_everybody_joins_the_listing_under_way(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a", b"1")
        gate = core.backend.hold("list")
        async with trio.open_nursery() as nursery:
            for _n in range(10):
                nursery.start_soon(core.listings.refresh, ROOT_INO)
            await arrived(gate)
            await trio.testing.wait_all_tasks_blocked()
            gate.release()
        assert core.count(Count.LISTINGS) == 1
        assert names(core) == {b"a"}


async def test_refresh_anew_does_not_join_a_listing_that_may_have_missed_the_change(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name in "ab":
            core.write(name, b"1")
        core.pages.pages = threading.Semaphore(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.listings.refresh, ROOT_INO)
            await _until_page(core, "a")
            core.write("a", b"changed behind the first page")
            nursery.start_soon(core.listings.refresh_anew, ROOT_INO)
            await trio.testing.wait_all_tasks_blocked()
            core.pages.pages.release(100)
        assert core.inode("a").size_bytes == len(b"changed behind the first page")
        assert core.count(Count.LISTINGS) == 2


async def test_refresh_anew_returns_when_the_kernel_knows_what_an_earlier_listing_found(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a", b"1")
        await core.listings.refresh(ROOT_INO)
        core.write("a", b"another version")
        await core.notifier._sending.acquire()  # what is to be told waits
        await core.listings.refresh(ROOT_INO)
        has_returned = trio.Event()

        async def refresh_anew() -> None:
            await core.listings.refresh_anew(ROOT_INO)
            has_returned.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refresh_anew)
            await trio.testing.wait_all_tasks_blocked()
            while core.count(Count.LISTINGS) < 3:
                await core.listings.refresh(ROOT_INO)
            await trio.testing.wait_all_tasks_blocked()
            assert not has_returned.is_set()
            core.notifier._sending.release()
        assert entries_told(core) == [b"a"]


async def _until_page(core: Rig, name: str) -> None:
    """Return when a page that holds this name was entered."""
    await trio.testing.wait_all_tasks_blocked()
    while name.encode() not in names(core):
        await core.listings._under_way[ROOT_INO].progress.wait()


async def test_name_is_asked_for_by_itself_while_the_first_listing_is_slow(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name in ("a", "b", "d/x"):
            core.write(name, b"123")
        core.pages.pages = threading.Semaphore(1)
        found = await core.listings.find(ROOT_INO, b"b")
        assert found is not None
        assert core.inode("b").size_bytes == 3
        assert await core.listings.find(ROOT_INO, b"absent") is None
        directory = await core.listings.find(ROOT_INO, b"d")
        assert directory is not None
        assert not core.inode("").is_listed
        core.pages.pages.release(100)
        await core.listings.refresh(ROOT_INO)
        assert names(core) == {b"a", b"b", b"d"}
        assert core.inode("b").ino == found
        assert core.inode("d").ino == directory


@pytest.mark.parametrize("name", [b"\xff", b"new\nline"])
async def test_name_that_no_request_can_carry_is_absent_without_asking(tmp_path: Path, name: bytes) -> None:
    async with running_core(tmp_path) as core:
        for known in "ab":
            core.write(known, b"1")
        core.pages.pages = threading.Semaphore(1)
        assert await core.listings.find(ROOT_INO, b"a") is not None
        before = core.backend.calls["head"]
        assert await core.listings.find(ROOT_INO, name) is None
        assert core.backend.calls["head"] == before
        core.pages.pages.release(100)
        await core.listings.refresh(ROOT_INO)


async def test_surprise_in_the_lookup_behind_a_listing_does_not_end_the_core(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for known in "ab":
            core.write(known, b"1")
        core.pages.pages = threading.Semaphore(1)
        assert await core.listings.find(ROOT_INO, b"absent") is None
        core.backend.script("head", RuntimeError("surprise"))
        core.pages.pages.release(100)
        await core.listings.refresh(ROOT_INO)
        await trio.testing.wait_all_tasks_blocked()
        while core.backend.calls["head"] < 2:
            await trio.lowlevel.checkpoint()
        await core.listings.refresh(ROOT_INO)
        assert names(core) == {b"a", b"b"}


async def test_first_listing_tells_the_kernel_nothing(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name in ("a", "b", "d/x"):
            core.write(name, b"123")
        await core.listings.refresh(ROOT_INO)
        assert core.told() == []


async def test_name_shown_before_the_first_listing_ended_and_changed_since_is_told(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name in "ab":
            core.write(name, b"1")
        core.pages.pages = threading.Semaphore(1)
        await core.listings.find(ROOT_INO, b"b")
        core.write("b", b"another version")
        listing = core.listings._under_way[ROOT_INO]
        core.pages.pages.release(100)
        await listing.done.wait()
        await core.listings.told()
        assert entries_told(core) == [b"b"]


async def test_changes_are_told_by_name(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name in ("gone", "changed", "same"):
            core.write(name, b"1")
        await core.listings.refresh(ROOT_INO)
        (core.source / "gone").unlink()
        core.write("changed", b"another version")
        core.write("new", b"1")
        await core.listings.refresh_anew(ROOT_INO)
        assert sorted(entries_told(core)) == [b"changed", b"gone", b"new"]
        assert [body for code, body in core.told() if code is Notify.INVAL_INODE][-1][:8] == b"\1" + bytes(7)
        assert core.count(Count.VERSION_SWITCHES) == 1


async def test_directory_that_became_a_file_is_decided_at_the_end(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a/x", b"1")
        await core.listings.refresh(ROOT_INO)
        (core.source / "a/x").unlink()
        (core.source / "a").rmdir()
        core.write("a", b"file")
        await core.listings.refresh(ROOT_INO)
        assert not core.inode("a").is_dir
        assert core.inode("a").size_bytes == 4


async def test_failed_listing_reaches_everyone_and_is_not_remembered(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a", b"1")
        core.backend.script("list", TransientError("reset"))
        with pytest.raises(TransientError):
            await core.listings.refresh(ROOT_INO)
        assert not core.inode("").is_listed
        assert await core.listings.find(ROOT_INO, b"a") is not None
        await core.listings.refresh(ROOT_INO)
        assert core.inode("").is_listed


async def test_failed_second_page_takes_away_only_what_the_first_one_passed_over(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name in "abc":
            core.write(name, b"1")
        await core.listings.refresh(ROOT_INO)
        for name in "ac":
            (core.source / name).unlink()
        core.backend.script("list", lambda body: body, TransientError("reset"))
        with pytest.raises(TransientError):
            await core.listings.refresh(ROOT_INO)
        assert names(core) == {b"b", b"c"}
        assert core.inode("").is_listed
        await core.listings.refresh(ROOT_INO)
        assert names(core) == {b"b"}


async def test_store_that_lists_in_no_order_is_listed_as_a_whole(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        for name in ("a", "b", "d/x"):  # the rig's pages: directories, then files
            core.write(name, b"1")
        for _again in range(2):
            await core.listings.refresh(ROOT_INO)
            assert names(core) == {b"a", b"b", b"d"}
        core.write("c", b"1")
        (core.source / "a").unlink()
        await core.listings.refresh(ROOT_INO)
        assert names(core) == {b"b", b"c", b"d"}


async def test_listing_waits_as_long_as_pages_arrive(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with running_core(tmp_path, op_timeout_s=10.0) as core:
        for name in "abc":
            core.write(name, b"1")
        core.pages.pages = threading.Semaphore(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.listings.refresh, ROOT_INO)
            await trio.testing.wait_all_tasks_blocked()
            for _page in range(3):
                mock_clock.jump(9.0)
                progress = core.listings._under_way[ROOT_INO].progress
                core.pages.pages.release()
                await progress.wait()
                await trio.testing.wait_all_tasks_blocked()
            core.pages.pages.release(10)
        assert names(core) == {b"a", b"b", b"c"}


async def test_listing_without_an_answer_is_a_deadline(tmp_path: Path, mock_clock: trio.testing.MockClock) -> None:
    async with running_core(tmp_path, op_timeout_s=10.0) as core:
        core.write("a", b"1")
        core.pages.pages = threading.Semaphore(0)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(DeadlineError):
                    await core.listings.refresh(ROOT_INO)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(11.0)
        core.pages.pages.release(10)


async def test_directory_that_is_gone_is_stale_and_grows_no_entries(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("d/x", b"1")
        await core.listings.refresh(ROOT_INO)
        old = core.inode("d").ino
        (core.source / "d/x").unlink()
        (core.source / "d").rmdir()
        await core.listings.refresh(ROOT_INO)
        core.write("d/x", b"1")
        await core.listings.refresh(ROOT_INO)
        with pytest.raises(StaleInodeError):
            await core.listings.refresh(old)
        assert names(core, old) == set()


async def test_file_is_no_directory(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", b"1")
        with pytest.raises(StaleInodeError):
            await core.listings.refresh(inode.ino)


async def test_age_is_unknown_before_the_first_listing_and_after_the_clock_jumped_back(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        assert core.listings.age_ns(core.inode("")) is None
        await core.listings.refresh(ROOT_INO)
        core.clock.now_ns += 5
        assert core.listings.age_ns(core.inode("")) == 5
        core.clock.now_ns -= 10
        assert core.listings.age_ns(core.inode("")) is None
