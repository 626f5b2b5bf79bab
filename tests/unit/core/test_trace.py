"""A trace holds what was read while somebody recorded, and names it by inode and part."""

from pathlib import Path

import trio.testing

from fanoutfs.core.trace import Trace
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.observe.shared import TRACING, SharedState
from fanoutfs.records import MIB, PART_BYTES
from tests.unit.index.test_victims import fill


async def test_trace_holds_what_was_read_meanwhile(index: IndexEnvironment) -> None:
    (ino,) = fill(index, [PART_BYTES + MIB])
    shared = SharedState()
    trace = Trace(shared, IndexReader(index))
    commands = trace.commands()
    trace.note(ino, 0)
    await commands["trace_begin"]({})
    assert shared.flags[TRACING]
    trace.note(ino, 0)
    trace.note_small([ino])
    trace.note(ino, 1)
    found = await commands["trace_take"]({})
    assert found == {"accesses": [(f"{ino}.0", PART_BYTES), (f"{ino}.0", PART_BYTES), (f"{ino}.1", MIB)], "lost": 0}
    assert (await commands["trace_take"]({}))["accesses"] == []
    await commands["trace_end"]({})
    assert not shared.flags[TRACING]


async def test_recording_ends_when_nobody_comes(
    index: IndexEnvironment, autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    shared = SharedState()
    trace = Trace(shared, IndexReader(index))
    await trace.commands()["trace_begin"]({})
    await trio.sleep(60)
    trace.note(1, 0)
    assert not shared.flags[TRACING]
