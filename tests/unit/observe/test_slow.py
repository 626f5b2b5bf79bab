"""Rings and tables of the fronts."""

import os

from fanoutfs.observe.slow import PROCESSES, RING_RECORDS, SlowMemory, SlowRequest
from fanoutfs.records import NO_WAITS, Waits
from fanoutfs.wire.kernel import Opcode


def slow(started_ns: int, **changed: int) -> SlowRequest:
    values = {
        "elapsed_ns": 50,
        "pid": 7,
        "opcode": Opcode.READ,
        "nodeid": 16,
        "offset": 1 << 40,
        "size": 4096,
        "error": 5,
    }
    waits = Waits(10, 20, 5, is_again=True)
    return SlowRequest(started_ns, **{**values, **changed}, asked_core=True, waits=waits)


def test_record_comes_back_as_it_was_and_once() -> None:
    memory = SlowMemory(2)
    written = [slow(2), slow(1, pid=0)]
    for front, request in enumerate(written):
        memory.writer(front).record(request)
    found = memory.news()
    assert found == written[::-1]
    assert found[0].daemon_ns == 15
    assert memory.news() == []


def test_reader_that_is_late_gets_the_newest_and_no_mixture() -> None:
    memory = SlowMemory(1)
    writer = memory.writer(0)
    for number in range(RING_RECORDS + 10):
        writer.record(slow(number))
    assert [request.started_ns for request in memory.news()] == list(range(10, RING_RECORDS + 10))


def test_reader_in_another_process_begins_with_what_is_there() -> None:
    memory = SlowMemory(1)
    pid = os.fork()
    if pid == 0:
        memory.writer(0).record(slow(3))
        os._exit(0)
    os.waitpid(pid, 0)
    assert [request.started_ns for request in memory.news()] == [3]


def test_processes_add_up_over_fronts_and_successors() -> None:
    memory = SlowMemory(2)
    memory.writer(0).add(7, 2, 100, 0, now_ns=5)
    memory.writer(0).add(7, 1, 50, 8, now_ns=9)  # the front was replaced
    memory.writer(1).add(7, 1, 1000, 0, now_ns=7)
    memory.writer(1).add_waits(7, 60, Waits(10, 20, 5))
    (use,) = memory.processes()
    assert (use.pid, use.requests, use.read_bytes, use.written_bytes, use.seen_ns) == (7, 4, 1150, 8, 9)
    assert (use.backend_ns, use.queue_ns, use.disk_ns, use.daemon_ns) == (10, 20, 5, 25)


def test_full_table_gives_places_away_in_turn() -> None:
    memory = SlowMemory(1)
    writer = memory.writer(0)
    for pid in range(1, PROCESSES + 1):
        writer.add(pid, 1, 1, 0, now_ns=1000)
    writer.add(9999, 1, 5, 0, now_ns=2000)
    uses = {use.pid: use for use in memory.processes()}
    assert len(uses) == PROCESSES
    assert 1 not in uses
    assert (uses[9999].read_bytes, uses[9999].backend_ns) == (5, 0)
    writer.add_waits(9999, 5, NO_WAITS)
    assert {use.pid: use.daemon_ns for use in memory.processes()}[9999] == 5
