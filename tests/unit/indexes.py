"""A fresh index to work on, and short words for what goes into it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from fanoutfs.index.format import Ownership
from fanoutfs.index.operations import ApplyChildren, Change, Child, FinishListing, OpenVolume
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
    deferred: list[Child] = []
    for page in pages:
        more, later = apply(environment, ApplyChildren(parent, tuple(page), OWNER, now_ns).apply)
        changes += more
        deferred += later
    found = [child for page in pages for child in page]
    finish = FinishListing(
        parent=parent,
        listed_at_ns=now_ns,
        seen_files=frozenset(child.name for child in found if child.version),
        seen_dirs=frozenset(child.name for child in found if not child.version),
        deferred=tuple(deferred),
        ownership=OWNER,
    )
    last, hidden = apply(environment, finish.apply)
    return changes + last, hidden
