"""Names that `no_upload` excludes: their files stay here and have no objects, until they get other names."""

import os
import stat
from pathlib import Path

import pytest

from fanoutfs.backend.faulty import Lost
from fanoutfs.errors import AccessDeniedError, TransientError
from fanoutfs.observe.catalog import Count
from fanoutfs.records import MIB
from fanoutfs.tiering.policy import is_excluded
from tests.unit.core.rig import arrived
from tests.unit.core.sender import Sender, sending_core, until


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


async def is_kept_here(sender: Sender, count: int = 1) -> None:
    """Wait until files with excluded names were looked at, and nothing else is left to do."""
    await until(
        lambda: sender.outbound.uploads.describe()["never_uploaded"] == count and not sender.left()[1],
        lambda: f"{sender.outbound.uploads.describe()} {sender.left()}",
    )


@pytest.mark.parametrize("size", [0, 7, 3 * MIB])
@pytest.mark.parametrize("is_written", [False, True])
async def test_file_that_gets_an_excluded_name_leaves_the_store_and_stays_here(
    tmp_path: Path, size: int, is_written: bool
) -> None:
    async with sending_core(tmp_path, upload_delay=0.05) as sender:
        content = bytearray(os.urandom(size))
        sender.rig.write("a", bytes(content))
        await sender.inode("a")
        if is_written:
            await sender.write("a", size, b"more")
            content += b"more"
        await sender.rename("a", "a.tmp")
        await is_kept_here(sender)
        assert sender.bucket() == {}
        inode = await sender.inode("a.tmp")
        assert inode.is_whole
        assert os.pread(sender.files.descriptor(inode.ino, inode.life), len(content) + 1, 0) == content
        await sender.rename("a.tmp", "b")
        await sender.settled()
        assert sender.bucket() == {"b": bytes(content)}


async def test_object_goes_after_its_content_is_safe_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.write("a", os.urandom(3 * MIB))
        before = sender.bucket()
        await sender.inode("a")
        sender.rig.backend.script("get", *[AccessDeniedError("not now")] * 2)
        gate = sender.rig.backend.hold("delete")
        await sender.rename("a", "a.tmp")
        await arrived(gate)
        assert sender.bucket() == before
        inode = await sender.inode("a.tmp")
        assert os.pread(sender.files.descriptor(inode.ino, inode.life), 4 * MIB, 0) == before["a"]
        gate.release()
        await is_kept_here(sender)


async def test_link_and_symlink_with_excluded_names_have_no_objects(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.create("a", b"content")
        await sender.make("s", stat.S_IFLNK | 0o777, b"a")
        await sender.settled()
        await sender.link("a", "a.tmp")
        await sender.rename("s", "s.tmp")
        await is_kept_here(sender, 2)
        assert sender.bucket() == {"a": b"content"}
        await sender.rename("s.tmp", "s")
        await until(lambda: sender.bucket() == {"a": b"content", "s": b"a"}, lambda: str(sender.bucket()))


async def test_further_name_of_a_file_with_an_excluded_first_name_is_uploaded(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.create("a.tmp", b"content")
        await is_kept_here(sender)
        await sender.link("a.tmp", "a")
        await until(lambda: sender.bucket() == {"a": b"content"}, lambda: str(sender.left()))
        await is_kept_here(sender)
        await sender.write("a.tmp", 0, b"CONTENT")
        await until(lambda: sender.bucket() == {"a": b"CONTENT"}, lambda: str(sender.left()))
        await sender.unlink("a")
        await until(lambda: sender.bucket() == {} and not sender.left()[1], lambda: str(sender.left()))
        assert (await sender.inode("a.tmp")).is_whole


async def test_renamed_away_from_an_excluded_name_over_a_lost_answer_is_no_conflict(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        sender.rig.backend.script("put", Lost(TransientError("lost")))
        await sender.create("a", b"content")
        await until(lambda: sender.bucket() == {"a": b"content"}, lambda: "it is put")
        await sender.rename("a", "a.tmp")
        await is_kept_here(sender)
        assert sender.bucket() == {}
        await sender.rename("a.tmp", "a")
        await sender.settled()
        assert sender.bucket() == {"a": b"content"}
        assert sender.rig.count(Count.CONFLICTS) == 0


async def test_directory_renamed_from_an_excluded_name_is_uploaded(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        await sender.mkdir("ckpt.tmp")
        await sender.create("ckpt.tmp/a", b"content")
        await until(lambda: sender.outbound.uploads.describe()["never_uploaded"] == 2, lambda: "they are looked at")
        await sender.rename("ckpt.tmp", "ckpt")
        await sender.settled()
        assert sender.bucket() == {"ckpt/a": b"content"}
        assert sender.rig.backend.calls["copy"] == 0


async def test_directory_renamed_to_an_excluded_name_takes_its_objects_along(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.05) as sender:
        for name in ("d/a", "d/b", "d/c"):
            sender.rig.write(name, name.encode())
        await sender.inode("d/a")
        await sender.write("d/b", 0, b"D/B")
        await sender.rename("d", "d.tmp")
        await is_kept_here(sender)
        assert sender.bucket() == {"d.tmp/a": b"d/a", "d.tmp/c": b"d/c"}
        await sender.rename("d.tmp", "e")
        await sender.settled()
        assert sender.bucket() == {"e/a": b"d/a", "e/b": b"D/B", "e/c": b"d/c"}


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
