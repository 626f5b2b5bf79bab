"""Open the index environment: once per process, after fork; for writing in the core only."""

import os
import threading
from pathlib import Path
from typing import Final

import lmdb

from fanoutfs.index.format import DATABASES

LMDB_ENGINE: Final = 0
"""py-lmdb 3 carries LMDB 0.9 and 1.0, whose files exclude each other: always say which."""
MAP_BYTES: Final = 1 << 38
"""256 GiB of address space; the file stays as small as its content.  About 500 million files fit."""
MAX_READERS: Final = 256
FILE_NAME: Final = "index.lmdb"
BROKEN: Final = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError)
"""What LMDB raises when a file is damaged, not merely full."""


class IndexEnvironment:
    """An open environment and its databases.  Raises lmdb.Error when the file is broken."""

    def __init__(self, directory: Path, *, writable: bool) -> None:
        self.broken = threading.Event()
        """Set when a change met damage inside; then the index must go and everything be opened anew."""
        # metasync off: after a power cut the last commits may be missing but the tree is whole (LMDB's
        # MDB_NOMETASYNC).  What is in this file can be had again from the backend.
        self.env = lmdb.open(
            os.fspath(directory / FILE_NAME),
            map_size=MAP_BYTES,
            subdir=False,
            mode=0o600,
            readonly=not writable,
            metasync=False,
            readahead=False,
            meminit=False,
            max_dbs=len(DATABASES),
            max_readers=MAX_READERS,
            lib_version=LMDB_ENGINE,
        )
        try:
            is_short = writable and extend_to_header(self.env)
            self.settings, self.entries, self.inodes, self.blocks, self.orphans = (
                self.env.open_db(name, create=writable) for name in DATABASES
            )
            if is_short:
                self._walk()
        except lmdb.Error:
            self.env.close()
            raise

    def _walk(self) -> None:
        """Touch every record.  Raises lmdb.CorruptedError.

        A short file need not be broken: pages that were allocated and freed within one transaction are never written.
        """
        with self.env.begin() as txn:
            for database in (self.settings, self.entries, self.inodes, self.blocks, self.orphans):
                for _record in txn.cursor(db=database):
                    pass

    def file_bytes(self) -> int:
        """Return what the file occupies on disk."""
        return os.stat(self.env.path()).st_blocks * 512

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


def extend_to_header(env: lmdb.Environment) -> bool:
    """Make an environment's file as long as its header says it is; tell whether it was not.

    A power cut may leave it short, and touching a page behind its end kills the process (SIGBUS), again at every start.
    LMDB recognises the zeros that are there instead: they are no valid page.
    """
    path = env.path()
    wanted = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if os.stat(path).st_size >= wanted:
        return False
    os.truncate(path, wanted)
    return True
