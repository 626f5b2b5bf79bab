"""Latencies of single operations: counted in buckets narrow enough for any percentile, merged over processes.

A bucket is 1/64 of a power of two wide, as fio's and HdrHistogram's are: what is read from it is at most 0.8 % wrong,
from a nanosecond to centuries.  Least, most and the sums are exact.
"""

import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

_FINE: Final = 128
"""Below so many ns each has a bucket of its own."""
_BITS: Final = 7
_HALF: Final = 64
_BUCKETS: Final = (64 - _BITS) * _HALF + _FINE
_HEAD: Final = struct.Struct("=QQQQd")  # how many, least, most, sum, sum of squares
_COUNT: Final = struct.Struct("=Q")
BYTES: Final = _HEAD.size + _BUCKETS * _COUNT.size
"""What `write_to` may take."""


@dataclass(slots=True)
class Latencies:
    """How long operations took, in ns."""

    count: int = 0
    least_ns: int = 0
    most_ns: int = 0
    sum_ns: int = 0
    squares: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, seen: Mapping[int, int]) -> "Latencies":
        """Return those of which the mapping tells how often each was seen: ns → times.  Not empty."""
        found = cls(
            count=sum(seen.values()),
            least_ns=min(seen),
            most_ns=max(seen),
            sum_ns=sum(ns * times for ns, times in seen.items()),
            squares=float(sum(ns * ns * times for ns, times in seen.items())),
        )
        for ns, times in seen.items():
            bucket = _bucket(ns)
            found.buckets[bucket] = found.buckets.get(bucket, 0) + times
        return found

    @classmethod
    def merged(cls, parts: "Iterable[Latencies]") -> "Latencies":
        """Return those of all parts together."""
        found = cls()
        for part in parts:
            if not part.count:
                continue
            found.least_ns = min(found.least_ns, part.least_ns) if found.count else part.least_ns
            found.most_ns = max(found.most_ns, part.most_ns)
            found.count += part.count
            found.sum_ns += part.sum_ns
            found.squares += part.squares
            for bucket, times in part.buckets.items():
                found.buckets[bucket] = found.buckets.get(bucket, 0) + times
        return found

    @property
    def mean_ns(self) -> float:
        """The mean, 0 of nothing."""
        return self.sum_ns / self.count if self.count else 0.0

    @property
    def deviation_ns(self) -> float:
        """The standard deviation, 0 of nothing."""
        return max(0.0, self.squares / self.count - self.mean_ns**2) ** 0.5 if self.count else 0.0

    def percentile_ns(self, share: float) -> float:
        """Return what this share (0 to 1) of the operations took at most, 0 of nothing."""
        left = share * self.count
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return min(float(self.most_ns), max(float(self.least_ns), _middle(bucket)))
        return float(self.most_ns)

    def write_to(self, memory: mmap.mmap, offset: int) -> None:
        """Write into memory that holds zeroes; only the pages with something in them are touched."""
        for bucket, times in self.buckets.items():
            _COUNT.pack_into(memory, offset + _HEAD.size + bucket * _COUNT.size, times)
        _HEAD.pack_into(memory, offset, self.count, self.least_ns, self.most_ns, self.sum_ns, self.squares)

    @classmethod
    def read_from(cls, memory: mmap.mmap, offset: int) -> "Latencies":
        """Return what `write_to` wrote, or none."""
        found = cls(*_HEAD.unpack_from(memory, offset))
        if found.count:
            counts = struct.unpack_from(f"={_BUCKETS}Q", memory, offset + _HEAD.size)
            found.buckets = {bucket: times for bucket, times in enumerate(counts) if times}
        return found


def _bucket(ns: int) -> int:
    if ns < _FINE:
        return ns
    power = ns.bit_length() - _BITS
    return power * _HALF + (ns >> power)


def _middle(bucket: int) -> float:
    if bucket < _FINE:
        return float(bucket)
    power = bucket // _HALF - 1
    return float((bucket - power * _HALF) << power) + (1 << power) / 2
