"""Directories that were renamed take their objects along; whatever happens on the way, nothing is lost."""

from pathlib import Path

import pytest
import trio

from fanoutfs.backend.faulty import PASS
from fanoutfs.errors import TransientError
from fanoutfs.index.changes import RENAME_EXCHANGE, Rename
from fanoutfs.index.places import Places
from fanoutfs.index.publishing import BeginMove
from fanoutfs.observe.catalog import Count
from fanoutfs.records import ROOT_INO
from tests.unit.core.flat import FlatBackend
from tests.unit.core.rig import arrived, running_core
from tests.unit.core.sender import Sender, sending, sending_core, until


async def test_renamed_directory_takes_the_objects_of_further_links_along(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.mkdir("a")
        await sender.create("a/1", b"one")
        await sender.link("a/1", "a/2")
        await sender.create("b", b"two")
        await sender.link("b", "a/b")
        await sender.settled()
        await sender.rename("a", "z")
        await sender.settled()
        assert sender.bucket() == {"z/1": b"one", "z/2": b"one", "b": b"two", "z/b": b"two"}


async def test_file_made_as_git_makes_them_is_put_once_and_follows_its_directory(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.mkdir("a")
        await sender.create("a/tmp", b"object")
        await sender.link("a/tmp", "a/final")
        await sender.unlink("a/tmp")
        await sender.settled()
        assert sender.bucket() == {"a/final": b"object"}
        assert sender.rig.backend.calls["copy"] == 0
        await sender.rename("a", "z")
        await sender.settled()
        assert sender.bucket() == {"z/final": b"object"}


async def test_first_name_goes_after_both_are_in_the_store(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.create("tmp", b"object")
        await sender.link("tmp", "final")
        await sender.settled()
        assert sender.bucket() == {"tmp": b"object", "final": b"object"}
        await sender.unlink("tmp")
        await sender.settled()
        assert sender.bucket() == {"final": b"object"}
        await sender.write("final", 0, b"OBJECT")
        await sender.settled()
        assert sender.bucket() == {"final": b"OBJECT"}


async def test_renamed_directory_takes_its_objects_along(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for name in ("a/1", "a/b/2", "a/b/c/3", "a.txt"):
            sender.rig.write(name, name.encode())
        await sender.rename("a", "z")
        assert await sender.tree() == {
            "a.txt": "a.txt", "z": None, "z/1": "a/1", "z/b": None, "z/b/2": "a/b/2",
            "z/b/c": None, "z/b/c/3": "a/b/c/3",
        }  # fmt: skip
        await sender.settled()
        assert sender.bucket() == {"a.txt": b"a.txt", "z/1": b"a/1", "z/b/2": b"a/b/2", "z/b/c/3": b"a/b/c/3"}
        assert await sender.tree() == {
            "a.txt": "a.txt", "z": None, "z/1": "z/1", "z/b": None, "z/b/2": "z/b/2",
            "z/b/c": None, "z/b/c/3": "z/b/c/3",
        }  # fmt: skip
        assert sender.rig.backend.calls["copy"] == 3
        assert not (sender.rig.source / "a").exists()


async def test_directory_renamed_while_it_moves_ends_at_its_last_place(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for number in range(20):
            sender.rig.write(f"a/{number}", str(number).encode())
        gate = sender.rig.backend.hold("copy")
        await sender.rename("a", "b")
        await trio.to_thread.run_sync(gate.arrived.acquire)
        await sender.rename("b", "c")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {f"c/{number}": str(number).encode() for number in range(20)}


async def test_directory_that_came_back_before_it_could_move_has_nothing_left_to_do(tmp_path: Path) -> None:
    """Where it was for a while is where another one's objects were to come: no record was left that anybody follows."""
    async with sending_core(tmp_path) as sender:
        for name in ("e/1", "d/1"):
            sender.rig.write(name, name.encode())
        gate = sender.rig.backend.hold("copy")
        await sender.rename("e", "c")
        await trio.to_thread.run_sync(gate.arrived.acquire)
        await sender.rename("c", "b")
        await sender.know((await sender.inode("d")).ino)
        async with trio.open_nursery() as nursery:  # in one transaction: nobody sees it away
            for old, new in ((b"d", b"c"), (b"c", b"d")):
                away = Rename(ROOT_INO, old, ROOT_INO, new, 0, sender.request())
                nursery.start_soon(sender.rig.writer.run, away.apply)
                await trio.sleep(0)
        gate.release()
        sender.outbound.moves.note_departed()
        await sender.settled()
        assert sender.bucket() == {"b/1": b"e/1", "d/1": b"d/1"}
        assert not (await sender.inode("d")).is_held
        sender.rig.write("d/2", b"foreign")
        await sender.rig.listings.refresh((await sender.inode("d")).ino)
        assert (await sender.tree())["d/2"] == "d/2"


async def test_directory_that_comes_home_in_an_exchange_keeps_its_prefix(tmp_path: Path) -> None:
    """The other one leaves the place in the same moment, where nothing of its own ever came."""
    async with sending_core(tmp_path) as sender:
        for name in ("d/1", "e/1"):
            sender.rig.write(name, name.encode())
        for name in ("d", "e"):
            await sender.know((await sender.inode(name)).ino)
        async with trio.open_nursery() as nursery:  # in one transaction
            for _time in range(2):
                there = Rename(ROOT_INO, b"d", ROOT_INO, b"e", RENAME_EXCHANGE, sender.request())
                nursery.start_soon(sender.rig.writer.run, there.apply)
                await trio.sleep(0)
        await sender.rename("d", "b")
        await sender.rename("e", "c")
        await sender.settled()
        assert sender.bucket() == {"b/1": b"d/1", "c/1": b"e/1"}


async def test_name_of_a_moving_directory_is_free_for_another(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.1) as sender:
        sender.rig.write("a/x", b"old")
        await sender.rename("a", "b")
        await sender.mkdir("a")
        await sender.create("a/x", b"new")
        await sender.settled()
        assert sender.bucket() == {"a/x": b"new", "b/x": b"old"}
        assert sender.rig.count(Count.CONFLICTS) == 0


@pytest.mark.parametrize("is_renamed", [False, True])
async def test_file_below_a_prefix_that_another_directory_is_leaving_keeps_its_place(
    tmp_path: Path, is_renamed: bool
) -> None:
    """It was uploaded, forgot its place since its key told it, and told the wrong one until the other had left."""
    async with sending_core(tmp_path) as sender:
        sender.rig.write("d/1", b"one")
        gate = sender.rig.backend.hold("copy")
        await sender.rename("d", "r")
        await trio.to_thread.run_sync(gate.arrived.acquire)
        await sender.mkdir("d")
        inode = await sender.create("d/2", b"two")
        await trio.sleep(0.3)  # as long as an upload takes that is not kept waiting
        if is_renamed:
            await sender.rename("d", "s")
        place = "s" if is_renamed else "d"
        await sender.write(f"{place}/2", 0, b"TWO")
        with sender.rig.reader.begin() as txn:
            assert Places.of_reader(sender.rig.reader, txn, "").key(inode.ino) == f"{place}/2"
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"r/1": b"one", f"{place}/2": b"TWO"}
        assert sender.rig.count(Count.CONFLICTS) == 0


@pytest.mark.parametrize("is_renamed", [False, True])
@pytest.mark.parametrize("name", ["x", "s"])
async def test_what_returns_to_where_its_directory_was_belongs_to_the_one_there_now(
    tmp_path: Path, name: str, is_renamed: bool
) -> None:
    """Its key is that of its place, below a prefix that belongs to another directory for a while."""
    async with sending_core(tmp_path) as sender:
        for each in ("d/x", "d/y", "d/s/z"):
            sender.rig.write(each, each.encode())
        await sender.tree()
        gate = sender.rig.backend.hold("copy")
        await sender.rename("d", "r")
        await trio.to_thread.run_sync(gate.arrived.acquire)
        await sender.mkdir("d")
        await sender.rename(f"r/{name}", f"d/{name}")
        place = "e" if is_renamed else "d"
        if is_renamed:
            await sender.rename("d", "e")
        if name == "s":
            await sender.write(f"{place}/s/z", 0, b"D/S/Z")
        gate.release()
        await sender.settled()
        expected = {"r/x": b"d/x", "r/y": b"d/y", "r/s/z": b"d/s/z"}
        moved = {"x": ("x", b"d/x"), "s": ("s/z", b"D/S/Z")}[name]
        del expected[f"r/{moved[0]}"]
        assert sender.bucket() == expected | {f"{place}/{moved[0]}": moved[1]}
        assert sender.rig.count(Count.CONFLICTS) == 0


async def test_removed_file_is_followed_by_another_in_a_directory_where_another_was(tmp_path: Path) -> None:
    """The new file waits for the directory to leave, that for the old object to go, and that not for the new file."""
    async with sending_core(tmp_path, upload_delay=0.2) as sender:
        sender.rig.write("d/1", b"one")
        sender.rig.write("d/2", b"two")
        await sender.unlink("d/1")
        await sender.rename("d", "r")
        await sender.mkdir("d")
        await sender.create("d/1", b"ONE")
        await sender.settled()
        assert sender.bucket() == {"r/2": b"two", "d/1": b"ONE"}


async def test_directory_made_where_another_was_removed_takes_its_objects_along(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.write("d/1", b"one")
        gate = sender.rig.backend.hold("delete")
        await sender.unlink("d/1")
        await sender.rmdir("d")
        await arrived(gate)
        await sender.mkdir("d")
        inode = await sender.create("d/2", b"two")
        await until(lambda: "d/2" in sender.bucket(), lambda: f"{sender.left()}")
        await sender.rename("d", "e")
        await sender.write("e/2", 0, b"TWO")
        with sender.rig.reader.begin() as txn:
            assert Places.of_reader(sender.rig.reader, txn, "").key(inode.ino) == "e/2"
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"e/2": b"TWO"}


async def test_empty_directory_where_another_was_keeps_its_marker(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.write("d/1", b"one")
        gate = sender.rig.backend.hold("copy")
        await sender.rename("d", "r")
        await trio.to_thread.run_sync(gate.arrived.acquire)
        await sender.mkdir("d")
        await trio.sleep(0.3)  # as above
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"r/1": b"one"}
        assert (sender.rig.source / "d").is_dir()
        assert sender.rig.backend.details("d/").properties.metadata["mode"] == str(0o40750)


async def test_directories_in_each_others_way_at_two_depths_all_arrive(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for name in ("a/1", "a/b/2", "c/3", "c/d/4"):
            sender.rig.write(name, name.encode())
        gate = sender.rig.backend.hold("copy")
        await sender.rename("a/b", "x")
        await sender.rename("c/d", "a/b")
        await sender.rename("a", "c", RENAME_EXCHANGE)
        await sender.rename("x", "a/d")
        await sender.write("a/d/2", 0, b"A/B/2")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"a/3": b"c/3", "a/d/2": b"A/B/2", "c/1": b"a/1", "c/b/4": b"c/d/4"}
        assert sender.rig.count(Count.CONFLICTS) == 0


async def test_two_directories_exchange_their_objects(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for name in ("a/1", "a/2", "b/2", "b/3"):
            sender.rig.write(name, name.encode())
        await sender.rename("a", "b", RENAME_EXCHANGE)
        await sender.settled()
        assert sender.bucket() == {"a/2": b"b/2", "a/3": b"b/3", "b/1": b"a/1", "b/2": b"a/2"}


async def test_file_moved_out_of_a_moving_directory_arrives(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for name in ("a/1", "a/b/2"):
            sender.rig.write(name, name.encode())
        await sender.rename("a", "z")
        await sender.rename("z/b/2", "2")
        await sender.rename("z/b", "b")
        await sender.settled()
        assert sender.bucket() == {"z/1": b"a/1", "2": b"a/b/2"}


async def test_file_changed_in_a_moving_directory_is_uploaded_to_its_place(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.1) as sender:
        sender.rig.write("a/b/x", b"base")
        await sender.rename("a", "z")
        await sender.write("z/b/x", 0, b"BASE")
        await sender.settled()
        assert sender.bucket() == {"z/b/x": b"BASE"}


@pytest.mark.parametrize("path", ["z", "z/b"])
async def test_attributes_changed_in_a_moving_directory_leave_no_marker_behind(tmp_path: Path, path: str) -> None:
    """The queue put the marker to its new place and forgot the old key; or what moved took the old attributes along."""
    async with sending_core(tmp_path) as sender:
        await sender.mkdir("a")
        await sender.mkdir("a/b")
        await sender.create("a/1", b"one")
        await sender.settled()
        gate = sender.rig.backend.hold("copy")
        await sender.rename("a", "z")
        await arrived(gate)
        await sender.chmod(path, 0o700)
        ino = (await sender.inode(path)).ino
        await until(lambda: not is_dirty(sender, ino), lambda: f"{sender.left()}")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"z/1": b"one"}
        assert not (sender.rig.source / "a").exists()
        assert sender.rig.backend.details(f"{path}/").properties.metadata["mode"] == str(0o40700)


def is_dirty(sender: Sender, ino: int) -> bool:
    with sender.rig.reader.begin() as txn:
        return sender.rig.reader.changed(txn).dirty(ino) is not None


async def test_directory_whose_marker_arrived_unnoticed_takes_its_objects_along(tmp_path: Path) -> None:
    """What came of the request was found out after the rename, whose record of the objects below it replaced."""
    async with running_core(tmp_path) as rig:
        rig.write("d/1", b"one")
        async with sending(rig, tmp_path) as sender:
            await sender.place("d/1")
            gate = rig.backend.hold("put")
            await sender.chmod("d", 0o700)
            await arrived(gate)
        gate.release()
        await until(lambda: not rig.backend.under_way, lambda: "requests end")
        gate = rig.backend.hold("details")
        async with sending(rig, tmp_path) as sender:
            await arrived(gate)
            await sender.rename("d", "z")
            gate.release()
            await sender.settled()
            assert sender.bucket() == {"z/1": b"one"}
            assert await sender.tree() == {"z": None, "z/1": "z/1"}


async def test_removed_tree_is_removed_from_the_store(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for name in ("a/1", "a/b/2"):
            sender.rig.write(name, name.encode())
        await sender.rename("a", "z")
        await sender.unlink("z/1")
        await sender.unlink("z/b/2")
        await sender.rmdir("z/b")
        await sender.rmdir("z")
        await sender.settled()
        assert sender.bucket() == {}
        assert await sender.tree() == {}


async def test_foreign_object_at_the_target_of_a_move_is_a_conflict(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.write("a/x", b"ours")
        gate = sender.rig.backend.hold("copy")
        await sender.rename("a", "b")
        await trio.to_thread.run_sync(gate.arrived.acquire)
        sender.rig.write("b/x", b"theirs")
        gate.release()
        await sender.settled()
        bucket = sender.bucket()
        assert bucket.pop("b/x") == b"theirs"
        assert list(bucket.values()) == [b"ours"]


async def test_directory_that_leaves_one_on_its_way_is_followed_from_where_that_was(tmp_path: Path) -> None:
    """Its objects are neither where its key says nor at its place, but where the one above it was for a while."""
    async with sending_core(tmp_path) as sender:
        for name in ("d/1", "d/s/2"):
            sender.rig.write(name, name.encode())
        await sender.tree()
        sender.rig.backend.script("delete", *[TransientError("injected")] * 100)  # the move does not end
        await sender.rename("d", "e")
        ino = (await sender.inode("e/s/2")).ino
        await until(lambda: sender.rig.inode("e/s/2").key == "e/s/2", lambda: f"{sender.left()}")
        copy = sender.rig.backend.hold("copy")
        await sender.rename("e", "f")
        await arrived(copy)
        await sender.rename("f/s", "g")
        assert (await sender.inode("g/2")).ino == ino
        sender.rig.backend.clear()
        copy.release()
        await sender.settled()
        assert sender.bucket() == {"f/1": b"d/1", "g/2": b"d/s/2"}


async def test_directory_moves_below_where_it_was_beside_what_has_that_name_in_it(tmp_path: Path) -> None:
    """`d/s/1` is to become `d/s/s/1`, and was taken for what had come already."""
    async with sending_core(tmp_path) as sender:
        for name in ("d/1", "d/s/1", "d/s/2"):
            sender.rig.write(name, name.encode())
        await sender.tree()
        await sender.rename("d", "x")
        await sender.mkdir("d")
        await sender.rename("x", "d/s")
        await sender.settled()
        assert sender.bucket() == {"d/s/1": b"d/1", "d/s/s/1": b"d/s/1", "d/s/s/2": b"d/s/2"}
        assert await sender.tree() == {
            "d": None, "d/s": None, "d/s/1": "d/s/1", "d/s/s": None, "d/s/s/1": "d/s/s/1", "d/s/s/2": "d/s/s/2",
        }  # fmt: skip


async def test_what_was_put_into_a_directory_before_its_move_began_follows_the_one_above(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for name in ("d/1", "b/old", "e/0"):
            sender.rig.write(name, name.encode())
        await sender.tree()
        gate = sender.rig.backend.hold("copy")
        await sender.rename("d", "r")
        await arrived(gate)  # one directory moves at a time
        await sender.rename("b", "e/x")
        ino = (await sender.create("e/x/new", b"new")).ino
        await until(lambda: not is_dirty(sender, ino), lambda: f"{sender.left()}")
        assert sender.bucket()["e/x/new"] == b"new"
        await sender.rename("e", "a")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"r/1": b"d/1", "a/0": b"e/0", "a/x/old": b"b/old", "a/x/new": b"new"}


async def test_files_that_change_names_while_some_are_aside_keep_their_contents(tmp_path: Path) -> None:
    """One was to go aside to where the other was by then, whose only copy that is."""
    async with sending_core(tmp_path) as sender:
        names = [f"{directory}/{name}" for directory in "ab" for name in "xy"]
        for name in names:
            sender.rig.write(name, name.encode())
        await sender.tree()
        sender.rig.backend.script("copy", PASS, *[TransientError("injected")] * 100)
        await sender.rename("a", "b", RENAME_EXCHANGE)

        def is_one_aside() -> bool:
            return any(sender.rig.inode(name).key.startswith(".fanoutfs-tag-") for name in names)

        await until(is_one_aside, lambda: f"{sender.left()}")
        for directory in "ab":
            await sender.rename(f"{directory}/x", f"{directory}/y", RENAME_EXCHANGE)
        sender.rig.backend.clear()
        await sender.settled()
        assert sender.bucket() == {"a/x": b"b/y", "a/y": b"b/x", "b/x": b"a/y", "b/y": b"a/x"}


async def test_marker_is_found_where_a_move_that_was_broken_off_had_put_it(tmp_path: Path) -> None:
    async with running_core(tmp_path, make_backend=FlatBackend) as rig:
        assert isinstance(markers := rig.pages, FlatBackend)
        async with sending(rig, tmp_path) as sender:
            await sender.mkdir("a")
            await sender.settled()
            gate = rig.backend.hold("delete")
            await sender.rename("a", "b")
            await arrived(gate)  # it has arrived at its new place, but nobody has noted that
        gate.release()
        await until(lambda: not rig.backend.under_way, lambda: "requests end")
        assert markers.markers == {"b/"}
        async with sending(rig, tmp_path) as sender:
            await sender.rename("b", "c")
            await sender.settled()
            assert markers.markers == {"c/"}


@pytest.mark.parametrize("is_renamed", [False, True])
async def test_marker_that_arrived_unheard_goes_with_its_directory(tmp_path: Path, is_renamed: bool) -> None:
    async with running_core(tmp_path, make_backend=FlatBackend) as rig:
        assert isinstance(markers := rig.pages, FlatBackend)
        async with sending(rig, tmp_path) as sender:
            await sender.mkdir("a")
            await sender.mkdir("a/s")
            await sender.settled()
            gate = rig.backend.hold("delete")
            await sender.rename("a", "b")
            await arrived(gate)
        gate.release()
        await until(lambda: not rig.backend.under_way, lambda: "requests end")
        async with sending(rig, tmp_path) as sender:
            await sender.rename("b", "c")
            if is_renamed:
                await sender.rename("c/s", "s")
            else:
                await sender.rmdir("c/s")
            await sender.settled()
            assert markers.markers == {"c/"} | ({"s/"} if is_renamed else set())


async def test_move_to_where_its_directory_is_no_more_does_not_begin(tmp_path: Path) -> None:
    """Who is there by now is at home: nothing of his was seen to be in the way, and his marker was replaced."""
    async with sending_core(tmp_path) as sender:
        await sender.mkdir("a")
        ino = (await sender.mkdir("b")).ino
        await sender.settled()
        assert await sender.rig.writer.run(BeginMove(ino, "a/", "").apply) == ino
        assert sender.left() == ([], [])


async def test_marker_that_went_aside_goes_when_its_directory_comes_home(tmp_path: Path) -> None:
    async with running_core(tmp_path, make_backend=FlatBackend) as rig:
        assert isinstance(markers := rig.pages, FlatBackend)
        async with sending(rig, tmp_path) as sender:
            await sender.mkdir("a")
            await sender.mkdir("b")
            await sender.settled()
            gate = rig.backend.hold("delete")
            await sender.rename("a", "b", RENAME_EXCHANGE)
            await arrived(gate)
            assert len(markers.markers) == 3
        gate.release()
        await until(lambda: not rig.backend.under_way, lambda: "requests end")
        async with sending(rig, tmp_path) as sender:
            await sender.rename("a", "b", RENAME_EXCHANGE)
            await sender.settled()
            assert markers.markers == {"a/", "b/"}
