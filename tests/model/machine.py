"""The state machine: objects change underneath a real mount, processes die, bytes rot, and every read is compared.

One step is one rule.  A step that is `exact` first tells the mount what changed on the way to its path and then accepts
nothing but the current state; one that is not accepts what reference.Reference allows.
"""

import contextlib
import errno
import os
import signal
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fanoutfs.records import BLOCK_BYTES, KIB, MIB, PART_BYTES
from tests.model.consistency import check_index
from tests.model.reference import DIRECTORY, Put, Reference, State, ancestors, children, state_of
from tests.model.sources import Source
from tests.support.caches import drop_clean_caches
from tests.support.mounts import Mount, wait_until

KEYS: Final = ("a", "b", "c", "a/x", "b/x/y", "d/a", "d/b", "d/c", "d/e/a", "d/e/b", "e/a", "e/b")
"""Few, so that they meet; `a`, `a/x` and `b`, `b/x/y` switch between file and directory."""
DIRECTORIES: Final = ("", "a", "b", "b/x", "d", "d/e", "e")

_SMALL: Final = (0, 1, 4095, 4096, 5000, 128 * KIB - 1, 128 * KIB)
_BLOCKS: Final = (128 * KIB + 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, MIB + 3)
_PARTS: Final = (PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, PART_BYTES + BLOCK_BYTES + 5)
SIZES: Final = st.one_of(
    st.sampled_from(_SMALL), st.sampled_from(_SMALL), st.sampled_from(_BLOCKS), st.sampled_from(_BLOCKS + _PARTS)
)
KEY: Final = st.sampled_from(KEYS)
PATH: Final = st.sampled_from(sorted({*KEYS, *DIRECTORIES[1:], "d/absent", "absent", "d/e/absent/x"}))
FRACTION: Final = st.integers(0, 1000)
ABSENT: Final = ("nothing", "a b", "\udcff", "-")
KEEP: Final = "keep"
"""Name of an object in each directory of a source that goes on listing empty ones."""
_OPEN_AT_MOST: Final = 6

_LOOK: Final = {"path": PATH, "exact": st.booleans()}
RULES: Final[dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]]] = {
    "put": (90, {"key": KEY, "size": SIZES, "seed": st.integers(0, 3)}),
    "delete": (25, {"at": FRACTION}),
    "delete_subtree": (8, {"at": FRACTION}),
    "invalidate": (20, {"path": PATH}),
    "read_whole": (90, _LOOK),
    "read_range": (60, {**_LOOK, "at": FRACTION, "length": st.sampled_from([1, 4096, 100_000, BLOCK_BYTES, 3 * MIB])}),
    "stat": (40, _LOOK),
    "listdir": (30, {"directory": st.sampled_from(DIRECTORIES), "exact": st.booleans()}),
    "walk": (15, {}),
    "absent": (20, {"name": st.sampled_from(ABSENT), "directory": st.sampled_from(DIRECTORIES)}),
    "open_file": (30, {"at": FRACTION}),
    "read_open": (80, {"which": FRACTION, "at": FRACTION, "length": st.sampled_from([1, 5000, MIB, 16 * MIB])}),
    "close_file": (20, {"which": FRACTION}),
    "forget_pages": (40, {"path": PATH}),
    "corrupt": (15, {"at": FRACTION, "where": FRACTION}),
    "drop_caches": (2, {}),
    "remount": (2, {}),
    "kill_front": (2, {}),
    "kill_core": (2, {}),
}
"""Name of a method → how often of about 590, and its arguments.  One weighted rule instead of one for each: hypothesis
switches rules off for whole examples, which leaves most trees empty."""
NEEDS: Final = {
    "delete": "deletable",
    "delete_subtree": "deletable",
    "open_file": "can_open",
    "read_open": "open",
    "close_file": "open",
    "corrupt": "objects",
}
ACTIONS: Final = st.sampled_from(
    [name for name, (weight, _arguments) in RULES.items() for _n in range(weight)]
).flatmap(lambda name: st.tuples(st.just(name), st.fixed_dictionaries(RULES[name][1])))


class ReadsMachine(RuleBasedStateMachine):
    """Reads against a reference tree.  `mount` and `source` are set by the test; both outlive the examples."""

    mount: ClassVar[Mount]
    source: ClassVar[Source]
    statistics: ClassVar[Counter[str]]
    examples: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        type(self).examples += 1
        self.top = f"x{self.examples}"
        self.reference = Reference()
        self.open: list[tuple[int, str, Put]] = []
        self.steps = 0
        if self.source.keeps_directories:
            for directory in DIRECTORIES:
                self._put(f"{directory}/{KEEP}".lstrip("/"), Put(1, 9))

    # --- what underlies the rules ------------------------------------------------------------------------------

    @property
    def objects(self) -> dict[str, Put]:
        """Return the current objects."""
        return self.reference.objects

    @property
    def can_open(self) -> bool:
        """Tell whether there is something to open and room for a descriptor."""
        return bool(self.objects) and len(self.open) < _OPEN_AT_MOST

    @property
    def root(self) -> Path:
        """Return where the objects of this example appear."""
        return self.mount.path / self.top

    def path(self, relative: str) -> str:
        """Return the absolute path in the mount."""
        return f"{self.root}/{relative}" if relative else str(self.root)

    def tell(self, path: str) -> None:
        """Make the mount see every change on the way to a path."""
        if "" not in self.reference.told_at or state_of(self.objects, "") is None or self._top_changed():
            self.mount.invalidate()
            self.told_empty = not self.objects
            if self.told_empty:
                for known in DIRECTORIES:
                    self.reference.told(known)
                return
        for directory in ancestors(path):
            if directory and state_of(self.objects, directory) != DIRECTORY:
                self.reference.told(directory)
                continue
            if self.reference.needs_telling(directory):
                self.mount.invalidate(f"{self.top}/{directory}" if directory else self.top)
                self.reference.told(directory)

    def _top_changed(self) -> bool:
        since = self.reference.told_at.get("", 0)
        return len({bool(objects) for objects in self.reference.history[since:]}) > 1 or not self.objects

    def change(self, objects: dict[str, Put]) -> None:
        """Enter a new state of the objects."""
        self.reference.change(objects)

    def expect(self, path: str, *, exact: bool) -> tuple[list[State], bool]:
        """Return (what the mount may show, whether ESTALE is allowed)."""
        if exact:
            self.tell(path)
            return [state_of(self.objects, path)], False
        return self.reference.candidates(path), not self.reference.is_certain(path)

    def observe(self, path: str, look: Callable[[str], Any], *, exact: bool) -> tuple[Any, list[State]]:
        """Look at a path; return what was seen (an errno for an OSError) and what may be seen."""
        allowed, may_be_stale = self.expect(path, exact=exact)
        try:
            seen = look(self.path(path))
        except OSError as error:
            if error.errno == errno.ESTALE and may_be_stale:
                return None, []
            return error.errno, allowed
        return seen, allowed

    @rule(action=ACTIONS)
    def act(self, action: tuple[str, dict[str, Any]]) -> None:
        name, arguments = action
        needs = NEEDS.get(name)
        if needs and not getattr(self, needs):
            # Nothing there yet to do it with.
            name, arguments = "put", {"key": KEYS[self.steps % len(KEYS)], "size": 4096 * self.steps, "seed": 0}
        self.steps += 1
        if self.examples > 1:  # the first example is as simple as hypothesis can make it, and does not count
            self.statistics[name] += 1
        getattr(self, name)(**arguments)

    # --- changes underneath ------------------------------------------------------------------------------------

    def _put(self, key: str, made: Put) -> None:
        self.source.put(f"{self.top}/{key}", made.content)
        self.change({**self.objects, key: made})

    def _delete(self, key: str) -> None:
        self.source.delete(f"{self.top}/{key}")
        self.change({other: made for other, made in self.objects.items() if other != key})

    @property
    def deletable(self) -> list[str]:
        """Return the keys that may go: all but those that keep directories."""
        return sorted(key for key in self.objects if key.rpartition("/")[2] != KEEP)

    def put(self, key: str, size: int, seed: int) -> None:
        while self.source.keeps_directories and key in DIRECTORIES:
            key += "/x"
        if not self.source.keeps_both:
            for other in list(self.objects):
                if other.startswith(key + "/") or key.startswith(other + "/"):
                    self._delete(other)
        self._put(key, Put(size, seed))

    def delete(self, at: int) -> None:
        self._delete(self.deletable[at % len(self.deletable)])

    def delete_subtree(self, at: int) -> None:
        tops = sorted({key.split("/")[0] for key in self.deletable})
        top = tops[at % len(tops)]
        for key in self.deletable:
            if key == top or key.startswith(top + "/"):
                self._delete(key)

    def invalidate(self, path: str) -> None:
        self.tell(path + "/x")

    # --- looking -----------------------------------------------------------------------------------------------

    def read_whole(self, path: str, exact: bool) -> None:
        seen, allowed = self.observe(path, read_file, exact=exact)
        check_read(path, seen, allowed, lambda content: content)

    def read_range(self, path: str, at: int, length: int, exact: bool) -> None:
        sizes = [state.size for state in self.reference.candidates(path) if isinstance(state, Put)] or [0]
        offset = sizes[-1] * at // 1000
        seen, allowed = self.observe(path, lambda found: read_file(found, offset, length), exact=exact)
        check_read(path, seen, allowed, lambda content: content[offset : offset + length])

    def stat(self, path: str, exact: bool) -> None:
        seen, allowed = self.observe(path, os.stat, exact=exact)
        if isinstance(seen, os.stat_result):
            seen = DIRECTORY if stat.S_ISDIR(seen.st_mode) else seen.st_size
        expected = [
            state.size if isinstance(state, Put) else errno.ENOENT if state is None else state for state in allowed
        ]
        if errno.ENOENT in expected:
            expected.append(errno.ENOTDIR)  # something above the name is a file
        assert not allowed or seen in expected, f"stat of {path}: {seen}, expected one of {expected}"

    def listdir(self, directory: str, exact: bool) -> None:
        if exact:
            self.tell(directory + "/x" if directory else "x")
            allowed = [children(self.objects, directory)]
        else:
            allowed = self.reference.listings(directory)
        try:
            seen = set(os.listdir(self.path(directory)))
        except NotADirectoryError:
            ways = [*ancestors(directory), directory]
            states = [state_of(objects, way) for objects in self.reference.history for way in ways]
            assert any(isinstance(state, Put) for state in states), f"{directory} never was a file, nor lay in one"
            assert not exact or not allowed[0], f"{directory} is not listed as a directory"
            return
        except FileNotFoundError:
            assert any(not listing for listing in allowed), f"{directory} is not found, expected {allowed}"
            return
        except OSError as error:
            assert error.errno == errno.ESTALE, f"listing {directory}: {error}"
            assert not exact, f"listing {directory}: {error}"
            return
        possible = [set(listing) for listing in allowed]
        assert seen in possible, f"{directory} lists {seen}, expected one of {possible}"

    def walk(self) -> None:
        for directory in DIRECTORIES:
            self.tell(directory + "/x" if directory else "x")
        objects = self.objects
        found: dict[str, int] = {}
        for folder, subfolders, names in os.walk(self.root, onerror=raise_error if objects else None):
            below = os.path.relpath(folder, self.root)
            for name in names:
                found[os.path.normpath(f"{below}/{name}")] = os.stat(f"{folder}/{name}").st_size
            assert subfolders or names or not objects, f"{folder} is empty"
        expected = {key: made.size for key, made in objects.items() if state_of(objects, key) is made}
        assert found == expected

    def absent(self, name: str, directory: str) -> None:
        seen, _allowed = self.observe(f"{directory}/{name}" if directory else name, os.stat, exact=False)
        assert seen in (None, errno.ENOENT, errno.ENOTDIR), f"{directory}/{name}: {seen}"

    # --- descriptors kept over changes -------------------------------------------------------------------------

    def open_file(self, at: int) -> None:
        objects = self.objects
        shown = sorted(key for key, made in objects.items() if state_of(objects, key) is made)
        key = shown[at % len(shown)]
        self.tell(key)
        self.open.append((os.open(self.path(key), os.O_RDONLY), key, objects[key]))

    def read_open(self, which: int, at: int, length: int) -> None:
        fd, key, made = self.open[which % len(self.open)]
        offset = made.size * at // 1000 if length < 16 * MIB else 0
        try:
            seen = b"".join(chunks(fd, offset, length))
        except OSError as error:
            assert error.errno == errno.ESTALE, f"{key}: {error}"
            assert self.objects.get(key) is not made, f"{key}: ESTALE although the object is unchanged"
            self.statistics["(ESTALE from an open file)"] += 1
            return
        assert seen == made.content[offset : offset + length], f"open {key} at {offset}: {describe(seen, made)}"
        if self.objects.get(key) is not made:
            self.statistics["(old bytes from an open file)"] += 1

    def close_file(self, which: int) -> None:
        os.close(self.open.pop(which % len(self.open))[0])

    # --- trouble -----------------------------------------------------------------------------------------------

    def forget_pages(self, path: str) -> None:
        with contextlib.suppress(OSError):
            forget_pages(self.path(path))

    def drop_caches(self) -> None:
        drop_clean_caches()

    def remount(self) -> None:
        self._close_all()
        self.mount.stop()
        self.mount.start()

    def kill_front(self) -> None:
        before = self.mount.status()["front_pids"]
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: before[0] not in self.mount.status()["front_pids"], "a new front")

    def kill_core(self) -> None:
        before = self.mount.status()["core_pid"]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: self._core_pid() not in (None, before), "a new core")

    def corrupt(self, at: int, where: int) -> None:
        objects = self.objects
        shown = sorted(key for key, made in objects.items() if state_of(objects, key) is made)
        key = shown[at % len(shown)]
        made = objects[key]
        self.tell(key)
        path = self.path(key)
        assert read_file(path) == made.content, f"{key} before it was corrupted"
        if flip_byte(self.mount.volume(), os.stat(path).st_ino, made, where):
            self.statistics["(bytes flipped)"] += 1
        forget_pages(path)
        assert read_file(path) == made.content, f"{key} after a cached byte was flipped"

    def _core_pid(self) -> int | None:
        try:
            pid: int = self.mount.status()["core_pid"]
        except Exception:  # the next core has not taken over the socket yet
            return None
        return pid

    def _close_all(self) -> None:
        for fd, _key, _made in self.open:
            os.close(fd)
        self.open.clear()

    def teardown(self) -> None:
        self._close_all()
        for key in self.objects:
            self.source.delete(f"{self.top}/{key}")
        check_index(self.mount.volume())


def read_file(path: str, offset: int = 0, length: int = 1 << 62) -> bytes:
    """Open a file, read a range, close it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join(chunks(fd, offset, length))
    finally:
        os.close(fd)


def chunks(fd: int, offset: int, length: int) -> Iterator[bytes]:
    """Read a range piece by piece, to the end of the file at most."""
    while length > 0:
        piece = os.pread(fd, min(length, 1 << 20), offset)
        if not piece:
            return
        yield piece
        offset += len(piece)
        length -= len(piece)


def forget_pages(path: str) -> None:
    """Make the kernel forget a file's pages, so that the next read asks the daemon."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def check_read(path: str, seen: Any, allowed: list[State], cut: Callable[[bytes], bytes]) -> None:
    """Compare what a read gave with what it may give."""
    if not allowed:
        return
    for state in allowed:
        if isinstance(state, Put):
            if seen == cut(state.content):
                return
        elif state == DIRECTORY:
            if seen == errno.EISDIR:
                return
        elif seen in (errno.ENOENT, errno.ENOTDIR):
            return
    shown = describe(seen, *[state for state in allowed if isinstance(state, Put)]) if isinstance(seen, bytes) else seen
    raise AssertionError(f"{path} reads {shown}, allowed: {allowed}")


def describe(seen: bytes, *puts: Put) -> str:
    """Return where bytes begin to differ from what they should be."""
    lines = [f"{len(seen)} bytes"]
    for made in puts:
        content = made.content
        at = next((n for n, (x, y) in enumerate(zip(seen, content, strict=False)) if x != y), min(len(seen), made.size))
        lines.append(f"differs from {made} ({len(content)} bytes) at {at}")
    return ", ".join(lines)


def flip_byte(volume: Path, ino: int, made: Put, where: int) -> bool:
    """Flip one bit of a cached content; tell whether there was one."""
    at = made.size * where // 1001
    path = volume / "objects" / f"{ino & 0xFF:02x}" / f"{ino:x}"
    if not path.exists():
        # A small file: found by its content; the copy that was appended last is the one that is read.
        found_at = [
            (segment, start)
            for segment in sorted((volume / "segments").iterdir())
            if (start := position_in(segment, made)) >= 0
        ]
        if not found_at:
            return False
        path, start = found_at[-1]
        at += start
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:  # evicted since it was looked for
        return False
    try:
        found = os.pread(fd, 1, at)
        if not found:
            return False
        os.pwrite(fd, bytes([found[0] ^ 0x40]), at)
    finally:
        os.close(fd)
    return True


def position_in(segment: Path, made: Put) -> int:
    """Return where a segment holds this content; -1: nowhere, or it went while the daemon made room."""
    if made.size < 64:
        return -1
    try:
        return segment.read_bytes().rfind(made.content)
    except FileNotFoundError:
        return -1


def raise_error(error: OSError) -> None:
    """For os.walk, which swallows errors."""
    raise error
