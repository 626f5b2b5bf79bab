"""Latency histograms in shared memory: how long requests took, by opcode, and calls of the backend, by kind.

Each process has a row of its own, so that counting takes no lock; a reader adds the rows up.  A series is 32 words:
30 buckets, one unused, the sum in ns.  Bucket n counts what took less than 2**(n + 12) ns and not less than half of
that, but for the first (below 4.1 µs) and the last (whatever is longer than 18 minutes): a shift and a bit_length()
find it.  Powers of two are coarse, and cost a front 0.2 µs a request where finer ones cost it a search.

Requests that a front answered by itself and those that the core had to help with are different series: the mixture
of a microsecond and a round trip to the store says nothing.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fanoutfs.wire.kernel import Opcode

BUCKETS: Final = 30
SHIFT: Final = 12
SERIES_WORDS: Final = 32
SUM: Final = 31

FRONT_BASE: Final = 0
"""Series FRONT_BASE + opcode: requests that a front answered by itself."""
CORE_BASE: Final = 64
"""Series CORE_BASE + opcode: requests that waited for the core."""
BACKEND_BASE: Final = 128


class Call(IntEnum):
    """Kinds of calls of the backend, by series.  The names are those that backend.measure counts."""

    HEAD = BACKEND_BASE
    GET = BACKEND_BASE + 1
    LIST = BACKEND_BASE + 2
    PUT = BACKEND_BASE + 3
    COPY = BACKEND_BASE + 4
    DELETE = BACKEND_BASE + 5


_SERIES: Final = BACKEND_BASE + len(Call)
_ROW_WORDS: Final = _SERIES * SERIES_WORDS

BOUNDS_NS: Final = tuple(1 << (SHIFT + bucket) for bucket in range(BUCKETS - 1))
"""Upper ends, not included, of all buckets but the last, which has none."""

REQUEST_HELP: Final = (
    "time from the kernel's request to its answer; answered_by: the front alone, or with the core's help"
)
BACKEND_HELP: Final = "time the calls of the store took, each try for itself; a listing: each page"


@dataclass(frozen=True, slots=True)
class Latency:
    """One series, summed over all processes.  counts: by bucket, not cumulative."""

    series: int
    counts: tuple[int, ...]
    sum_ns: int

    @property
    def count(self) -> int:
        """Return how many were measured."""
        return sum(self.counts)

    @property
    def labels(self) -> dict[str, str]:
        """Return what tells this series from the others of its metric."""
        if self.is_backend:
            return {"call": Call(self.series).name.lower()}
        answered_by = "front" if self.series < CORE_BASE else "core"
        number = self.series % CORE_BASE
        known = number in Opcode._value2member_map_  # else a newer kernel's
        return {"opcode": Opcode(number).name.lower() if known else str(number), "answered_by": answered_by}

    @property
    def is_backend(self) -> bool:
        """Tell whether these are calls of the backend."""
        return self.series >= BACKEND_BASE

    def quantile_ns(self, share: float) -> int:
        """Return the upper end of the bucket in which this share of all ends; 0 when nothing was measured."""
        wanted = share * self.count
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return BOUNDS_NS[min(bucket, len(BOUNDS_NS) - 1)]
        return 0


class Latencies:
    """The rows of all processes.  Created by the keeper; children inherit it by fork."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._words = memoryview(mmap.mmap(-1, rows * _ROW_WORDS * 8)).cast("Q")

    def row(self, index: int) -> memoryview:
        """Return the words of one process, who alone writes them."""
        return self._words[index * _ROW_WORDS : (index + 1) * _ROW_WORDS]

    def measured(self) -> Iterator[Latency]:
        """Yield every series in which something was measured."""
        rows = [self.row(index) for index in range(self._rows)]
        for series in range(_SERIES):
            at = series * SERIES_WORDS
            parts = [row[at : at + SERIES_WORDS].tolist() for row in rows]
            counts = tuple(map(sum, zip(*(part[:BUCKETS] for part in parts), strict=True)))
            if any(counts):
                yield Latency(series, counts, sum(part[SUM] for part in parts))


def observe(row: memoryview, series: int, elapsed_ns: int) -> None:
    """Count one request or call in the calling process's own row."""
    at = series * SERIES_WORDS
    bucket = (elapsed_ns >> SHIFT).bit_length()
    row[at + (bucket if bucket < BUCKETS else BUCKETS - 1)] += 1
    row[at + SUM] += elapsed_ns
