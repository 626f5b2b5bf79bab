"""Shows the metrics: to whoever scrapes the endpoint, to a file for the node exporter, to `fanoutfs stats`.

Core, trio thread.  The keeper binds the listening socket, so that a scrape waits while a core is replaced instead of
being refused.  HTTP is what a scraper speaks: one GET, one answer, the connection is closed.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import trio

from fanoutfs.config.schema import MountConfig
from fanoutfs.observe.derived import Prices, cost_saved, cost_spent, fan_out, requests_saved
from fanoutfs.observe.shared import SharedState

log = logging.getLogger(__name__)

_FILE_PERIOD_S: Final = 15.0
"""As often as Prometheus asks the node exporter by default."""
_PATIENCE_S: Final = 5.0
_MAX_HEAD_BYTES: Final = 16 << 10
_MAX_CLIENTS: Final = 16


class Exporter:
    """Makes snapshots of what was counted and hands them out."""

    def __init__(
        self, mountpoint: Path, shared: SharedState, describe: Callable[[], Mapping[str, Any]], prices: Prices
    ) -> None:
        """describe: what `status` shows."""
        self._mountpoint = os.fsencode(mountpoint).decode(errors="backslashreplace")
        self._shared = shared
        self._describe = describe
        self._prices = prices
        self._clients = 0

    def stats(self) -> dict[str, Any]:
        """Return everything as one document."""
        described = self._describe()
        return {
            "mountpoint": self._mountpoint,
            "source": described["source"],
            "counters": described["counters"],
            "gauges": gauges(described, self._prices),
            "requests_saved": requests_saved(described["counters"]),
            "latencies": [
                {
                    **latency.labels,
                    "count": latency.count,
                    "mean_ms": latency.sum_ns / latency.count / 1e6,
                    **{f"p{share}_ms": latency.quantile_ns(share / 100) / 1e6 for share in (50, 90, 99)},
                }
                for latency in self._shared.latencies.measured()
            ],
        }

    def snapshot(self) -> dict[str, Any]:
        """Return what changes from second to second, for `top`."""
        described = self._describe()
        return {
            "at_s": time.monotonic(),
            "mountpoint": self._mountpoint,
            "source": described["source"],
            "counters": described["counters"],
            "gauges": gauges(described, self._prices),
            "changes": described["changes"],
        }

    def facts(self, config: MountConfig) -> dict[str, Any]:
        """Return what the rules of `why` look at (observe.explain.Facts)."""
        described = self._describe()
        return {
            "requests": config.requests,
            "fill_memory": config.fill_memory,
            "cache_size": config.cache_size,
            "cache_used": described["cache"]["used_bytes"],
            "known_bytes": described["known"]["bytes"],
            "max_readahead": config.max_readahead,
            "metadata_ttl_s": config.metadata_ttl,
            "fronts": config.front_count(),
            "processors": os.cpu_count() or 1,
        }

    async def text(self, accept: str) -> tuple[bytes, str]:
        """Return (text, content type) in the format of this Accept header.  Checkpoint."""
        described = self._describe()
        counters, standing = described["counters"], gauges(described, self._prices)
        measured = list(self._shared.latencies.measured())

        def encode() -> tuple[bytes, str]:
            # Loading the library takes 75 ms, encoding up to 90: in a thread, requests wait for the one we come from.
            from fanoutfs.observe import exposition  # noqa: PLC0415

            snapshot = exposition.Snapshot(self._mountpoint, counters, standing, measured)
            return exposition.encode(snapshot, accept)

        return await trio.to_thread.run_sync(encode)

    # --- endpoint ----------------------------------------------------------------------------------------------

    async def serve(self, listener: trio.SocketListener) -> None:
        """Answer scrapes for ever."""
        await trio.serve_listeners(self._answer, [listener])

    async def _answer(self, stream: trio.SocketStream) -> None:
        self._clients += 1
        try:
            async with stream:
                if self._clients <= _MAX_CLIENTS:  # else: closed without a word, and nobody else has to wait
                    with trio.move_on_after(_PATIENCE_S):
                        await stream.send_all(await self._respond(await _read_head(stream)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away
        finally:
            self._clients -= 1

    async def _respond(self, head: bytes) -> bytes:
        request, *fields = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"GET only\n")
        if path not in ("/metrics", "/"):
            return _response("404 Not Found", b"/metrics\n")
        named = (field.partition(":") for field in fields)
        accept = next((value.strip() for name, _, value in named if name.strip().lower() == "accept"), "")
        try:
            body, content_type = await self.text(accept)
        except Exception:  # a scrape must not end the core
            log.exception("metrics cannot be shown accept=%r", accept[:200])
            return _response("500 Internal Server Error", b"see the log\n")
        return _response("200 OK", body, content_type, is_head=method == "HEAD")

    # --- file --------------------------------------------------------------------------------------------------

    async def keep_file(self, path: Path) -> None:
        """Write the metrics to a file again and again; each time as a whole, so that nobody reads half of it."""
        new = path.with_name(f".{path.name}.{os.getpid()}")  # the collector looks at *.prom only
        try:
            while True:
                body, _content_type = await self.text("text/plain")
                try:
                    await trio.to_thread.run_sync(_replace, path, new, body)
                except OSError as error:
                    log.warning("metrics file not written path=%s: %s", path, error.strerror)
                await trio.sleep(_FILE_PERIOD_S)
        finally:
            with contextlib.suppress(OSError):  # who ends must not leave numbers that look alive
                path.unlink()


def gauges(described: Mapping[str, Any], prices: Prices) -> dict[str, float]:
    """Return the gauges of the catalog from what `status` shows; one that is not known now is left out."""
    cache, in_flight, changes = described["cache"], described["in_flight"], described["changes"]
    counters, tiering = described["counters"], described["tiering"]
    found: dict[str, float | None] = {
        "uptime": described["uptime_s"],
        "generation": described["generation"],
        **{f"cache_{name}": cache[f"{name}_bytes"] for name in ("cap", "used", "large", "small", "index")},
        "cache_disks_out": sum(disk["state"] == "out" for disk in cache.get("disks", ())),
        "known_files": described["known"]["files"],
        "known_bytes": described["known"]["bytes"],
        "requests_in_flight": in_flight["requests"],
        "oldest_request_age": in_flight["oldest_s"],
        "fill_memory_used": in_flight["fill_bytes"],
        "staged": changes["staged_bytes"],
        "staging_cap": changes["staging_cap_bytes"],
        "uploads_queued": changes.get("dirty"),
        "uploads_running": changes.get("uploading"),
        "uploads_failing": changes.get("failing"),
        "oldest_dirty_age": changes.get("oldest_dirty_s", 0.0 if "dirty" in changes else None),
        "local_files": changes.get("never_uploaded"),
        "local_bytes": changes.get("never_uploaded_bytes"),
        "pins": tiering["pins"],
        "archived_files_met": tiering["archived_files_met"],
        "tiers_age": tiering.get("tiers_age_s"),
        **{
            f"tier_{tier}_{what}": usage[what]
            for tier, usage in tiering.get("tiers", {}).items()
            for what in ("files", "bytes")
        },
        "fan_out_ratio": fan_out(counters),
        "requests_saved": sum(requests_saved(counters).values()),
        "cost_saved": cost_saved(counters, prices),
        "cost_spent": cost_spent(counters, prices),
    }
    return {name: value for name, value in found.items() if value is not None}


async def _read_head(stream: trio.SocketStream) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _MAX_HEAD_BYTES:
        chunk = await stream.receive_some(4096)
        if not chunk:
            break
        head += chunk
    return head.partition(b"\r\n\r\n")[0]


def _response(status: str, body: bytes, content_type: str = "text/plain", *, is_head: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + (b"" if is_head else body)


def _replace(path: Path, new: Path, body: bytes) -> None:
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "wb") as stream:
        os.fchmod(stream.fileno(), 0o644)  # the node exporter is another user, and the daemon's umask is 077
        stream.write(body)
    new.replace(path)
