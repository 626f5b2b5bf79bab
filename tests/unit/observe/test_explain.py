"""The rules of `why`."""

from typing import Any

import pytest

from fanoutfs.observe.explain import Facts, explain, split_of
from fanoutfs.records import GIB, MIB

FACTS = Facts(
    requests=128,
    fill_memory=256 * MIB,
    cache_size=20 * GIB,
    cache_used=GIB,
    known_bytes=100 * GIB,
    max_readahead=64 * MIB,
    metadata_ttl_s=60.0,
    fronts=4,
    processors=4,
)


def entry(opcode: str = "READ", *, again: bool = False, error: str = "", alone: bool = False, **waits: float) -> Any:
    shares = {f"{wait}_ms": waits.get(wait, 0.0) for wait in ("backend", "queue", "disk", "daemon")}
    return {
        "opcode": opcode,
        "took_ms": sum(shares.values()),
        "error": error,
        "again": again,
        "asked_core": not alone,
        **shares,
    }


def causes(*entries: Any, **changed: Any) -> dict[str, str]:
    facts = Facts(**{**{name: getattr(FACTS, name) for name in FACTS.__slots__}, **changed})
    return {advice.cause: advice.change for advice in explain(entries, facts)}


def test_nothing_slow_has_no_cause() -> None:
    assert causes() == {}
    assert split_of([]) == {"backend": 0, "queue": 0, "disk": 0, "daemon": 0}


def test_split_is_of_the_time_not_of_the_requests() -> None:
    assert split_of([entry(backend=30), entry(disk=10)]) == {"backend": 0.75, "queue": 0, "disk": 0.25, "daemon": 0}


@pytest.mark.parametrize(
    ("entries", "changed", "cause", "word"),
    [
        ([entry(backend=100, daemon=5)], {}, "store: content", "fanoutfs warm"),
        ([entry(backend=100)], {"max_readahead": 0}, "store: content", "--max-readahead above 0"),
        ([entry("LOOKUP", backend=100)], {}, "store: names", "longer --metadata-ttl"),
        ([entry("READDIRPLUS", backend=100)], {"metadata_ttl_s": float("inf")}, "store: names", "fanoutfs import"),
        (
            [entry(queue=60, daemon=20, disk=20)],
            {},
            "queue: fills",
            "--requests and --fill-memory (128 and 256MiB now)",
        ),
        ([entry("WRITE", queue=60)], {}, "queue: staging", "--staging-size"),
        ([entry(disk=60, alone=True)], {}, "disk", "--cache-dir"),
        ([entry(daemon=60)], {"fronts": 2}, "daemon", "--fronts (2 now, 4 processors)"),
        ([entry(daemon=60)], {}, "daemon", "more processors"),
        ([entry(again=True, queue=20, disk=20, daemon=30, backend=30)], {}, "evicted", "--free-space-floor"),
        (
            [entry(again=True, queue=20, disk=20, daemon=30, backend=30)],
            {"cache_used": 19 * GIB},
            "evicted",
            "raise --cache-size (20GiB now; 100GiB would hold it all)",
        ),
        ([entry(error="EIO", queue=20, disk=20, daemon=30, backend=30)], {}, "errors", "fanoutfs doctor"),
    ],
)
def test_cause_and_change(entries: list[Any], changed: dict[str, Any], cause: str, word: str) -> None:
    found = causes(*entries, **changed)
    assert list(found) == [cause]
    assert word in found[cause]


def test_several_causes_come_in_the_order_of_their_weight() -> None:
    found = causes(entry(error="EIO", backend=50), entry(again=True, backend=20, queue=30))
    assert list(found) == ["errors", "evicted", "store: content", "queue: fills"][: len(found)]
    assert "errors" in found
    assert "evicted" in found


def test_one_wait_in_five_for_evicted_bytes_is_enough() -> None:
    rest = [entry(queue=20, disk=20, daemon=30, backend=30) for _n in range(5)]
    assert "evicted" not in causes(entry(again=True), *rest)
    assert "evicted" in causes(entry(again=True), *rest[:4])
