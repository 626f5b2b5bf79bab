"""`fanoutfs stats`: what a mount counted since it was mounted."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from fanoutfs.cli.client import call
from fanoutfs.cli.place import find_place
from fanoutfs.config.units import show_size
from fanoutfs.errors import UsageError
from fanoutfs.observe.derived import hit_ratio


@click.command(epilog="Example: fanoutfs stats /mnt/data --prometheus > /var/lib/node_exporter/data.prom")
@click.argument("mountpoint")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@click.option("--prometheus", is_flag=True, help="print all metrics in the text format of Prometheus")
def stats(mountpoint: str, as_json: bool, prometheus: bool) -> None:
    """Show what the mount at MOUNTPOINT counted since it was mounted.

    Reads that the kernel answers from its page cache reach nobody but the kernel, and are not counted.
    """
    if as_json and prometheus:
        raise UsageError("stats: --json and --prometheus exclude each other")
    where, _relative = find_place(mountpoint)
    if prometheus:
        click.echo(call(where, "stats", format="prometheus"), nl=False)
        return
    result = call(where, "stats")
    click.echo(json.dumps(result, indent=2, sort_keys=True) if as_json else "\n".join(describe(result)))


def describe(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the control socket answers to {"op": "stats"} as lines for a person."""
    counters, gauges, saved = result["counters"], result["gauges"], result["requests_saved"]
    yield f"{result['mountpoint']}  from  {result['source']}"
    read, fetched = show_size(counters["reader_bytes"]), show_size(counters["backend_bytes"])
    ratio = gauges.get("fan_out_ratio")
    yield f"  read       {read}, fetched {fetched}" + (f": fan-out {ratio:.2f}" if ratio is not None else "")
    hits = hit_ratio(counters)
    if hits is not None:
        yield f"  READs      {hits:.1%} answered without the core (page cache hits are invisible)"
    yield f"  saved      {saved['get']:,} GET, {saved['head']:,} HEAD, {saved['list']:,} LIST, at least"
    yield f"  price      {gauges['cost_spent']:.4f} spent, {gauges['cost_saved']:.4f} saved (setting `prices`)"
    some, full = counters["stall_some_ns"] / 1e9, counters["stall_full_ns"] / 1e9
    yield f"  stalled    {some:.3f} s somebody waited for the core, {full:.3f} s nobody else got on either"
    yield f"  {'latency, ms':<30} {'count':>10} {'mean':>9} {'p50 <':>9} {'p90 <':>9} {'p99 <':>9}"
    for latency in result["latencies"]:
        name = f"store {latency['call']}" if "call" in latency else f"{latency['opcode']} by {latency['answered_by']}"
        shown = " ".join(f"{latency[key]:>9.3f}" for key in ("mean_ms", "p50_ms", "p90_ms", "p99_ms"))
        yield f"    {name:<28} {latency['count']:>10,} {shown}"
