"""A directory of small files in a bucket behind a proxy, as prefetch, plans and push have it."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tests.support.mounts import Mount, mounted
from tests.support.proxy_client import Proxy
from tests.support.servers import REGION, Bucket

FILES: Final = 300
SIZE: Final = 4096
WINDOW_FILES: Final = 20


def name_of(index: int) -> str:
    return f"train/{index:05d}.jpg"


def content_of(index: int) -> bytes:
    return index.to_bytes(8, "little") * (SIZE // 8)


def put_photos(bucket: Bucket) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: bucket.put(name_of(index), content_of(index)), range(FILES)))


@contextlib.contextmanager
def mounted_photos(photos: Bucket, proxy: Proxy, *options: str) -> Iterator[Mount]:
    """Mount them through the proxy, with names that never age and a window of WINDOW_FILES for plans."""
    source = ("--endpoint-url", proxy.endpoint, "--region", REGION, "--metadata-ttl", "indefinite")
    window = ("--plan-window", f"{WINDOW_FILES * SIZE}B")
    with mounted(photos.url, *source, *window, *options, env=photos.env) as mount:
        yield mount


def gets(proxy: Proxy) -> Counter[str]:
    """Return how often each object was fetched, by its name in the directory."""
    return Counter(request.path.rpartition("train/")[2] for request in proxy.requests("train/", "GET") if request.range)
