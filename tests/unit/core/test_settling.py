"""Listings meet what was changed here while the store was being asked."""

import threading
from dataclasses import replace
from pathlib import Path

import trio
import trio.testing

from fanoutfs.core.settling import Settling
from fanoutfs.index.format import FLAG_HELD, FLAG_LISTED, FLAG_LOCAL, Dirty, DirtyRecord, directory_inode, file_inode
from fanoutfs.index.operations import remove_leaf
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.observe.catalog import Count
from fanoutfs.records import ROOT_INO, Version
from tests.unit.core.rig import Rig, arrived, running_core
from tests.unit.core.test_listing import names
from tests.unit.indexes import NOW_NS, OWNER


def test_only_those_who_ask_meanwhile_learn_of_a_name() -> None:
    settling = Settling()
    settling.settle(1, b"before")
    with settling.asking(1) as first, settling.asking(1) as second, settling.asking(2) as elsewhere:
        settling.settle(1, b"a")
        assert (first, second, elsewhere) == ({b"a"}, {b"a"}, set())
    with settling.asking(1) as later:
        assert later == set()


async def create(core: Rig, parent: int, name: bytes, *, is_dir: bool = False) -> int:
    """Make something here, as a request would."""

    def apply(txn: IndexTransaction) -> int:
        ino = txn.new_ino()
        above = txn.inode(parent)
        assert above is not None
        key = above.key + name.decode()
        inode = (
            directory_inode(ino, key + "/", NOW_NS, OWNER)
            if is_dir
            else file_inode(ino, key, Version("", "", 1, NOW_NS), OWNER)
        )
        txn.put_inode(replace(inode, flags=inode.flags | FLAG_LOCAL))
        txn.put_entry(parent, name, inode)
        txn.changed.put_name(ino, parent, name)
        txn.changed.put_dirty(ino, DirtyRecord(NOW_NS, NOW_NS, Dirty.CONTENT))
        return ino

    return await core.writer.run(apply)


async def publish(core: Rig, ino: int) -> None:
    """Note that something is in the store, as an upload does."""
    with core.reader.begin() as txn:
        place = core.reader.changed(txn).name(ino)
    assert place is not None
    core.listings.settle(*place)

    def apply(txn: IndexTransaction) -> None:
        at = ino
        while at != ROOT_INO:
            inode, above = txn.inode(at), txn.changed.name(at)
            assert inode is not None
            assert above is not None
            txn.put_inode(replace(inode, flags=inode.flags & ~FLAG_LOCAL))
            txn.changed.delete_dirty(at)
            at = above[0]

    await core.writer.run(apply)


async def test_directory_made_here_is_complete_without_a_request(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        ino = await create(core, ROOT_INO, b"d", is_dir=True)
        await create(core, ino, b"x")
        await core.listings.refresh(ino)
        assert await core.listings.find(ino, b"x") is not None
        assert await core.listings.find(ino, b"y") is None
        assert core.count(Count.LISTINGS) == 0
        assert core.inode("d").is_listed
        assert core.listings.age_ns(core.inode("d")) == 0


async def test_directory_below_one_being_moved_is_listed_once_at_most(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a/sub/x", b"1")
        await core.listings.refresh(ROOT_INO)
        held = replace(core.inode("a"), flags=FLAG_HELD)
        await core.writer.run(lambda txn: txn.put_inode(held))
        await core.listings.refresh(held.ino)
        await core.listings.refresh(core.inode("a/sub").ino)
        listings = core.count(Count.LISTINGS)
        (core.source / "a/sub/x").unlink()
        core.clock.now_ns += 10**12
        await core.listings.refresh(held.ino)
        await core.listings.refresh(core.inode("a/sub").ino)
        assert core.count(Count.LISTINGS) == listings
        assert core.inode("a/sub/x").size_bytes == 1
        assert core.inode("a/sub").flags & FLAG_LISTED
        assert core.inode("a/sub").listed_at_ns == core.clock.now_ns


async def test_file_uploaded_while_a_listing_waits_for_its_page_stays(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a", b"1")
        await core.listings.refresh(ROOT_INO)
        directory = await create(core, ROOT_INO, b"d", is_dir=True)
        ino = await create(core, directory, b"x")
        core.pages.pages = threading.Semaphore(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.listings.refresh, ROOT_INO)
            await trio.testing.wait_all_tasks_blocked()
            await publish(core, ino)
            core.pages.pages.release(100)
        assert names(core) == {b"a", b"d"}
        core.pages.pages = None
        await core.listings.refresh(ROOT_INO)
        assert names(core) == {b"a"}


async def test_file_deleted_while_a_lookup_is_on_its_way_does_not_come_back(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        core.write("a", b"1")
        core.write("b", b"1")
        core.pages.pages = threading.Semaphore(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(core.listings.refresh, ROOT_INO)
            await trio.testing.wait_all_tasks_blocked()
            gate = core.backend.hold("head")
            nursery.start_soon(core.listings.find, ROOT_INO, b"b")
            await arrived(gate)
            core.listings.settle(ROOT_INO, b"b")  # both answers are from before
            gate.release()
            await trio.testing.wait_all_tasks_blocked()
            assert b"b" not in names(core)
            core.pages.pages.release(100)
        assert names(core) == {b"a"}


async def test_import_leaves_directories_alone_in_which_something_settles(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        await core.put("d/x", b"1")
        directory = core.inode("d").ino
        with core.listings.watched():
            core.listings.settle(directory, b"x")
            assert core.listings.was_touched(directory, NOW_NS)
            assert core.listings.was_touched(ROOT_INO, NOW_NS)


async def test_entry_that_was_removed_here_is_gone_for_good(tmp_path: Path) -> None:
    async with running_core(tmp_path) as core:
        inode = await core.put("a", b"1")
        await core.writer.run(lambda txn: remove_leaf(txn, ROOT_INO, b"a", inode.ino, NOW_NS))
        core.listings.settle(ROOT_INO, b"a")
        (core.source / "a").unlink()
        await core.listings.refresh(ROOT_INO)
        assert names(core) == set()
