"""SETATTR of staged files: mode, owner and times, done by the front itself where it can.

Programs that unpack or copy set them of each file that they have just made.  As with a new file (`front.creating`) the
front changes the record in a transaction of its own; the staging file, which has the times, is changed inside it: to
seal a file the core needs LMDB's lock as well, so that either this finds the file sealed, or the core waits for this
front before it relies on the staging file.  An upload under way finds that the file's ctime has moved.

The core does the rest as ever: what is not staged, or sealed, or has several names, what has another size afterwards,
and what was delivered again.
"""

import time
from collections.abc import Callable
from typing import Final

from fanoutfs.cache.staging import StagingFiles, staged_attr
from fanoutfs.errors import DatabaseError, FanoutError
from fanoutfs.front.hints import HintSender
from fanoutfs.front.kernel import KernelChannel
from fanoutfs.front.staged import flags_of
from fanoutfs.index.attributes import SetAttributes
from fanoutfs.index.format import FLAG_SEALED, FLAG_STAGED, Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.requests import Request, known_inode
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import pinned_transaction
from fanoutfs.observe.catalog import ANSWERED_BASE
from fanoutfs.observe.shared import INDEX_BUSY, SharedState
from fanoutfs.wire.kernel import IN_HEADER_SIZE, SETATTR_IN, UNIQUE_RESEND, Opcode, SetattrValid
from fanoutfs.wire.messages import ATTR_OUT_FOREVER
from fanoutfs.wire.relay import make_token

_NS: Final = 1_000_000_000


class Attributes:
    """Changes of attributes by one front."""

    def __init__(
        self,
        *,
        kernel: KernelChannel,
        index: IndexReader,
        environment: IndexEnvironment,
        staging: StagingFiles,
        hints: HintSender,
        shared: SharedState,
        row: memoryview,
        root_prefix: str,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """environment: open for changes."""
        self._kernel = kernel
        self._index = index
        self._environment = environment
        self._staging = staging
        self._hints = hints
        self._rings = shared.spares
        self._flags = shared.flags
        self._pin = shared.pin
        self._row = row
        self._root_prefix = root_prefix
        self._now_ns = now_ns

    def set(self, unique: int, ino: int, packet: bytes | bytearray) -> bool:
        """Carry a SETATTR out and answer it; False: the core has to.  packet: with set-ID bits spelled out."""
        fields = SETATTR_IN.unpack_from(packet, IN_HEADER_SIZE)
        if fields[0] & SetattrValid.SIZE or unique & UNIQUE_RESEND:
            return False
        if self._flags[INDEX_BUSY] or not self._rings.is_open or not self._is_open_to_change(ino):
            return False
        request = Request(self._now_ns(), make_token(unique), Opcode.SETATTR, self._root_prefix)
        change = _change(ino, request, fields)
        try:
            with pinned_transaction(self._environment, self._pin) as txn:
                _check(known_inode(txn, ino))
                changed = change.apply(txn)
                self._staging.touch(ino, changed.life, change.atime_ns, change.mtime_ns)
                status = self._staging.stat(ino, changed.life)
        except (FanoutError, OSError):
            return False
        self._row[ANSWERED_BASE + Opcode.SETATTR] += 1
        self._kernel.answer(unique, ATTR_OUT_FOREVER, staged_attr(changed.attr, status, is_whole=changed.is_whole))
        self._hints.note_written(ino)
        return True

    def _is_open_to_change(self, ino: int) -> bool:
        """Tell whether it is worth taking LMDB's lock."""
        with self._index.begin() as txn:
            value = self._index.inode_value(txn, ino)
            return value is not None and flags_of(value) & (FLAG_STAGED | FLAG_SEALED) == FLAG_STAGED


def _check(inode: Inode) -> None:
    if not inode.is_staged or inode.is_sealed:
        raise DatabaseError("the file is becoming clean")
    if inode.links != 1:  # each name has an object, which the core has to queue
        raise DatabaseError("the file has several names, or none")


def _change(ino: int, request: Request, fields: tuple[int, ...]) -> SetAttributes:
    """Return what a fuse_setattr_in asks for."""
    valid = fields[0]
    return SetAttributes(
        ino,
        request,
        mode=fields[11] if valid & SetattrValid.MODE else None,
        uid=fields[13] if valid & SetattrValid.UID else None,
        gid=fields[14] if valid & SetattrValid.GID else None,
        atime_ns=_time(valid, SetattrValid.ATIME, SetattrValid.ATIME_NOW, fields[5], fields[8], request.now_ns),
        mtime_ns=_time(valid, SetattrValid.MTIME, SetattrValid.MTIME_NOW, fields[6], fields[9], request.now_ns),
    )


def _time(valid: int, is_set: int, is_now: int, seconds: int, nanoseconds: int, now_ns: int) -> int | None:
    if not valid & is_set:
        return None
    if valid & is_now:
        return now_ns
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * _NS + nanoseconds
