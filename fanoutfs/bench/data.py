"""The data sets: made on the local disk, which serves ext4 and the pass-through, then uploaded for all others.

Contents come from a seeded generator: incompressible, and the same in every run.
"""

import itertools
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fanoutfs.records import MIB

if TYPE_CHECKING:
    from obstore.store import S3Store

_FILES_PER_DIRECTORY: Final = 1000
_UPLOADS: Final = 16  # in flight; SeaweedFS on 2 cores does not become faster with more


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket and the right to use it.  Servers of tests and benchmarks only: the secret is no secret."""

    endpoint_url: str
    name: str
    region: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """Return what AWS clients want in their environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def store(self) -> "S3Store":
        """Return a new obstore client: the same one the daemon uses."""
        from obstore.store import S3Store  # 20 MB that the pass-through and most tests do not need

        return S3Store(
            self.name,
            endpoint=self.endpoint_url,
            region=self.region,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            client_options={"allow_http": True},
            virtual_hosted_style_request=False,
        )


def make_large_file(path: Path, size: int) -> None:
    """Write one file of random bytes; size: a multiple of 1 MiB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        for chunk in large_file_chunks(size):
            file.write(chunk)


def large_file_chunks(size: int) -> Iterator[bytes]:
    """Yield what `make_large_file` writes, by the MiB."""
    generator = random.Random(size)
    for _ in range(size // MIB):
        yield generator.randbytes(MIB)


def make_small_files(directory: Path, count: int, size: int) -> list[Path]:
    """Write `count` files of `size` random bytes, a thousand to a directory, and return their paths relative to it."""
    generator = random.Random(count)
    names = []
    for number in range(count):
        name = Path(f"part-{number // _FILES_PER_DIRECTORY:03}") / f"sample-{number:06}.bin"
        if number % _FILES_PER_DIRECTORY == 0:
            (directory / name.parent).mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(generator.randbytes(size))
        names.append(name)
    return names


def walk(directory: Path) -> Iterator[Path]:
    """Yield the regular files below a directory, relative to it, in sorted order.  Symbolic links are no objects."""
    for folder, folders, files in os.walk(directory):
        folders.sort()
        for name in sorted(files):
            path = Path(folder) / name
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(directory)


def upload(directory: Path, names: Iterable[Path], bucket: Bucket, prefix: str = "") -> int:
    """Put files into a bucket under their relative names; return their bytes.

    One PUT for each small file; obstore makes a multipart upload of a large one.
    """
    import obstore

    store = bucket.store()

    def put(name: Path) -> int:
        obstore.put(store, prefix + name.as_posix(), directory / name)
        return (directory / name).stat().st_size

    total = 0
    with ThreadPoolExecutor(_UPLOADS) as pool:
        remaining = iter(names)
        while batch := list(itertools.islice(remaining, 1000)):  # bounded: one future per file would hold them all
            total += sum(pool.map(put, batch))
    return total


def fetch_directly(bucket: Bucket, key: str, size: int, part_bytes: int, parallelism: int) -> None:
    """Get one object by ranged GETs, `parallelism` in flight, and throw the bytes away: what the network side can give.

    The client is the daemon's, called as the daemon calls it: synchronously, in threads.
    """
    import obstore

    store = bucket.store()

    def get(start: int) -> int:
        end = min(size, start + part_bytes)
        body = obstore.get_range(store, key, start=start, end=end)
        return len(memoryview(body))

    with ThreadPoolExecutor(parallelism) as pool:
        fetched = sum(pool.map(get, range(0, size, part_bytes)))
    if fetched != size:
        raise OSError(f"{key}: {fetched} of {size} bytes fetched")
