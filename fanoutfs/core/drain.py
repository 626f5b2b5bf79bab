"""Draining: upload what is dirty now, without delay, and tell when the store has it.

Core, trio thread only.  `{"op": "drain", "path": …}` starts a job (see `jobs`); it ends when the store has everything
that was dirty below the path when it began, and nothing there that has no name here.  A store that does not answer is
waited for; one that refuses (credentials, permission, no room) ends the job with its words, while the uploads are tried
on as ever.

The object of an unlinked file stays as long as somebody may read it, which is until the kernel has forgotten the file.
A drain does not wait for that: see `unlinked`.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from fanoutfs.core.awaited import Awaited
from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.moves import Moves
from fanoutfs.core.publishing import Publisher
from fanoutfs.core.unlinked import Unlinked
from fanoutfs.core.uploads import Uploads
from fanoutfs.errors import DeadlineError, FanoutError, TransientError
from fanoutfs.index.places import Obstacle, Places
from fanoutfs.index.reader import IndexReader

_LOOK_S: Final = 0.05
_CLOSING_S: Final = 0.5
"""What is unlinked and closed in one go the kernel forgets at once, but not before that: not worth a download."""


class Drains:
    """Answers the control command."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        publisher: Publisher,
        uploads: Uploads,
        moves: Moves,
        unlinked: Unlinked,
        reader: IndexReader,
        root_prefix: str,
        locate: Callable[[bytes], int],
    ) -> None:
        """locate: finds the inode of a path in the mount; raises FanoutError."""
        self._jobs = jobs
        self._publisher = publisher
        self._uploads = uploads
        self._moves = moves
        self._unlinked = unlinked
        self._reader = reader
        self._root_prefix = root_prefix
        self._locate = locate

    async def drain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `drain`: {"job", "files"}.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        path = os.fsencode(str(request.get("path", "")))
        key = self._key(path) if path.strip(b"/.") else self._root_prefix
        inos = self._dirty_below(key)
        unsure = self._unsure(key, inos)

        awaited = Awaited(self._uploads, inos)
        self._moves.retry()

        async def work(job: Job) -> None:
            await self._drain(job, key, awaited, unsure)

        # Each is a job of its own: one under way does not wait for what became dirty since.
        return {"job": self._jobs.start("drain", None, work).id, "files": len(inos)}

    async def _drain(self, job: Job, key: str, awaited: Awaited, unsure: set[int]) -> None:
        """Wait for these inodes, and for those of which an object may be there unnoticed."""
        total = len(awaited.left)
        seen_at: dict[int, float] = {}
        while True:
            awaited.look()
            left = len(awaited.left)
            self._uploads.hurry(awaited.left)
            await self._release_unlinked(key, seen_at)
            self._moves.hurry()
            departed = self._moves.is_busy(key) or bool(self._unlinked_below(key))
            unsure = {ino for ino in unsure if self._publisher.facts.intent(ino) is not None}
            job.progress.update(files=total, done=max(0, total - left), moving=departed)
            if not left and not departed and not unsure:
                return
            if (refusal := awaited.refusal() if left else self._moves.refusal()) is not None:
                raise refusal
            if unsure:
                await self._publisher.resolve_intents(self._uploads.is_queued)
            await trio.sleep(_LOOK_S)

    # --- objects of unlinked files -----------------------------------------------------------------------------

    def _unlinked_below(self, key: str) -> list[tuple[str, int]]:
        """Return the objects below a key that are there only for who may have an unlinked file open: (key, inode)."""
        with self._reader.begin() as txn:
            return [
                (found, departed.ino)
                for found, departed in self._reader.changed(txn).all_departed(key)
                if departed.ino and self._is_below(found, key) and self._reader.is_orphan(txn, departed.ino)
            ]

    async def _release_unlinked(self, key: str, seen_at: dict[int, float]) -> None:
        """Let objects of unlinked files go, as far as that can be done now.  seen_at: when each was first seen held.

        Raises what stands in the way of bringing here what is still open.
        """
        for found, ino in self._unlinked_below(key):
            seen_s = trio.current_time() - seen_at.setdefault(ino, trio.current_time())
            if seen_s < _CLOSING_S and await self._unlinked.is_held(ino):
                continue
            with contextlib.suppress(TransientError, DeadlineError):  # the store does not answer: waited for
                await self._publisher.clear(Obstacle(ino, found))

    def _unsure(self, key: str, dirty: list[int]) -> set[int]:
        """Return the inodes of which an object may be below a key without a record of it, save those to be uploaded."""
        found = set(self._publisher.facts.intents()) - set(dirty)
        intents = {ino: self._publisher.facts.intent(ino) for ino in found}
        return {ino for ino, intent in intents.items() if intent is not None and self._is_below(intent[0], key)}

    def _is_below(self, found: str, key: str) -> bool:
        """Tell whether a key is this one, or (it is a directory's) below it."""
        return found == key or key == self._root_prefix or (key.endswith("/") and found.startswith(key))

    # --- uploads -----------------------------------------------------------------------------------------------

    def _key(self, path: bytes) -> str:
        ino = self._locate(path)
        with self._reader.begin() as txn:
            key = Places.of_reader(self._reader, txn, self._root_prefix).key(ino)
        if key is None:
            raise FanoutError(f"{os.fsdecode(path)}: not known to the mount")
        return key

    def _dirty_below(self, key: str) -> list[int]:
        waiting = self._uploads.waiting()
        if key == self._root_prefix:
            return waiting
        with self._reader.begin() as txn:
            places = Places.of_reader(self._reader, txn, self._root_prefix)
            names = {ino: (ino, *places.records.links(ino)) for ino in waiting}  # each has an object of the one content
            keys = {ino: [places.key(name) for name in found] for ino, found in names.items()}
        return [ino for ino, found in keys.items() if any(each and self._is_below(each, key) for each in found)]
