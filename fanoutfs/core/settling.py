"""Names that our own uploads, moves and deletions settle in the store while the store is being asked about them.

Core, trio thread only.  A page of a listing tells what the store had when it was asked.  When an upload ends between
the question and the moment the page is entered, the page lacks a file that is clean by now, or has the version before;
when a deletion ends, it shows a file that is gone.  Hence everybody who asks keeps a set of such names, and hands it
to the operation that enters the answer; whoever settles a name says so before submitting the transaction that clears
the inode's dirty record, its LOCAL flag or a departed key.  The index has one writer, which applies in the order of
submission: a page is entered either before that transaction, when the records protect the name, or knows of it.
"""

import contextlib
from collections.abc import Iterator


class Settling:
    """Which directories are being asked about, and what was settled in each since."""

    def __init__(self) -> None:
        self._asked: dict[int, list[set[bytes]]] = {}

    @contextlib.contextmanager
    def asking(self, directory: int) -> Iterator[set[bytes]]:
        """Yield the set that collects names settled in a directory from now on."""
        names: set[bytes] = set()
        self._asked.setdefault(directory, []).append(names)
        try:
            yield names
        finally:
            # By identity: two sets with the same names are equal.
            left = [each for each in self._asked[directory] if each is not names]
            if left:
                self._asked[directory] = left
            else:
                del self._asked[directory]

    def settle(self, directory: int, name: bytes) -> None:
        """Tell whoever asks about this directory that what they hear of the name may be old."""
        for names in self._asked.get(directory, ()):
            names.add(name)
