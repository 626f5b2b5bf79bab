"""A process that works on a small-file store and dies at a chosen step: `python -m tests.unit.cache.killed PATH STEP`.

It writes a line for every batch that was acknowledged: the first inode and how many follow it.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from fanoutfs.cache.segments import SegmentFiles
from fanoutfs.cache.smallgroup import SmallGroup
from fanoutfs.records import KIB, MIB
from tests.unit.cache.stores import open_store

SHARE_BYTES = 8 * MIB
BATCH = 40
STEPS = ("before append", "half appended", "appended", "committed", "cleared", "retired", "cut", "moved")


def body(ino: int) -> bytes:
    """Return the content of an inode."""
    return random.Random(ino).randbytes(10 * KIB + ino % 1000)


def die(*_arguments: Any, **_named: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(times: int, act: Callable[..., Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """Return `act` for so many calls, `then` after that."""
    left = [times]

    def call(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        return act(*arguments, **named) if left[0] >= 0 else then(*arguments, **named)

    return call


def arm(step: str) -> None:
    """Have the process die at a step."""

    def append_half(files: SegmentFiles, number: int, offset: int, contents: list[memoryview]) -> None:
        append(files, number, offset, [*contents[: len(contents) // 2], contents[len(contents) // 2][:1000]])
        die()

    def append_and_die(files: SegmentFiles, number: int, offset: int, contents: list[memoryview]) -> None:
        append(files, number, offset, contents)
        die()

    append, retire, move = SegmentFiles.append, SmallGroup.retire, SmallGroup.move
    if step == "before append":
        SegmentFiles.append = counted(7, append, die)  # type: ignore[method-assign]
    elif step == "half appended":
        SegmentFiles.append = counted(7, append, append_half)  # type: ignore[method-assign]
    elif step == "appended":
        SegmentFiles.append = counted(7, append, append_and_die)  # type: ignore[method-assign]
    elif step == "committed":
        SmallGroup.committed = counted(7, SmallGroup.committed, die)  # type: ignore[method-assign]
    elif step == "cleared":
        SmallGroup.retire = counted(2, retire, die)  # type: ignore[method-assign]
    elif step == "cut":
        os.unlink = counted(2, os.unlink, die)
    elif step == "moved":
        SmallGroup.move = counted(2, move, lambda *arguments, **named: (move(*arguments, **named), die()))  # type: ignore[method-assign,func-returns-value]


async def work(path: Path, step: str) -> None:
    """Fill, drop, evict and write anew, until death comes."""
    waits = [0]

    async def wait_for_readers() -> None:
        waits[0] += 1
        if step == "retired" and waits[0] == 3:
            die()
        await trio.lowlevel.checkpoint()

    store = open_store(path, SHARE_BYTES, wait_for_readers)
    arm(step)
    chance = random.Random(step)
    for first in range(16, 16 + 200 * BATCH, BATCH):
        assert all(await store.put_many([(ino, memoryview(body(ino))) for ino in range(first, first + BATCH)]))
        sys.stdout.write(f"{first} {BATCH}\n")
        sys.stdout.flush()
        if first % (5 * BATCH) == 16:
            await store.drop_many(chance.sample(range(16, first + BATCH), (first + BATCH - 16) // 4))
            while sparse := store.find_sparse():
                await store.write_anew(sparse[0])


if __name__ == "__main__":
    trio.run(work, Path(sys.argv[1]), sys.argv[2])
