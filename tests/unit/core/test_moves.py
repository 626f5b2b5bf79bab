"""Directories that were renamed take their objects along; whatever happens on the way, nothing is lost."""

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fanoutfs.backend.faulty import Lost
from fanoutfs.backend.writing import Body, Condition, Expect, Properties
from fanoutfs.errors import FanoutError, TransientError
from fanoutfs.index.changes import RENAME_EXCHANGE
from fanoutfs.observe.catalog import Count
from fanoutfs.records import Version
from tests.unit.core.rig import PagedBackend, running_core
from tests.unit.core.sender import Sender, sending, sending_core


async def test_renamed_directory_takes_its_objects_along(tmp_path: Path) -> None:
    async with sending_core(tmp_path) as sender:
        for name in ("a/1", "a/b/2", "a/b/c/3", "a.txt"):
            sender.rig.write(name, name.encode())
        await sender.rename("a", "z")
        assert await sender.tree() == {
            "a.txt": "a.txt", "z": None, "z/1": "a/1", "z/b": None, "z/b/2": "a/b/2", "z/b/c": None,
            "z/b/c/3": "a/b/c/3",
        }  # fmt: skip
        await sender.settled()
        assert sender.bucket() == {"a.txt": b"a.txt", "z/1": b"a/1", "z/b/2": b"a/b/2", "z/b/c/3": b"a/b/c/3"}
        assert await sender.tree() == {
            "a.txt": "a.txt", "z": None, "z/1": "z/1", "z/b": None, "z/b/2": "z/b/2", "z/b/c": None,
            "z/b/c/3": "z/b/c/3",
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


async def test_name_of_a_moving_directory_is_free_for_another(tmp_path: Path) -> None:
    async with sending_core(tmp_path, upload_delay=0.1) as sender:
        sender.rig.write("a/x", b"old")
        await sender.rename("a", "b")
        await sender.mkdir("a")
        await sender.create("a/x", b"new")
        await sender.settled()
        assert sender.bucket() == {"a/x": b"new", "b/x": b"old"}
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


class FlatBackend(PagedBackend):
    """A directory that goes with its last file, as prefixes do in object stores, unless it was made for itself."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.root = Path(directory)
        self.markers: set[str] = set()

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        if key.endswith("/"):
            self.markers.add(key)
        return super().put(key, body, condition, properties)

    def delete(self, key: str, condition: Condition = Expect.ANYTHING) -> None:
        self.markers.discard(key)
        super().delete(key, condition)
        parts = key.rstrip("/").split("/")
        for end in range(len(parts), 0, -1):
            prefix = "/".join(parts[:end])
            if f"{prefix}/" in self.markers:
                return
            with contextlib.suppress(OSError):
                (self.root / prefix).rmdir()


NAMES = ("a", "b", "c", "d/a", "d/b", "e/a", "e/f/a", "e/f/b")
DIRECTORIES = ("d", "e", "e/f", "g", "d/h")


class Walk:
    """A random user.  What he did is kept as path → content, None for a directory."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.expected: dict[str, bytes | None] = {}
        self.steps: list[str] = []
        self.count = 0

    def below(self, path: str) -> list[str]:
        return [each for each in self.expected if each == path or each.startswith(f"{path}/")]

    async def step(self, sender: Sender) -> None:
        draw = self.draw
        paths = [*self.expected, *NAMES, *DIRECTORIES]
        one, two = draw.choice(paths), draw.choice(paths)
        kinds: list[tuple[str, Callable[[], object]]] = [
            ("create", lambda: self._create(sender, one)),
            ("write", lambda: self._write(sender, one)),
            ("mkdir", lambda: self._mkdir(sender, one)),
            ("unlink", lambda: self._unlink(sender, one)),
            ("rmdir", lambda: self._rmdir(sender, one)),
            ("rename", lambda: self._rename(sender, one, two)),
            ("rename", lambda: self._rename(sender, one, two)),
            ("exchange", lambda: self._exchange(sender, one, two)),
        ]
        name, act = draw.choice(kinds)
        try:
            await act()  # type: ignore[misc]
        except FanoutError as error:
            self.steps.append(f"{name} {one} {two}: {error!r}")
        else:
            self.steps.append(f"{name} {one} {two}")

    def _content(self) -> bytes:
        self.count += 1
        return f"content {self.count}".encode()

    async def _create(self, sender: Sender, path: str) -> None:
        content = self._content()
        await sender.create(path, content)
        self.expected[path] = content

    async def _write(self, sender: Sender, path: str) -> None:
        content = self._content()
        await sender.write(path, 0, content, truncate_to=0)
        self.expected[path] = content

    async def _mkdir(self, sender: Sender, path: str) -> None:
        await sender.mkdir(path)
        self.expected[path] = None

    async def _unlink(self, sender: Sender, path: str) -> None:
        await sender.unlink(path)
        del self.expected[path]

    async def _rmdir(self, sender: Sender, path: str) -> None:
        await sender.rmdir(path)
        del self.expected[path]

    async def _rename(self, sender: Sender, old: str, new: str) -> None:
        displaced = self.expected.get(new, b"none")
        await sender.rename(old, new)
        if old == new:
            return
        del displaced
        moved = {each: self.expected[each] for each in self.below(old)}
        for each in moved:
            del self.expected[each]
        self.expected.pop(new, None)
        for each, content in moved.items():
            self.expected[new + each[len(old) :]] = content

    async def _exchange(self, sender: Sender, old: str, new: str) -> None:
        await sender.rename(old, new, RENAME_EXCHANGE)
        if old == new:
            return
        moved = {each: self.expected[each] for each in self.below(old)}
        others = {each: self.expected[each] for each in self.below(new)}
        for each in (*moved, *others):
            del self.expected[each]
        self.expected |= {new + each[len(old) :]: content for each, content in moved.items()}
        self.expected |= {old + each[len(new) :]: content for each, content in others.items()}


@pytest.mark.parametrize("seed", range(24))
async def test_random_changes_arrive_over_kills_and_lost_answers(tmp_path: Path, seed: int) -> None:
    walk = Walk(seed)
    async with running_core(tmp_path, make_backend=FlatBackend) as rig:
        for name in ("a", "d/a", "e/a", "e/f/a"):
            content = f"foreign {name}".encode()
            rig.write(name, content)
            walk.expected[name] = content
        walk.expected |= {"d": None, "e": None, "e/f": None}
        for _life in range(5):
            async with sending(rig, tmp_path, upload_delay=0.01) as sender:
                for _step in range(12):
                    await walk.step(sender)
                    if walk.draw.random() < 0.3:
                        kind = walk.draw.choice(["put", "copy", "delete", "details"])
                        fault = TransientError("injected")
                        rig.backend.script(kind, Lost(fault) if walk.draw.random() < 0.5 else fault)
                    await trio.sleep(walk.draw.choice([0, 0, 0.001, 0.02]))
                await trio.sleep(walk.draw.choice([0, 0.005, 0.05]))
        async with sending(rig, tmp_path, upload_delay=0.01) as sender:
            try:
                await sender.settled(8)
                files = {path: content for path, content in walk.expected.items() if content is not None}
                assert sender.bucket() == files
                tree = await sender.tree()
                assert tree == {path: None if content is None else path for path, content in walk.expected.items()}
                assert rig.count(Count.CONFLICTS) == 0
            except AssertionError as error:
                raise AssertionError(f"seed {seed}\n" + "\n".join(walk.steps) + f"\n{error}") from None
