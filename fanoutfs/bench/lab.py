"""Where a benchmark runs: a scratch directory, an object store, and a proxy in front of it that logs and delays."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fanoutfs.bench.data import Bucket
from fanoutfs.bench.witness import Proxy


@dataclass(frozen=True, slots=True)
class Lab:
    """One running object store.

    bucket: the store itself; watched: the same bucket through the proxy; source: the local copy of what is in it;
    store_pid: the process of the store, for its CPU time.
    """

    source: Path
    bucket: Bucket
    watched: Bucket
    proxy: Proxy
    store_pid: int


LabMaker = Callable[[Path], AbstractContextManager[Lab]]
"""Starts the servers with everything they write below the directory; scripts/lib/laboratory.py has the only one."""
