"""Requests of a core that was killed arrive when the next one is at work."""

from pathlib import Path

import pytest
import trio
import trio.testing

from fanoutfs.backend.unanswered import Unanswered
from fanoutfs.core.facts import Outcome
from fanoutfs.core.late import LateRequests
from fanoutfs.errors import ObjectMissingError
from fanoutfs.index.format import Departed
from fanoutfs.index.intents import NoteIntent
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.records import ROOT_INO, Version
from tests.unit.core.rig import Rig, arrived, running_core
from tests.unit.core.sender import sending, until

VERSION = Version("etag", "", 1, 1)


async def requests_end(rig: Rig) -> None:
    await until(lambda: not rig.backend.under_way, lambda: "requests end")


async def test_keys_are_those_of_the_journal_for_a_while(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    def fill(txn: IndexTransaction) -> None:
        NoteIntent(7, "put", "").apply(txn)
        txn.changed.put_departed("deleted", Departed(0, VERSION))
        txn.changed.put_departed("perhaps put", Departed(0, Version("", "", 0, 0)))
        txn.changed.put_departed("moved/", Departed(8, Version("", "", 0, 0)))

    async with running_core(tmp_path) as rig:
        await rig.writer.run(fill)
        late = LateRequests(rig.reader, Unanswered(5.0), 5.0)
        keys = ("put", "deleted", "perhaps put", "moved/", "another")
        assert [late.may_put(key) for key in keys] == [True, False, True, False, False]
        assert [late.may_change(key) for key in keys] == [True, True, True, True, False]
        began_at = trio.current_time()
        await late.ended("another")
        assert trio.current_time() == began_at
        await late.ended("another", "deleted")
        assert trio.current_time() == began_at + 5.0
        assert not any(late.may_put(key) or late.may_change(key) for key in keys)


@pytest.mark.parametrize("is_renamed", [False, True])
async def test_object_that_arrives_late_goes_with_its_file(tmp_path: Path, is_renamed: bool) -> None:
    async with running_core(tmp_path) as rig:
        async with sending(rig, tmp_path) as sender:
            gate = rig.backend.hold("put")
            await sender.create("a", b"content")
            await arrived(gate)
        looks = rig.backend.calls["details"]
        async with sending(rig, tmp_path, late_s=1.0) as sender:
            if is_renamed:
                await sender.rename("a", "b")
            else:
                await sender.unlink("a")
            await until(lambda: rig.backend.calls["details"] > looks, lambda: "somebody has looked")
            gate.release()
            await requests_end(rig)
            await rig.listings.refresh(ROOT_INO)
            assert "a" not in await sender.tree(), "it is not shown, either"
            await sender.settled()
            assert sender.bucket() == ({"b": b"content"} if is_renamed else {})


async def test_file_is_put_when_nothing_of_before_can_arrive_any_more(tmp_path: Path) -> None:
    async with running_core(tmp_path) as rig:
        async with sending(rig, tmp_path) as sender:
            await sender.create("a", b"content")
            await sender.settled()
            gate = rig.backend.hold("delete")
            await sender.unlink("a")
            await arrived(gate)
        puts = rig.backend.calls["put"]
        async with sending(rig, tmp_path, late_s=0.5) as sender:
            await sender.create("a", b"content")
            with trio.move_on_after(0.2):
                await sender.settled()
            assert rig.backend.calls["put"] == puts, "what is put may be deleted"
            gate.release()
            await requests_end(rig)
            with pytest.raises(ObjectMissingError):
                rig.backend.details("a")
            await sender.settled()
            assert sender.bucket() == {"a": b"content"}


async def test_nothing_is_put_where_a_request_was_given_up_a_moment_ago(tmp_path: Path) -> None:
    unanswered = Unanswered(60.0)
    unanswered.note("a", is_put=False)
    async with running_core(tmp_path) as rig, sending(rig, tmp_path, unanswered=unanswered) as sender:
        ino = (await sender.create("a", b"content")).ino
        other = (await sender.create("b", b"content")).ino
        publish = sender.outbound.publisher.publish
        assert await publish(ino, is_overdue=True, is_urgent=True) is Outcome.BLOCKED
        assert await publish(other, is_overdue=True, is_urgent=True) is not Outcome.BLOCKED
        assert sender.bucket() == {"b": b"content"}
