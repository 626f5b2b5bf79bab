"""What came of requests of which nobody heard is found out soon, whatever became of the file."""

from pathlib import Path

import pytest

from tests.unit.core.sender import sending_core


async def test_file_removed_just_before_its_object_is_moved_leaves_no_question_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who removed it saw no request that might be under way, and nobody else had reason to come for it again."""
    async with sending_core(tmp_path) as sender:
        sender.rig.write("a/1", b"one")
        intents = sender.outbound.publisher.intents
        note, keys = intents.note, []

        async def remove_and_note(ino: int, key: str, etag: str = "") -> None:
            keys.append(key)
            if key == "z/1":
                await sender.unlink("z/1")
                (sender.rig.source / "a/1").unlink()
            await note(ino, key, etag)

        monkeypatch.setattr(intents, "note", remove_and_note)
        await sender.rename("a", "z")
        await sender.settled()
        assert "z/1" in keys
        assert sender.bucket() == {}
        assert await sender.tree() == {"z": None}
