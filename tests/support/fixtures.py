"""Fixtures over the servers; tests/conftest.py imports them: `from tests.support.fixtures import *`.

A session is one process of the tests: each worker of pytest-xdist has servers of its own.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fanoutfs.backend.base import Backend
from fanoutfs.backend.connect import open_store
from tests.support import caches
from tests.support.processes import environment
from tests.support.proxy_client import Proxy, running_proxy
from tests.support.servers import Bucket, S3Server, running_moto, running_weed

__all__ = [
    "bucket", "dropped_caches", "moto", "moto_bucket", "moto_proxy", "open_bucket", "proxy", "steady_caches", "weed",
]  # fmt: skip


@pytest.fixture
def open_bucket() -> Iterator[Callable[..., Backend]]:
    """Return a function that opens the bare backend of a Bucket and closes it at the end; arguments as in config."""
    with contextlib.ExitStack() as stack:

        def open_it(bucket: Bucket, endpoint: str = "", **settings: Any) -> Backend:
            with environment(bucket.env):
                return stack.enter_context(contextlib.closing(open_store(bucket.config(endpoint, **settings))))

        yield open_it


@pytest.fixture
def steady_caches() -> Iterator[None]:
    """For tests that count messages: no other test drops the kernel's caches meanwhile."""
    with caches.steady_caches():
        yield


@pytest.fixture
def dropped_caches() -> Iterator[None]:
    """For tests of programs that drop the kernel's caches."""
    with caches.dropped_at_will():
        yield


@pytest.fixture(scope="session")
def weed() -> Iterator[S3Server]:
    """SeaweedFS, started for the first test that needs it."""
    with running_weed() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """moto, started for the first test that needs it."""
    with running_moto() as server:
        yield server


@pytest.fixture
def bucket(weed: S3Server) -> Bucket:
    """An empty prefix in SeaweedFS."""
    return weed.bucket()


@pytest.fixture
def moto_bucket(moto: S3Server) -> Bucket:
    """An empty bucket in moto, which accepts hostile keys."""
    return moto.bucket()


@pytest.fixture
def proxy(weed: S3Server) -> Iterator[Proxy]:
    """A proxy in front of SeaweedFS, without latency or faults until told."""
    with running_proxy(weed.address) as running:
        yield running


@pytest.fixture
def moto_proxy(moto: S3Server) -> Iterator[Proxy]:
    """A proxy in front of moto."""
    with running_proxy(moto.address) as running:
        yield running
