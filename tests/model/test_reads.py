"""Thousands of steps of the state machine, on each kind of source.

FANOUTFS_MODEL_STEPS   steps in total over all sources (default 1200; scripts/test asks for 10000)
FANOUTFS_MODEL_SEED    repeat a run: the number a failure printed
FANOUTFS_MODEL_SHRINK  1: let hypothesis look for a shorter failure (minutes)
"""

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import ReadsMachine
from tests.model.sources import BucketSource, Source, directory_source
from tests.support.mounts import mounted
from tests.support.servers import S3Server

STEPS = int(os.environ.get("FANOUTFS_MODEL_STEPS", "1200"))
STEPS_PER_EXAMPLE = 100
SHARES = {"weed": 0.4, "moto": 0.3, "directory": 0.3}
"""SeaweedFS is a real store, but lists a prefix for ever; moto forgets it, and holds `a` and `a/b` at once; a directory
brings other errors."""


@pytest.fixture(params=sorted(SHARES))
def source(request: pytest.FixtureRequest) -> Iterator[Source]:
    kind: str = request.param
    make: dict[str, Callable[[], AbstractContextManager[Source]]] = {
        # A short TTL: background listings run in between, and the mount may see changes before it is told.
        "weed": lambda: contextlib.nullcontext(bucket_source(request, "weed", "-o", "metadata_ttl=1s")),
        "moto": lambda: contextlib.nullcontext(bucket_source(request, "moto", "-o", "metadata_ttl=1h")),
        "directory": lambda: directory_source("-o", "metadata_ttl=1h"),
    }
    with make[kind]() as found:
        yield found


def bucket_source(request: pytest.FixtureRequest, server: str, *options: str) -> Source:
    running: S3Server = request.getfixturevalue(server)
    return BucketSource(
        running.bucket(), keeps_both=server == "moto", keeps_directories=server == "weed", options=options
    )


def run_settings(steps: int) -> settings:
    """Return hypothesis's settings for about this many steps, and a first example that does not count."""
    per_example = min(STEPS_PER_EXAMPLE, steps)
    return settings(
        max_examples=-(-steps // per_example) + 1,
        stateful_step_count=per_example,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if os.environ.get("FANOUTFS_MODEL_SHRINK") else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def steps_of(counted: Counter[str]) -> int:
    """Return how many rules ran; what stands in brackets are outcomes."""
    return sum(n for name, n in counted.items() if not name.startswith("("))


@pytest.mark.timeout(3600)
def test_reads_equal_the_reference_while_objects_change_underneath(
    source: Source, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = request.node.callspec.params["source"]
    number = int(os.environ.get("FANOUTFS_MODEL_SEED") or random.SystemRandom().randrange(1 << 32))
    wanted = round(STEPS * SHARES[kind])
    counted: Counter[str] = Counter()
    begun = time.monotonic()

    # 48 MiB hold five of the largest objects: eviction is part of the game.
    with mounted(source.url, "-o", "cache_size=48m", *source.options, env=source.env) as mount:

        class Machine(ReadsMachine):
            pass

        Machine.mount, Machine.source, Machine.statistics, Machine.examples = mount, source, counted, 0
        try:
            while (missing := wanted - steps_of(counted)) > 0:
                run_state_machine_as_test(seed(number)(Machine), settings=run_settings(missing))
                number += 1
        except BaseException:
            print(f"repeat with FANOUTFS_MODEL_SEED={number} FANOUTFS_MODEL_STEPS={STEPS}")
            print("\n".join(mount.log().splitlines()[-60:]))
            raise
        counters = mount.counters()
    with capsys.disabled():
        print(f"\nmodel on {kind}: {steps_of(counted)} steps in {time.monotonic() - begun:.0f} s")
        print("  " + ", ".join(f"{name} {n}" for name, n in sorted(counted.items())))
        names = ("verify_failures", "evicted_bytes", "fills_started", "version_switches", "orphans_freed")
        print("  since the last remount: " + ", ".join(f"{name} {counters[name]}" for name in names))
    assert counters["request_errors"] == 0, "a request met an exception nobody expected: see the log"
