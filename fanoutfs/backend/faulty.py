"""A backend that misbehaves on command, for tests: scripted errors, waits, corrupt, short and swapped bodies.

    faulty = FaultyBackend(inner)
    faulty.script("get", TransientError("reset"), PASS, corrupt)     # the next three get_range calls
    gate = faulty.hold("get")                                        # later ones wait until gate.release()

Faults are taken in order, one per call of their kind: "head", "get", "list" and "scan" (these two take one per page),
and the names of the methods of `Writer`.
Thread-safe.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

from fanoutfs.backend.base import Backend, Landing, WrappedPages, put_into
from fanoutfs.backend.writing import PassedWrites
from fanoutfs.records import ListPage, ObjectInfo, Version

T = TypeVar("T")

_READ_KINDS: Final = ("head", "get", "list", "scan")
_WRITE_KINDS: Final = (
    "abilities", "details", "put", "begin_upload", "upload_part", "copy_part", "complete_upload", "abort_upload",
    "list_uploads", "copy", "restore", "delete", "delete_many",
)  # fmt: skip
_KINDS: Final = _READ_KINDS + _WRITE_KINDS

BodyFault: TypeAlias = Callable[[memoryview], memoryview]


@dataclass(frozen=True, slots=True)
class Lost:
    """The call is made and does what it does, but its answer is lost: this is raised instead."""

    error: Exception


Fault: TypeAlias = Exception | BodyFault | Lost
"""An exception to raise, what to make of the body of a get_range, or a lost answer."""


def passing(body: memoryview) -> memoryview:
    """Let one call pass."""
    return body


def corrupt(body: memoryview) -> memoryview:
    """Flip one bit in the middle."""
    wrong = bytearray(body)
    if wrong:
        wrong[len(wrong) // 2] ^= 1
    return memoryview(wrong)


def short(body: memoryview) -> memoryview:
    """Lose the last byte."""
    return body[:-1]


PASS = passing


@dataclass(slots=True)
class Gate:
    """Where calls wait.  `arrived` tells the test that somebody does."""

    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    opened: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Let the waiting calls go on, and all later ones pass."""
        self.opened.set()


class FaultyBackend(PassedWrites):
    """Passes calls on to another backend, unless told otherwise."""

    gate_timeout_s = 30.0
    """A test that forgets its gate fails, instead of hanging."""

    def __init__(self, inner: Backend) -> None:
        """inner: what calls reach when no fault is scripted."""
        super().__init__(inner)
        self._inner = inner
        self._lock = threading.Lock()
        self._faults: dict[str, deque[Fault]] = {kind: deque() for kind in _KINDS}
        self._gates: dict[str, Gate] = {}
        self.calls: dict[str, int] = dict.fromkeys(_KINDS, 0)
        """How many calls of each kind were made."""
        self.under_way = 0
        """How many calls have not returned yet."""

    def script(self, kind: str, *faults: Fault) -> None:
        """Append faults for the next calls of this kind."""
        with self._lock:
            self._faults[kind].extend(faults)

    def clear(self) -> None:
        """Drop all faults that no call has met."""
        with self._lock:
            for faults in self._faults.values():
                faults.clear()

    def hold(self, kind: str) -> Gate:
        """Make calls of this kind wait, before they reach the inner backend, until the gate is released."""
        gate = Gate()
        with self._lock:
            self._gates[kind] = gate
        return gate

    def head(self, key: str) -> ObjectInfo:
        """See Backend.head."""
        return self._run("head", lambda: self._inner.head(key))[0]

    def get_range(self, key: str, start: int, end: int, version: Version, into: Landing | None = None) -> memoryview:
        """See Backend.get_range, whose checks a scripted body escapes: that is its purpose."""
        body, change = self._run("get", lambda: self._inner.get_range(key, start, end, version))
        return put_into(into, change(body))

    def whole_gets(self) -> None:
        """See Backend.whole_gets: every object goes the way of get_range, where faults are scripted."""
        return

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.list."""
        return WrappedPages(self._inner.list(prefix, limit), lambda call: self._run("list", call)[0])

    def scan(self, prefix: str, after: str = "", limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.scan."""
        return WrappedPages(self._inner.scan(prefix, after, limit), lambda call: self._run("scan", call)[0])

    @property
    def can_seek(self) -> bool:
        """See Backend.can_seek."""
        return self._inner.can_seek

    def close(self) -> None:
        """See Backend.close."""
        self._inner.close()

    def _around(self, kind: str, call: Callable[[], T]) -> T:
        return self._run(kind, call)[0]

    def _run(self, kind: str, call: Callable[[], T]) -> tuple[T, BodyFault]:
        with self._lock:
            self.calls[kind] += 1
            self.under_way += 1
        try:
            return self._call(kind, call)
        finally:
            with self._lock:
                self.under_way -= 1

    def _call(self, kind: str, call: Callable[[], T]) -> tuple[T, BodyFault]:
        with self._lock:
            gate = self._gates.get(kind)
            fault = self._faults[kind].popleft() if self._faults[kind] else passing
        if gate is not None and not gate.opened.is_set():
            gate.arrived.release()
            if not gate.opened.wait(self.gate_timeout_s):
                raise AssertionError(f"nobody released the gate of {kind!r}")
        if isinstance(fault, Exception):
            raise fault
        answer = call()
        if isinstance(fault, Lost):
            raise fault.error
        return answer, fault
