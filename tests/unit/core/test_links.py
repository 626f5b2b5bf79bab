"""Further names of a file have objects of their own; those go with their names, whatever was written in between."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from fanoutfs.core.awaited import Awaited
from fanoutfs.core.facts import Asked, Facts, Outcome
from fanoutfs.errors import BackendError
from tests.unit.core.flat import FlatBackend
from tests.unit.core.rig import running_core
from tests.unit.core.sender import Sender, sending

Act = Callable[[Sender], Awaitable[None]]


async def unlink(sender: Sender) -> None:
    await sender.unlink("d/b")


async def rename(sender: Sender) -> None:
    await sender.rename("d/b", "c")


async def rename_directory(sender: Sender) -> None:
    await sender.rename("d", "e")


async def rename_directory_twice(sender: Sender) -> None:
    await sender.rename("d", "e")
    await sender.rename("e", "f")


async def unlink_first_and_rename(sender: Sender) -> None:
    await sender.unlink("a")
    await sender.rename("d/b", "c")


async def rename_directory_and_unlink(sender: Sender) -> None:
    await sender.rename("d", "e")
    await sender.unlink("e/b")


async def rename_directory_and_name(sender: Sender) -> None:
    await sender.rename("d", "e")
    await sender.rename("e/b", "c")


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (unlink, {"a", "d/x"}),
        (rename, {"a", "c", "d/x"}),
        (rename_directory, {"a", "e/b", "e/x"}),
        (rename_directory_twice, {"a", "f/b", "f/x"}),
        (unlink_first_and_rename, {"c", "d/x"}),
        (rename_directory_and_unlink, {"a", "e/x"}),
        (rename_directory_and_name, {"a", "c", "e/x"}),
    ],
)
@pytest.mark.parametrize("is_written", [True, False])
async def test_object_of_a_further_name_goes_with_it(
    tmp_path: Path, act: Act, expected: set[str], is_written: bool
) -> None:
    async with running_core(tmp_path, make_backend=FlatBackend) as rig:
        async with sending(rig, tmp_path) as sender:
            await sender.mkdir("d")
            await sender.create("a", b"old")
            await sender.create("d/x", b"other")
            await sender.link("a", "d/b")
            await sender.settled()
            assert sender.bucket() == {"a": b"old", "d/b": b"old", "d/x": b"other"}
        async with sending(rig, tmp_path, upload_delay=0.2) as sender:  # long enough to be before the upload
            if is_written:
                await sender.write("a", 0, b"new")
            await act(sender)
            await sender.settled()
            content = b"new" if is_written else b"old"
            assert sender.bucket() == {path: b"other" if path.endswith("x") else content for path in expected}


async def test_who_waits_for_a_file_waits_for_its_further_names(tmp_path: Path) -> None:
    """Their objects are copies of the first one's: they are in the queue once that is in the store, and not before."""
    async with running_core(tmp_path, make_backend=FlatBackend) as rig, sending(rig, tmp_path) as sender:
        await sender.mkdir("d")
        await sender.create("a", b"old")
        await sender.link("a", "d/b")
        await sender.settled()
        uploads, ino = sender.outbound.uploads, (await sender.inode("a")).ino
        await sender.write("a", 0, b"new")
        assert uploads.waiting() == [ino]
        awaited, seen = Awaited(uploads, [ino]), set[int]()
        while awaited.left:
            seen |= awaited.left
            await trio.lowlevel.checkpoint()
            awaited.look()
        assert len(seen) == 2
        assert sender.bucket() == {"a": b"new", "d/b": b"new"}
        await sender.write("a", 0, b"now")
        await uploads.wait(ino)
        assert sender.bucket() == {"a": b"now", "d/b": b"now"}


async def test_wait_for_a_further_name_ends_with_what_refuses_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_core(tmp_path, make_backend=FlatBackend) as rig, sending(rig, tmp_path) as sender:
        await sender.create("a", b"old")
        await sender.link("a", "b")
        await sender.settled()
        uploads, publisher = sender.outbound.uploads, sender.outbound.publisher
        monkeypatch.setattr(uploads, "_op_timeout_s", 0.2)
        ino = (await sender.inode("a")).ino
        put_content, put_link = publisher._publish_content, publisher._publish_link
        is_refused = False

        async def content(facts: Facts, **how: bool) -> Outcome:
            if is_refused:
                raise BackendError("refused")
            return await put_content(facts, **how)

        async def link(facts: Facts) -> Outcome:
            nonlocal is_refused
            if not is_refused:
                is_refused = True
                await sender.write("a", 0, b"now")  # and before the further name has what the first one had
            return await put_link(facts)

        monkeypatch.setattr(publisher, "_publish_content", content)
        monkeypatch.setattr(publisher, "_publish_link", link)
        await sender.write("a", 0, b"new")
        awaited = Awaited(uploads, [ino])
        with pytest.raises(BackendError, match="refused"):
            await uploads.wait(ino)
        while (refusal := awaited.refusal()) is None:
            awaited.look()
            await trio.sleep(0.05)
        assert str(refusal) == "refused"


async def test_push_of_a_file_takes_its_further_names_along(tmp_path: Path) -> None:
    async with (
        running_core(tmp_path, make_backend=FlatBackend) as rig,
        sending(rig, tmp_path, upload_delay=300.0, upload_deadline=300.0) as sender,
    ):
        await sender.create("a", b"new")
        await sender.link("a", "b")
        awaited = Awaited(sender.outbound.uploads, [(await sender.inode("a")).ino], Asked(""))
        while awaited.left:
            await trio.sleep(0.01)
            awaited.look()
        assert sender.bucket() == {"a": b"new", "b": b"new"}
