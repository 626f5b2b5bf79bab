"""What somebody else did to an object meanwhile: nothing of theirs goes, and nothing waits for what is no more."""

import os
from pathlib import Path

import pytest

from fanoutfs.backend import local, localfiles, localwrite
from fanoutfs.backend.writing import Expect, Properties
from fanoutfs.records import Version
from tests.unit.core.flat import FlatBackend
from tests.unit.core.rig import running_core
from tests.unit.core.sender import sending


def version_by_content(found: os.stat_result) -> Version:
    """Return a version that a copy shares, as S3's."""
    return Version(f"{found.st_mtime_ns:x}-{found.st_size:x}", "", found.st_size, found.st_mtime_ns)


@pytest.mark.parametrize(("old", "new"), [("f", "g"), ("d", "e")])
async def test_rename_that_somebody_else_made_as_well_costs_no_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    """Their object looks like the copy that was intended here: by its ETag."""
    for module in (local, localfiles, localwrite):
        monkeypatch.setattr(module, "version_of", version_by_content)
    async with running_core(tmp_path) as rig, sending(rig, tmp_path) as sender:
        source = Path(rig.source)
        key, there = ("d/f", "e/f") if old == "d" else (old, new)
        (source / key).parent.mkdir(exist_ok=True)
        (source / key).write_bytes(b"precious")
        await sender.inode(key)
        (source / old).rename(source / new)
        await sender.rename(old, new)
        await sender.settled()
        await sender.outbound.publisher.resolve_intents(sender.outbound.uploads.is_queued)
        await sender.settled()
        assert sender.bucket() == {there: b"precious"}
        assert not sender.outbound.publisher.facts.intents()


async def test_new_mode_of_a_file_that_somebody_else_rewrote_leaves_theirs(tmp_path: Path) -> None:
    async with running_core(tmp_path, make_backend=FlatBackend) as rig, sending(rig, tmp_path) as sender:
        rig.backend.put("f", b"as it was", Expect.ANYTHING, Properties())
        before = await sender.inode("f")
        rig.backend.put("f", b"rewritten", Expect.ANYTHING, Properties())
        await sender.chmod("f", 0o600)
        await sender.settled()
        after = await sender.inode("f")
        assert after.ino != before.ino
        assert after.version.etag == rig.backend.details("f").info.version.etag
        assert sender.bucket() == {"f": b"rewritten"}
