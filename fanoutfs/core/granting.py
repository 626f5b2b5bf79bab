"""What fronts may write unasked: granted ahead, for as long as it is there, as fast as staging grows.

Core, trio thread only.  Clean bytes make way first; the readers' quota is not touched for it.
"""

from typing import Final

import trio

from fanoutfs.core.space import Space
from fanoutfs.errors import CacheFullError
from fanoutfs.records import MIB

_LOOK_S: Final = 0.05
_IDLE_LOOK_S: Final = 0.5
_ASKED_PAUSE_S: Final = 0.005
_LOOKS_AHEAD: Final = 4
"""Room is kept for as much as came in so many looks: fronts write on while clean bytes are evicted."""
_STAGING_MARGIN: Final = 16 * MIB


async def keep_staging_room(space: Space) -> None:
    """Look for ever how fast staging grows, and grant fronts what they may write until the next look.

    While nobody writes a little stays granted, so that few writes have to ask.
    """
    cap, grants = space.staging_cap_bytes, space.grants
    before, then = space.staged_bytes, trio.current_time()
    margin = _STAGING_MARGIN * grants.fronts
    while True:
        staged, now = space.staged_bytes, trio.current_time()
        growth, elapsed_s = max(0, staged - before), max(now - then, _LOOK_S)
        before, then = staged, now
        if growth:
            wanted = min(max(margin, int(_LOOKS_AHEAD * _LOOK_S * growth / elapsed_s)), cap // 4)
        else:
            wanted = min(margin, cap // 8)
        await _grant(space, min(wanted, max(0, cap - staged)))
        with trio.move_on_after(_LOOK_S if growth else _IDLE_LOOK_S):
            await grants.asked.wait()
            await trio.sleep(_ASKED_PAUSE_S)
        grants.asked = trio.Event()


async def _grant(space: Space, size_bytes: int) -> None:
    """Have so much outstanding, or less where there is no room for it.  Checkpoint."""
    more = size_bytes - space.grants.outstanding
    if more > 0:
        try:
            async with space.reserved(more, takes_readers=False):
                pass
        except CacheFullError:
            size_bytes -= more
    space.grants.grant(max(0, size_bytes))
