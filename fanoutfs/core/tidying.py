"""Write segments of the small store anew that hold many dead bytes: replaced and dropped files give their space back.

Core, trio thread only.  Room for the copies is reserved under the cap like that of any fill.
"""

import logging
from typing import Final

import trio

from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.core.space import Space
from fanoutfs.errors import CacheFullError, DatabaseError

log = logging.getLogger(__name__)

_PERIOD_S: Final = 5.0


async def keep_tidy(small: SmallStore, space: Space) -> None:
    """Look for such segments for ever."""
    while True:
        try:
            await tidy(small, space)
        except (CacheFullError, DatabaseError) as error:
            log.warning("dead bytes of small files stay for now: %s", error)
        await trio.sleep(_PERIOD_S)


async def tidy(small: SmallStore, space: Space) -> int:
    """Write all such segments anew; return how many there were.  Checkpoint.  Raises CacheFullError, DatabaseError."""
    await trio.lowlevel.checkpoint()
    count = 0
    while sparse := small.find_sparse():
        number, live_bytes = sparse
        async with space.reserved(live_bytes):
            await small.write_anew(number)
        count += 1
    return count
