"""A fresh index to work on, and short words for what goes into it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from fanoutfs.index.format import Ownership
from fanoutfs.index.merging import BEGIN, END, MergeNames
from fanoutfs.index.operations import Change, Child, OpenVolume
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction, write_transaction
from fanoutfs.records import KIB, ROOT_INO, Version

OWNER = Ownership(1000, 1001, 0o644, 0o755, 128 * KIB)
NOW_NS = 1_700_000_000_000_000_000
T = TypeVar("T")


@contextlib.contextmanager
def open_index(path: Path) -> Iterator[IndexEnvironment]:
    """Open an index as a core does, made if need be."""
    environment = IndexEnvironment(path, writable=True)
    try:
        apply(environment, OpenVolume("test", OWNER, NOW_NS).apply)
        yield environment
    finally:
        environment.close()


def apply(environment: IndexEnvironment, operation: Callable[[IndexTransaction], T]) -> T:
    """Run one operation in a transaction of its own."""
    with write_transaction(environment) as txn:
        return operation(txn)


def version(etag: str, size: int = 5, mtime_ns: int = NOW_NS) -> Version:
    """Return a version."""
    return Version(etag, "", size, mtime_ns)


def file(name: str, etag: str = "1", size: int = 5, mtime_ns: int = NOW_NS, prefix: str = "") -> Child:
    """Return a file as a listing finds it."""
    return Child(name.encode(), prefix + name, version(etag, size, mtime_ns))


def folder(name: str, prefix: str = "") -> Child:
    """Return a directory as a listing finds it."""
    return Child(name.encode(), f"{prefix}{name}/", None)


def enter_listing(
    environment: IndexEnvironment, *pages: list[Child], parent: int = ROOT_INO, now_ns: int = NOW_NS
) -> tuple[list[Change], int]:
    """Enter a complete listing page by page, as core.listing does; return (changes, hidden files)."""
    changes: list[Change] = []
    hidden = 0
    before = BEGIN
    deferred: tuple[Child, ...] = ()
    for page, listed_at_ns in (*((page, None) for page in pages), ([], now_ns)):
        after = END if listed_at_ns is not None else before.advanced(page)
        while True:
            merge = MergeNames(parent, tuple(page), before, after, OWNER, now_ns, deferred, listed_at_ns)
            result = apply(environment, merge.apply)
            changes += result.changes
            if result.is_done:
                break
        hidden += result.hidden
        before, deferred = after, result.deferred
    return changes, hidden
