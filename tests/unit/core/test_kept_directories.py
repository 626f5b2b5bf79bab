"""A store that is a file system inside keeps directories whose last object went (SeaweedFS): none may stay for that.

FANOUTFS_MOVES_SEEDS        random users of the last test (default 24)
FANOUTFS_MOVES_FIRST_SEED   the first one's number
"""

from dataclasses import replace
from pathlib import Path

import pytest

from fanoutfs.backend.faulty import Gate
from fanoutfs.backend.localwrite import LocalWriter
from fanoutfs.backend.writing import Body, Condition, ObjectDetails, Properties
from fanoutfs.index.changes import RENAME_EXCHANGE
from fanoutfs.records import Version
from tests.unit.core.rig import PagedBackend, Rig, arrived, running_core
from tests.unit.core.sender import HIDDEN, sending, until
from tests.unit.core.test_random_moves import FIRST_SEED, SEEDS, Walk


class KeepingBackend(PagedBackend):
    """As SeaweedFS 4.48 does it (measured).

    A directory made for an object below it answers HEAD, and stays when the object went, listed as a prefix; deleting
    its marker removes it when it is empty, and does nothing else.  Markers hold no metadata.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._writer = KeepingWriter(directory)
        self.held: dict[str, Gate] = {}
        """Puts under these keys wait at a gate, before they are carried out."""

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        gate = self.held.get(key)
        if gate is not None:
            gate.arrived.release()
            assert gate.opened.wait(30), f"nobody released the gate of {key}"
        return super().put(key, body, condition, properties)

    def details(self, key: str) -> ObjectDetails:
        found = super().details(key)
        return replace(found, properties=Properties({}, "")) if key.endswith("/") else found


class KeepingWriter(LocalWriter):
    """Never removes a directory by itself."""

    def _remove_implied(self, directory: str) -> None:
        pass


def directories(rig: Rig) -> set[str]:
    """Return the directories of the store."""
    found = {str(path.relative_to(rig.source)) for path in rig.source.rglob("*") if path.is_dir()}
    return {path for path in found if not path.startswith(HIDDEN)}


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
async def test_random_changes_leave_no_directory_behind(tmp_path: Path, seed: int) -> None:
    walk = Walk(seed)
    async with running_core(tmp_path, make_backend=KeepingBackend) as rig:
        await walk.live(rig, tmp_path)
        async with sending(rig, tmp_path, upload_delay=0.01) as sender:
            try:
                await sender.settled(8)
                assert directories(rig) == await walk.compare(sender)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}\n" + "\n".join(walk.steps) + f"\n{error}") from None


async def test_upload_under_way_when_its_directory_moved_leaves_none_behind(tmp_path: Path) -> None:
    async with running_core(tmp_path, make_backend=KeepingBackend) as rig, sending(rig, tmp_path) as sender:
        await sender.mkdir("a")
        await sender.settled()
        assert isinstance(rig.pages, KeepingBackend)
        gate = rig.pages.held["a/1"] = Gate()
        await sender.create("a/1", b"one")
        await arrived(gate)
        await sender.rename("a", "z")
        await until(lambda: "a" not in directories(rig), lambda: f"{sender.left()}")
        gate.release()
        await sender.settled()
        assert sender.bucket() == {"z/1": b"one"}
        assert directories(rig) == {"z"}


async def test_directories_that_changed_places_leave_none_behind(tmp_path: Path) -> None:
    async with running_core(tmp_path, make_backend=KeepingBackend) as rig, sending(rig, tmp_path) as sender:
        for name in ("a", "b"):
            await sender.mkdir(name)
            await sender.mkdir(f"{name}/in-{name}")
            await sender.create(f"{name}/in-{name}/file", name.encode())
        await sender.settled()
        await sender.rename("a", "b", RENAME_EXCHANGE)
        await sender.settled()
        assert sender.bucket() == {"a/in-b/file": b"b", "b/in-a/file": b"a"}
        assert directories(rig) == {"a", "a/in-b", "b", "b/in-a"}
