"""Threads that the kernel does not let go: those that wait once and for ever, and no others."""

import os

from fanoutfs.keeper.held import HeldThreads, place_of, waits_of
from fanoutfs.keeper.watchdog import Kind, Member

CORE = Member(Kind.CORE, 100)
FRONT = Member(Kind.FRONT, 101, 0)
NOTIFIER = Member(Kind.NOTIFIER, 102)
_NO_PID = 1 << 30


def test_thread_in_one_wait_is_told_once_and_counted_until_it_ends() -> None:
    waits = {CORE.pid: {7: 40}, FRONT.pid: {101: 3}}
    held = HeldThreads(8.0, lambda pid: waits.get(pid, {}))
    assert not held.look(1000.0, [CORE, FRONT])
    assert not held.look(1007.0, [CORE, FRONT])
    assert held.count == 0
    found = held.look(1008.0, [CORE, FRONT])
    assert [(each.member, each.thread, each.held_s) for each in found] == [(CORE, 7, 8.0), (FRONT, 101, 8.0)]
    assert not held.look(1009.0, [CORE, FRONT])
    assert held.count == 2
    waits[CORE.pid] = {}
    assert not held.look(1010.0, [CORE, FRONT])
    assert held.count == 1


def test_thread_that_waits_again_and_again_is_a_slow_disk() -> None:
    waits = {CORE.pid: {7: 0}}
    held = HeldThreads(8.0, lambda pid: waits.get(pid, {}))
    for second in range(100):
        waits[CORE.pid] = {7: second}
        assert not held.look(1000.0 + second, [CORE])
    assert held.count == 0


def test_who_speaks_to_the_kernel_of_the_mount_may_be_held() -> None:
    held = HeldThreads(8.0, lambda _pid: {7: 1})
    held.look(1000.0, [NOTIFIER])
    assert not held.look(1100.0, [NOTIFIER])


def test_processes_that_wait_for_nothing_or_are_gone_have_no_waits() -> None:
    assert waits_of(os.getpid()) == {}
    assert waits_of(_NO_PID) == {}
    assert place_of(_NO_PID, _NO_PID) == ""
