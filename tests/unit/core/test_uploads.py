"""What was changed here arrives in the source: once, under its name, and never in place of somebody else's."""

import errno
import os
from pathlib import Path

import pytest
import trio

from fanoutfs.backend.faulty import Lost
from fanoutfs.backend.writing import TOKEN_KEY, Expect, Properties
from fanoutfs.core import uploads
from fanoutfs.core.properties import make_token
from fanoutfs.errors import AccessDeniedError, CredentialsError, DeadlineError, ReadOnlyStoreError, TransientError
from fanoutfs.index.changes import RENAME_EXCHANGE, Unlink
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


async def test_hint_about_a_file_that_is_clean_by_now_queues_nothing(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=60.0, upload_deadline=60.0) as sender:
        uploads = sender.outbound.uploads
        inode = await sender.create("a", b"content")
        uploads.hurry((inode.ino,))
        await sender.settled()
        await until(lambda: not uploads.waiting(), lambda: f"queued: {uploads.waiting()}")
        uploads.note_written(inode.ino)
        assert uploads.describe()["dirty"] == 0
        await sender.write("a", 0, b"changed")
        uploads.note_written(inode.ino)
        assert uploads.describe()["dirty"] == 1


async def test_upload_nobody_waits_for_lets_readers_go_first(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.0, upload_deadline=3600.0) as sender:
        uploads = sender.outbound.uploads
        do_readers_wait = True
        asked = 0

        def gives_way() -> bool:
            nonlocal asked
            asked += 1
            return do_readers_wait

        uploads.gives_way = gives_way
        await sender.create("first", b"nobody waits for it")
        await until(lambda: asked > 0, lambda: "its turn came")
        wanted = await sender.create("wanted", b"somebody waits for it")
        with trio.fail_after(30):
            await uploads.wait(wanted.ino)
        await until(lambda: asked > 2, lambda: "it is looked at again")
        assert sender.bucket() == {"wanted": b"somebody waits for it"}
        do_readers_wait = False
        await until(lambda: len(sender.bucket()) == 2, lambda: f"uploaded: {sender.bucket()}")


async def test_readers_do_not_put_uploads_off_for_ever(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.0, upload_deadline=0.0) as sender:
        sender.outbound.uploads.gives_way = lambda: True
        await sender.create("file", b"content")
        await until(lambda: sender.bucket() == {"file": b"content"}, lambda: f"uploaded: {sender.bucket()}")


async def test_drain_releases_what_unlinked_files_left(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        names = ("held", "forgotten")
        for name in names:
            sender.rig.write(name, name.encode())
        for name in names:
            ino = (await sender.inode(name)).ino
            if name == "held":
                sender.held.add(ino)
            parent, raw = await sender.place(name)
            await sender.rig.writer.run(Unlink(parent, raw, sender.request()).apply)
            sender.outbound.note_changed(ino)
        (held,) = sender.held
        job = (await sender.outbound.drains.drain({}))["job"]
        answer = await sender.rig.jobs.ask({"id": job, "wait_s": 5})
        assert (answer["state"], answer["error"]) == ("done", "")
        assert sender.bucket() == {}
        with sender.rig.reader.begin() as txn:
            inode = sender.rig.reader.inode(txn, held)
        assert inode is not None
        assert inode.is_staged
        assert os.pread(sender.files.descriptor(held, inode.life), 100, 0) == b"held"


async def test_drain_waits_for_what_became_dirty_during_another_one(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=60.0, upload_deadline=60.0) as sender:
        sender.rig.write("open", b"content")
        ino = (await sender.inode("open")).ino
        sender.held.add(ino)
        parent, raw = await sender.place("open")
        await sender.rig.writer.run(Unlink(parent, raw, sender.request()).apply)
        first = (await sender.outbound.drains.drain({}))["job"]
        await sender.create("new", b"new")
        second = await sender.outbound.drains.drain({})
        assert (await sender.rig.jobs.ask({"id": second["job"], "wait_s": 2}))["state"] == "done"
        assert (await sender.rig.jobs.ask({"id": first, "wait_s": 2}))["state"] == "done"
        assert sender.bucket() == {"new": b"new"}


async def test_object_that_a_killed_core_put_goes_though_a_directory_has_its_name(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.2) as sender:
        sender.rig.write("a", b"foreign")
        ino = (await sender.inode("a")).ino
        token = make_token("tag", ino, 1)
        sender.rig.backend.put("a", b"put and not noted", Expect.ANYTHING, Properties({TOKEN_KEY: token}))
        await sender.unlink("a")
        await sender.mkdir("a")
        await sender.create("a/b", b"content")
        await sender.settled()
        assert sender.bucket() == {"a/b": b"content"}


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


async def test_store_that_is_down_for_an_hour_gets_everything_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pauses of 30 s, 15 at least, an hour has 240 tries at most; here an hour takes some seconds."""
    monkeypatch.setattr(uploads, "_BACKOFF_S", uploads._BACKOFF_S / 3000)
    monkeypatch.setattr(uploads, "_BACKOFF_MAX_S", uploads._BACKOFF_MAX_S / 3000)
    async with sending_core(tmp_path, upload_delay=0.0) as sender:
        sender.rig.backend.script("put", *[TransientError("down")] * 240)
        for number in range(5):
            await sender.create(f"f{number}", b"content")
        await until(lambda: sender.rig.backend.calls["put"] > 120, lambda: "it is tried on and on")
        assert "down" in sender.outbound.describe()["last_error"]
        await sender.settled()
        assert sender.bucket() == {f"f{number}": b"content" for number in range(5)}
        assert sender.rig.count(Count.CONFLICTS) == 0


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


@pytest.mark.parametrize("is_new", [True, False])
async def test_what_is_sent_has_been_synced_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool) -> None:
    """Else the power fails, the object has bytes that the file has lost, and a reader sees first the one's size."""
    synced: list[tuple[int, int]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        found = os.fstat(fd)
        synced.append((found.st_ino, found.st_size))

    async with sending_core(tmp_path) as sender:
        if not is_new:
            sender.rig.write("a", b"foreign")
            await sender.inode("a")
        monkeypatch.setattr(os, "fsync", fsync)
        gate = sender.rig.backend.hold("put")
        if is_new:
            await sender.create("a", b"content")
        else:
            await sender.write("a", 7, b" and more")
        await arrived(gate)
        inode = await sender.inode("a")
        found = sender.files.stat(inode.ino, inode.life)
        assert (found.st_ino, found.st_size) in synced
        assert os.stat(tmp_path / "staging").st_ino in {ino for ino, _size in synced}
        gate.release()
        await sender.settled()


async def test_object_that_another_file_had_is_replaced_after_that_one_was_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut loses the staging file, and what it was made from is not in the store any more."""
    synced: set[int] = set()
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        synced.add(os.fstat(fd).st_ino)

    async with sending_core(tmp_path, upload_delay=60, upload_deadline=60) as sender:
        sender.rig.write("a", b"foreign")
        await sender.inode("a")
        await sender.write("a", 7, b" and more")
        await sender.rename("a", "d")
        other = await sender.create("a", b"new")
        monkeypatch.setattr(os, "fsync", fsync)
        gate = sender.rig.backend.hold("put")
        sender.outbound.uploads.hurry((other.ino,))
        await arrived(gate)
        inode = await sender.inode("d")
        assert sender.files.stat(inode.ino, inode.life).st_ino in synced
        assert os.stat(tmp_path / "staging").st_ino in synced
        gate.release()
        await until(lambda: sender.bucket() == {"a": b"new"}, lambda: str(sender.bucket()))
        sender.outbound.uploads.hurry((inode.ino,))
        await sender.settled()
        assert sender.bucket() == {"a": b"new", "d": b"foreign and more"}


async def test_file_whose_sync_fails_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EIO, "injected")

    async with sending_core(tmp_path) as sender:
        sender.rig.write("a", b"foreign")
        await sender.inode("a")
        monkeypatch.setattr(os, "fsync", fsync)
        await sender.write("a", 0, b"FOREIGN")
        await until(lambda: sender.outbound.uploads.describe()["failing"] == 1, lambda: "it is said")
        assert sender.bucket() == {"a": b"foreign"}


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


@pytest.mark.parametrize("is_written", [False, True])
async def test_file_renamed_back_during_its_copy_or_put_has_one_object(tmp_path: Path, is_written: bool) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.write("a", b"foreign")
        await sender.inode("a")
        gate = sender.rig.backend.hold("put" if is_written else "copy")
        await sender.rename("a", "b")
        if is_written:
            await sender.write("b", 0, b"FOREIGN")
        await arrived(gate)
        await sender.rename("b", "a")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"a": b"FOREIGN" if is_written else b"foreign"}
        assert (await sender.inode("a")).key == "a"
        assert sender.rig.count(Count.CONFLICTS) == 0


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


@pytest.mark.parametrize("error", [CredentialsError("expired"), ReadOnlyStoreError("ro")])
async def test_who_waits_after_the_trouble_is_told_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(uploads, "_BACKOFF_S", 3600.0)
    monkeypatch.setattr(uploads, "_BACKOFF_MAX_S", 3600.0)
    async with sending_core(tmp_path, op_timeout=0.2) as sender:
        queue = sender.outbound.uploads
        sender.rig.backend.script("put", error, error)
        inode = await sender.create("a", b"content")
        await until(lambda: queue.describe()["failing"] == 1, lambda: "the next try is an hour away")
        with pytest.raises(type(error)):
            await queue.wait(inode.ino)
        assert sender.bucket() == {}
        await queue.wait(inode.ino)
        assert sender.bucket() == {"a": b"content"}


async def test_who_waits_is_not_told_of_a_try_that_began_before(tmp_path: Path) -> None:
    async with sending_core(tmp_path, op_timeout=0.2) as sender:
        sender.rig.backend.script("put", CredentialsError("expired"))
        gate = sender.rig.backend.hold("put")
        inode = await sender.create("a", b"content")
        await arrived(gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.outbound.uploads.wait, inode.ino)
            await trio.testing.wait_all_tasks_blocked()
            gate.release()
        assert sender.bucket() == {"a": b"content"}
