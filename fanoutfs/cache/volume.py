"""Open one volume's state for the core: index, small store, cache files, in an order that never mixes two histories.

Inode numbers tie the three together: content filed under a number that a new index hands out again would be wrong
bytes with a right checksum.  Therefore, whenever the index is new, everything filed under old numbers goes first:
  1. a broken index is renamed away (kept for a look)    3. only then a new index is created
  2. the small store and objects/ are emptied
A crash between the steps leaves no index, and the next start begins at step 2.

Staging files are never removed here: a new index adopts them, in the transaction that makes it (`index.adoption`).
"""

import logging
import shutil
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import lmdb

from fanoutfs.cache import small as small_store
from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.salvage import find_staged
from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.errors import CacheUnusableError
from fanoutfs.index import lockfile
from fanoutfs.index.adoption import Adopt
from fanoutfs.index.operations import OldFormatError, OpenVolume
from fanoutfs.index.store import BROKEN, FILE_NAME, UNUSABLE, IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Volume:
    """An opened volume.  was_known: the index holds what an earlier mount learned."""

    environment: IndexEnvironment
    small: SmallStore
    files: CacheFiles
    staging: StagingFiles
    was_known: bool

    def close(self, path: Path) -> None:
        """Close everything and note that nothing was torn.  Blocks."""
        self.files.close()
        self.staging.close()
        self.small.close()
        try:
            self.environment.sync()
        except OSError as error:
            log.error("what was committed last may not survive a power cut: %s", error)
        self.environment.close()
        small_store.mark_closed(path)

    @property
    def is_broken(self) -> bool:
        """Tell whether a database turned out to be damaged, or has to be opened anew."""
        return self.is_damaged or self.environment.stopped.is_set()

    @property
    def is_damaged(self) -> bool:
        """Tell whether one is damaged, and has to go."""
        return self.small.broken.is_set() or self.environment.broken.is_set()

    def put_away_broken(self, path: Path) -> None:
        """Remove what is damaged, so that the next to open the volume begins anew.  After `close`.

        Processes that have it open keep reading what they know until they end.
        """
        if self.environment.broken.is_set():
            _put_away_index(path)
        if self.small.broken.is_set():
            small_store.remove(path)


def open_volume(
    path: Path,
    small_share_bytes: int,
    wanted: OpenVolume,
    wait_for_readers: Callable[[], Awaitable[None]],
    root_prefix: str = "",
) -> Volume:
    """Open or create the volume.  Raises CacheUnusableError when a newer version wrote it or the disk refuses.

    wait_for_readers: see SmallStore.  root_prefix: what all keys of the mount begin with.
    """
    try:
        staging = StagingFiles(path)
        try:
            return _open(path, small_share_bytes, _Opening(wanted, staging, root_prefix), wait_for_readers)
        except BaseException:
            staging.close()
            raise
    except UNUSABLE as error:
        raise CacheUnusableError(f"{path} cannot be opened: {error}") from error


@dataclass(frozen=True, slots=True)
class _Opening:
    """What an index is opened with."""

    wanted: OpenVolume
    staging: StagingFiles
    root_prefix: str

    def apply(self, txn: IndexTransaction, *, is_in_doubt: bool) -> bool:
        """Open the index, and adopt what is staged if it is new; return whether it was known.

        is_in_doubt: numbers were given out since the state that the index is in.
        """
        was_known = self.wanted.apply(txn)
        if is_in_doubt:
            txn.skip_inos(self.wanted.first_ino)
        if not was_known:
            files = find_staged(self.staging)
            for path in Adopt(files, self.root_prefix, self.wanted.ownership, self.wanted.now_ns).apply(txn):
                log.warning("staged content is kept in a new index path=%s", path)
        return was_known


def _open(
    path: Path, small_share_bytes: int, wanted: _Opening, wait_for_readers: Callable[[], Awaitable[None]]
) -> Volume:
    index = path / FILE_NAME
    if not index.exists() or index.stat().st_size == 0:  # LMDB takes an empty file for a new one
        index.unlink(missing_ok=True)
        _empty(path)
    try:
        environment, was_known = _open_index(path, wanted)
    except BROKEN as error:
        log.error("index is broken, starting a new one path=%s: %s", path / FILE_NAME, error)
        _put_away_index(path)
        _empty(path)
        environment, was_known = _open_index(path, wanted)
    except OldFormatError as error:
        log.warning("index is of an earlier version, starting a new one path=%s: %s", path / FILE_NAME, error)
        index.unlink()
        lockfile.forget(index)
        _empty(path)
        environment, was_known = _open_index(path, wanted)
    small_store.prepare(path, small_share_bytes)
    try:
        small = SmallStore(path, small_share_bytes, wait_for_readers)
    except (lmdb.Error, OSError, struct.error, small_store.SmallFormatError) as error:
        log.error("small-file store cannot be used, starting a new one path=%s: %s", path, error)
        small_store.remove(path)
        try:
            small = SmallStore(path, small_share_bytes, wait_for_readers)
        except (lmdb.Error, OSError) as again:
            environment.close()
            raise CacheUnusableError(f"{path}: cannot create the small-file store: {again}") from again
    return Volume(environment, small, CacheFiles(path, writable=True), wanted.staging, was_known)


def _open_index(path: Path, wanted: _Opening) -> tuple[IndexEnvironment, bool]:
    environment = IndexEnvironment(path, writable=True)
    try:
        environment.env.reader_check()  # slots of processes that were killed
        with environment.env.begin(write=True) as txn:
            transaction = IndexTransaction(environment, txn)
            was_known = wanted.apply(transaction, is_in_doubt=environment.is_in_doubt)
            transaction.flush()
        if not was_known:
            environment.sync()
        return environment, was_known
    except OldFormatError:
        environment.close()
        raise
    except OSError as error:
        environment.close()
        raise CacheUnusableError(f"{path}: {error}") from error
    except ValueError as error:
        environment.close()
        raise CacheUnusableError(f"{path}: {error}; use another --cache-dir or delete this folder") from error
    except lmdb.Error:
        environment.close()
        raise


def _put_away_index(path: Path) -> None:
    (path / FILE_NAME).replace(path / (FILE_NAME + ".broken"))
    lockfile.forget(path / FILE_NAME)


def _empty(path: Path) -> None:
    """Remove everything that is filed under inode numbers."""
    small_store.remove(path)
    shutil.rmtree(path / "objects", ignore_errors=True)
    (path / "objects").mkdir(mode=0o700)
