"""When files were read: known at once, written down only for who goes by it, and not more often than needed."""

from functools import partial
from pathlib import Path

from fanoutfs.core.access import Accesses
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import ROOT_INO
from tests.unit.core.rig import TurnedClock
from tests.unit.indexes import enter_listing, file, open_index

SECOND = 1_000_000_000


async def test_times_are_written_down_to_the_grain_that_is_asked_for(tmp_path: Path) -> None:
    with open_index(tmp_path) as environment:
        enter_listing(environment, [file("a")])
        reader, clock = IndexReader(environment), TurnedClock()
        writer: GroupWriter[IndexTransaction] = GroupWriter("test", partial(write_transaction, environment))
        with reader.begin() as txn:
            ino = reader.child(txn, ROOT_INO, b"a") or 0

        def written() -> int | None:
            with reader.begin() as txn:
                return reader.tiers(txn).accessed_ns(ino)

        try:
            accesses = Accesses(reader, writer, clock)
            assert accesses.last_ns(ino) is None
            accesses.note((ino,))
            await accesses.write_down()
            assert (accesses.last_ns(ino), written()) == (clock.now_ns, None)
            accesses.grain_s = 10.0
            first = clock.now_ns
            accesses.note((ino,))
            await accesses.write_down()
            clock.now_ns += 9 * SECOND
            accesses.note((ino,))
            await accesses.write_down()
            assert (accesses.last_ns(ino), written()) == (first + 9 * SECOND, first)
            clock.now_ns += SECOND
            accesses.note((ino,))
            await accesses.write_down()
            assert written() == first + 10 * SECOND
            assert Accesses(reader, writer, clock).last_ns(ino) == first + 10 * SECOND
        finally:
            writer.stop()


async def test_memory_is_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    with open_index(tmp_path) as environment:
        reader, clock = IndexReader(environment), TurnedClock()
        writer: GroupWriter[IndexTransaction] = GroupWriter("test", partial(write_transaction, environment))
        try:
            accesses = Accesses(reader, writer, clock)
            for first in range(0, 300_000, 1000):
                clock.now_ns += 1
                accesses.note(range(first, first + 1000))
            assert accesses.last_ns(0) is None
            assert accesses.last_ns(299_999) == clock.now_ns
        finally:
            writer.stop()
