"""The one place that tries again.

A call that fails with TransientError is repeated after a pause, until it succeeds or its deadline has passed; then
DeadlineError tells the last cause.  Everything else passes at once.

* The pause is drawn evenly from [0, min(cap, base * 2**n)] ("full jitter", AWS Architecture Blog, "Exponential
  Backoff And Jitter"), and at least what the store asked for (Retry-After).
* All calls of a mount draw their repeats from one bucket of tokens.  When it is empty they queue for the refill, so a
  thousand waiters of a store that is down make `refill_per_s` requests a second, not a thousand; who would have to
  queue beyond his deadline gives up at once.
* Every write may be repeated.  Unconditional puts, parts, copied parts, aborts and deletes do the same twice.  A
  conditional put, copy or completion that succeeded unnoticed meets, when it is repeated, its own object in the way
  (PreconditionFailedError) or its upload gone (UploadMissingError): the object is then looked at, and one that carries
  the token and the metadata that were sent, and has the size, is the result.  The token is the caller's if the
  metadata has one: whoever repeats after a DeadlineError or a crash must give the same again, or he meets his own
  object as a conflict.  Where a store keeps no metadata (Abilities.has_metadata) an unnoticed success does end as a
  conflict.  The begin of an upload that is repeated may leave one behind for `list_uploads`.
* A try to change a key that ends without an answer is noted (`unanswered`): the store may carry it out yet, after a
  repeat of it that was answered, too.
* `close` wakes whoever sleeps: a shutdown does not wait for a backoff.

Attempts are not logged but counted.
"""

import random
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from fanoutfs.backend.base import Backend, Landing, WholeGets, WrappedPages
from fanoutfs.backend.measure import Counter, ignore
from fanoutfs.backend.unanswered import Unanswered
from fanoutfs.backend.writing import (
    TOKEN_KEY,
    Body,
    Condition,
    Expect,
    ObjectDetails,
    Part,
    PassedWrites,
    Properties,
    Upload,
)
from fanoutfs.clock import Clock, SystemClock
from fanoutfs.errors import (
    DeadlineError,
    ObjectMissingError,
    PreconditionFailedError,
    TransientError,
    UploadMissingError,
)
from fanoutfs.records import ListPage, ObjectInfo, Version

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often.  deadline_s counts from the start of the call (of the page, for a listing)."""

    deadline_s: float
    base_s: float = 0.1
    cap_s: float = 5.0
    budget: int = 32
    """Repeats that may happen at once after a quiet time."""
    refill_per_s: float = 8.0
    """Repeats per second once the budget is used up."""


def with_token(properties: Properties) -> Properties:
    """Return the properties with a token of their own, unless they have one."""
    if TOKEN_KEY in properties.metadata:
        return properties
    return replace(properties, metadata={**properties.metadata, TOKEN_KEY: secrets.token_hex(8)})


class RetryBudget:
    """A token bucket that hands out waiting times.  Thread-safe."""

    def __init__(self, capacity: int, refill_per_s: float, clock: Clock) -> None:
        """Start full."""
        self._capacity = float(capacity)
        self._refill_per_s = refill_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = float(capacity)
        self._filled_ns = clock.monotonic_ns()

    def reserve(self, patience_s: float) -> float | None:
        """Take the next token and return in how many seconds it is there; None if that is beyond patience_s."""
        with self._lock:
            now_ns = self._clock.monotonic_ns()
            earned = (now_ns - self._filled_ns) / 1e9 * self._refill_per_s
            self._tokens = min(self._capacity, self._tokens + earned)
            self._filled_ns = now_ns
            wait_s = max(0.0, (1.0 - self._tokens) / self._refill_per_s)
            if wait_s > patience_s:
                return None
            self._tokens -= 1.0
            return wait_s


def backoff_s(policy: RetryPolicy, repeat: int, asked_s: float | None, draw: float) -> float:
    """Return the pause before the repeat (0 is the first).  draw: random in [0, 1).  Pure."""
    # min() inside the exponent: 2**n overflows a float after a thousand repeats.
    pause_s = draw * min(policy.cap_s, policy.base_s * 2.0 ** min(repeat, 32))
    return max(pause_s, asked_s or 0.0)


class RetryingBackend(PassedWrites):
    """Repeats the calls of another backend."""

    def __init__(
        self,
        inner: Backend,
        policy: RetryPolicy,
        *,
        count: Counter = ignore,
        unanswered: Unanswered | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """unanswered: where tries without an answer are noted; None: nobody asks.

        sleep: None to sleep for real, interruptible by close().  draw: random in [0, 1).
        """
        super().__init__(inner)
        self._inner = inner
        self._policy = policy
        self._count = count
        self._unanswered = unanswered or Unanswered()
        self._clock = clock or SystemClock()
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._draw = draw
        self._budget = RetryBudget(policy.budget, policy.refill_per_s, self._clock)

    def head(self, key: str) -> ObjectInfo:
        """See Backend.head; raises DeadlineError in place of TransientError."""
        return self._run(lambda: self._inner.head(key))

    def get_range(self, key: str, start: int, end: int, version: Version, into: Landing | None = None) -> memoryview:
        """See Backend.get_range; raises DeadlineError in place of TransientError."""
        return self._run(lambda: self._inner.get_range(key, start, end, version, into))

    def whole_gets(self) -> WholeGets | None:
        """See Backend.whole_gets: what fails there is repeated as a get_range."""
        return self._inner.whole_gets()

    def list(self, prefix: str, limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.list; raises DeadlineError in place of TransientError."""
        return WrappedPages(self._inner.list(prefix, limit), self._run)

    def scan(self, prefix: str, after: str = "", limit: int | None = None) -> Iterator[ListPage]:
        """See Backend.scan; raises DeadlineError in place of TransientError."""
        return WrappedPages(self._inner.scan(prefix, after, limit), self._run)

    @property
    def can_seek(self) -> bool:
        """See Backend.can_seek."""
        return self._inner.can_seek

    def put(self, key: str, body: Body, condition: Condition, properties: Properties) -> Version:
        """See Writer.put; raises DeadlineError in place of TransientError, as all that follow."""
        if condition is Expect.ANYTHING:
            return self._run(self._noting(key, lambda: self._inner.put(key, body, condition, properties)))
        sent = with_token(properties)

        def is_ours(found: ObjectDetails) -> bool:
            return found.properties.metadata == sent.metadata and found.info.version.size_bytes == len(body)

        return self._settle(key, is_ours, lambda: self._inner.put(key, body, condition, sent))

    def begin_upload(self, key: str, properties: Properties) -> Upload:
        """See Writer.begin_upload."""
        return super().begin_upload(key, with_token(properties))

    def complete_upload(self, upload: Upload, parts: Sequence[Part], condition: Condition) -> Version:
        """See Writer.complete_upload."""
        size_bytes = sum(part.size_bytes for part in parts)

        def is_ours(found: ObjectDetails) -> bool:
            token = found.properties.metadata.get(TOKEN_KEY, "")
            return bool(token) and token == upload.token and found.info.version.size_bytes == size_bytes

        return self._settle(upload.key, is_ours, lambda: self._inner.complete_upload(upload, parts, condition))

    def copy(self, source: ObjectInfo, key: str, condition: Condition, properties: Properties | None) -> Version:
        """See Writer.copy."""
        if condition is Expect.ANYTHING:
            return self._run(self._noting(key, lambda: self._inner.copy(source, key, condition, properties)))
        sent = with_token(properties) if properties is not None else None

        def is_ours(found: ObjectDetails) -> bool:
            if found.info.version.size_bytes != source.version.size_bytes:
                return False
            if sent is not None:
                return found.properties.metadata == sent.metadata
            origin = self.details(source.key)
            if (
                origin.info.version.etag != source.version.etag
                or found.properties.metadata != origin.properties.metadata
            ):
                return False
            return TOKEN_KEY in origin.properties.metadata or found.info.version.etag == source.version.etag

        return self._settle(key, is_ours, lambda: self._inner.copy(source, key, condition, sent))

    def delete(self, key: str, condition: Condition = Expect.ANYTHING) -> None:
        """See Writer.delete."""
        self._run(self._noting(key, lambda: self._inner.delete(key, condition), is_put=False))

    def close(self) -> None:
        """Wake the sleepers, who then raise DeadlineError, and close the inner backend."""
        self._closed.set()
        self._inner.close()

    def _around(self, kind: str, call: Callable[[], T]) -> T:
        return self._run(call)

    def _settle(self, key: str, is_ours: Callable[[ObjectDetails], bool], call: Callable[[], Version]) -> Version:
        """Make a conditional change; take an object that is the change's own for its result."""
        try:
            return self._run(self._noting(key, call))
        except (PreconditionFailedError, UploadMissingError):
            try:
                found = self.details(key)
                if is_ours(found):
                    return found.info.version
            except ObjectMissingError:
                pass
            raise

    def _noting(self, key: str, call: Callable[[], T], *, is_put: bool = True) -> Callable[[], T]:
        """Return a call that notes, each time, if it was made and not answered."""

        def attempt() -> T:
            try:
                return call()
            except TransientError as error:
                if not error.is_settled:
                    self._unanswered.note(key, is_put=is_put)
                raise

        return attempt

    def _run(self, call: Callable[[], T]) -> T:
        deadline_ns = self._clock.monotonic_ns() + int(self._policy.deadline_s * 1e9)
        repeat = 0
        while True:
            try:
                return call()
            except TransientError as error:
                failure = error
            left_s = (deadline_ns - self._clock.monotonic_ns()) / 1e9
            pause_s = backoff_s(self._policy, repeat, failure.retry_after_s, self._draw())
            # The token is taken last: who gives up for another reason leaves it to others.
            queued_s = self._budget.reserve(left_s) if pause_s < left_s and not self._closed.is_set() else None
            if queued_s is None or queued_s >= left_s:
                self._count("backend_deadlines", 1)
                tries = f"{repeat + 1} {'try' if repeat == 0 else 'tries'}"
                raise DeadlineError(f"gave up after {tries}: {failure}") from None
            self._sleep(max(pause_s, queued_s))
            if self._closed.is_set():
                raise DeadlineError(f"shutting down: {failure}") from None
            self._count("backend_retries", 1)
            repeat += 1
