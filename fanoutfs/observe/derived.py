"""What is computed from counters: fan-out, requests saved and their price.  Pure functions.

All of it is a lower bound of what the mount is worth: what the kernel answers from its own caches (dentries,
attributes, pages) sends no message, and nobody but the kernel could count it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fanoutfs.errors import UsageError
from fanoutfs.records import GIB

DEFAULT_PRICES: Final = "get=0.0004,head=0.0004,list=0.005,put=0.005,copy=0.005,delete=0,gib=0"
"""Per 1,000 requests, and per GiB fetched: Amazon S3 Standard in us-east-1, read from within the region, in dollars
(https://aws.amazon.com/s3/pricing, 2025).  Traffic that leaves the region costs up to 0.09 a GB."""

_KINDS: Final = ("get", "head", "list", "put", "copy", "delete", "gib")
_SENT: Final = {
    "get": "backend_gets",
    "head": "backend_heads",
    "list": "backend_lists",
    "put": "backend_puts",
    "copy": "backend_copies",
    "delete": "backend_deletes",
}
_WOULD_SEND: Final = {"get": ("read",), "head": ("lookup",), "list": ("readdir", "readdirplus")}
"""What a client without any cache would have sent for a message: a ranged GET, a HEAD, a page of a listing."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What requests cost, per 1,000 of a kind, and bytes fetched, per GiB (`gib`), in whatever money."""

    by_kind: Mapping[str, float]

    def of_requests(self, requests: Mapping[str, int]) -> float:
        """Return the price of so many requests of each kind."""
        return sum(self.by_kind.get(kind, 0.0) * count / 1000 for kind, count in requests.items())

    def of_bytes(self, fetched_bytes: int) -> float:
        """Return the price of bytes fetched."""
        return self.by_kind.get("gib", 0.0) * fetched_bytes / GIB


def parse_prices(text: str) -> Prices:
    """Return the table written as `get=0.0004,put=0.005,...`; kinds left out cost nothing.  Raises UsageError."""
    by_kind: dict[str, float] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        kind, equals, number = word.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if kind.strip() not in _KINDS or not equals or not 0 <= value < 1e9:
            raise UsageError(f"prices: `{word}`: write KIND=PRICE, KIND one of {', '.join(_KINDS)}")
        by_kind[kind.strip()] = value
    return Prices(by_kind)


def fan_out(counters: Mapping[str, int]) -> float | None:
    """Return how often each byte fetched from the backend was handed to a reader; None before the first fetch."""
    fetched = counters.get("backend_bytes", 0)
    return counters.get("reader_bytes", 0) / fetched if fetched else None


def hit_ratio(counters: Mapping[str, int], opcode: str = "read") -> float | None:
    """Return the share of messages that fronts answered without the core; None when there was none."""
    answered = counters.get(f"messages_{opcode}_answered", 0)
    return 1 - min(1.0, counters.get(f"messages_{opcode}_relayed", 0) / answered) if answered else None


def requests_saved(counters: Mapping[str, int]) -> dict[str, int]:
    """Return how many requests of each kind a client without any cache would have sent beyond those that were sent."""
    saved = {}
    for kind, opcodes in _WOULD_SEND.items():
        asked = sum(counters.get(f"messages_{opcode}_answered", 0) for opcode in opcodes)
        saved[kind] = max(0, asked - counters.get(_SENT[kind], 0))
    return saved


def requests_sent(counters: Mapping[str, int]) -> dict[str, int]:
    """Return how many requests of each kind were sent."""
    return {kind: counters.get(name, 0) for kind, name in _SENT.items()}


def cost_spent(counters: Mapping[str, int], prices: Prices) -> float:
    """Return the price of what was sent and fetched."""
    return prices.of_requests(requests_sent(counters)) + prices.of_bytes(counters.get("backend_bytes", 0))


def cost_saved(counters: Mapping[str, int], prices: Prices) -> float:
    """Return the price of the requests saved, and of the bytes handed out more often than they were fetched."""
    repeated_bytes = max(0, counters.get("reader_bytes", 0) - counters.get("backend_bytes", 0))
    return prices.of_requests(requests_saved(counters)) + prices.of_bytes(repeated_bytes)
