"""The short form of the soak: half a minute of mixed load, each fault once."""

import random
import tempfile
from pathlib import Path

from tests.soak.run import EVENTS, as_text, errors_of, soak_it

MINUTES = 0.45


def test_half_a_minute_of_faults_under_load_is_seen_by_nobody() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    with tempfile.TemporaryDirectory(prefix="fanoutfs-test-", dir="/var/tmp", ignore_cleanup_errors=True) as base:
        report = soak_it(MINUTES, 0.5, seed, 5.0, 1, Path(base))
    print(as_text(report))
    assert errors_of(report) == []
    assert set(report["events"]) == set(EVENTS)
    assert all(job["calls"] for job in report["jobs"])
    assert all(job["bytes_verified"] for job in report["jobs"] if job["role"].endswith("reader"))
