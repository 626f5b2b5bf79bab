"""Open the index environment: once per process, after fork; for writing in the core and, for new files, in fronts.

Commits wait for no disk: what was committed survives the death of every process.  `sync` makes it survive a power cut;
after one the index is as it was at some `sync` (see `savepoint`).

The disk may be full of what others write: some space behind the end of the file is the index's already, and what waits
for a sync is given back before a change is refused.
"""

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path
from typing import Final

import lmdb

from fanoutfs.allocation import FALLOC_FL_KEEP_SIZE, allocate
from fanoutfs.index import lockfile
from fanoutfs.index.ballast import Ballast
from fanoutfs.index.format import DATABASES
from fanoutfs.index.savepoint import NoRoomError, SavePoint, SavePoints, go_back, header_of, instance_of

log = logging.getLogger(__name__)

LMDB_ENGINE: Final = 0
"""py-lmdb 3 carries LMDB 0.9 and 1.0, whose files exclude each other: always say which."""
MAP_BYTES: Final = 1 << 38
"""256 GiB of address space; the file stays as small as its content.  About 500 million files fit."""
MAX_READERS: Final = 256
FILE_NAME: Final = "index.lmdb"
ROOM_BYTES: Final = 128 << 10
"""Space behind the end of the file that is taken ahead: for four changes, each of 28 KiB until the next sync."""
BROKEN: Final = (lmdb.InvalidError, lmdb.CorruptedError, lmdb.VersionMismatchError, lmdb.PageNotFoundError)
"""What LMDB raises when a file is damaged, not merely full."""
UNUSABLE: Final = (lmdb.Error, OSError)
"""What opening an environment, or any other part of the cache, raises."""


class IndexEnvironment:
    """An open environment and its databases.  Raises lmdb.Error when the file is broken."""

    def __init__(self, directory: Path, *, writable: bool, is_owner: bool = True) -> None:
        """is_owner: the core, which alone makes and syncs the index; others may change what is in it.

        Raises FileNotFoundError if there is none to open, and lmdb.Error.
        """
        is_owner = is_owner and writable
        self.broken = threading.Event()
        """Set when a change met damage inside; then the index must go and everything be opened anew."""
        self.stopped = threading.Event()
        """Set when LMDB refuses everything until the file is opened anew: its header could not be written."""
        self.is_in_doubt = False
        """Whether commits may have been lost in a power cut, and numbers given out that the index knows nothing of."""
        self._shown_pin: memoryview | None = None
        self._seen_pin: tuple[tuple[int, int], str] = (0, 0), ""
        self._path = directory / FILE_NAME
        self._sync_lock = threading.Lock()
        self._pin: lmdb.Transaction | None = None
        self._synced_txnid = -1
        self._with_room_bytes = 0
        self._file_bytes = 0
        self._has_failed = False
        self._points = SavePoints(directory) if is_owner else None
        self._ballast = Ballast(directory) if is_owner else None
        self._instance = instance_of(directory) if is_owner else b""
        try:
            if self._points is not None:
                self._prepare(self._points)
            else:
                self._path.stat()  # LMDB would make the file
            lockfile.prepare(self._path, is_owner=is_owner)
            self.env = lmdb.open(
                os.fspath(self._path),
                map_size=MAP_BYTES,
                subdir=False,
                mode=0o600,
                readonly=not writable,
                sync=False,
                readahead=False,
                meminit=False,
                max_dbs=len(DATABASES),
                max_readers=MAX_READERS,
                lib_version=LMDB_ENGINE,
            )
        except BaseException:
            self._close_points()
            raise
        try:
            is_short = is_owner and extend_to_header(self.env)
            if is_owner:
                self.sync()
            self._databases = tuple(self.env.open_db(name, create=is_owner) for name in DATABASES)
            (
                self.settings,
                self.entries,
                self.inodes,
                self.blocks,
                self.orphans,
                self.names,
                self.targets,
                self.xattrs,
                self.dirty,
                self.staged,
                self.local,
                self.departed,
                self.applied,
                self.accessed,
                self.stored,
            ) = self._databases
            if is_short:
                self._walk()
        except (lmdb.Error, OSError):
            self.close()
            raise

    def _prepare(self, points: SavePoints) -> None:
        """Have LMDB find a state that is whole.  Raises lmdb.CorruptedError, OSError."""
        point = points.last
        if not self._path.exists():
            points.begin()
        elif point is None:
            return  # made before there were save points, and synced with every commit
        elif not point.index_ino:
            raise lmdb.CorruptedError(f"{self._path} was never whole")
        elif point.index_ino == self._path.stat().st_ino and point.instance != self._instance:
            self.is_in_doubt = True
            if go_back(self._path, point):
                log.warning("the index is what it was when it was synced last txnid=%d", point.txnid)

    def _walk(self) -> None:
        """Touch every record.  Raises lmdb.CorruptedError.

        A short file need not be broken: pages that were allocated and freed within one transaction are never written.
        """
        with self.env.begin() as txn:
            for database in self._databases:
                for _record in txn.cursor(db=database):
                    pass

    def file_bytes(self) -> int:
        """Return what the file occupies on disk, with the room behind its end and what else is kept for it."""
        ballast_bytes = 0 if self._ballast is None else self._ballast.bytes
        self._file_bytes = occupied_bytes(self.env, self._file_bytes)
        return self._file_bytes + ballast_bytes

    @property
    def is_synced(self) -> bool:
        """Tell whether everything that was committed survives a power cut."""
        return self._synced_txnid == self.env.info()["last_txnid"]

    @property
    def unsynced_commits(self) -> int:
        """Return how many commits there were since the last sync: LMDB may not reuse what they gave up.  Any thread."""
        return int(self.env.info()["last_txnid"]) - self._synced_txnid

    def sync(self) -> None:
        """Make everything that was committed survive a power cut.  Any thread; blocks.

        Raises OSError; after a failure always, but if nothing was committed since the last success: the kernel has
        dropped the pages, and the next sync would say nothing.

        Order: the state of now is pinned (1); it is synced (2); its header is saved (3); the one before it is unpinned.
        A power cut before the end of 3 goes back to the state before, which is pinned until then.
        """
        with self._sync_lock:
            if self.is_synced or self._points is None:
                return
            if self._has_failed:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            try:
                with self.env.begin(write=True):  # no commit is under way as long as this one is
                    pin = self.env.begin()
                    header = header_of(self._path, self.env.stat()["psize"], pin.id())
                self._has_failed = True  # until it has not
                try:
                    self.env.sync(True)
                    if self._pin is None:
                        self._points.sync_names()
                    index_ino = self._path.stat().st_ino
                    self._points.write(SavePoint(index_ino, self._instance, pin.id(), header))
                    self._has_failed = False
                except BaseException as error:
                    pin.abort()
                    if isinstance(error, NoRoomError):  # everything is on the disk; only the way back there is not
                        self._has_failed = False
                    raise
            except lmdb.Error as error:
                raise OSError(errno.EIO, f"the index cannot be synced: {error}") from error
            if self._shown_pin is not None:
                self._shown_pin[1] = pin.id()
            if self._pin is not None:
                self._pin.abort()
            self._pin, self._synced_txnid = pin, pin.id()
            with contextlib.suppress(OSError):  # the sync has succeeded, whatever comes of this
                self._take_room()
                if self._ballast is not None:
                    self._ballast.keep()

    def make_room(self) -> None:
        """Give back the pages that wait for a sync, if that can be had.  Any thread; blocks."""
        if self._ballast is not None:
            self._ballast.give_up()
        with contextlib.suppress(OSError):
            self.sync()

    def is_for_want_of_room(self, error: lmdb.Error) -> bool:
        """Tell whether a change was refused because the disk is full.  LMDB calls a write that came short EIO."""
        if isinstance(error, lmdb.DiskError) or os.strerror(errno.EDQUOT) in str(error):
            return True
        if os.strerror(errno.EIO) not in str(error):
            return False
        try:
            found = os.statvfs(self._path)
        except OSError:
            return False
        return found.f_bavail * found.f_frsize < ROOM_BYTES

    def _take_room(self) -> None:
        """Have some space behind the end of the file, as long as the disk has it and the file system can.

        Raises OSError.
        """
        size_bytes = self._path.stat().st_size
        if size_bytes <= self._with_room_bytes - ROOM_BYTES // 2:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            allocate(fd, FALLOC_FL_KEEP_SIZE, size_bytes, ROOM_BYTES)
            self._with_room_bytes = size_bytes + ROOM_BYTES
        finally:
            os.close(fd)

    def show_pin(self, words: memoryview) -> None:
        """Have others see which pin keeps the state of the last sync.  words: process and txnid, in shared memory."""
        self._shown_pin = words
        words[0] = os.getpid()
        words[1] = max(0, self._synced_txnid)

    def has_pin(self, words: memoryview) -> bool:
        """Tell, inside a transaction of one's own, whether the pin that another process shows is there.

        Else pages of the last sync would be reused, and a power cut tear the index.  The pin of a process that died
        stays until somebody takes LMDB's lock over from another one that died in a transaction: LMDB then removes all
        readers of dead processes.
        """
        wanted = words[0], words[1]
        readers = self.env.readers()  # a line for each: process, padded to ten places; thread; txnid
        if self._seen_pin[0] == wanted and self._seen_pin[1] in readers:
            return True
        pid, txnid = f"{wanted[0]:10d} ", f" {wanted[1]}\n"
        for line in readers.splitlines(keepends=True):
            if line.startswith(pid) and line.endswith(txnid):
                self._seen_pin = wanted, line
                return True
        return False

    def close(self) -> None:
        """Close the environment."""
        if self._pin is not None:
            self._pin.abort()
            self._pin = None
        self.env.close()
        self._close_points()

    def _close_points(self) -> None:
        if self._points is not None:
            self._points.close()
            self._points = None


def occupied_bytes(env: lmdb.Environment, known_bytes: int) -> int:
    """Return what an environment's file occupies on disk; known_bytes if somebody has removed it: LMDB goes on."""
    try:
        return os.stat(env.path()).st_blocks * 512
    except FileNotFoundError:
        return known_bytes


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
