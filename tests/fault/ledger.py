"""A writer that notes what it was promised, and the check that every promise was kept.

The writer takes one step at a time: it notes the step, does it, calls fsync, notes that fsync returned.  So at any
moment at most one step is *open*.  After a crash the tree must be the one after all finished steps; what the open step
touches may be as before, as after, and where it writes data any page of either, or zeros where there was nothing.
Ledgers lie on a disk that nobody cuts off.
"""

import json
import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fanoutfs.records import MIB

PAGE_BYTES: Final = 4096
_SIZES: Final = (0, 10, 3000, 4096, 5000, 100_000, 300_000, 1_000_000)
_LARGE_BYTES: Final = 9 * MIB + 17
_FILES_AT_MOST: Final = 24
_XATTR: Final = "user.promise"
_UMASK: Final = 0o022


class LossError(AssertionError):
    """Something that fsync had acknowledged is not there."""


@dataclass(frozen=True, slots=True)
class File:
    """What a file holds."""

    content: bytes
    mode: int = 0o644
    xattr: bytes = b""


Tree = dict[str, File | None]
"""Path below the writer's directory → file, or None for a directory."""
Step = dict[str, Any]

DATA_STEPS: Final = ("create", "append", "overwrite", "truncate")
"""Steps that may be found half done; all others are done or not."""


def content_of(number: int, size: int) -> bytes:
    """Return the bytes that a step writes."""
    return random.Random(number).randbytes(size)


# --- the writer ------------------------------------------------------------------------------------------------


def choose(tree: Tree, chance: random.Random, number: int) -> Step:
    """Return a next step that can succeed."""
    files = sorted(path for path, entry in tree.items() if entry is not None)
    folders = sorted(path for path, entry in tree.items() if entry is None)
    places = ["", *folders]
    new = f"{chance.choice(places)}/f{number}".lstrip("/")
    step: Step = {"n": number, "do": "create", "path": new, "size": chance.choice(_SIZES)}
    if chance.random() < 0.03:
        step["size"] = _LARGE_BYTES
    kind = chance.random()
    if len(files) < 3 or (kind < 0.25 and len(files) < _FILES_AT_MOST):
        return step
    path = chance.choice(files)
    entry = tree[path]
    assert entry is not None
    size = len(entry.content)
    if kind < 0.4:
        return step | {"do": "append", "path": path, "size": chance.choice(_SIZES)}
    if kind < 0.55:
        return step | {"do": "overwrite", "path": path, "size": chance.choice(_SIZES), "at": chance.randint(0, size)}
    if kind < 0.6:
        return step | {"do": "truncate", "path": path, "size": chance.choice((0, size // 2, size + 10_000))}
    if kind < 0.7:
        return step | {"do": "rename", "path": path, "target": chance.choice((new, chance.choice(files)))}
    if kind < 0.8 and folders:
        # A directory with all that is in it, to a name of its own.
        return step | {"do": "rename", "path": chance.choice(folders), "target": f"d{number}"}
    if kind < 0.86 and len(folders) < 4:
        return step | {"do": "mkdir", "path": f"d{number}"}
    if kind < 0.92:
        return step | {"do": "unlink", "path": path}
    if kind < 0.96:
        return step | {"do": "chmod", "path": path, "mode": chance.choice((0o600, 0o640, 0o755))}
    return step | {"do": "setxattr", "path": path, "size": chance.choice((1, 200))}


def apply(tree: Tree, step: Step) -> Tree:
    """Return the tree after a step."""
    path, do = step["path"], step["do"]
    after = dict(tree)
    if do == "create":
        after[path] = File(content_of(step["n"], step["size"]))
    elif do == "mkdir":
        after[path] = None
    elif do == "unlink":
        del after[path]
    elif do == "rename":
        moved = {name: after.pop(name) for name in tree if name == path or name.startswith(f"{path}/")}
        after |= {step["target"] + name.removeprefix(path): entry for name, entry in moved.items()}
    else:
        file = after[path]
        assert file is not None
        after[path] = _changed(file, step)
    return after


def _changed(file: File, step: Step) -> File:
    written = content_of(step["n"], step["size"])
    match step["do"]:
        case "append":
            return replace(file, content=file.content + written)
        case "overwrite":
            at = step["at"]
            return replace(file, content=file.content[:at] + written + file.content[at + len(written) :])
        case "truncate":
            return replace(file, content=file.content[: step["size"]].ljust(step["size"], b"\0"))
        case "chmod":
            return replace(file, mode=step["mode"])
        case _:
            return replace(file, xattr=written)


def perform(root: Path, step: Step, *, syncs: bool) -> None:
    """Do a step; syncs: and make it durable as a careful program does."""
    path, do = root / step["path"], step["do"]
    if do in ("mkdir", "unlink", "rename"):
        places = {path.parent}
        if do == "mkdir":
            path.mkdir()
        elif do == "unlink":
            path.unlink()
        else:
            path.rename(root / step["target"])
            places.add((root / step["target"]).parent)
        for place in sorted(places):
            _sync(place, os.O_RDONLY | os.O_DIRECTORY, syncs=syncs)
        return
    flags = {"create": os.O_CREAT | os.O_EXCL, "append": os.O_APPEND}.get(do, 0)
    fd = os.open(path, os.O_RDWR | flags | os.O_CLOEXEC, 0o666 & ~_UMASK)
    try:
        written = content_of(step["n"], step["size"])
        if do in ("create", "append", "overwrite"):
            at = step.get("at", 0)
            while written:
                count = os.write(fd, written[:MIB]) if do == "append" else os.pwrite(fd, written[:MIB], at)
                written, at = written[count:], at + count
        elif do == "truncate":
            os.ftruncate(fd, step["size"])
        elif do == "chmod":
            os.fchmod(fd, step["mode"])
        else:
            os.setxattr(fd, _XATTR, written)
        if syncs:
            os.fsync(fd)
    finally:
        os.close(fd)


def _sync(path: Path, flags: int, *, syncs: bool) -> None:
    if not syncs:
        return
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_until_it_fails(root: Path, ledger: Path, tree: Tree, seed: int, *, syncs: bool) -> str:
    """Take step after step, noting each; return what ended it.  Runs in a process of its own."""
    os.umask(_UMASK)
    chance = random.Random(seed)
    number = seed * 1_000_000
    notes = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    while True:
        number += 1
        step = choose(tree, chance, number)
        os.write(notes, json.dumps(step).encode() + b"\n")
        try:
            perform(root, step, syncs=syncs)
        except OSError as error:
            return f"step {step}: {error}"
        os.write(notes, b"done\n")
        tree = apply(tree, step)


# --- the check -------------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """What one writer was promised so far.  path: where it notes; tree: after all finished steps that were checked."""

    path: Path
    tree: Tree
    steps: int = 0
    _read: int = 0

    def lines(self) -> int:
        """Return how many lines there are: two for each finished step."""
        return self.path.read_bytes().count(b"\n") if self.path.exists() else 0

    def _finished_and_open(self) -> tuple[Tree, Step | None]:
        # A crash may come before the writer has begun its first step.
        lines = self.path.read_text().splitlines()[self._read :] if self.path.exists() else []
        self._read += len(lines)
        tree, open_step = self.tree, None
        for line in lines:
            if line == "done":
                assert open_step is not None
                tree = apply(tree, open_step)
                self.steps += 1
                open_step = None
            else:
                open_step = json.loads(line)
        return tree, open_step

    def check(self, root: Path) -> None:
        """Compare the tree with what was promised; then take it as it is.  Raises LossError."""
        promised, step = self._finished_and_open()
        seen = read_tree(root)
        if step is None:
            _compare(seen, promised, f"after {self.steps} steps")
        else:
            _compare_open(seen, promised, step)
        self.tree = seen

    def check_content(self, root: Path) -> None:
        """Compare names and bytes with what the last check found."""
        _compare(read_tree(root), self.tree, "content")


def read_tree(root: Path) -> Tree:
    """Return what is below a directory, which was made durably.  Raises LossError when a file changes under its reader.

    What an upload sent before a crash without having been heard must not come to light as another size: it was synced
    here before.
    """
    found: Tree = {}
    if not root.is_dir():
        raise LossError(f"{root} is gone")
    for folder, folders, names in os.walk(root, onerror=_raise):
        for name in folders:
            found[os.path.relpath(f"{folder}/{name}", root)] = None
        for name in names:
            path = f"{folder}/{name}"
            with open(path, "rb", buffering=0) as stream:
                content = stream.readall()
                status = os.fstat(stream.fileno())
                xattrs = os.listxattr(stream.fileno())
                xattr = os.getxattr(stream.fileno(), _XATTR) if _XATTR in xattrs else b""
            if status.st_size != len(content):
                raise LossError(f"{path}: {len(content)} bytes read, size {status.st_size}")
            found[os.path.relpath(path, root)] = File(content, stat.S_IMODE(status.st_mode), xattr)
    return found


def _compare(seen: Tree, promised: Tree, when: str) -> None:
    problems = list(_problems(seen, promised))
    if problems:
        raise LossError(f"{when}: " + "; ".join(problems[:8]))


def _compare_open(seen: Tree, before: Tree, step: Step) -> None:
    after = apply(before, step)
    if step["do"] not in DATA_STEPS:
        against_before, against_after = list(_problems(seen, before)), list(_problems(seen, after))
        if against_before and against_after:
            raise LossError(f"open step {step}: not as before: {against_before[:5]}, nor as after: {against_after[:5]}")
        return
    path = step["path"]
    rest_seen, rest_before = ({name: tree[name] for name in tree if name != path} for tree in (seen, before))
    _compare(rest_seen, rest_before, f"beside the open step {step}")
    old, new = before.get(path), after[path]
    assert new is not None
    found = seen.get(path)
    if found is None:
        if old is not None or path in seen:
            raise LossError(f"open step {step}: the file is gone")
        return
    problem = _pages_problem(found.content, old.content if old else b"", new.content)
    if problem:
        raise LossError(f"open step {step}: {problem}")


def _pages_problem(seen: bytes, old: bytes, new: bytes) -> str:
    if not min(len(old), len(new)) <= len(seen) <= max(len(old), len(new)):
        return f"{len(seen)} bytes, neither {len(old)} nor {len(new)} nor between"
    for start in range(0, len(seen), PAGE_BYTES):
        page = seen[start : start + PAGE_BYTES]
        # Where the file ended inside a page, what was there stays and the rest is new or not yet there.
        kept = old[start : start + PAGE_BYTES]
        candidates = (kept.ljust(PAGE_BYTES, b"\0"), new[start : start + PAGE_BYTES].ljust(PAGE_BYTES, b"\0"))
        if not any(candidate.startswith(page) for candidate in candidates):
            what = _runs(page, {"old": candidates[0], "new": candidates[1], "zeros": bytes(PAGE_BYTES)})
            return (
                f"the page at {start} is neither old nor new but {what}; bytes: {len(old)}, {len(seen)} of {len(new)}"
            )
    return ""


def _runs(page: bytes, sources: dict[str, bytes]) -> str:
    """Describe which bytes of a page are from where, in runs."""
    runs: list[tuple[int, str]] = []
    for at, byte in enumerate(page):
        fitting = [name for name, source in sources.items() if source[at] == byte]
        name = runs[-1][1] if runs and runs[-1][1] in fitting else next(iter(fitting), "neither")
        if not runs or runs[-1][1] != name:
            runs.append((at, name))
    return ", ".join(f"{name} from {at}" for at, name in runs[:12])


def _problems(seen: Tree, promised: Tree) -> Iterator[str]:
    for path in sorted(set(promised) - set(seen)):
        yield f"{path} is missing"
    for path in sorted(set(seen) - set(promised)):
        yield f"{path} should not be there"
    for path in sorted(set(seen) & set(promised)):
        is_, should = seen[path], promised[path]
        if is_ == should:
            continue
        if is_ is None or should is None:
            yield f"{path} is a {'directory' if is_ is None else 'file'}"
        elif is_.content != should.content:
            pairs = zip(is_.content, should.content, strict=False)
            at = next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(is_.content), len(should.content)))
            yield f"{path}: {len(is_.content)} bytes of {len(should.content)}, differs at {at}"
        else:
            yield f"{path}: mode {is_.mode:o} of {should.mode:o}, xattr {len(is_.xattr)} of {len(should.xattr)} bytes"


def _raise(error: OSError) -> None:
    raise error
