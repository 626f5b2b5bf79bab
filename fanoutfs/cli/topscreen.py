"""The screen of `fanoutfs top`, by rich."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fanoutfs.cli.topview import View
from fanoutfs.config.units import show_size
from fanoutfs.observe.explain import WAITS

_PROCESSES = 20
_WAITING = 5


def render(view: View) -> Group:
    """Return the screen."""
    parts: list[RenderableType] = [
        Text(f"{view.mountpoint}  from  {view.source}", style="bold"),
        _traffic(view),
        _state(view),
    ]
    parts.append(_processes(view))
    if view.waiting:
        parts.append(_waiting(view))
    return Group(*parts)


def _traffic(view: View) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("read", f"{show_size(view.read_per_s)}/s", "fetched", f"{show_size(view.fetched_per_s)}/s",
                  "requests", f"{view.requests_per_s:,.0f}/s")  # fmt: skip
    table.add_row("written", f"{show_size(view.written_per_s)}/s", "uploaded", f"{show_size(view.sent_per_s)}/s",
                  "GETs", f"{view.gets_per_s:,.1f}/s")  # fmt: skip
    return table


def _state(view: View) -> Table:
    gauges = view.gauges
    table = Table.grid(padding=(0, 2))
    if view.hits is None:
        hits = "no READ reached the daemon"
    else:
        hits = ", ".join(f"{name} {share:.1%}" for name, share in view.hits.items())
    table.add_row("hits", f"{hits} (page cache: invisible)")
    waits = ", ".join(f"{wait} {view.waits[wait]:.2f}" for wait in WAITS)
    stalled = ", ".join(f"{kind} {share:.1%}" for kind, share in view.stalled.items())
    table.add_row("waits", f"s/s: {waits};  stalled: {stalled}")
    used, cap = show_size(gauges["cache_used"]), show_size(gauges["cache_cap"])
    fills = show_size(gauges["fill_memory_used"])
    table.add_row(
        "cache", f"{used} of {cap};  fills {fills} in flight, {gauges['requests_in_flight']:.0f} requests wait"
    )
    if "uploads_queued" in gauges:
        staged = show_size(gauges["staged"])
        table.add_row("uploads", f"{gauges['uploads_queued']:.0f} files queued, {staged} not in the store yet")
    return table


def _processes(view: View) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("pid", "read/s", "written/s", "req/s", *WAITS):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("command", no_wrap=True)
    table.add_column("cgroup", no_wrap=True, overflow="ellipsis")
    for user in view.processes[:_PROCESSES]:
        table.add_row(
            str(user.pid),
            show_size(user.read_per_s),
            show_size(user.written_per_s),
            f"{user.requests_per_s:,.0f}",
            *(f"{user.waits[wait]:.2f}" for wait in WAITS),
            Text(user.command),
            Text(user.cgroup),
        )
    return table


def _waiting(view: View) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("waits ms", "request", "pid"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("path", no_wrap=True, overflow="ellipsis")
    for request in view.waiting[:_WAITING]:
        table.add_row(
            f"{request['age_ms']:.0f}", request["opcode"].lower(), str(request["pid"]), Text(request["path"] or "?")
        )
    return table
