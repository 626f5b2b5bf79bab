"""When a process counts as hung: marks and states as the kernel shows them, on a clock of the test's own."""

import os
import signal
import subprocess
import sys

import pytest

from fanoutfs.keeper.watchdog import Activity, Hang, Kind, Member, Watchdog, activity
from fanoutfs.observe.shared import BEATS, BUSY, CORE_ROW, FIRST_FRONT_ROW, SharedState
from tests.support.mounts import wait_until

TIMEOUT_S = 8.0
CORE = Member(Kind.CORE, 100)
FRONT = Member(Kind.FRONT, 101, 0)
NOTIFIER = Member(Kind.NOTIFIER, 102)
PUSHER = Member(Kind.PUSHER, 103)


class Machine:
    """A clock, what the kernel says of each process, and a watchdog that looks each second."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.shared = SharedState()
        self.now = 1000.0
        self.seen: dict[int, Activity] = {}
        self.watchdog = Watchdog(self.shared, timeout_s, self.seen.get)

    def live(self, seconds: int, *members: Member, beats: bool = False, cpu_share: float = 0.0) -> list[Hang]:
        """Let time pass; return what hung meanwhile."""
        hangs = []
        for _ in range(seconds):
            self.now += 1
            if beats:
                self.shared.row(CORE_ROW)[BEATS] += 1
            for member in members:
                seen = self.seen.setdefault(member.pid, Activity("S", 0.0, is_traced=False))
                self.seen[member.pid] = Activity(seen.state, seen.cpu_s + cpu_share, seen.is_traced)
            hangs += self.watchdog.look(self.now, members)
        return hangs

    def show(self, member: Member, state: str, *, is_traced: bool = False) -> None:
        """Have the kernel say this of a process."""
        self.seen[member.pid] = Activity(state, 0.0, is_traced)


@pytest.mark.parametrize(("state", "cpu_share"), [("S", 0.0), ("R", 0.5), ("T", 0.0)])
def test_core_without_a_beat_hangs_once_after_the_timeout(state: str, cpu_share: float) -> None:
    machine = Machine()
    machine.show(CORE, state)
    assert not machine.live(8, CORE, cpu_share=cpu_share)
    (hang,) = machine.live(20, CORE, cpu_share=cpu_share)
    assert (hang.member, hang.idle_s, hang.was_stopped) == (CORE, TIMEOUT_S, state == "T")


def test_core_that_beats_does_not_hang() -> None:
    machine = Machine()
    assert not machine.live(100, CORE, beats=True)


@pytest.mark.parametrize(
    ("state", "is_traced", "cpu_share"),
    [("D", False, 0.0), ("t", True, 0.0), ("S", True, 0.0), ("R", False, 0.01)],
    ids=["slow disk", "debugger", "debugger that continued it", "busy machine"],
)
def test_core_that_is_kept_from_its_work_does_not_hang(state: str, is_traced: bool, cpu_share: float) -> None:
    machine = Machine()
    machine.show(CORE, state, is_traced=is_traced)
    assert not machine.live(100, CORE, cpu_share=cpu_share)


def test_time_in_which_the_keeper_did_not_run_does_not_count() -> None:
    machine = Machine()
    machine.live(7, CORE)
    machine.now += 3600
    assert not machine.live(8, CORE)
    assert machine.live(1, CORE)


def test_core_that_hangs_again_soon_is_given_twice_the_time() -> None:
    machine = Machine()
    assert machine.live(9, CORE)
    for number, patience_s in ((201, 16), (202, 32), (203, 64)):
        core = Member(Kind.CORE, number)
        assert not machine.live(patience_s, core)
        assert machine.live(1, core)


def test_core_that_was_stopped_again_and_again_is_given_no_more_time() -> None:
    machine = Machine()
    for number in range(201, 205):
        core = Member(Kind.CORE, number)
        machine.show(core, "T")
        assert not machine.live(8, core)
        assert machine.live(1, core)


@pytest.mark.parametrize(
    ("busy", "state", "hangs"),
    [(2, "S", False), (3, "S", True), (2, "R", True), (2, "T", True), (3, "D", False)],
    ids=["idle", "inside a request", "endless loop between requests", "stopped", "slow disk"],
)
def test_front_hangs_unless_it_waits_for_requests_or_the_disk(busy: int, state: str, hangs: bool) -> None:
    machine = Machine()
    machine.shared.row(FIRST_FRONT_ROW)[BUSY] = busy
    machine.show(FRONT, state)
    assert bool(machine.live(20, FRONT, cpu_share=0.5)) == hangs


@pytest.mark.parametrize("member", [NOTIFIER, PUSHER])
def test_helper_that_the_kernel_keeps_waiting_does_not_hang_but_a_stopped_one_does(member: Member) -> None:
    machine = Machine()
    assert not machine.live(100, member)
    machine.show(member, "T")
    assert machine.live(20, member)


def test_without_a_timeout_nothing_hangs() -> None:
    machine = Machine(0)
    machine.show(CORE, "T")
    assert machine.watchdog.due_at() is None
    assert not machine.live(100, CORE)


def test_activity_of_a_real_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        os.kill(process.pid, signal.SIGSTOP)
        stopped = wait_until(lambda: (seen := activity(process.pid)) and seen.state == "T" and seen, "it is stopped")
        assert stopped.cpu_s >= 0
        assert not stopped.is_traced
    finally:
        process.kill()
        process.wait()
    assert activity(process.pid) is None
