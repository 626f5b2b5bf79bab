"""What Prometheus reads: by the library's own parsers."""

from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from fanoutfs.observe.catalog import GAUGES, METRICS
from fanoutfs.observe.exposition import OPENMETRICS, PLAIN, Snapshot, encode, exported_names
from fanoutfs.observe.latency import CORE_BASE, Call, Latencies, observe
from fanoutfs.wire.kernel import Opcode

PARSERS = {OPENMETRICS: parse_openmetrics, PLAIN: parse_plain}


@pytest.fixture
def snapshot() -> Snapshot:
    latencies = Latencies(1)
    for elapsed_ns in (1000, 5_000_000, 5_000_000_000):
        observe(latencies.row(0), CORE_BASE + Opcode.READ, elapsed_ns)
    observe(latencies.row(0), Call.GET, 1 << 50)
    counters = {metric.name: 3 for metric in METRICS} | {
        "backend_get_ns": 1_500_000_000,
        "messages_read_answered": 7,
        "messages_read_relayed": 2,
    }
    gauges = {gauge.name: 1.5 for gauge in GAUGES if gauge.name != "fan_out_ratio"}
    return Snapshot('/mnt/a "b"\\c', counters, gauges, list(latencies.measured()))


def samples(snapshot: Snapshot, accept: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, content_type = encode(snapshot, accept)
    assert content_type.startswith(accept.partition(";")[0])
    families: list[Any] = list(PARSERS[accept](text.decode()))
    found = {}
    for family in families:
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("mountpoint") == snapshot.mountpoint
            found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found


@pytest.mark.parametrize("accept", PARSERS)
def test_parser_finds_counters_gauges_and_histograms(snapshot: Snapshot, accept: str) -> None:
    found = samples(snapshot, accept)
    assert found["fanoutfs_reader_bytes_total", ()] == 3
    assert found["fanoutfs_backend_get_seconds_total", ()] == 1.5
    assert found["fanoutfs_messages_answered_total", (("opcode", "read"),)] == 7
    assert found["fanoutfs_messages_relayed_total", (("opcode", "read"),)] == 2
    assert found["fanoutfs_cache_used_bytes", ()] == 1.5
    assert ("fanoutfs_fan_out_ratio", ()) not in found  # unknown now
    read = (("answered_by", "core"), ("opcode", "read"))
    assert found["fanoutfs_request_duration_seconds_count", read] == 3
    assert found["fanoutfs_request_duration_seconds_sum", read] == pytest.approx(5.005001)
    buckets = [
        value
        for (name, labels), value in found.items()
        if name == "fanoutfs_request_duration_seconds_bucket" and set(read) < set(labels)
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 3
    assert found["fanoutfs_backend_call_duration_seconds_count", (("call", "get"),)] == 1


@pytest.mark.parametrize("accept", PARSERS)
def test_every_sample_is_of_the_exported_names(snapshot: Snapshot, accept: str) -> None:
    assert {name for name, _labels in samples(snapshot, accept)} <= exported_names()


def test_every_metric_of_the_catalog_is_exported() -> None:
    names = exported_names()
    assert len(names) == len(METRICS) + len(GAUGES) + 2 + 6
