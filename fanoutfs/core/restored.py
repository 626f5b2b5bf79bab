"""Restored objects that are copied: the copy is archived again, so what is left of the restore is asked for it too.

Core, trio thread only.  A store copies an archived object only while it is restored, and the copy, in the class of its
source, has no part in that.  Without this, a file that was renamed while it was restored (or before: its object follows
as soon as it can) would be unreadable from then on, although somebody has paid for the days that are left.
"""

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from fanoutfs.backend.archive import Restore, has_to_be_restored
from fanoutfs.backend.base import Backend
from fanoutfs.errors import FanoutError
from fanoutfs.records import ObjectInfo

log = logging.getLogger(__name__)

_DAY_NS: Final = 24 * 3600 * 10**9


@asynccontextmanager
async def still_restored(
    backend: Backend, source: ObjectInfo, key: str, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
) -> AsyncIterator[None]:
    """Copy `source` to `key` within this.  Checkpoint if the source is in a class that is not read at once."""
    days = await _days_left(backend, source, in_thread) if has_to_be_restored(source.storage_class) else 0
    yield
    if not days:
        return
    try:
        await in_thread(partial(backend.restore, key, days))
    except FanoutError as error:
        log.warning("a restored object was copied, its copy has to be restored anew key=%s: %s", key, error)
    else:
        log.info("a restored object was copied, a restore of its copy asked for key=%s days=%d", key, days)


async def _days_left(
    backend: Backend, source: ObjectInfo, in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
) -> int:
    """Return for how many days, the last one whole, an object is restored; 0: it is not."""
    try:
        details = await in_thread(partial(backend.details, source.key))
    except FanoutError:
        return 0  # the copy will say what is wrong
    if details.restore is not Restore.RESTORED:
        return 0
    left_ns: int = details.restored_until_ns - time.time_ns()
    return max(1, math.ceil(left_ns / _DAY_NS))
