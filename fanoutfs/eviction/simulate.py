"""Policies against traces: hit rates, and how near they come to the best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fanoutfs.eviction.arc import ARC
from fanoutfs.eviction.base import Policy
from fanoutfs.eviction.classic import LRU, MRU, Clock, Keep, RandomAdmission, RandomChoice, TwoRandom
from fanoutfs.eviction.density import Density
from fanoutfs.eviction.lirs import LIRS
from fanoutfs.eviction.oracle import Belady, BestFixed
from fanoutfs.eviction.s3fifo import S3Fifo
from fanoutfs.eviction.traces import Access

POLICIES: Final[tuple[type[Policy], ...]] = (
    Density,
    RandomChoice,
    TwoRandom,
    LRU,
    MRU,
    Clock,
    S3Fifo,
    ARC,
    LIRS,
    RandomAdmission,
    Keep,
)
SUBJECT: Final = Density.name
BELADY: Final = Belady.name
BEST_FIXED: Final = BestFixed.name


@dataclass(frozen=True, slots=True)
class Result:
    """What one policy did with one trace, from the first counted access on."""

    policy: str
    hits: int
    accesses: int
    hit_bytes: int
    total_bytes: int

    @property
    def hit_rate(self) -> float:
        """Return the share of bytes that were answered from the cache."""
        return self.hit_bytes / self.total_bytes if self.total_bytes else 0.0


def replay(policy: Policy, trace: Sequence[Access], first_counted: int = 0) -> Result:
    """Run one policy over a trace; what comes before `first_counted` warms the cache and does not count."""
    hits = hit_bytes = total_bytes = 0
    for at, (key, size_bytes) in enumerate(trace):
        is_hit = policy.access(key, size_bytes)
        if at >= first_counted:
            hits += is_hit
            hit_bytes += size_bytes * is_hit
            total_bytes += size_bytes
    return Result(policy.name, hits, len(trace) - first_counted, hit_bytes, total_bytes)


def compare(
    trace: Sequence[Access],
    cap_bytes: int,
    first_counted: int = 0,
    policies: Sequence[Callable[[int], Policy]] = POLICIES,
) -> list[Result]:
    """Run the policies, and then those that know the future, over a trace."""
    results = [replay(policy(cap_bytes), trace, first_counted) for policy in policies]
    results.append(replay(BestFixed(cap_bytes, trace[first_counted:]), trace, first_counted))
    results.append(replay(Belady(cap_bytes, [key for key, _size in trace]), trace, first_counted))
    return results
