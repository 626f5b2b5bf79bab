"""Draining: upload what is dirty now, without delay, and tell when the store has it.

Core, trio thread only.  `{"op": "drain", "path": …}` starts a job (see `jobs`); it ends when the store has everything
that was dirty below the path when it began.  A store that does not answer is waited for; one that refuses (credentials,
permission, no room) ends the job with its words, while the uploads are tried on as ever.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

from fanoutfs.core.jobs import Job, Jobs
from fanoutfs.core.moves import Moves
from fanoutfs.core.uploads import Uploads
from fanoutfs.errors import DeadlineError, FanoutError, TransientError
from fanoutfs.index.places import Places
from fanoutfs.index.reader import IndexReader

_LOOK_S: Final = 0.05


class Drains:
    """Answers the control command."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        uploads: Uploads,
        moves: Moves,
        reader: IndexReader,
        root_prefix: str,
        locate: Callable[[bytes], int],
    ) -> None:
        """locate: finds the inode of a path in the mount; raises FanoutError."""
        self._jobs = jobs
        self._uploads = uploads
        self._moves = moves
        self._reader = reader
        self._root_prefix = root_prefix
        self._locate = locate

    async def drain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `drain`: {"job", "files"}.  Checkpoint."""
        await trio.lowlevel.checkpoint()
        path = os.fsencode(str(request.get("path", "")))
        key = self._key(path) if path.strip(b"/.") else self._root_prefix
        inos = self._dirty_below(key)

        attempts = self._uploads.retry(inos)
        self._moves.hurry()

        async def work(job: Job) -> None:
            await self._drain(job, key, attempts)

        return {"job": self._jobs.start("drain", key, work).id, "files": len(inos)}

    async def _drain(self, job: Job, key: str, attempts: Mapping[int, int]) -> None:
        """Wait for these inodes.  attempts: how often each was tried before."""
        total, left = len(attempts), set(attempts)
        while True:
            left.intersection_update(self._uploads.waiting())
            self._uploads.hurry(left)
            self._moves.hurry()
            departed = self._moves.is_busy(key)
            job.progress.update(files=total, done=total - len(left), moving=departed)
            if not left and not departed:
                return
            self._raise_refusal({ino: attempts[ino] for ino in left})
            await trio.sleep(_LOOK_S)

    def _raise_refusal(self, left: Mapping[int, int]) -> None:
        """Raise what the store said when it has refused everything that is left."""
        errors = [self._uploads.error_of(ino, attempts) for ino, attempts in left.items()]
        refusals = [
            error for error in errors if error is not None and not isinstance(error, TransientError | DeadlineError)
        ]
        if refusals and len(refusals) == len(errors):
            raise refusals[0]

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
            keys = {ino: places.key(ino) for ino in waiting}
        return [
            ino
            for ino, found in keys.items()
            if found is not None and (found == key or (key.endswith("/") and found.startswith(key)))
        ]
