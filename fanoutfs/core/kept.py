"""Files that are not uploaded, and what the store has of them.

Core, trio thread only.  What `--no-upload` excludes has nothing there: see `withdrawal`.  What a policy keeps here has
there what it had when it was uploaded last, under the name that it has now: an object that it has elsewhere is copied
to that name, and of a file that it replaced it takes over the object, as if it had been written over it.  So no policy
deletes an object; that takes somebody who removes the name.
"""

import stat
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

from fanoutfs.core.conflicts import Conflicts, Displaced
from fanoutfs.core.facts import Facts, FactsReader, Outcome
from fanoutfs.core.late import LateRequests
from fanoutfs.core.rulings import Rulings
from fanoutfs.core.withdrawal import Withdrawal
from fanoutfs.errors import ObjectMissingError, VersionGoneError
from fanoutfs.index.publishing import NOTHING, LetGo
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter
from fanoutfs.records import ObjectInfo, Version


class KeptFiles:
    """Puts the store in order for one such file at a time."""

    def __init__(
        self,
        *,
        facts: FactsReader,
        reader: IndexReader,
        rulings: Rulings,
        withdrawal: Withdrawal,
        late: LateRequests,
        lock: Callable[[int | str], AbstractAsyncContextManager[None]],
        put_copy: Callable[[Facts, ObjectInfo, None], Awaitable[Version]],
        conflicts: Conflicts,
        writer: GroupWriter[IndexTransaction],
        root_prefix: str,
        note_object: Callable[..., Awaitable[Outcome]],
    ) -> None:
        """lock, put_copy, note_object: the publisher's, the last one `Publisher.published`."""
        self._facts = facts
        self._reader = reader
        self._rulings = rulings
        self._withdrawal = withdrawal
        self._late = late
        self._lock = lock
        self._put_copy = put_copy
        self._conflicts = conflicts
        self._writer = writer
        self._root_prefix = root_prefix
        self._note_object = note_object

    async def keep(self, facts: Facts) -> Outcome | None:
        """Do what is to be done in the store; None: that was nothing.  Checkpoint.  Under the inode's lock.

        Raises what `Withdrawal.withdraw` does, and FanoutError.
        """
        if not self._is_kept_by_policy(facts):
            return None if await self._withdrawal.withdraw(facts) else Outcome.CHANGED
        source, replaced = facts.source, self.replaced_version(facts.ino, facts.key)
        if (source is None and replaced is None) or (source is not None and source.key == facts.key):
            return None
        async with self._lock(facts.key):
            if self._late.may_change(facts.key) or facts.obstacle is not None:
                return Outcome.BLOCKED
            if source is not None:
                await self.take_along(facts)
            elif replaced is not None and replaced == self.replaced_version(facts.ino, facts.key):
                await self._note_object(facts, replaced, NOTHING)
        return Outcome.CHANGED

    async def take_along(self, facts: Facts) -> None:
        """Copy a file's object to where its name is, whatever else is dirty of it.  Checkpoint.

        One that somebody else has changed or removed is let go: it is neither moved nor deleted.
        """
        assert facts.source is not None  # noqa: S101 - the callers looked
        try:
            version = await self._put_copy(facts, facts.source, None)
        except Displaced:
            return
        except (VersionGoneError, ObjectMissingError):
            if await self._conflicts.fate(facts.source) is None:
                raise
            if not await self._writer.run(LetGo(facts.ino, self._root_prefix, is_there=False).apply):
                raise
        else:
            await self._note_object(facts, version, NOTHING)

    def replaced_version(self, ino: int, key: str) -> Version | None:
        """Return the departed object at a key that a file which a policy keeps here takes over; None: it does not.

        No checkpoint.
        """
        with self._reader.begin() as txn:
            departed = self._reader.changed(txn).departed(key)
        if departed is None or departed.ino or not departed.version.etag:
            return None
        facts = self._facts.look(ino)
        is_its = facts is not None and facts.key == key and facts.source is None and self._is_kept_by_policy(facts)
        return departed.version if is_its else None

    def _is_kept_by_policy(self, facts: Facts) -> bool:
        """Tell whether it is a file with new content, which no `--no-upload` excludes."""
        has_content = not facts.is_link and facts.inode.is_staged and stat.S_ISREG(facts.inode.mode)
        return has_content and not self._rulings.is_excluded(facts)
