"""Random users rename what others rename, over kills and lost answers: all of it arrives, and nothing else stays.

FANOUTFS_MOVES_SEEDS        random users (default 24)
FANOUTFS_MOVES_FIRST_SEED   the first one's number
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from fanoutfs.backend.faulty import Lost
from fanoutfs.errors import FanoutError, TransientError
from fanoutfs.index.changes import RENAME_EXCHANGE
from fanoutfs.observe.catalog import Count
from tests.unit.core.flat import FlatBackend
from tests.unit.core.rig import Rig, running_core
from tests.unit.core.sender import Sender, sending, until

SEEDS = int(os.environ.get("FANOUTFS_MOVES_SEEDS", "24"))
FIRST_SEED = int(os.environ.get("FANOUTFS_MOVES_FIRST_SEED", "0"))
NAMES = ("a", "b", "c", "d/a", "d/b", "e/a", "e/f/a", "e/f/b")
DIRECTORIES = ("d", "e", "e/f", "g", "d/h")


@dataclass(eq=False)
class File:
    """What one or several names lead to."""

    content: bytes


class Walk:
    """A random user.  What he did is kept as path → file, None for a directory."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.expected: dict[str, File | None] = {}
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
            ("link", lambda: self._link(sender, one, two)),
        ]
        name, act = draw.choice(kinds)
        try:
            await act()  # type: ignore[misc]
        except FanoutError as error:
            self.steps.append(f"{name} {one} {two}: {error!r}")
        else:
            self.steps.append(f"{name} {one} {two}")

    async def live(self, rig: Rig, path: Path) -> None:
        """Let him work through several lives of a core, each killed, with a store that fails and loses answers."""
        for _life in range(5):
            async with sending(rig, path, upload_delay=0.01) as sender:
                for _step in range(12):
                    await self.step(sender)
                    if self.draw.random() < 0.3:
                        kind = self.draw.choice(["put", "copy", "delete", "details"])
                        fault = TransientError("injected")
                        rig.backend.script(kind, Lost(fault) if self.draw.random() < 0.5 else fault)
                    await trio.sleep(self.draw.choice([0, 0, 0.001, 0.02]))
                await trio.sleep(self.draw.choice([0, 0.005, 0.05]))
            # A request that a killed core has sent may come through, but not after those of the next one.
            await until(lambda: not rig.backend.under_way, lambda: "requests end")
        rig.backend.clear()  # those not met yet would only make pauses longer

    async def compare(self, sender: Sender) -> set[str]:
        """Assert that the source and the index have what he did, and nothing else; return the directories."""
        files = {path: file for path, file in self.expected.items() if file is not None}
        assert sender.bucket() == {path: file.content for path, file in files.items()}
        tree = await sender.tree()
        assert tree.keys() == self.expected.keys()
        for path, key in tree.items():
            assert self.expected[path] is (None if key is None else files[key]), f"{path} has the object of {key}"
        return {path for path, key in tree.items() if key is None}

    def _content(self) -> bytes:
        self.count += 1
        return f"content {self.count}".encode()

    async def _create(self, sender: Sender, path: str) -> None:
        content = self._content()
        await sender.create(path, content)
        self.expected[path] = File(content)

    async def _write(self, sender: Sender, path: str) -> None:
        content = self._content()
        await sender.write(path, 0, content, truncate_to=0)
        file = self.expected[path]
        assert file is not None
        file.content = content

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
        await sender.rename(old, new)
        if old == new or (self.expected[old] is not None and self.expected[old] is self.expected.get(new)):
            return
        moved = {each: self.expected[each] for each in self.below(old)}
        for each in moved:
            del self.expected[each]
        self.expected.pop(new, None)
        for each, content in moved.items():
            self.expected[new + each[len(old) :]] = content

    async def _link(self, sender: Sender, old: str, new: str) -> None:
        await sender.link(old, new)
        self.expected[new] = self.expected[old]

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


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SEEDS))
async def test_random_changes_arrive_over_kills_and_lost_answers(tmp_path: Path, seed: int) -> None:
    walk = Walk(seed)
    async with running_core(tmp_path, make_backend=FlatBackend) as rig:
        for name in ("a", "d/a", "e/a", "e/f/a"):
            content = f"foreign {name}".encode()
            rig.write(name, content)
            walk.expected[name] = File(content)
        walk.expected |= {"d": None, "e": None, "e/f": None}
        await walk.live(rig, tmp_path)
        async with sending(rig, tmp_path, upload_delay=0.01) as sender:
            try:
                await sender.settled(8)
                directories = await walk.compare(sender)
                assert isinstance(rig.pages, FlatBackend)
                assert rig.pages.markers <= {f"{path}/" for path in directories}
                assert rig.count(Count.CONFLICTS) == 0
            except AssertionError as error:
                raise AssertionError(f"seed {seed}\n" + "\n".join(walk.steps) + f"\n{error}") from None
