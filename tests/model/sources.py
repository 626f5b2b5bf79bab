"""Where the objects of a model run live: an S3 server, or a directory."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.support.servers import Bucket


class Source(Protocol):
    """Objects by key.  Changes are complete when the call returns."""

    url: str
    options: tuple[str, ...]
    env: Mapping[str, str]
    keeps_both: bool
    """`a` and `a/b` can both be objects."""
    keeps_directories: bool
    """A prefix goes on being listed after its last object was deleted."""

    def put(self, key: str, body: bytes) -> None:
        """Write an object; never in place: a reader of the store sees the old or the new one."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object."""
        ...


@dataclass
class BucketSource:
    """A bucket of a server on loopback."""

    bucket: Bucket
    keeps_both: bool
    keeps_directories: bool
    options: tuple[str, ...] = ()
    url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.url = self.bucket.url
        self.env = self.bucket.env
        self.options = ("-o", f"endpoint_url={self.bucket.endpoint}", *self.options)

    def put(self, key: str, body: bytes) -> None:
        """See Source.put."""
        self.bucket.put(key, body)

    def delete(self, key: str) -> None:
        """See Source.delete."""
        self.bucket.delete(key)


@dataclass
class DirectorySource:
    """Files below a directory.  One that becomes empty goes, as a prefix does."""

    root: Path
    aside: Path
    options: tuple[str, ...] = ()
    keeps_both: bool = False
    keeps_directories: bool = False
    url: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.url = f"file://{self.root}"

    def put(self, key: str, body: bytes) -> None:
        """See Source.put."""
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        self.aside.write_bytes(body)
        self.aside.replace(path)

    def delete(self, key: str) -> None:
        """See Source.delete."""
        path = self.root / key
        path.unlink()
        for above in path.parents:
            if above == self.root or any(above.iterdir()):
                return
            above.rmdir()


@contextmanager
def directory_source(*options: str) -> Iterator[DirectorySource]:
    """Make a directory source and remove it at the end."""
    base = Path(tempfile.mkdtemp(prefix="fanoutfs-source-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    (base / "objects").mkdir()
    try:
        yield DirectorySource(base / "objects", base / "aside", options)
    finally:
        shutil.rmtree(base)
