"""Late requests: what was asked of the store without an answer, and may be carried out yet.

Core, trio thread only.  A request outlives who sent it: in socket buffers, in a proxy, in the store's own queue.  Its
condition does not always stop it.  A DELETE or a PUT that expects a version meets another object of the same content
under the same ETag, say when a removed file is put back; a PUT that expects nothing meets nothing once the file was
removed; a directory's marker, or a store that keeps no conditions, has none at all.

Of a core that was killed the journal names the keys: intents are where something may be put or copied to, `departed`
where something may be deleted.  Of this one `Unanswered` does: each try that was given up.  For LATE_S, from the start
or from when the connection of the try was closed,
* nothing is put under such a key: what arrives meanwhile is found and replaced, or is missed and put anew;
* nothing is deleted where something may be put, and an intent of which nothing came so far is kept: what arrives is
  not for ever.
The connections ended with the core, or the try, so that what has not begun by then never will.
"""

import trio

from fanoutfs.backend.unanswered import Unanswered
from fanoutfs.index.intents import INTENTS, read_intent
from fanoutfs.index.reader import IndexReader


class LateRequests:
    """Under which keys requests may still arrive: of an earlier core, or given up by this one."""

    def __init__(self, reader: IndexReader, unanswered: Unanswered, late_s: float) -> None:
        self._unanswered = unanswered
        self._until = trio.current_time() + late_s
        with reader.begin() as txn:
            departed = list(reader.changed(txn).all_departed())
            self._puts = {read_intent(value)[0] for value in reader.settings(txn, INTENTS).values()}
        self._changes = self._puts | {key for key, _record in departed}
        # A record without a version may be all that is known of a put (`intents.leave_intent`).
        self._puts |= {key for key, record in departed if not record.ino and not record.version.etag}

    @property
    def _is_over(self) -> bool:
        if trio.current_time() < self._until:
            return False
        self._puts, self._changes = set(), set()
        return True

    def may_put(self, key: str) -> bool:
        """Tell whether an object may still come to be under a key, or another version of it.  No checkpoint."""
        return (not self._is_over and key in self._puts) or self._unanswered.put_left_s(key) > 0.0

    def may_change(self, key: str) -> bool:
        """Tell whether it may still be replaced or deleted.  No checkpoint."""
        return (not self._is_over and key in self._changes) or self._unanswered.change_left_s(key) > 0.0

    async def ended(self, *keys: str) -> None:
        """Return when nothing can happen to these any more but by ourselves.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        if not self._is_over and any(key in self._changes for key in keys):
            await trio.sleep_until(self._until)
        while left_s := max(map(self._unanswered.change_left_s, keys), default=0.0):
            await trio.sleep(left_s)
