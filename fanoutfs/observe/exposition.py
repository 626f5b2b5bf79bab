"""The catalog as Prometheus sees it: names, units and texts of a mount's metrics, by prometheus_client.

Imports a library of 75 ms: only who was asked for metrics loads this module.

Names: `fanoutfs_` and the name in the catalog; counters end with `_total`, times are in seconds.  Every sample carries
the mountpoint, so that the files of several mounts can lie in one directory of the node exporter.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from fanoutfs.observe.catalog import ANSWERED_BASE, GAUGES, METRICS, RELAYED_BASE, message_names
from fanoutfs.observe.latency import BACKEND_HELP, BOUNDS_NS, REQUEST_HELP, Latency
from fanoutfs.wire.kernel import Opcode

PREFIX: Final = "fanoutfs_"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0"
PLAIN: Final = "text/plain"
_MESSAGES: Final = (
    ("messages_answered", "messages from the kernel that a front answered, with or without the core", ANSWERED_BASE),
    ("messages_relayed", "questions that fronts had to put to the core before they could answer", RELAYED_BASE),
)
_HISTOGRAMS: Final = (("request_duration_seconds", REQUEST_HELP), ("backend_call_duration_seconds", BACKEND_HELP))
_NS: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a mount counted until now.  gauges: by name in the catalog; one that is unknown now is left out."""

    mountpoint: str
    counters: Mapping[str, int]
    gauges: Mapping[str, float]
    latencies: Sequence[Latency]


def encode(snapshot: Snapshot, accept: str = OPENMETRICS) -> tuple[bytes, str]:
    """Return (text, content type) of the format that this Accept header asks for."""
    encoder, content_type = choose_encoder(accept)
    return encoder(_Source(snapshot)), content_type


def exported_names() -> frozenset[str]:
    """Return the names of all samples that there can be, as queries spell them."""
    names = {f"{PREFIX}{_counter_name(metric.name, metric.unit)}_total" for metric in METRICS}
    names |= {f"{PREFIX}{name}_total" for name, _help, _base in _MESSAGES}
    names |= {f"{PREFIX}{gauge_name(gauge.name, gauge.unit)}" for gauge in GAUGES}
    names |= {f"{PREFIX}{name}_{part}" for name, _help in _HISTOGRAMS for part in ("bucket", "count", "sum")}
    return frozenset(names)


def gauge_name(name: str, unit: str) -> str:
    """Return a gauge's name with its unit at the end."""
    ending = {"bytes": "_bytes", "s": "_seconds"}.get(unit, "")
    return name if name.endswith(ending) else name + ending


def _counter_name(name: str, unit: str) -> str:
    return f"{name.removesuffix('_ns')}_seconds" if unit == "ns" else name


class _Source(Collector):
    """The families of one snapshot, for the library's encoders."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield them."""
        yield from self._counters()
        yield from self._gauges()
        yield from self._histograms()

    def _counters(self) -> Iterator[Metric]:
        shown = self._snapshot
        for metric in METRICS:
            value = shown.counters.get(metric.name, 0)
            family = CounterMetricFamily(
                PREFIX + _counter_name(metric.name, metric.unit), _sentence(metric.help, metric.stability),
                labels=["mountpoint"],
            )  # fmt: skip
            family.add_metric([shown.mountpoint], value * _NS if metric.unit == "ns" else value)
            yield family
        names = message_names()
        for name, text, base in _MESSAGES:
            family = CounterMetricFamily(PREFIX + name, text, labels=["mountpoint", "opcode"])
            for opcode in Opcode:
                if value := shown.counters.get(names[base + opcode], 0):
                    family.add_metric([shown.mountpoint, opcode.name.lower()], value)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        for gauge in GAUGES:
            if (value := self._snapshot.gauges.get(gauge.name)) is not None:
                name = PREFIX + gauge_name(gauge.name, gauge.unit)
                family = GaugeMetricFamily(name, _sentence(gauge.help, gauge.stability), labels=["mountpoint"])
                family.add_metric([self._snapshot.mountpoint], value)
                yield family

    def _histograms(self) -> Iterator[Metric]:
        for (name, text), is_backend in zip(_HISTOGRAMS, (False, True), strict=True):
            labels = ["call"] if is_backend else ["opcode", "answered_by"]
            family = HistogramMetricFamily(PREFIX + name, text, labels=["mountpoint", *labels])
            for latency in self._snapshot.latencies:
                if latency.is_backend == is_backend:
                    values = [self._snapshot.mountpoint, *(latency.labels[label] for label in labels)]
                    family.add_metric(values, _cumulative(latency), latency.sum_ns * _NS)
            yield family


def _cumulative(latency: Latency) -> list[tuple[str, float]]:
    seen = 0
    buckets: list[tuple[str, float]] = []
    for bound_ns, count in zip((*BOUNDS_NS, None), latency.counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound_ns is None else repr(bound_ns * _NS), seen))
    return buckets


def _sentence(text: str, stability: str) -> str:
    return text if stability == "stable" else f"{text} ({stability})"
