"""What `top` makes of two looks."""

from typing import Any

import pytest
from rich.console import Console

from fanoutfs.cli.topscreen import render
from fanoutfs.cli.topview import compare, hits_by_layer


def user(pid: int, **changed: Any) -> dict[str, Any]:
    names = ("requests", "read_bytes", "written_bytes", "backend_ns", "queue_ns", "disk_ns", "daemon_ns")
    return {"pid": pid, "command": "python", "cgroup": "/a", "idle_s": 0.0, **dict.fromkeys(names, 0), **changed}


def look(at_s: float, counters: dict[str, int], *users: dict[str, Any]) -> dict[str, Any]:
    gauges = {"cache_used": 10, "cache_cap": 100, "fill_memory_used": 0, "requests_in_flight": 1, "staged": 5}
    return {
        "at_s": at_s,
        "mountpoint": "/mnt/x",
        "source": "s3://b",
        "counters": counters,
        "gauges": gauges | {"uploads_queued": 2},
        "changes": {"dirty": 2},
        "processes": list(users),
        "waiting": [{"opcode": "READ", "path": "a", "pid": 5, "offset": 0, "size": 1, "age_ms": 12.0}],
    }


BEFORE = look(10.0, {"reader_bytes": 100}, user(5, requests=10, read_bytes=100))
AFTER = look(
    12.0,
    {
        "reader_bytes": 2100,
        "backend_bytes": 500,
        "messages_read_answered": 10,
        "messages_read_relayed": 2,
        "small_reads": 4,
        "arena_reads": 1,
        "wait_backend_ns": 1_000_000_000,
        "stall_some_ns": 500_000_000,
    },
    user(5, requests=14, read_bytes=1100, backend_ns=1_000_000_000),
    user(6, requests=1, written_bytes=20),
    user(7, requests=3, idle_s=100.0),
)


def test_rates_are_of_the_interval_and_quiet_processes_are_left_out() -> None:
    view = compare(BEFORE, AFTER)
    assert (view.interval_s, view.read_per_s, view.fetched_per_s, view.requests_per_s) == (2.0, 1000.0, 250.0, 5.0)
    assert view.waits["backend"] == 0.5
    assert view.stalled == {"some": 0.25, "full": 0.0}
    assert [(one.pid, one.read_per_s, one.written_per_s, one.requests_per_s) for one in view.processes] == [
        (5, 500.0, 0.0, 2.0),
        (6, 0.0, 10.0, 0.5),
    ]
    assert view.processes[0].waits["backend"] == 0.5


def test_process_whose_place_was_given_away_begins_anew() -> None:
    view = compare(
        look(1.0, {}, user(5, requests=100, read_bytes=10**9)), look(2.0, {}, user(5, requests=1, read_bytes=7))
    )
    assert view.processes[0].read_per_s == 7


def test_layers_add_up_to_all_reads() -> None:
    assert hits_by_layer(AFTER["counters"]) == {"small": 0.4, "memory": 0.1, "files": 0.3, "core": 0.2}
    assert hits_by_layer({}) is None
    assert sum((hits_by_layer({"messages_read_answered": 3, "messages_read_relayed": 9}) or {}).values()) == 1


@pytest.mark.parametrize("width", [80, 130])
def test_screen_names_what_is_invisible_and_who_waits(width: int) -> None:
    console = Console(width=width, record=True)
    with console.capture() as captured:
        console.print(render(compare(BEFORE, AFTER)))
    shown = captured.get()
    assert "page cache: invisible" in " ".join(shown.split())
    assert "python" in shown
    assert "2 files queued" in " ".join(shown.split())
