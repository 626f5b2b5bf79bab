"""What a drain or a push waits for: inodes that are to be uploaded, and the further names of their files.

Core, trio thread only.  The object of a further name is a copy of the first name's: it becomes dirty when that is in
the store, and can be put only while that is clean.  A file that is written on and on and has several names may be
waited for as long.
"""

from collections.abc import Iterable

from fanoutfs.core.facts import Asked
from fanoutfs.core.uploads import Uploads
from fanoutfs.errors import DeadlineError, FanoutError, TransientError


class Awaited:
    """They are tried at once.  left: those that the store does not have yet, as of the last look."""

    def __init__(self, uploads: Uploads, inos: Iterable[int], asked: Asked | None = None) -> None:
        """asked: also what is not uploaded by itself."""
        self._uploads = uploads
        self._asked = asked
        self._attempts: dict[int, int] = {}
        self._firsts: dict[int, int] = {}
        """Further name → the inode that it is a name of."""
        self.left = set(inos)
        self._urge(self.left)

    def look(self) -> None:
        """Find out what is left.  No checkpoint."""
        waiting = set(self._uploads.waiting())
        left = self.left & waiting
        for ino in self.left - waiting:
            for cookie in waiting.intersection(self._uploads.further_names(ino)):
                self._firsts[cookie] = ino
                left.add(cookie)
        left |= waiting.intersection(first for cookie, first in self._firsts.items() if cookie in left)
        self._urge(left - self.left)
        self.left = left

    def refusal(self) -> FanoutError | None:
        """Return what the store said if it has refused everything that is left, each after it was tried anew."""
        tried = [ino for ino in self.left if self._firsts.get(ino) not in self.left]
        errors = [self._uploads.error_of(ino, self._attempts.get(ino, 0)) for ino in tried]
        refusals = [error for error in errors if error and not isinstance(error, TransientError | DeadlineError)]
        return refusals[0] if refusals and len(refusals) == len(errors) else None

    def _urge(self, inos: Iterable[int]) -> None:
        tried = self._uploads.retry(inos) if self._asked is None else self._uploads.ask(inos, self._asked)
        self._attempts |= tried
