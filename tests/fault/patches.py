"""A daemon with faults built in: `python -m tests.fault.patches NAME,NAME… mount …` runs the command line changed.

Each public function here is a patch.  Applied before the fork, it reaches the keeper, the core and the fronts.
FAULT_DIRECTORY is a directory of the test where a patch may leave and find marks.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import trio

from fanoutfs.cli import main
from fanoutfs.records import Waits

_DIRECTORY = Path(os.environ.get("FAULT_DIRECTORY", "/nonexistent"))


class FaultError(Exception):
    """What no code of the daemon expects."""


def poison_lookup() -> None:
    """A lookup of a name that begins with `poison` kills the core."""
    from fanoutfs.core.filesystem import FileSystem

    original = FileSystem.lookup

    async def lookup(self: FileSystem, parent: int, name: bytes) -> Any:
        if name.startswith(b"poison"):
            os.abort()
        return await original(self, parent, name)

    FileSystem.lookup = lookup  # type: ignore[method-assign]


def poison_read() -> None:
    """A fill of a file of 666 bytes kills the core."""
    from fanoutfs.core.fill import Fills

    original = Fills.ensure

    async def ensure(self: Fills, ino: int, offset: int, length: int) -> Waits:
        if self._inode(ino).size_bytes == 666:
            os.abort()
        return await original(self, ino, offset, length)

    Fills.ensure = ensure  # type: ignore[method-assign]


def reader_waits_for_what_is_ahead() -> None:
    """However long it takes to bring what a reader will want next: counts do not hang on how busy the machine is."""
    from fanoutfs.core import staging

    staging._AHEAD_S = 3600.0  # type: ignore[misc]


def poison_front() -> None:
    """A lookup of a name that begins with `poison` kills the front."""
    from fanoutfs.front.handlers import Handlers

    original = Handlers.lookup

    def lookup(self: Handlers, unique: int, nodeid: int, body: memoryview) -> None:
        if bytes(body).startswith(b"poison"):
            os.abort()
        original(self, unique, nodeid, body)

    Handlers.lookup = lookup  # type: ignore[method-assign]


def front_dies_with_suspect() -> None:
    """The first front that takes the core's answer to a suspect request is killed before it passes it on."""
    from fanoutfs.front.relay import Relay
    from fanoutfs.observe.shared import SLOT_UNIQUE, SLOT_WORDS
    from fanoutfs.wire.kernel import UNIQUE_RESEND

    original = Relay._take

    def take(self: Relay, relay_unique: int) -> Any:
        mark = _DIRECTORY / "died"
        slot = relay_unique & 0xFFFF
        unique = self._slots[slot * SLOT_WORDS + SLOT_UNIQUE]
        if unique & UNIQUE_RESEND and self._shared.suspicion(unique) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        return original(self, relay_unique)

    Relay._take = take  # type: ignore[method-assign]


def core_raises() -> None:
    """Every operation of the core's file system raises, as long as the mark `raise` exists."""
    from fanoutfs.core.filesystem import FileSystem

    for name in ("lookup", "make_listed", "prepare_read"):
        setattr(FileSystem, name, _raising_async(getattr(FileSystem, name)))


def core_background_raises() -> None:
    """Everything the core does by itself raises, as long as the mark `raise` exists."""
    from fanoutfs.core import watching
    from fanoutfs.core.fill import Fills
    from fanoutfs.core.freshness import Freshness
    from fanoutfs.core.orphans import OrphanReaper

    OrphanReaper.sweep = _raising_async(OrphanReaper.sweep)  # type: ignore[method-assign]
    Freshness._due = _raising(Freshness._due)  # type: ignore[method-assign]
    Fills.note_part_read = _raising(Fills.note_part_read)  # type: ignore[method-assign]
    watching.describe = _raising_once(watching.describe)  # type: ignore[attr-defined]


def front_raises() -> None:
    """Every handler of a front raises, as long as the mark `raise` exists."""
    from fanoutfs.front.handlers import Handlers

    for name in ("lookup", "getattr", "statfs", "readdir", "readdirplus", "read"):
        setattr(Handlers, name, _raising(getattr(Handlers, name)))
    Handlers.finish = _raising(Handlers.finish, "raise-finish")  # type: ignore[method-assign]


def fill_raises() -> None:
    """The inside of every fill and listing raises, as long as the mark `raise` exists."""
    from fanoutfs.backend.retry import RetryingBackend
    from fanoutfs.core import smallfills
    from fanoutfs.core.fill import Fills
    from fanoutfs.core.listing import Listings

    RetryingBackend.whole_gets = lambda _self: None  # type: ignore[method-assign, assignment]  # each goes the way that raises
    smallfills.fetch_version = _raising(smallfills.fetch_version)  # type: ignore[attr-defined]
    Fills._fill_blocks = _raising_async(Fills._fill_blocks)  # type: ignore[method-assign]
    Listings._list = _raising_async(Listings._list)  # type: ignore[method-assign]


def content_is_not_synced() -> None:
    """fsync makes the index durable, and the content not: the disk is not asked to write it."""
    from fanoutfs.core.staging import Staging

    Staging.sync_content = _asleep  # type: ignore[method-assign]


def index_is_not_synced() -> None:
    """fsync makes the content durable, and the index not: nobody knows whose content it is."""
    from fanoutfs.core.durable import Durable

    Durable.sync = _asleep  # type: ignore[method-assign]


def core_loops() -> None:
    """One lookup, the first after the mark `hang` was set, never returns: it keeps its processor busy."""

    def loop() -> None:
        while True:
            pass

    _hang_once(loop)


def core_locks_up() -> None:
    """The same, asleep: it waits for a lock that nobody gives back."""
    lock = threading.Lock()
    lock.acquire()
    _hang_once(lock.acquire)


def _hang_once(hang: Any) -> None:
    from fanoutfs.core.filesystem import FileSystem

    original = FileSystem.lookup

    async def hang_in_lookup(self: FileSystem, parent: int, name: bytes) -> Any:
        if _is_marked("hang"):
            (_DIRECTORY / "hang").unlink()
            hang()
        return await original(self, parent, name)

    FileSystem.lookup = hang_in_lookup  # type: ignore[method-assign]


async def _asleep(*_args: Any, **_kwargs: Any) -> None:
    await trio.lowlevel.checkpoint()


def _is_marked(mark: str = "raise") -> bool:
    return (_DIRECTORY / mark).exists()


def _note(function: Any) -> None:
    with (_DIRECTORY / "raised").open("a") as stream:
        stream.write(f"{function.__name__}\n")


def _raising(function: Any, mark: str = "raise") -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if _is_marked(mark):
            _note(function)
            raise FaultError(function.__name__)
        return function(*args, **kwargs)

    return wrapper


def _raising_once(function: Any) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        mark = _DIRECTORY / "raise-once"
        if mark.exists():
            mark.unlink()
            _note(function)
            raise FaultError(function.__name__)
        return function(*args, **kwargs)

    return wrapper


def _raising_async(function: Any) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if _is_marked():
            _note(function)
            raise FaultError(function.__name__)
        return await function(*args, **kwargs)

    return wrapper


if __name__ == "__main__":
    for patch in sys.argv[1].split(","):
        globals()[patch]()
    sys.exit(main(sys.argv[2:]))
