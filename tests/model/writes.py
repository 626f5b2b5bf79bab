"""The state machine of writing: each step runs on the mount and on a directory of ext4, and both must tell the same.

Compared after each step: result or errno, and for every name that the step mentions, and its directory, whether the
modification and change times moved and never backwards.  Compared now and then and at the end: the whole tree, bytes,
modes, owners, links, attributes.  In between processes die, the mount comes and goes, clean content leaves the cache,
and another client changes the bucket: only names that have nothing to upload (what happens to those that have is a
conflict, and not ext4's business).
"""

import errno
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fanoutfs.records import BLOCK_BYTES, KIB, MIB
from tests.model.reference import make_content
from tests.model.side import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Side, holes_agree
from tests.model.subjects import Subject, replace_file
from tests.mount.kernel import RENAME_EXCHANGE, RENAME_NOREPLACE

PATHS: Final = (
    *("a", "b", "c", "t.tmp", "d", "d/a", "d/b", "d/t.tmp", "d/e", "d/e/a", "d/e/f", "d/e/f/a", "g", "g/a", "g/b"),
)
"""Few, so that they meet; every one may become a file or a directory.  `.tmp` is never uploaded."""
FILES: Final = ("a", "b", "c", "d/a", "d/b", "d/e/a", "g/a")
DIRECTORIES: Final = ("", "d", "d/e", "d/e/f", "g")
TARGETS: Final = ("a", "b", "d", "d/a", "../a", "../d", "e", "absent", "self", "../../top/a", "d/e/../b")
XATTRS: Final = ("user.a", "user.ünlike", "user.long.er")

_SIZES: Final = (0, 1, 100, 4095, 4096, 5000, 128 * KIB - 1, 128 * KIB, 128 * KIB + 1, BLOCK_BYTES, BLOCK_BYTES + 1)
_OFFSETS: Final = (0, 0, 0, 1, 50, 4095, 4096, 100_000, 128 * KIB, BLOCK_BYTES - 1, BLOCK_BYTES, 600_000, MIB + 3)
PATH: Final = st.sampled_from(PATHS + FILES)
FILE: Final = st.sampled_from((*FILES, *FILES, *FILES, *PATHS))
DIRECTORY: Final = st.sampled_from((*DIRECTORIES, *DIRECTORIES, "a"))
SIZE: Final = st.sampled_from((*_SIZES, *_SIZES, 600_000, MIB + 3))
OFFSET: Final = st.sampled_from(_OFFSETS)
LENGTH: Final = st.sampled_from((1, 100, 4096, 5000, 128 * KIB + 1, BLOCK_BYTES, 3 * BLOCK_BYTES))
SEED: Final = st.integers(1, 5)
FRACTION: Final = st.integers(0, 1000)
DELAY: Final = st.sampled_from((None, 0.0, 0.002, 0.01))
MODE: Final = st.sampled_from((0o644, 0o600, 0o755, 0o444, 0o000, 0o4755, 0o2755, 0o2644, 0o1777, 0o666))
FLAGS: Final = st.sampled_from(
    (0, 0, os.O_EXCL, os.O_TRUNC, os.O_TRUNC, os.O_APPEND, os.O_EXCL | os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY)
)
OPEN_FLAGS: Final = st.sampled_from(
    (
        *(os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_CREAT),
        *(os.O_RDWR | os.O_TRUNC, os.O_RDONLY | os.O_NOFOLLOW, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_TRUNC),
    )
)
HOW: Final = st.sampled_from((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, PUNCH_HOLE))
TIME_NS: Final = st.integers(1, 1_400_000_000 * 10**9)
_OPEN_AT_MOST: Final = 6

BOTH: Final[dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]]] = {
    "create": (50, {"path": FILE, "flags": FLAGS, "mode": MODE, "size": SIZE, "seed": SEED}),
    "write_at": (60, {"path": FILE, "offset": OFFSET, "size": LENGTH, "seed": SEED}),
    "append": (30, {"path": FILE, "size": LENGTH, "seed": SEED}),
    "truncate": (30, {"path": FILE, "size": SIZE}),
    "read": (50, {"path": FILE, "offset": OFFSET, "size": LENGTH, "forget": st.booleans()}),
    "mmap_write": (25, {"path": FILE, "at": FRACTION, "size": LENGTH, "seed": SEED}),
    "fallocate": (20, {"path": FILE, "how": HOW, "offset": OFFSET, "size": LENGTH}),
    "seek": (15, {"path": FILE, "whence": st.sampled_from((os.SEEK_DATA, os.SEEK_HOLE)), "at": FRACTION}),
    "copy_range": (12, {"path": FILE, "offset": OFFSET, "size": LENGTH, "target": FILE, "target_offset": OFFSET}),
    "fsync": (15, {"path": PATH, "only_data": st.booleans()}),
    "mkdir": (30, {"path": st.sampled_from((*PATHS, *DIRECTORIES[1:], *DIRECTORIES[1:])), "mode": MODE}),
    "rmdir": (12, {"path": st.sampled_from((*PATHS, *DIRECTORIES[1:]))}),
    "unlink": (20, {"path": PATH}),
    "rename": (40, {"path": PATH, "target": PATH}),
    "rename_with": (
        16,
        {"path": PATH, "target": PATH, "flags": st.sampled_from((RENAME_NOREPLACE, RENAME_EXCHANGE))},
    ),
    "link": (20, {"path": PATH, "target": PATH}),
    "symlink": (16, {"path": PATH, "text": st.sampled_from(TARGETS)}),
    "readlink": (8, {"path": PATH}),
    "mknod": (6, {"path": PATH, "mode": st.sampled_from((stat.S_IFIFO | 0o644, stat.S_IFREG | 0o640, stat.S_IFSOCK))}),
    "listdir": (20, {"path": DIRECTORY}),
    "overlong": (3, {"path": PATH, "length": st.sampled_from((255, 256))}),
    "stat": (25, {"path": PATH, "follow": st.booleans()}),
    "chmod": (16, {"path": PATH, "mode": MODE}),
    "chown": (
        10,
        {
            "path": PATH,
            "uid": st.sampled_from((0, 1234)),  # chown(-1, -1) moves the ctime of ext4; FUSE is not told of it
            "gid": st.sampled_from((-1, 0, 99)),
            "follow": st.booleans(),
        },
    ),
    "utimens": (12, {"path": PATH, "atime_ns": TIME_NS, "mtime_ns": TIME_NS, "follow": st.booleans()}),
    "setxattr": (
        14,
        {
            "path": PATH,
            "name": st.sampled_from(XATTRS),
            "size": st.sampled_from((0, 1, 300)),
            "flags": st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
        },
    ),
    "getxattr": (8, {"path": PATH, "name": st.sampled_from(XATTRS)}),
    "listxattr": (6, {"path": PATH}),
    "removexattr": (6, {"path": PATH, "name": st.sampled_from(XATTRS)}),
    "statfs": (2, {"path": PATH}),
    "access": (4, {"path": PATH, "how": st.sampled_from((os.F_OK, os.R_OK, os.W_OK, os.X_OK))}),
    "open": (30, {"path": FILE, "flags": OPEN_FLAGS, "mode": MODE}),
    "open_unlinked": (12, {"path": FILE}),
    "handle_read": (30, {"which": FRACTION, "offset": OFFSET, "size": LENGTH, "forget": st.booleans()}),
    "handle_write": (40, {"which": FRACTION, "offset": OFFSET, "size": LENGTH, "seed": SEED}),
    "handle_truncate": (14, {"which": FRACTION, "size": SIZE}),
    "handle_fallocate": (10, {"which": FRACTION, "how": HOW, "offset": OFFSET, "size": LENGTH}),
    "handle_fsync": (12, {"which": FRACTION, "only_data": st.booleans()}),
    "handle_stat": (12, {"which": FRACTION}),
    "handle_chmod": (5, {"which": FRACTION, "mode": MODE}),
    "handle_setxattr": (4, {"which": FRACTION, "name": st.sampled_from(XATTRS), "size": st.sampled_from((1, 300))}),
    "handle_list": (5, {"which": FRACTION}),
    "handle_flock": (6, {"which": FRACTION, "how": st.sampled_from((1, 2, 8))}),
    "handle_close": (20, {"which": FRACTION}),
}
"""Operations of both sides (methods of Side) → how often, and their arguments.  Those that begin with `handle_` get an
open descriptor."""
EVENTS: Final[dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]]] = {
    "compare": (12, {}),
    "drain": (6, {}),
    "evict": (5, {}),
    "foreign_put": (12, {"path": st.sampled_from(FILES), "size": SIZE, "seed": SEED}),
    "foreign_delete": (8, {"path": st.sampled_from(FILES)}),
    "kill_core": (5, {"delay_s": DELAY}),
    "kill_front": (5, {"delay_s": DELAY}),
    "remount": (3, {}),
}
"""What befalls the side under test."""
RULES: Final = BOTH | EVENTS
PERIOD: Final = 15
TURNS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("kill_core", {"delay_s": 0.002}),
    ("evict", {}),
    ("kill_front", {"delay_s": 0.002}),
    ("foreign_put", {"path": "d/a", "size": 600_000, "seed": 3}),
    ("kill_core", {"delay_s": None}),
    ("drain", {}),
    ("kill_front", {"delay_s": None}),
    ("foreign_put", {"path": "a", "size": 5000, "seed": 4}),
    ("remount", {}),
    ("compare", {}),
    ("foreign_delete", {"path": "d/a"}),
)
"""Every PERIOD steps one of these comes on top."""
ACTIONS: Final = st.sampled_from(
    [name for name, (weight, _arguments) in RULES.items() for _n in range(weight)]
).flatmap(lambda name: st.tuples(st.just(name), st.fixed_dictionaries(RULES[name][1])))

MAKERS: Final = ("create", "mkdir", "symlink", "mknod")
"""They are at their best where nothing is."""
TIMELESS: Final = ("mmap_write", "handle_close", "evict")
"""ext4 takes the time of a store into a mapping when the page is first touched, FUSE when it is written back."""


class WritesMachine(RuleBasedStateMachine):
    """Writes against a reference tree.  What stands here as ClassVar is set by the test and outlives the examples."""

    subject: ClassVar[Subject]
    reference_root: ClassVar[Path]
    statistics: ClassVar[Counter[str]]
    examples: ClassVar[int]
    failure: ClassVar[Exception | None] = None
    """The first one."""
    side: ClassVar[Callable[[str], Side]] = Side

    def __init__(self) -> None:
        super().__init__()
        type(self).examples += 1
        # Two levels: a symbolic link that leads one up stays in what belongs to the example.
        self.top = f"x{self.examples}/top"
        for root in (self.subject.root, self.reference_root):
            (root / self.top).mkdir(parents=True)
        self.tried = type(self).side(str(self.subject.root / self.top))
        self.known = Side(str(self.reference_root / self.top))
        self.next_handle = 0
        self.steps = 0
        self.trail: list[str] = []
        """What was done, for whoever has to find out why it went wrong."""
        for path in ("d", "d/e", "g"):
            self._both("mkdir", {"path": path, "mode": 0o755})
        self._both("create", {"path": "d/a", "flags": 0, "mode": 0o644, "size": 3 * BLOCK_BYTES + 77, "seed": 6})
        self.foreign_put("a", 600_000, 7)

    @rule(action=ACTIONS)
    def act(self, action: tuple[str, dict[str, Any]]) -> None:
        try:
            self._act(action)
        except Exception as error:
            if type(self).failure is None:
                type(self).failure = error
                print(f"in {self.top} after {len(self.trail)} steps, the last of which:", *self.trail[-60:], sep="\n  ")
                print(*self.subject.describe(self.top), sep="\n")
            raise

    def _act(self, action: tuple[str, dict[str, Any]]) -> None:
        self.steps += 1
        if self.steps % PERIOD == 0:
            # Hypothesis varies what it has tried, and may leave a rare kind of step out of a whole run.
            event, with_what = TURNS[(self.steps // PERIOD + self.examples) % len(TURNS)]
            self.statistics[event] += 1
            self.trail.append(f"{event} {with_what} (in turn)")
            getattr(self, event)(**with_what)
        name, arguments = action
        if name.startswith("handle_") and not self.known.handles:
            name, arguments = "open", {"path": "d/a", "flags": os.O_RDWR | os.O_CREAT, "mode": 0o644}
        if self.examples > 1:  # the first example is as simple as hypothesis can make it, and does not count
            self.statistics[name] += 1
        if name in EVENTS:
            self.trail.append(f"{name} {arguments}")
            getattr(self, name)(**arguments)
        else:
            self._both(name, self._aimed(name, dict(arguments)))

    def _aimed(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Turn most of the operations that would only meet ENOENT or EISDIR to a path with something to do."""
        path = arguments.get("path")
        if path is None or name in MAKERS or self.steps % 5 == 0:
            return arguments
        is_fit = os.path.lexists if BOTH[name][1]["path"] is not FILE else os.path.isfile
        fit = [other for other in PATHS if is_fit(self.known.path(other))]
        if fit and path not in fit:
            arguments["path"] = fit[self.steps % len(fit)]
        return arguments

    # --- one operation, twice ---------------------------------------------------------------------------------

    def _both(self, name: str, arguments: dict[str, Any]) -> None:
        if name in ("open", "open_unlinked"):
            if len(self.known.handles) >= _OPEN_AT_MOST:
                self._both("handle_close", {"which": 0})
            self.next_handle += 1
            arguments["handle"] = self.next_handle
        elif name.startswith("handle_"):
            handles = sorted(self.known.handles)
            arguments["handle"] = handles[arguments.pop("which") % len(handles)]
        watched = sorted(
            {
                path
                for word in ("path", "target")
                if word in arguments
                for path in (arguments[word], _above(arguments[word]))
            }
        )
        self.trail.append(f"{name} {arguments}")
        times = [self._times(side, watched) for side in (self.tried, self.known)]
        sizes = self._size(arguments)
        seen, expected = (_outcome(side, name, arguments) for side in (self.tried, self.known))
        moved = [
            _moved(before, self._times(side, watched))
            for side, before in zip((self.tried, self.known), times, strict=True)
        ]
        step = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        if name == "seek" and isinstance(seen, tuple) and isinstance(expected, tuple):
            content = self.known.read(arguments["path"], 0, 1 << 40, False)
            wrong = holes_agree(content, arguments["whence"], seen)
            assert not wrong, f"{step}: {wrong}"
        else:
            assert seen == expected, f"{step}: {_difference(seen, expected)}"
        if isinstance(expected, str) and expected in errno.errorcode.values() and self.examples > 1:
            self.statistics[f"({expected})"] += 1
        is_same_size = "truncate" in name and sizes == self._size(arguments) == arguments.get("size")
        # Nothing changes for a reader: the object's part of an overlay counts as allocated, and is not touched.
        is_reservation = arguments.get("how") in (0, KEEP_SIZE) and "fallocate" in name
        if is_reservation and expected is None:
            self._even_mtime(arguments)
        if name not in TIMELESS and not is_same_size and not is_reservation:
            assert _is_allowed(*moved), f"{step}: times that moved {moved[0]}, expected {moved[1]}"

    def _size(self, arguments: dict[str, Any]) -> int:
        try:
            if "path" in arguments:
                return os.stat(self.known.path(arguments["path"])).st_size
            return os.fstat(self.known.handles[arguments["handle"]]).st_size
        except (OSError, KeyError):
            return -1

    def _even_mtime(self, arguments: dict[str, Any]) -> None:
        """Give a file the same modification time on both sides."""
        for side in (self.tried, self.known):
            which = side.path(arguments["path"]) if "path" in arguments else side.handles[arguments["handle"]]
            os.utime(which, ns=(0, 1_300_000_000 * 10**9))

    def _times(self, side: Side, paths: list[str]) -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in paths:
            try:
                status = os.lstat(side.path(path))
            except OSError:
                continue
            found[path] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        return found

    # --- what befalls the mount -------------------------------------------------------------------------------

    def kill_core(self, delay_s: float | None) -> None:
        self.subject.kill_core(delay_s)

    def kill_front(self, delay_s: float | None) -> None:
        self.subject.kill_front(delay_s)

    def remount(self) -> None:
        for side in (self.tried, self.known):
            side.close_all()
        self.subject.remount()
        self.compare()

    def evict(self) -> None:
        self.subject.evict()

    def drain(self) -> None:
        """Upload everything; then the bucket holds what the tree does, and nothing else."""
        self.subject.drain()
        if not self.subject.has_bucket:
            return
        tree = self.known.tree()
        objects = self.subject.objects(self.top)
        for path, entry in tree.items():
            if stat.S_ISREG(int(entry["mode"], 8)) and entry["links"] == [path] and ".tmp" not in path:
                content = self.known.read(path, 0, 1 << 40, False)
                assert objects.get(path) == content, f"object {path}: {_difference(objects.get(path), content)}"
        left = {key for key in objects if key.rstrip("/") not in tree and key.rstrip("/")}
        # What a file had before it was given a name that is not uploaded stays until it has another.
        assert not left or any(".tmp" in path for path in tree), f"objects of files that are no more: {sorted(left)}"
        kept_back = [key for key in objects if key.endswith(".tmp")]
        assert not kept_back, f"uploaded although they must not be: {kept_back}"

    def foreign_put(self, path: str, size: int, seed: int) -> None:
        """Another client writes an object: a new inode under the name, here as there."""
        if self._plain_file(path) is False:
            return
        self._free_for_others(path)
        content = make_content(size, 100 + seed)
        self.subject.put(f"{self.top}/{path}", content)
        replace_file(self.reference_root, f"{self.top}/{path}", content)
        self._both("read", {"path": path, "offset": 0, "size": size + 1, "forget": False})

    def foreign_delete(self, path: str) -> None:
        """Another client deletes an object."""
        if self._plain_file(path) is not True:
            return
        self._free_for_others(path)
        self.subject.delete(f"{self.top}/{path}")
        os.unlink(self.known.path(path))
        self._both("stat", {"path": path, "follow": False})

    def _free_for_others(self, path: str) -> None:
        """Upload what is dirty, so that nothing is to be done in the bucket under this path.

        Closes the file: the old version's bytes may be gone from the store when they are wanted.
        """
        self.subject.drain()
        wanted = os.lstat(self.known.path(path)).st_ino if os.path.lexists(self.known.path(path)) else 0
        for handle, fd in list(self.known.handles.items()):
            if os.fstat(fd).st_ino == wanted:
                for side in (self.tried, self.known):
                    side.handle_close(handle)

    def _plain_file(self, path: str) -> bool | None:
        """Tell whether a path is a file with one name (True), free in a real directory (None), or something else."""
        for above in Path(path).parents:
            found = os.lstat(self.known.path(str(above))) if os.path.lexists(self.known.path(str(above))) else None
            if found is None or not stat.S_ISDIR(found.st_mode):
                return False
        try:
            found = os.lstat(self.known.path(path))
        except FileNotFoundError:
            return None
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    # --- comparing --------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Compare the trees."""
        seen, expected = self.tried.tree(), self.known.tree()
        more, less = set(seen) - set(expected), set(expected) - set(seen)
        assert not more | less, f"{sorted(more)} should not be there, {sorted(less)} should"
        for path, entry in expected.items():
            wrong = {key: (seen[path].get(key), value) for key, value in entry.items() if seen[path].get(key) != value}
            wrong |= {key: (value, None) for key, value in seen[path].items() if key not in entry}
            assert not wrong, f"{path} (seen, expected): {wrong}"

    def teardown(self) -> None:
        try:
            self.subject.settle()
            self.compare()
        finally:
            for side in (self.tried, self.known):
                side.close_all()
        for root in (self.subject.root, self.reference_root):
            shutil.rmtree(root / self.top.partition("/")[0])


def _above(path: str) -> str:
    return path.rpartition("/")[0]


def _outcome(side: Side, name: str, arguments: dict[str, Any]) -> Any:
    """Return an operation's result, or the name of its errno."""
    try:
        return getattr(side, name)(**arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def _moved(
    before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]
) -> dict[tuple[str, str], bool]:
    """Return (path, time) → whether it moved forward, of what kept its inode; what stayed is not there."""
    found = {}
    for path, (ino, *times) in after.items():
        if path in before and before[path][0] == ino:
            for name, old, new in zip(("mtime", "ctime"), before[path][1:], times, strict=True):
                if old != new:
                    found[path, name] = new > old
    return found


def _is_allowed(seen: dict[tuple[str, str], bool], expected: dict[tuple[str, str], bool]) -> bool:
    """Tell whether the times that moved are those of ext4.

    An upload, which runs beside all this, may move a file's ctime: it notes the object's key on the staging file.
    """
    has_all = all(seen.get(key) == is_forward for key, is_forward in expected.items())
    more = {key: is_forward for key, is_forward in seen.items() if key not in expected}
    return has_all and all(time == "ctime" and is_forward for (_path, time), is_forward in more.items())


def _difference(seen: Any, expected: Any) -> str:
    """Return a short description of what differs."""
    if not (isinstance(seen, bytes) and isinstance(expected, bytes)):
        return f"{_short(seen)} instead of {_short(expected)}"
    at = next(
        (n for n, (x, y) in enumerate(zip(seen, expected, strict=False)) if x != y), min(len(seen), len(expected))
    )
    found, wanted = seen[at : at + 8].hex(), expected[at : at + 8].hex()
    return f"{len(seen)} bytes instead of {len(expected)}, differ at {at}: {found} instead of {wanted}"


def _short(value: Any) -> str:
    return f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)
