"""Changes that were given up are noted, key by key."""

from pathlib import Path

import pytest

from fanoutfs.backend.faulty import FaultyBackend, Lost
from fanoutfs.backend.local import LocalBackend
from fanoutfs.backend.retry import RetryingBackend, RetryPolicy
from fanoutfs.backend.unanswered import Unanswered
from fanoutfs.backend.writing import Expect, Properties
from fanoutfs.errors import TransientError


@pytest.mark.parametrize("is_settled", [False, True])
def test_try_that_got_no_answer_is_noted_though_its_repeat_got_one(tmp_path: Path, is_settled: bool) -> None:
    unanswered = Unanswered(60.0)
    faulty = FaultyBackend(LocalBackend(str(tmp_path)))
    backend = RetryingBackend(faulty, RetryPolicy(deadline_s=20, base_s=0.001), unanswered=unanswered)
    lost = Lost(TransientError("no answer", is_settled=is_settled))
    for kind in ("put", "copy", "delete"):
        faulty.script(kind, lost)
    backend.put("put", b"content", Expect.NOTHING, Properties())
    backend.copy(backend.head("put"), "copied", Expect.ANYTHING, None)
    backend.delete("deleted")
    keys = ("put", "copied", "deleted", "another")
    found = [(unanswered.put_left_s(key) > 0, unanswered.change_left_s(key) > 0) for key in keys]
    missed = (not is_settled, not is_settled)
    assert found == [missed, missed, (False, not is_settled), (False, False)]


def test_key_is_free_again_when_nothing_can_begin_any_more() -> None:
    unanswered = Unanswered(0.0)
    unanswered.note("a", is_put=True)
    assert unanswered.put_left_s("a") == unanswered.change_left_s("a") == 0.0
