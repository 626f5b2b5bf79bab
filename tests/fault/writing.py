"""Where the writers of a ledger write: plain directories, or mounts that end at once and are started again."""

import contextlib
import os
import random
import select
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fanoutfs.cli.drain import drain_mount
from tests.fault.children import Child, Children
from tests.fault.ledger import Ledger, LossError, write_until_it_fails
from tests.fault.postmortem import describe_journal, describe_store
from tests.support.mounts import Mount, processes_of, wait_until
from tests.support.servers import Bucket

WRITERS = 2


class Place(Protocol):
    """Somewhere to write."""

    @property
    def path(self) -> Path:
        """The directory."""
        ...

    def end(self) -> None:
        """End everything at once, without any last words."""
        ...

    def begin(self) -> None:
        """Be there again."""
        ...


@dataclass(frozen=True)
class PlainPlace:
    """A directory."""

    path: Path

    def end(self) -> None:
        """There is nothing but the directory."""

    def begin(self) -> None:
        """Make it, the first time."""
        self.path.mkdir(exist_ok=True)


@dataclass(frozen=True)
class MountPlace:
    """A mount."""

    mount: Mount

    @property
    def path(self) -> Path:
        """Where it is mounted."""
        return self.mount.path

    def end(self) -> None:
        """Kill the keeper and all its children and take the dead mount away."""
        kill_tree(self.mount)

    def begin(self) -> None:
        """Mount."""
        self.mount.start()


def kill_tree(mount: Mount) -> None:
    """Kill every process of a mount, without asking it anything: the keeper first, so that nobody is replaced.

    Returns when all have ended: an exiting process has no command line any more while it still has files open.
    """
    base = mount.path.parent
    while pids := sorted(processes_of(base)):  # the keeper forked the others
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _kill(os.pidfd_open(pid))


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(30_000), "a process did not end within 30 s of SIGKILL"
    finally:
        os.close(pidfd)


@dataclass
class Writers:
    """Writers below one place, their ledgers on a disk of their own, and what they were promised."""

    place: Place
    ledgers: Path
    chance: random.Random
    children: Children
    syncs: bool = True
    all: list[Ledger] = field(default_factory=list)
    _running: list[Child] = field(default_factory=list)
    _rounds: int = 0

    def __post_init__(self) -> None:
        self.all = [Ledger(self.ledgers / f"w{number}", {}) for number in range(WRITERS)]

    def make_directories(self) -> None:
        """Make each writer's directory, durably."""
        for ledger in self.all:
            (self.place.path / ledger.path.name).mkdir()
        fd = os.open(self.place.path, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)

    def start(self) -> None:
        """Let all write."""
        self._rounds += 1
        self._running = [
            self.children.start(self._write, ledger, self._rounds * WRITERS + number)
            for number, ledger in enumerate(self.all)
        ]

    def _write(self, ledger: Ledger, seed: int) -> str:
        root = self.place.path / ledger.path.name
        return write_until_it_fails(root, ledger.path, ledger.tree, seed, syncs=self.syncs)

    def wait_for_moment(self, least_lines: int = 10, most_lines: int = 150) -> None:
        """Return after a random number of notes: in the midst of whatever the writers do then."""
        wanted = self.lines() + self.chance.randint(least_lines, most_lines)

        def has_come() -> bool:
            stopped = [writer for writer in self._running if not writer.is_running]
            assert not stopped, f"a writer gave up before anything happened: {[each.result() for each in stopped]}"
            return self.lines() >= wanted

        wait_until(has_come, f"{wanted} notes", 120)

    def lines(self) -> int:
        """Return how many notes there are."""
        return sum(ledger.lines() for ledger in self.all)

    def hold(self) -> None:
        """Let nobody note anything from now on; calls under way go on.

        After kill(2) with SIGSTOP a system call does not return to the process: what is noted was promised before.
        """
        for writer in self._running:
            writer.send(signal.SIGSTOP)

    def stop(self) -> None:
        """Take the writers away."""
        for writer in self._running:
            writer.kill()
        self._running.clear()

    def check(self) -> None:
        """Compare with what was promised.  Raises LossError."""
        for ledger in self.all:
            ledger.check(self.place.path / ledger.path.name)

    def check_content(self) -> None:
        """Compare with what the last check found.  Raises LossError."""
        for ledger in self.all:
            ledger.check_content(self.place.path / ledger.path.name)

    @property
    def steps(self) -> int:
        """Return how many steps were promised."""
        return sum(ledger.steps for ledger in self.all)


def check_after_a_wiped_cache(mount: Mount, writers: Writers, bucket: Bucket) -> None:
    """Everything in the bucket: drain, unmount, remove the cache, mount, compare.  Raises LossError."""
    drain_mount(mount.path)
    mount.stop()
    journal = describe_journal(mount.volume())
    shutil.rmtree(mount.cache)
    mount.start()
    try:
        writers.check_content()
    except LossError:
        print(journal, describe_store(bucket), sep="\n")
        raise


def run_rounds(writers: Writers, rounds: int, crash: Callable[[], Any]) -> None:
    """Write, crash at a random moment, check; so many times.  crash: ends the place and brings it back."""
    for number in range(rounds):
        writers.start()
        writers.wait_for_moment()
        crash()
        writers.stop()
        try:
            writers.check()
        except LossError as loss:
            raise LossError(f"crash {number + 1} of {rounds}: {loss}") from None
