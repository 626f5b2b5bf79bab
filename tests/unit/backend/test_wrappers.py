"""What measure counts and what faulty breaks."""

import threading
from collections import Counter

import obstore
import pytest
from obstore.store import MemoryStore

from fanoutfs.backend.faulty import PASS, FaultyBackend, corrupt, short
from fanoutfs.backend.measure import MeasuringBackend
from fanoutfs.backend.store import StoreBackend
from fanoutfs.backend.writing import Expect, Properties
from fanoutfs.errors import ObjectMissingError, PreconditionFailedError, TransientError, VersionGoneError
from fanoutfs.records import Version


def _store(**bodies: bytes) -> StoreBackend:
    store = MemoryStore()
    for key, body in bodies.items():
        obstore.put(store, key, body)
    return StoreBackend(store, if_match_form="bare")


class HandClock:
    """A clock that advances by 5 ns whenever it is read."""

    def __init__(self) -> None:
        self.now_ns = 0

    def wall_ns(self) -> int:
        return self.monotonic_ns()

    def monotonic_ns(self) -> int:
        self.now_ns += 5
        return self.now_ns


def test_measure_counts_every_kind_with_its_time() -> None:
    counted: Counter[str] = Counter()
    faulty = FaultyBackend(_store(a=b"0123456789"))
    backend = MeasuringBackend(faulty, lambda name, value: counted.update({name: value}), HandClock())
    version = backend.head("a").version
    backend.get_range("a", 2, 6, version)
    list(backend.list(""))
    with pytest.raises(ObjectMissingError):
        backend.head("b")
    with pytest.raises(VersionGoneError):
        backend.get_range("a", 0, 1, Version("other", "", 10, 0))
    faulty.script("get", TransientError("reset"))
    with pytest.raises(TransientError):
        backend.get_range("a", 0, 1, version)
    assert counted == {
        "backend_heads": 2, "backend_head_ns": 10, "backend_gets": 3, "backend_get_ns": 15,
        "backend_lists": 1, "backend_list_ns": 5, "backend_bytes": 4, "backend_missing": 2, "backend_errors": 1,
    }  # fmt: skip


def test_measure_counts_changes_and_what_they_sent() -> None:
    counted: Counter[str] = Counter()
    backend = MeasuringBackend(_store(a=b"0123456789"), lambda name, value: counted.update({name: value}), HandClock())
    version = backend.put("b", b"12345", Expect.NOTHING, Properties())
    with pytest.raises(PreconditionFailedError):
        backend.put("b", b"123", Expect.NOTHING, Properties())
    backend.copy(backend.head("a"), "c", Expect.ANYTHING, None)
    backend.delete("b", version)
    backend.details("c")
    backend.abilities()
    assert counted == {
        "backend_puts": 2, "backend_put_ns": 10, "backend_sent_bytes": 5, "backend_conflicts": 1,
        "backend_copies": 1, "backend_copy_ns": 5, "backend_deletes": 1, "backend_delete_ns": 5,
        "backend_heads": 2, "backend_head_ns": 10,
    }  # fmt: skip


def test_faulty_takes_its_script_in_order_and_then_passes() -> None:
    faulty = FaultyBackend(_store(a=b"0123456789"))
    version = faulty.head("a").version
    faulty.script("get", PASS, corrupt, short, TransientError("reset"))
    bodies = [bytes(faulty.get_range("a", 0, 10, version)) for _ in range(3)]
    assert bodies == [b"0123456789", b"012344" + b"6789", b"012345678"]
    with pytest.raises(TransientError):
        faulty.get_range("a", 0, 10, version)
    assert bytes(faulty.get_range("a", 0, 10, version)) == b"0123456789"
    assert {kind: count for kind, count in faulty.calls.items() if count} == {"head": 1, "get": 5}


def test_faulty_gate_holds_calls_until_released() -> None:
    faulty = FaultyBackend(_store(a=b"x"))
    gate = faulty.hold("head")
    sizes: list[int] = []
    threads = [threading.Thread(target=lambda: sizes.append(faulty.head("a").version.size_bytes)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert gate.arrived.acquire(timeout=10)
    assert sizes == []
    gate.release()
    for thread in threads:
        thread.join(10)
    assert sizes == [1, 1, 1]
    assert faulty.head("a").version.size_bytes == 1
