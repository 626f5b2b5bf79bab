"""MKNOD of regular files, which is how the kernel creates them here: done by the front itself where it can.

The core has put numbers whose staging files exist into this front's ring (`observe.spares`).  The front enters the file
into the index in a transaction of its own; LMDB lets one process write at a time, and the decision is taken inside.  So
a file costs no message to the core, which learns of it afterwards, by the ring.

What needs more goes to the core as ever: a directory whose names are not all known, a request that was delivered
again, and everything while the core's writer is at work, which may take long: this front has readers to serve.

Order, so that nothing is lost whenever this process dies:
  1. the record is committed under the request's token    before: the kernel delivers the request again
  2. the number counts as used                            a successor finds the record and counts it
  3. the staging file says which object it shall be       the core does that when the request comes again
  4. the kernel is answered
  5. the core is told, within half a second               what counts as used it sees at any time
"""

import os
import stat
import time

from fanoutfs.cache.staging import StagingFiles, staged_attr
from fanoutfs.errors import FanoutError, RefusedError
from fanoutfs.front.forwarding import Forwarding
from fanoutfs.front.hints import HintSender
from fanoutfs.front.kernel import KernelChannel
from fanoutfs.index.changes import MakeNode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.requests import Request
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import pinned_transaction
from fanoutfs.observe.catalog import ANSWERED_BASE
from fanoutfs.observe.shared import INDEX_BUSY, SharedState
from fanoutfs.wire.kernel import (
    ENTRY_OUT_HEAD,
    FOREVER_S,
    IN_HEADER,
    IN_HEADER_SIZE,
    MKNOD_IN,
    UNIQUE_RESEND,
    Opcode,
)
from fanoutfs.wire.relay import make_token


class Creating:
    """The answers of one front to MKNOD."""

    def __init__(
        self,
        *,
        kernel: KernelChannel,
        forwarding: Forwarding,
        index: IndexReader,
        environment: IndexEnvironment,
        staging: StagingFiles,
        hints: HintSender,
        shared: SharedState,
        row: memoryview,
        front: int,
        root_prefix: str,
        metadata_ttl_s: float,
        entry_valid_s: int,
    ) -> None:
        """environment: open for changes."""
        self._kernel = kernel
        self._forward = forwarding.forward
        self._index = index
        self._environment = environment
        self._staging = staging
        self._hints = hints
        self._rings = shared.spares
        self._flags = shared.flags
        self._pin = shared.pin
        self._row = row
        self._front = front
        self._root_prefix = root_prefix
        self._ttl_ns = metadata_ttl_s * 1e9
        self._entry_valid_s = entry_valid_s

    def settle(self) -> None:
        """Count what a predecessor has committed and could not count any more."""
        ino = self._rings.undecided(self._front)
        if ino:
            with self._index.begin() as txn:
                is_there = self._index.inode_value(txn, ino) is not None
            if is_there:
                self._rings.note_used(self._front)
        self._hints.note_made(left=0)

    def mknod(self, unique: int, nodeid: int, packet: memoryview) -> None:
        """Make a file, or have the core make the node."""
        mode, _rdev, _umask, _padding = MKNOD_IN.unpack_from(packet, IN_HEADER_SIZE)
        if unique & UNIQUE_RESEND or not stat.S_ISREG(mode) or self._flags[INDEX_BUSY]:
            self._forward(unique, nodeid, packet)
            return
        ino = self._rings.first(self._front)
        if not ino:
            self._forward(unique, nodeid, packet)
            return
        _length, _opcode, _unique, _nodeid, uid, gid, *_rest = IN_HEADER.unpack_from(packet)
        name = bytes(packet[IN_HEADER_SIZE + MKNOD_IN.size : -1])  # the kernel sends the NUL
        request = Request(time.time_ns(), make_token(unique), Opcode.MKNOD, self._root_prefix)
        make = MakeNode(
            nodeid, name, ino, mode, uid, gid, request, life=ino, listed_since_ns=request.now_ns - self._ttl_ns
        )
        try:
            fd = self._staging.descriptor(ino, ino)
            os.utime(fd)
            with pinned_transaction(self._environment, self._pin) as txn:
                made = make.apply(txn)
                key = request.key_at(txn, nodeid, name)
        except RefusedError as error:
            self._row[ANSWERED_BASE + Opcode.MKNOD] += 1
            self._kernel.error(unique, error.errno_code)
            return
        except (FanoutError, OSError):
            self._forward(unique, nodeid, packet)
            return
        left = self._rings.note_used(self._front)
        self._staging.tag(ino, ino, key)
        attr = staged_attr(made.attr, os.fstat(fd), is_whole=True)
        self._row[ANSWERED_BASE + Opcode.MKNOD] += 1
        self._kernel.answer(unique, ENTRY_OUT_HEAD.pack(ino, 0, self._entry_valid_s, FOREVER_S, 0, 0), attr)
        self._hints.note_directory(nodeid)
        self._hints.note_made(left)
