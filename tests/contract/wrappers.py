"""The wrappers that keep the contract of what they wrap."""

from collections.abc import Callable
from typing import Final

from fanoutfs.backend.base import Backend
from fanoutfs.backend.faulty import FaultyBackend
from fanoutfs.backend.measure import MeasuringBackend, ignore
from fanoutfs.backend.retry import RetryingBackend, RetryPolicy

WRAPPERS: Final[dict[str, Callable[[Backend], Backend]]] = {
    "measure": lambda backend: MeasuringBackend(backend, ignore),
    "retry": lambda backend: RetryingBackend(backend, RetryPolicy(deadline_s=5)),
    "faulty": FaultyBackend,
}
