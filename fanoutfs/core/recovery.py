"""Put staging/ and the index in order before the first request: what a kill or a power cut may have left between them.

Core, once at its start; fronts may run already.  See `core.staging` for the order in which both change.

* A staging file that no record knows was made for a record that never came, or outlived its file's becoming clean, or
  the free-ing of its inode: it goes.
* A record whose staging file is missing was never synced (fsync syncs the file's name).  If it has an object it is that
  again, else it becomes an empty file.
* A file that was cut short before the record could say so: nothing of the object behind its end counts.
* Nothing stays sealed: whoever wanted to upload is gone.
"""

import logging

import trio

from fanoutfs.cache.smallstore import SmallStore
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.index.format import INO_KEY, Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.requests import ForgetRequests, Request
from fanoutfs.index.staged import Seal, Truncate, Unstage
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import IndexTransaction
from fanoutfs.index.writer import GroupWriter

log = logging.getLogger(__name__)


async def recover(
    environment: IndexEnvironment,
    reader: IndexReader,
    writer: GroupWriter[IndexTransaction],
    staging: StagingFiles,
    small: SmallStore,
    root_prefix: str,
    now_ns: int,
    *,
    is_first: bool,
) -> None:
    """Do so.  is_first: a new mount, whose kernel knows no requests of before.  Checkpoint.  Raises OSError."""
    if is_first:
        await writer.run(ForgetRequests().apply)
    known = {(inode.ino, inode.life): inode for inode in _staged(environment, reader)}
    files = set(staging.all())
    if files - set(known):
        # That a file is clean may have been committed right before the kill, and not be durable yet.
        await trio.to_thread.run_sync(environment.sync)
    for ino, life in files - set(known):
        if not staging.is_blank(ino, life):  # else it is a spare (see `spares`)
            log.warning("staging file without a record removed ino=%d life=%d", ino, life)
        staging.remove(ino, life)
    for (ino, life), inode in known.items():
        if inode.is_sealed:
            await writer.run(Seal(ino, life, sealed=False).apply)
        if (ino, life) not in files:
            if inode.key:
                log.warning("staging file lost, never synced: back to the object ino=%d key=%s", ino, inode.key)
                await writer.run(Unstage(ino, life).apply)
                continue
            log.warning("staging file lost, never synced: made anew, empty ino=%d", ino)
            staging.create(ino, life)
        elif not inode.is_whole:
            request = Request(now_ns, 0, 0, root_prefix)
            await writer.run(Truncate(ino, life, staging.stat(ino, life).st_size, request).apply)
        if small.has(ino):
            await small.drop(ino)
    if files or known:
        await trio.to_thread.run_sync(staging.sync_directory)
        log.info("staging recovered files=%d staged=%d", len(files), len(known))


def _staged(environment: IndexEnvironment, reader: IndexReader) -> list[Inode]:
    """Return the staged inodes: each is dirty, or has lost its last name."""
    with reader.begin() as txn:
        inos = [ino for ino, _dirty in reader.changed(txn).all_dirty()]
        with txn.cursor(db=environment.orphans) as cursor:
            inos += [INO_KEY.unpack(key)[0] for key, _value in cursor]
        found = (reader.inode(txn, ino) for ino in inos)
        return [inode for inode in found if inode is not None and inode.is_staged]
