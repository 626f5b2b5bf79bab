"""Plans, siblings and the push together, through a real mount and a real S3 server: nobody loses track of a reader
whom the page cache answers.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

import fanoutfs
from tests.mount import kernel
from tests.mount.photos import FILES, SIZE, WINDOW_FILES, content_of, gets, mounted_photos, name_of, put_photos
from tests.perf.counting import counted
from tests.support.mounts import Mount, wait_until
from tests.support.proxy_client import Proxy
from tests.support.servers import Bucket

pytestmark = pytest.mark.usefixtures("steady_caches")

LEFT_OUT = 6
"""One file in so many is left out of the push: the first that makes more than a quarter of the window."""


@pytest.fixture
def mount(bucket: Bucket, proxy: Proxy) -> Iterator[Mount]:
    put_photos(bucket)
    bucket.put("learn", b"")
    with mounted_photos(bucket, proxy, "--read-only") as mount:
        kernel.read_all(mount.path / "learn")  # the kernel learns that there are no opens
        yield mount


def read(mount: Mount, index: int) -> bool:
    """Read a file, and tell whether a READ was sent for it."""
    with counted(mount) as used:
        assert kernel.read_all(mount.path / name_of(index)) == content_of(index)
    assert used in ({}, {"read_answered": 1}), "the file was there before its reader"
    return bool(used)


def window(mount: Mount) -> tuple[int, int, int]:
    """Return (position of the plan, end of what it fetched, how many files were pushed or left out by the pusher)."""
    (plan,) = mount.status()["plans"]
    counters = mount.counters()
    # Fronts verify what they answer READs with, too.
    looked_at = counters["blocks_verified"] - counters.get("messages_read_answered", 0)
    return plan["position"], plan["fetched"], looked_at


def test_plan_window_moves_on_while_the_page_cache_answers(mount: Mount, proxy: Proxy) -> None:
    order = random.Random(1).sample(range(FILES), 120)
    os.listdir(mount.path / "train")
    fanoutfs.announce((mount.path / name_of(index) for index in order), name="epoch")
    position = reads = 0
    for step, index in enumerate(order):
        edge = min(position + WINDOW_FILES, len(order))

        pushed = (position, edge, edge - edge // LEFT_OUT)

        def has_reached(pushed: tuple[int, int, int] = pushed) -> bool:
            return window(mount) == pushed

        wait_until(has_reached, lambda: f"before {step} is read, {pushed} is pushed, not {window(mount)}")
        if read(mount, index):
            position = step + 1
            reads += 1
    wait_until(lambda: mount.status()["plans"] == [], "the plan is over")
    counters = mount.counters()
    left_out = len(order) // LEFT_OUT
    assert reads == len(order) - counters["pushed_files"]
    assert left_out < reads < 2 * left_out, "the pusher leaves out some more"
    assert counters["pushes_refused"] == 0
    assert gets(proxy) == Counter({name_of(index).removeprefix("train/"): 1 for index in order})
    assert counters["prefetch_used_bytes"] == len(order) * SIZE
    assert counters["prefetch_wasted_bytes"] == 0


def test_files_fetched_and_then_pushed_by_a_listing_are_no_waste(mount: Mount, proxy: Proxy) -> None:
    assert kernel.read_all(mount.path / name_of(0)) == content_of(0)  # the first one: those that follow are fetched
    wait_until(lambda: len(gets(proxy)) > 8, "siblings are fetched")
    wait_until(lambda: mount.status()["counters"]["prefetch_bytes"] == (len(gets(proxy)) - 1) * SIZE, "and stored")
    os.listdir(mount.path / "train")
    wait_until(lambda: mount.counters()["pushed_files"] > 4, "siblings are pushed")
    for index in range(1, FILES):
        assert kernel.read_all(mount.path / name_of(index)) == content_of(index)
    assert set(gets(proxy).values()) == {1}
    assert len(gets(proxy)) == FILES
    assert mount.counters()["prefetch_wasted_bytes"] == 0
