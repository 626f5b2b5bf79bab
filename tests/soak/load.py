"""The jobs of a soak: each a process that works on a mount until its stdin ends, then prints one JSON line.

    python -m tests.soak.load ROLE DIRECTORY SEED PACE      ROLE: a key of ROLES; PACE: 2 halves the load

What is read is compared with what it must be, byte by byte.  A process each, because one that waits for a mount nobody
serves cannot be ended from inside.
"""

import hashlib
import json
import os
import random
import select
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

KIB: Final = 1 << 10
MIB: Final = 1 << 20
SMALL_FILES: Final = 1500
LARGE_FILES: Final = 12
LARGE_BYTES: Final = 16 * MIB
_PIECE: Final = 64 * KIB
_KEPT_CHECKPOINTS: Final = 3
_KEPT_RUNS: Final = 4


def small_name(number: int) -> str:
    """Return the path of a small file of the data set."""
    return f"small/{number // 250:02}/{number:05}.bin"


def large_name(number: int) -> str:
    """Return the path of a large file of the data set."""
    return f"large/{number:02}.tar"


def piece(name: str, number: int) -> bytes:
    """Return 64 KiB of the content of a file."""
    return hashlib.sha256(f"{name} {number}".encode()).digest() * (_PIECE // 32)


def small_content(name: str) -> bytes:
    """Return the content of a small file: 1 to 40 KiB."""
    first = piece(name, 0)
    return first[: KIB + first[0] * 156]


def large_content(name: str, offset: int, size: int) -> bytes:
    """Return a stretch of a large file; offset: a multiple of 64 KiB."""
    count = -(-size // _PIECE)
    return b"".join(piece(name, offset // _PIECE + index) for index in range(count))[:size]


class Job:
    """What a role counts, and the longest time that one call of it took."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.chance = random.Random(seed)
        self.calls = 0
        self.bytes_verified = 0
        self.bytes_written = 0
        self.longest_s = 0.0
        self.longest = ""
        self.errors: list[str] = []
        self.logged = b""
        self.kept: dict[str, str] = {}
        """Files that must be there at the end, and their SHA-256."""

    def timed(self, what: str, call: Callable[..., T], *arguments: Any) -> T:
        """Make a call that the mount must answer."""
        began = time.monotonic()
        try:
            return call(*arguments)
        finally:
            took = time.monotonic() - began
            self.calls += 1
            if took > self.longest_s:
                self.longest_s, self.longest = took, what

    def read(self, name: str, offset: int, size: int, expected: bytes, *, is_cold: bool) -> None:
        """Open, read and compare; is_cold: past the page cache."""
        fd = self.timed("open", os.open, self.root / name, os.O_RDONLY)
        try:
            if is_cold:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            found = self.timed("read", os.pread, fd, size, offset)
        finally:
            os.close(fd)
        if found != expected:
            raise AssertionError(f"wrong bytes: {name} at {offset}, {len(found)} of {len(expected)}")
        self.bytes_verified += len(found)

    def write(self, name: str, data: bytes, chunk: int = MIB) -> None:
        """Write a file as training programs do: aside, synced, then renamed."""
        part = self.root / f"{name}.part"
        fd = self.timed("create", os.open, part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for offset in range(0, len(data), chunk):
                view = data[offset : offset + chunk]
                assert self.timed("write", os.write, fd, view) == len(view)
            self.timed("fsync", os.fsync, fd)
        finally:
            os.close(fd)
        self.timed("rename", os.rename, part, self.root / name)
        self.bytes_written += len(data)
        self.kept[name] = hashlib.sha256(data).hexdigest()

    def remove(self, name: str) -> None:
        """Remove a file that `write` made."""
        self.timed("unlink", os.unlink, self.root / name)
        del self.kept[name]


def read_small(job: Job) -> None:
    """Read a few small files, mostly past the page cache."""
    for _ in range(10):
        name = small_name(job.chance.randrange(SMALL_FILES))
        expected = small_content(name)
        job.read(name, 0, len(expected) + 1, expected, is_cold=job.chance.random() < 0.5)


def read_large(job: Job) -> None:
    """Read some of a large file."""
    name = large_name(job.chance.randrange(LARGE_FILES))
    offset = job.chance.randrange(LARGE_BYTES // MIB) * MIB
    for at in range(offset, min(offset + 4 * MIB, LARGE_BYTES), MIB):
        job.read(name, at, MIB, large_content(name, at, MIB), is_cold=True)


def write_checkpoints(job: Job) -> None:
    """Write a checkpoint, read it back, remove an old one."""
    (job.root / "checkpoints").mkdir(exist_ok=True)
    name = f"checkpoints/step-{job.bytes_written:012}.pt"
    data = large_content(name, 0, job.chance.randrange(2, 8) * MIB)
    job.write(name, data)
    job.read(name, 0, MIB, data[:MIB], is_cold=False)
    ours = [each for each in job.kept if each.startswith("checkpoints/")]
    if len(ours) > _KEPT_CHECKPOINTS:
        job.remove(ours[0])
    log = job.timed("open", os.open, job.root / "train.log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        job.logged += f"{name}\n".encode()
        job.timed("append", os.write, log, f"{name}\n".encode())
        job.timed("fsync", os.fsync, log)
        text = job.timed("read", os.pread, log, 16 * MIB, 0)
    finally:
        os.close(log)
    assert text == job.logged, "the log has lost lines"
    job.kept["train.log"] = hashlib.sha256(text).hexdigest()


def write_small(job: Job) -> None:
    """Write a directory of small files under one name, rename it, remove an old one."""
    number = job.calls
    aside, name = job.root / f"run-{number}.new", f"run-{number}"
    job.timed("mkdir", os.mkdir, aside)
    for index in range(10):
        inside = f"{name}.new/sample-{index}.json"
        data = small_content(f"{name}/{index}")
        job.write(inside, data)
        job.kept[f"{name}/sample-{index}.json"] = job.kept.pop(inside)
    job.timed("rename", os.rename, aside, job.root / name)
    inside = f"{name}/sample-{job.chance.randrange(10)}.json"
    expected = small_content(f"{name}/{inside.rpartition('-')[2].removesuffix('.json')}")
    job.read(inside, 0, len(expected) + 1, expected, is_cold=True)
    runs = list(dict.fromkeys(each.partition("/")[0] for each in job.kept))
    if len(runs) > _KEPT_RUNS:
        for each in [each for each in job.kept if each.startswith(f"{runs[0]}/")]:
            job.remove(each)
        job.timed("rmdir", os.rmdir, job.root / runs[0])


def scan(job: Job) -> None:
    """Walk over the tree with the attributes of every file; the data set must be complete."""
    found = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        for name in job.timed("listdir", os.listdir, job.root / directory):
            path = f"{directory}/{name}" if directory else name
            status = job.timed("stat", os.lstat, job.root / path)
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            else:
                found[path] = status.st_size
    for number in range(SMALL_FILES):
        name = small_name(number)
        assert found.get(name) == len(small_content(name)), f"{name}: {found.get(name)} bytes"
    assert sum(name.startswith("large/") for name in found) == LARGE_FILES


ROLES: Final[dict[str, tuple[Callable[[Job], None], float]]] = {
    "small reader": (read_small, 0.35),
    "large reader": (read_large, 1.0),
    "checkpoint writer": (write_checkpoints, 5.0),
    "small writer": (write_small, 3.0),
    "scanner": (scan, 20.0),
}
"""Role → a step, and the seconds from one step to the next."""


def main() -> None:
    """Work until stdin ends."""
    role, directory, seed, pace = sys.argv[1:]
    step, pause_s = ROLES[role]
    job = Job(Path(directory), int(seed))
    print("running", flush=True)
    while not select.select([sys.stdin], [], [], pause_s * float(pace) * job.chance.uniform(0.5, 1.5))[0]:
        try:
            step(job)
        except Exception as error:
            job.errors.append(repr(error))
            if len(job.errors) >= 20:
                break
    print(
        json.dumps(
            {
                "role": role,
                "calls": job.calls,
                "bytes_verified": job.bytes_verified,
                "bytes_written": job.bytes_written,
                "longest_s": round(job.longest_s, 3),
                "longest": job.longest,
                "errors": job.errors,
                "kept": job.kept,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
