"""What was changed here arrives in the source: once, under its name, and never in place of somebody else's."""

import os
from pathlib import Path

import pytest
import trio

from fanoutfs.backend.faulty import Lost
from fanoutfs.core.uploads import is_excluded
from fanoutfs.errors import AccessDeniedError, CredentialsError, DeadlineError, ReadOnlyStoreError, TransientError
from fanoutfs.index.changes import RENAME_EXCHANGE
from fanoutfs.index.format import FLAG_LOCAL, Dirty
from fanoutfs.observe.catalog import Count
from fanoutfs.records import MIB
from tests.unit.core.rig import arrived
from tests.unit.core.sender import sending_core, until


async def test_new_file_arrives_and_becomes_clean(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.create("a", b"content")
        await sender.settled()
        assert sender.bucket() == {"a": b"content"}
        inode = await sender.inode("a")
        assert inode.key == "a"
        assert not inode.is_staged
        assert not inode.flags & FLAG_LOCAL
        assert sender.rig.backend.calls["put"] == 1
        assert sender.rig.backend.calls["copy"] == 0
        assert not list(sender.files.all())


async def test_attributes_travel_with_the_object(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        inode = await sender.create("a", b"content", 0o640)
        os.utime(sender.files.descriptor(inode.ino, inode.life), ns=(0, 1_234_567_890_123_456_789))
        await sender.settled()
        metadata = sender.rig.backend.details("a").properties.metadata
        assert (metadata["mode"], metadata["uid"], metadata["gid"]) == (str(0o100640), "7", "8")
        assert metadata["mtime"] == "1234567890.123456789"


async def test_file_renamed_before_its_turn_costs_one_put(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.3) as sender:
        await sender.create("model.part", b"content")
        await sender.rename("model.part", "model")
        await sender.settled()
        assert sender.bucket() == {"model": b"content"}
        calls = sender.rig.backend.calls
        assert (calls["put"], calls["copy"], calls["delete"]) == (1, 0, 0)


async def test_excluded_name_stays_until_it_is_renamed(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        inode = await sender.create("a.tmp", b"content")
        with sender.rig.reader.begin() as txn:
            records = sender.rig.reader.changed(txn)
            assert records.dirty(inode.ino) is not None
        await until(lambda: sender.outbound.uploads.describe()["never_uploaded"] == 1, lambda: "it is looked at")
        assert sender.bucket() == {}
        await sender.rename("a.tmp", "a")
        await sender.settled()
        assert sender.bucket() == {"a": b"content"}


async def test_directory_renamed_from_an_excluded_name_is_uploaded(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.mkdir("ckpt.tmp")
        await sender.create("ckpt.tmp/a", b"content")
        await until(lambda: sender.outbound.uploads.describe()["never_uploaded"] == 2, lambda: "they are looked at")
        await sender.rename("ckpt.tmp", "ckpt")
        await sender.settled()
        assert sender.bucket() == {"ckpt/a": b"content"}
        assert sender.rig.backend.calls["copy"] == 0


async def test_renamed_object_is_copied_and_deleted(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.create("a", b"content")
        await sender.settled()
        await sender.rename("a", "b")
        await sender.settled()
        assert sender.bucket() == {"b": b"content"}
        calls = sender.rig.backend.calls
        assert (calls["put"], calls["copy"], calls["delete"]) == (1, 1, 1)
        assert (await sender.inode("b")).key == "b"


async def test_unlinked_object_is_deleted(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.write("a", b"foreign")
        await sender.unlink("a")
        await sender.settled()
        assert sender.bucket() == {}


async def test_unlinked_object_that_somebody_changed_stays(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.2) as sender:
        sender.rig.write("a", b"foreign")
        await sender.unlink("a")
        sender.rig.write("a", b"changed")
        await sender.settled()
        assert sender.bucket() == {"a": b"changed"}


async def test_overwritten_object_is_replaced(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.05) as sender:
        sender.rig.write("a", b"foreign")
        await sender.create("new", b"content")
        await sender.rename("new", "a")
        await sender.settled()
        assert sender.bucket() == {"a": b"content"}


async def test_deleted_and_made_again_is_one_put(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.2) as sender:
        sender.rig.write("a", b"foreign")
        await sender.unlink("a")
        await sender.create("a", b"content")
        await sender.settled()
        assert sender.bucket() == {"a": b"content"}
        assert sender.rig.backend.calls["delete"] == 0


async def test_foreign_change_is_a_conflict_and_both_stay(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.2) as sender:
        sender.rig.write("a", b"base")
        await sender.write("a", 0, b"ours")
        sender.rig.write("a", b"theirs")
        await sender.settled()
        bucket = sender.bucket()
        assert bucket.pop("a") == b"theirs"
        ((name, content),) = bucket.items()
        assert name.startswith("a.conflict-")
        assert content == b"ours"
        assert await sender.tree() == {"a": "a", name: name}
        assert sender.rig.count(Count.CONFLICTS) == 1
        (told,) = sender.outbound.describe()["last_conflicts"]
        assert (told["path"], told["kept_as"]) == ("a", name)


async def test_foreign_file_of_a_new_files_name_is_a_conflict(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.2) as sender:
        await sender.create("a", b"ours")
        sender.rig.write("a", b"theirs")
        await sender.settled()
        assert sorted(sender.bucket().values()) == [b"ours", b"theirs"]
        assert sender.bucket()["a"] == b"theirs"


async def test_same_content_from_somebody_else_is_no_conflict(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.2) as sender:
        await sender.create("a", b"content")
        sender.rig.write("a", b"content")
        await sender.settled()
        assert sender.bucket() == {"a": b"content"}
        assert sender.rig.count(Count.CONFLICTS) == 0


async def test_foreign_deletion_of_a_changed_file_is_no_conflict(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.2) as sender:
        sender.rig.write("a", b"base")
        await sender.write("a", 0, b"ours")
        (sender.rig.source / "a").unlink()
        await sender.settled()
        assert sender.bucket() == {"a": b"ours"}


@pytest.mark.parametrize("error", [TransientError("reset"), DeadlineError("late")])
async def test_lost_answer_to_a_put_is_no_conflict(tmp_path: Path, error: Exception) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.backend.script("put", Lost(error))
        await sender.create("a", b"content")
        await sender.settled()
        assert sender.bucket() == {"a": b"content"}
        assert sender.rig.count(Count.CONFLICTS) == 0


async def test_lost_answer_then_other_content_is_no_conflict(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        gate = sender.rig.backend.hold("put")
        sender.rig.backend.script("put", Lost(TransientError("reset")))
        await sender.create("a", b"content")
        await arrived(gate)
        await sender.write("a", 0, b"CONTENT")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"a": b"CONTENT"}


@pytest.mark.parametrize("kind", ["copy", "delete"])
async def test_lost_answer_while_moving_loses_nothing(tmp_path: Path, kind: str) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.create("a", b"content")
        await sender.settled()
        sender.rig.backend.script(kind, Lost(TransientError("reset")))
        await sender.rename("a", "b")
        await sender.settled()
        assert sender.bucket() == {"b": b"content"}


@pytest.mark.parametrize(
    "error", [TransientError("down"), CredentialsError("expired"), AccessDeniedError("no"), ReadOnlyStoreError("ro")]
)
async def test_refusal_of_the_store_keeps_everything_and_passes(tmp_path: Path, error: Exception) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.backend.script("put", error, error)
        await sender.create("a", b"content")
        await until(lambda: "last_error" in sender.outbound.describe(), lambda: "it is in the status")
        assert str(error) in sender.outbound.describe()["last_error"]
        await sender.settled()
        assert sender.bucket() == {"a": b"content"}
        await until(lambda: "last_error" not in sender.outbound.describe(), lambda: "the status is good again")


async def test_store_that_is_down_is_tried_by_one_at_a_time(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.1) as sender:
        sender.rig.backend.script("put", *[TransientError("down")] * 3)
        for number in range(20):
            await sender.create(f"f{number}", b"content")
        await sender.settled()
        assert len(sender.bucket()) == 20
        assert 23 <= sender.rig.backend.calls["put"] <= 25


async def test_what_changed_during_the_put_is_put_again(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        gate = sender.rig.backend.hold("put")
        await sender.create("a", b"first")
        await arrived(gate)
        await sender.write("a", 0, b"other")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"a": b"other"}
        assert sender.rig.backend.calls["put"] == 2
        assert sender.rig.count(Count.CONFLICTS) == 0


async def test_unlink_during_the_put_deletes_the_object(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        gate = sender.rig.backend.hold("put")
        await sender.create("a", b"first")
        await arrived(gate)
        await sender.unlink("a")
        gate.release()
        await until(lambda: sender.bucket() == {} and sender.left() == ([], []), lambda: f"{sender.left()}")


async def test_rename_during_the_put_moves_the_object(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        gate = sender.rig.backend.hold("put")
        await sender.create("a", b"first")
        await arrived(gate)
        await sender.rename("a", "b")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"b": b"first"}


async def test_continuously_written_file_is_published_whole(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.2, upload_deadline=0.5) as sender:
        inode = await sender.create("log", b"")
        written = b""
        with trio.move_on_after(20):
            while not sender.bucket().get("log"):
                fd = sender.files.descriptor(inode.ino, inode.life)
                line = f"{len(written)}\n".encode()
                os.pwrite(fd, line, len(written))
                written += line
                sender.outbound.uploads.note_dirty(inode.ino)
                await trio.sleep(0.01)
        content = sender.bucket()["log"]
        assert content
        assert written.startswith(content)
        await sender.settled()
        assert sender.bucket()["log"] == written


async def test_two_files_exchange_their_objects(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.write("a", b"A")
        sender.rig.write("b", b"B")
        await sender.rename("a", "b", RENAME_EXCHANGE)
        await sender.settled()
        assert sender.bucket() == {"a": b"B", "b": b"A"}
        assert await sender.tree() == {"a": "a", "b": "b"}


async def test_chain_of_renames_moves_each_object_to_its_place(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for name in "abc":
            sender.rig.write(name, name.encode())
        await sender.rename("c", "d")
        await sender.rename("b", "c")
        await sender.rename("a", "b")
        await sender.settled()
        assert sender.bucket() == {"b": b"a", "c": b"b", "d": b"c"}


async def test_further_link_has_an_object_of_its_own(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.create("a", b"content")
        await sender.link("a", "b")
        await sender.settled()
        assert sender.bucket() == {"a": b"content", "b": b"content"}
        await sender.write("a", 0, b"CONTENT")
        await sender.settled()
        assert sender.bucket() == {"a": b"CONTENT", "b": b"CONTENT"}
        assert sender.rig.count(Count.CONFLICTS) == 0
        await sender.unlink("a")
        await sender.settled()
        assert sender.bucket() == {"b": b"CONTENT"}


async def test_symlink_and_directory_and_fifo_are_objects(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.make("link", 0o120777, b"target/of/it")
        await sender.mkdir("dir")
        await sender.make("fifo", 0o010600)
        await sender.settled()
        assert sender.bucket() == {"fifo": b"", "link": b"target/of/it"}
        assert (sender.rig.source / "dir").is_dir()
        assert sender.rig.backend.details("link").properties.metadata["mode"] == str(0o120777)
        await sender.rmdir("dir")
        await sender.settled()
        assert not (sender.rig.source / "dir").exists()


async def test_metadata_alone_moves_no_content(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.create("a", b"content")
        await sender.settled()
        await sender.chmod("a", 0o600)
        await sender.settled()
        assert sender.rig.backend.details("a").properties.metadata["mode"] == str(0o100600)
        calls = sender.rig.backend.calls
        assert (calls["put"], calls["copy"]) == (1, 1)


async def test_append_to_a_large_object_fetches_only_its_end(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        base = os.urandom(80 * MIB)
        sender.rig.write("big", base)
        await sender.write("big", 80 * MIB, b"end")
        await sender.settled(60)
        assert sender.bucket()["big"] == base + b"end"
        assert sender.rig.count(Count.BACKEND_BYTES) <= 20 * MIB
        assert sender.rig.backend.calls["copy_part"] == 1


async def test_large_new_file_goes_in_parts(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        content = os.urandom(70 * MIB)
        await sender.create("big", content)
        await sender.settled(60)
        assert sender.bucket()["big"] == content
        assert sender.rig.backend.calls["upload_part"] == 5
        with sender.rig.reader.begin() as txn:
            assert not sender.rig.reader.settings(txn, b"upload/")


async def test_waiting_for_an_upload_does_not_wait_for_the_delay(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=3600.0, upload_deadline=3600.0) as sender:
        inode = await sender.create("a", b"content")
        await sender.outbound.uploads.wait(inode.ino)
        assert sender.bucket() == {"a": b"content"}


async def test_conflict_is_shown_as_state_until_it_is_uploaded(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.1) as sender:
        inode = await sender.create("a", b"ours")
        sender.rig.write("a", b"theirs")
        gate = sender.rig.backend.hold("abilities")
        gate.release()
        await sender.settled()
        with sender.rig.reader.begin() as txn:
            record = sender.rig.reader.changed(txn).dirty(inode.ino)
        assert record is None or record.what == Dirty.CONFLICT


@pytest.mark.parametrize(
    ("path", "excluded"),
    [
        ("a.tmp", True),
        ("dir/a.tmp", True),
        ("dir.tmp/a", True),
        ("a.tmpx", False),
        ("a", False),
        (".fuse_hidden0001", True),
        ("logs/a.log", True),
        ("other/logs/a.log", False),
    ],
)
def test_patterns_match_names_anywhere_and_whole_paths(path: str, excluded: bool) -> None:
    assert is_excluded(path, ("*.tmp", ".fuse_hidden*", "logs/*")) is excluded
