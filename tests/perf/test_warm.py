"""After a restart on the same cache nothing is listed and nothing fetched: the proxy is the witness."""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from fanoutfs.records import MIB
from tests.mount import kernel
from tests.support.mounts import Mount, mounted
from tests.support.proxy_client import Proxy, Request, running_proxy
from tests.support.servers import Bucket, S3Server

pytestmark = pytest.mark.usefixtures("steady_caches")

FILES = 300
LARGE_BYTES = 64 * MIB
PROBE = ".fanoutfs-probe"


@dataclass(frozen=True)
class Place:
    bucket: Bucket
    contents: dict[str, bytes]


@pytest.fixture(scope="module")
def place(weed: S3Server) -> Place:
    """300 files in 10 directories, one of 64 MiB."""
    choose = random.Random(64)
    contents = {
        f"d{number % 10}/{number:03d}": choose.randbytes(choose.choice((0, 10, 5_000, 140_000)))
        for number in range(FILES)
    }
    contents["large"] = choose.randbytes(LARGE_BYTES)
    bucket = weed.bucket()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: bucket.put(*item), contents.items()))
    return Place(bucket, contents)


@pytest.fixture(scope="module")
def witness(weed: S3Server) -> Iterator[Proxy]:
    with running_proxy(weed.address) as proxy:
        yield proxy


def _walk(root: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), root) for folder, _below, names in os.walk(root) for name in names
    }


def _assert_all_right(mount: Mount, contents: dict[str, bytes]) -> None:
    assert _walk(mount.path) == set(contents)
    for name, data in contents.items():
        assert kernel.read_all(mount.path / name) == data


def _seen_since(witness: Proxy, count: int) -> list[Request]:
    return [request for request in witness.requests()[count:] if PROBE not in request.path]


@pytest.mark.parametrize("ttl", ["indefinite", "1h"])
def test_restart_serves_everything_read_before_without_list_or_get(place: Place, witness: Proxy, ttl: str) -> None:
    options = ("--endpoint-url", witness.endpoint, "--metadata-ttl", ttl)
    with mounted(place.bucket.url, *options, env=place.bucket.env) as mount:
        _assert_all_right(mount, place.contents)
        cold = mount.counters()
        assert cold["backend_bytes"] == sum(map(len, place.contents.values()))
        for _restart in range(2):
            mount.stop()
            before = len(witness.requests())
            mount.start()
            _assert_all_right(mount, place.contents)
            assert _seen_since(witness, before) == []
            warm = mount.counters()
            assert (warm["backend_lists"], warm["backend_gets"], warm["backend_bytes"]) == (0, 0, 0)
            assert warm["verify_failures"] == 0


def test_restart_asks_the_backend_one_head_for_the_credentials(place: Place, witness: Proxy) -> None:
    options = ("--endpoint-url", witness.endpoint, "--metadata-ttl", "indefinite")
    with mounted(place.bucket.url, *options, env=place.bucket.env) as mount:
        mount.stop()
        before = len(witness.requests())
        mount.start()
        requests = witness.requests()[before:]
        assert [(request.method, PROBE in request.path) for request in requests] == [("HEAD", True)]


def test_half_read_cache_fetches_only_the_rest_after_a_restart(place: Place, witness: Proxy) -> None:
    names = sorted(place.contents)
    # Nothing but what is asked for: siblings would be fetched as well.
    options = ("--endpoint-url", witness.endpoint, "--metadata-ttl", "indefinite", "--max-readahead", "0B")
    with mounted(place.bucket.url, *options, env=place.bucket.env) as mount:
        for name in names[::2]:
            kernel.read_all(mount.path / name)
        mount.wait_for_fills()
        fetched = mount.counters()["backend_bytes"]
        mount.stop()
        mount.start()
        _assert_all_right(mount, place.contents)
        # Of the other half some small files were prefetched; no byte is fetched twice.
        wanted = sum(map(len, place.contents.values()))
        assert fetched >= sum(len(place.contents[name]) for name in names[::2])
        assert fetched + mount.counters()["backend_bytes"] == wanted


def test_killed_daemon_loses_nothing_of_the_cache(place: Place, witness: Proxy) -> None:
    options = ("--endpoint-url", witness.endpoint, "--metadata-ttl", "indefinite")
    with mounted(place.bucket.url, *options, env=place.bucket.env) as mount:
        _assert_all_right(mount, place.contents)
        mount.wait_for_fills()  # a reader is answered before its bytes are written to the cache
        mount.kill_everything()
        before = len(witness.requests())
        mount.start()
        _assert_all_right(mount, place.contents)
        assert _seen_since(witness, before) == []
