"""The reference the mount is compared with: the objects, as they were after every change.

A mount may know a directory as it was at any moment since it was last told (`invalidate`).  So a path has
*candidates*: what it was in each state since then.  With one candidate the mount must show exactly that; with several
it may show any of them, or say ESTALE, but never a mixture.
"""

import functools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

DIRECTORY: Final = "directory"


@dataclass(frozen=True, eq=False)
class Put:
    """One write of an object.  Two puts differ even when their bytes do not: the store gives them other versions."""

    size: int
    seed: int

    @property
    def content(self) -> bytes:
        """Return the bytes."""
        return make_content(self.size, self.seed)


@functools.lru_cache(maxsize=64)
def make_content(size: int, seed: int) -> bytes:
    """Return bytes that differ in every block, and between seeds."""
    return random.Random(seed * 1_000_003 + size).randbytes(size)


State = Put | str | None
"""What a path is: a file's content, DIRECTORY, or None."""


@dataclass
class Reference:
    """All states of the objects below one directory, oldest first.  Keys and paths are relative to it."""

    history: list[dict[str, Put]] = field(default_factory=lambda: [{}])
    told_at: dict[str, int] = field(default_factory=dict)

    @property
    def objects(self) -> dict[str, Put]:
        """Return the current objects."""
        return self.history[-1]

    def change(self, objects: dict[str, Put]) -> None:
        """Enter a new state."""
        self.history.append(objects)

    def told(self, directory: str) -> None:
        """Note that the mount has just listed this directory."""
        self.told_at[directory] = len(self.history) - 1

    def needs_telling(self, directory: str) -> bool:
        """Tell whether the mount may know this directory as it is no more."""
        known = self.told_at.get(directory)
        if known is None:
            return True
        listing = children(self.history[-1], directory)
        return any(children(objects, directory) != listing for objects in self.history[known:])

    def candidates(self, path: str) -> list[State]:
        """Return what the mount may show under a path, current state last, without repetitions."""
        found: list[State] = []
        for objects in self.history[self._known_since(path) :]:
            state = state_of(objects, path)
            if state in found:
                found.remove(state)
            found.append(state)
        return found

    def is_certain(self, path: str) -> bool:
        """Tell whether nothing on the way to this path, or the path itself, changed since the mount was told."""
        parts = path.split("/")
        ways = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        return all(len(self.candidates(way)) == 1 for way in ways)

    def listings(self, directory: str) -> list[dict[str, State]]:
        """Return what the mount may list, current listing last."""
        since = self._known_since(directory + "/x" if directory else "x")
        return [children(objects, directory) for objects in self.history[since:]]

    def _known_since(self, path: str) -> int:
        return min(self.told_at.get(above, 0) for above in ancestors(path))


def ancestors(path: str) -> Iterator[str]:
    """Yield the directories a path lies in, outermost ("") first."""
    yield ""
    parts = path.split("/")
    for n in range(1, len(parts)):
        yield "/".join(parts[:n])


def state_of(objects: dict[str, Put], path: str) -> State:
    """Return what a path is.  An object that is also a prefix of others shows as the directory."""
    if not path or any(key.startswith(path + "/") for key in objects):
        return DIRECTORY
    if any(key in objects for key in list(ancestors(path))[1:]) and path not in objects:
        return None
    return objects.get(path)


def children(objects: dict[str, Put], directory: str) -> dict[str, State]:
    """Return name → state of everything in a directory."""
    prefix = directory + "/" if directory else ""
    names = {key[len(prefix) :].split("/")[0] for key in objects if key.startswith(prefix)}
    return {name: state_of(objects, prefix + name) for name in names}
