"""Answers from the index and the cache.  What is not there goes to the core through the relay.

One method per opcode; each gets (unique, nodeid, body) and answers through the kernel channel or the relay.  `body`
is valid during the call only.
"""

import contextlib
import errno
import os
import stat
import time
from typing import Final

from fanoutfs.cache.arena import Arena, gaps
from fanoutfs.cache.blocks import BlockMismatchError, BlockReader, missing_blocks
from fanoutfs.cache.small import SmallMismatchError, SmallReader
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.front.attributes import Attributes
from fanoutfs.front.changes import Changes
from fanoutfs.front.creating import Creating
from fanoutfs.front.forwarding import Forwarding
from fanoutfs.front.hints import HintSender
from fanoutfs.front.kernel import KernelChannel
from fanoutfs.front.relay import Answer, Relay, Relayed, with_unique
from fanoutfs.front.staged import current_attr, first_absent, flags_of, lacks_attributes, life_of, mode_of
from fanoutfs.index.format import DT_REG, FLAG_HELD, FLAG_LISTED, FLAG_SMALL, FLAG_STAGED, FLAG_WHOLE, INODE_TAIL
from fanoutfs.index.names import NAME_MAX_BYTES
from fanoutfs.index.reader import IndexReader, Transaction
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.observe.catalog import ANSWERED_BASE, Count
from fanoutfs.observe.shared import DISKS, TICK, TRACING, SharedState, mark_of
from fanoutfs.records import BLOCK_BYTES, PART_BLOCKS, PART_BYTES, ROOT_INO
from fanoutfs.wire.dirents import dirent_size, direntplus_size, pack_dirent
from fanoutfs.wire.kernel import (
    ATTR_SIZE,
    ENTRY_OUT_HEAD,
    ENTRY_OUT_SIZE,
    FOREVER_S,
    GETATTR_IN,
    MAX_READ_BYTES,
    OUT_HEADER_SIZE,
    READ_IN,
    STATFS_OUT,
    Opcode,
)
from fanoutfs.wire.messages import ATTR_OUT_FOREVER, encode_request
from fanoutfs.wire.relay import DONE, Outcome, Verb

_DT_DIR: Final = stat.S_IFDIR >> 12
_DT_UNKNOWN: Final = 0  # <dirent.h>
_DOT_OFFSET: Final = 1
_DOTDOT_OFFSET: Final = 2
_MAX_TRIES: Final = 3
"""After the cache lost a range this often before it could be read, the core hands the bytes over directly."""
_STATFS_BLOCK: Final = 4096
_STATFS_TOTAL_BYTES: Final = 1 << 50
"""Object stores have no size: 1 PiB, as s3fs, rclone and JuiceFS say.  What is known to exist counts as used."""
_EMPTY_ATTR: Final = b"\0" * ATTR_SIZE
_TIDY_S: Final = 5.0
_MAX_LOCALISE_TRIES: Final = 1000
"""A range may be made clean, staged again, ... between the core's answer and the read; not for ever."""


class Handlers:
    """The answers of one front."""

    def __init__(
        self,
        *,
        kernel: KernelChannel,
        relay: Relay,
        index: IndexReader,
        small: SmallReader,
        blocks: BlockReader,
        arena: Arena,
        staging: StagingFiles,
        hints: HintSender,
        shared: SharedState,
        row: memoryview,
        metadata_ttl_s: float,
        entry_valid_s: int,
        environment: IndexEnvironment,
        front: int,
        root_prefix: str = "",
        needs_attributes: bool = False,
    ) -> None:
        """needs_attributes: a file is first shown when the core has asked its object for attributes."""
        self._needs_attributes = needs_attributes
        self._environment = environment
        self._kernel = kernel
        self._relay = relay
        self._index = index
        self._small = small
        self._blocks = blocks
        self._arena = arena
        self._staging = staging
        self._staged_data = memoryview(bytearray(MAX_READ_BYTES))
        self._next_tidy_s = 0.0
        self._disks_seen = shared.flags[DISKS]
        self._hints = hints
        self._shared = shared
        self._positions = shared.positions
        self._read_marks = shared.read_marks
        self._flags = shared.flags
        self._row = row
        self._ttl_ns = metadata_ttl_s * 1e9
        self._tracks_use = metadata_ttl_s != float("inf")
        self._entry_valid_s = entry_valid_s
        self.changes = Changes(
            kernel=kernel,
            relay=relay,
            index=index,
            staging=staging,
            hints=hints,
            shared=shared,
            row=row,
        )
        attributes = Attributes(
            kernel=kernel,
            index=index,
            environment=environment,
            staging=staging,
            hints=hints,
            shared=shared,
            row=row,
            root_prefix=root_prefix,
        )
        self.forwarding = Forwarding(
            kernel=kernel, relay=relay, index=index, row=row, getattr_=self.getattr, set_here=attributes.set
        )
        self.creating = Creating(
            kernel=kernel,
            forwarding=self.forwarding,
            index=index,
            environment=environment,
            staging=staging,
            hints=hints,
            shared=shared,
            row=row,
            front=front,
            root_prefix=root_prefix,
            metadata_ttl_s=metadata_ttl_s,
            entry_valid_s=entry_valid_s,
        )
        self._negative_entry = ENTRY_OUT_HEAD.pack(0, 0, entry_valid_s, 0, 0, 0) + _EMPTY_ATTR

    # --- names and attributes ----------------------------------------------------------------------------------

    def lookup(self, unique: int, nodeid: int, body: memoryview) -> None:
        name = bytes(body[:-1])  # the kernel sends the NUL
        if len(name) > NAME_MAX_BYTES:  # the kernel's own limit is 4095, LMDB's keys end at 511
            self._fail(Opcode.LOOKUP, unique, errno.ENAMETOOLONG)
            return
        with self._index.begin() as txn:
            directory = self._index.inode_value(txn, nodeid)
            # Asked once: the clock may be set back, and what was not looked for must not be answered as absent.
            is_fresh = directory is not None and self._is_fresh(directory)
            child = self._index.child(txn, nodeid, name) if is_fresh else None
            attr = None if child is None else self._attr(txn, child)
        if directory is None:
            self._fail(Opcode.LOOKUP, unique, errno.ESTALE)
        elif not is_fresh or (child is not None and attr is None):
            packet = encode_request(Opcode.LOOKUP, 0, nodeid, name + b"\0")
            self._relay.forward(Opcode.LOOKUP, unique, nodeid, packet)
        else:
            self._hints.note_directory(nodeid)
            self._row[ANSWERED_BASE + Opcode.LOOKUP] += 1
            if child is None or attr is None:
                self._kernel.answer(unique, self._negative_entry)
            else:
                self._kernel.answer(unique, self._entry_head(child), attr)

    def getattr(self, unique: int, nodeid: int, _body: memoryview) -> None:
        with self._index.begin() as txn:
            value = self._index.inode_value(txn, nodeid)
            attr = None if value is None else current_attr(self._staging, nodeid, value)
        if value is None:
            self._fail(Opcode.GETATTR, unique, errno.ESTALE)
        elif attr is None:
            packet = encode_request(Opcode.GETATTR, 0, nodeid, bytes(GETATTR_IN.size))
            self._relay.forward(Opcode.GETATTR, unique, nodeid, packet)
        else:
            self._row[ANSWERED_BASE + Opcode.GETATTR] += 1
            self._kernel.answer(unique, ATTR_OUT_FOREVER, attr)

    def readlink(self, unique: int, nodeid: int, _body: memoryview) -> None:
        with self._index.begin() as txn:
            value = self._index.inode_value(txn, nodeid)
            mode = 0 if value is None else mode_of(value)
            target = self._index.changed(txn).target(nodeid) if stat.S_ISLNK(mode) else None
        if target is not None:
            self._row[ANSWERED_BASE + Opcode.READLINK] += 1
            self._kernel.answer(unique, target)
        elif stat.S_ISLNK(mode):  # its object has the target
            self._relay.forward(Opcode.READLINK, unique, nodeid, encode_request(Opcode.READLINK, 0, nodeid, b""))
        else:
            self._fail(Opcode.READLINK, unique, errno.ESTALE if value is None else errno.EINVAL)

    def _attr(self, txn: Transaction, ino: int) -> bytes | memoryview | None:
        """Return an inode's fuse_attr as it is now, valid inside the transaction; None: the core must say."""
        value = self._index.inode_value(txn, ino)
        if value is None or (self._needs_attributes and lacks_attributes(value)):
            return None
        return current_attr(self._staging, ino, value)

    def statfs(self, unique: int, _nodeid: int, _body: memoryview) -> None:
        with self._index.begin() as txn:
            files, size_bytes = self._index.totals(txn)
        total = _STATFS_TOTAL_BYTES // _STATFS_BLOCK
        free = max(0, total - -(-size_bytes // _STATFS_BLOCK))
        free_files = (1 << 40) - files
        self._row[ANSWERED_BASE + Opcode.STATFS] += 1
        statfs = STATFS_OUT.pack(total, free, free, 1 << 40, free_files, _STATFS_BLOCK, 255, _STATFS_BLOCK, 0)
        self._kernel.answer(unique, statfs)

    def _entry_head(self, ino: int) -> bytes:
        return ENTRY_OUT_HEAD.pack(ino, 0, self._entry_valid_s, FOREVER_S, 0, 0)

    def _is_fresh(self, directory: bytes | memoryview) -> bool:
        """Tell whether a directory's record says that its names are complete and within the TTL."""
        listed_at_ns, flags, _etag, _version, _key = INODE_TAIL.unpack_from(directory, ATTR_SIZE)
        # The names of a held directory are those here, whatever a listing shows.
        return bool(flags & FLAG_HELD) or (bool(flags & FLAG_LISTED) and self._is_within_ttl(listed_at_ns))

    def _is_within_ttl(self, listed_at_ns: int) -> bool:
        if not self._tracks_use:
            return listed_at_ns != 0  # 0: it is to be listed again whatever its age (core.forgetting)
        return 0 <= time.time_ns() - listed_at_ns <= self._ttl_ns

    # --- directories -------------------------------------------------------------------------------------------

    def readdir(self, unique: int, nodeid: int, body: memoryview) -> None:
        _fh, offset, size, *_rest = READ_IN.unpack_from(body)
        self._list(Opcode.READDIR, unique, nodeid, offset, size, tries=0)

    def readdirplus(self, unique: int, nodeid: int, body: memoryview) -> None:
        _fh, offset, size, *_rest = READ_IN.unpack_from(body)
        self._list(Opcode.READDIRPLUS, unique, nodeid, offset, size, tries=0)

    def _list(self, opcode: Opcode, unique: int, nodeid: int, offset: int, size: int, tries: int) -> None:
        with self._index.begin() as txn:
            directory = self._index.inode(txn, nodeid)
            if directory is None:
                self._fail(opcode, unique, errno.ESTALE)
                return
            if not directory.is_dir:
                self._fail(opcode, unique, errno.ENOTDIR)
                return
            is_old = offset == 0 and not self._is_within_ttl(directory.listed_at_ns)
            if not directory.is_held and (not directory.is_listed or (is_old and tries == 0)):
                if tries < _MAX_TRIES:
                    self._relay.ask(Verb.LIST, opcode, unique, nodeid, offset, size, tries)
                else:
                    self._fail(opcode, unique, errno.EIO)
                return
            after = b""
            if offset > _DOTDOT_OFFSET:
                last = self._positions.find(nodeid, offset) or self._index.name_at(txn, offset)
                if not last:  # freed since: where the listing stood is not known any more
                    self._fail(opcode, unique, errno.ESTALE)
                    return
                after = last
            records: list[bytes] = []
            files: list[int] = []
            stands: tuple[int, bytes] | None = None
            used = 0
            plus = opcode is Opcode.READDIRPLUS
            for position, name in ((_DOT_OFFSET, b"."), (_DOTDOT_OFFSET, b"..")):
                if offset < position:
                    dirent = pack_dirent(nodeid if name == b"." else ROOT_INO, position, _DT_DIR, name)
                    records.append(b"\0" * ENTRY_OUT_SIZE + dirent if plus else dirent)
                    used += len(records[-1])
            for name, ino, dtype, cookie in self._index.children(txn, nodeid, after):
                used += direntplus_size(len(name)) if plus else dirent_size(len(name))
                if used > size:
                    break
                if plus:
                    attr = self._attr(txn, ino)
                    # Without attributes the kernel takes the name only, and asks for the rest when it needs it.
                    records += (bytes(ENTRY_OUT_SIZE),) if attr is None else (self._entry_head(ino), bytes(attr))
                    if attr is None:  # a link, perhaps
                        records.append(pack_dirent(ino, cookie, _DT_UNKNOWN, name))
                        continue
                    if dtype == DT_REG:
                        files.append(ino)
                records.append(pack_dirent(ino, cookie, dtype, name))
                stands = (cookie, name)
        if stands:
            self._positions.note(nodeid, *stands)
        self._hints.note_directory(nodeid)
        self._row[ANSWERED_BASE + opcode] += 1
        self._kernel.answer(unique, b"".join(records))
        self._hints.note_listed(files)

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self, unique: int, nodeid: int, body: memoryview) -> None:
        _fh, offset, size, *_rest = READ_IN.unpack_from(body)
        self._read(unique, nodeid, offset, size, 0)

    def _read(self, unique: int, ino: int, offset: int, size: int, tries: int) -> None:
        with self._index.begin() as txn:
            value = self._index.inode_value(txn, ino)
            flags = FLAG_SMALL if value is None else flags_of(value)
            if value is not None and flags & FLAG_STAGED:
                self._read_staged(txn, value, unique, ino, offset, size, tries)
                return
        # Of a file whose record is gone the store may still have the content, for readers that have it open.
        if flags & FLAG_SMALL and self._read_small(unique, ino, offset, size, tries):
            return
        self._read_large(unique, ino, offset, size, tries)

    def _read_staged(
        self,
        txn: Transaction,
        value: bytes | memoryview,
        unique: int,
        ino: int,
        offset: int,
        size: int,
        tries: int,
    ) -> None:
        is_whole = flags_of(value) & FLAG_WHOLE
        data = self._staged_data[:size]
        if is_whole or first_absent(self._index.changed(txn), ino, offset, offset + size) is None:
            with contextlib.suppress(FileNotFoundError):  # a core that starts makes it again
                got = os.preadv(self._staging.descriptor(ino, life_of(value)), [data], offset)
                self._deliver(unique, data[:got])
                return
        if tries < _MAX_LOCALISE_TRIES:
            self._relay.ask(Verb.LOCALISE, Opcode.READ, unique, ino, offset, size, tries)
        else:
            self._fail(Opcode.READ, unique, errno.EIO)

    def _read_small(self, unique: int, ino: int, offset: int, size: int, tries: int) -> bool:
        """Answer from the small-file store; False: it does not have the content."""
        try:
            with self._small.begin() as txn:
                content = self._small.get(txn, ino)
                if content is not None:
                    data = content[offset : offset + size]
                    row = self._row
                    row[Count.SMALL_READS] += 1
                    row[Count.BLOCKS_VERIFIED] += 1
                    self._deliver(unique, data)
                    self._read_marks[mark_of(ino)] = self._flags[TICK]
                    if offset == 0:
                        self._hints.note_small_read(ino)
                    return True
        except SmallMismatchError:
            self._ask_read(Verb.REFILL, unique, ino, offset, size, tries)
            return True
        return False

    def _read_large(self, unique: int, ino: int, offset: int, size: int, tries: int) -> None:
        parts: dict[int, bytes] = {}
        missing = 0
        with self._index.begin() as txn:
            value = self._index.inode_value(txn, ino)
            if value is None:
                self._fail(Opcode.READ, unique, errno.ESTALE)
                return
            size_bytes = int.from_bytes(value[8:16], "little")
            end = min(offset + size, size_bytes)
            if offset >= end:
                self._deliver(unique, b"")
                return
            flags = int.from_bytes(value[ATTR_SIZE + 8 : ATTR_SIZE + 10], "little")
            fresh = [] if flags & FLAG_SMALL else self._arena.runs(ino, offset, end)
            if flags & FLAG_SMALL:
                missing = 1
            for start, stop in gaps(fresh, offset, end):
                first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
                for part in range(first // PART_BLOCKS, last // PART_BLOCKS + 1):
                    part_value = self._index.part_value(txn, ino, part)
                    missing |= missing_blocks(part_value, part, first, last)
                    parts[part] = bytes(part_value or b"")
        if missing:
            self._ask_read(Verb.FILL, unique, ino, offset, size, tries)
            return
        try:
            if fresh:
                pieces, verified = self._blocks.read_around(ino, offset, end, size_bytes, parts, fresh)
            else:
                data, verified = self._blocks.read(ino, offset, end, size_bytes, parts)
                pieces = [data]
        except BlockMismatchError:
            self._ask_read(Verb.REFILL, unique, ino, offset, size, tries)
            return
        self._row[Count.BLOCKS_VERIFIED] += verified
        self._row[Count.ARENA_READS] += bool(fresh)
        self._deliver(unique, *pieces)
        part, within = divmod(offset, PART_BYTES)
        self._read_marks[mark_of(ino, part)] = self._flags[TICK]
        if self._flags[TRACING]:
            self._hints.note_access(ino, part)
        self._hints.note_part(ino, part, is_start=not within)

    def _ask_read(self, verb: Verb, unique: int, ino: int, offset: int, size: int, tries: int) -> None:
        if tries >= _MAX_TRIES:
            verb = Verb.DIRECT
        self._relay.ask(verb, Opcode.READ, unique, ino, offset, size, tries)

    def _deliver(self, unique: int, *pieces: bytes | memoryview) -> None:
        row = self._row
        row[ANSWERED_BASE + Opcode.READ] += 1
        for piece in pieces:
            row[Count.READER_BYTES] += len(piece)
        self._kernel.answer(unique, *pieces)

    # --- when the core has answered ----------------------------------------------------------------------------

    def finish(self, answer: Answer) -> None:
        """Pass the core's answer on, or answer from what the core has prepared."""
        request = answer.request
        if request.held is not None:
            self.changes.resume(answer, request.held)
        elif answer.error:
            self._kernel.error(request.unique, answer.error)
        elif request.opcode == Opcode.LOOKUP:
            self._finish_lookup(answer)
        elif request.opcode == Opcode.READ:
            outcome, slot, length, mark = DONE.unpack_from(answer.packet, OUT_HEADER_SIZE)
            if outcome == Outcome.SCRATCH:
                self._deliver_scratch(request, slot, length, mark)
            else:
                self._read(request.unique, request.nodeid, request.offset, request.size, request.tries + 1)
        elif request.opcode not in (Opcode.READDIR, Opcode.READDIRPLUS):
            self._kernel.forward(request.unique, with_unique(answer.packet, request.unique))
        else:
            opcode = Opcode(request.opcode)
            self._list(opcode, request.unique, request.nodeid, request.offset, request.size, request.tries + 1)

    def _finish_lookup(self, answer: Answer) -> None:
        """Pass on an entry the core found, but as one to ask for again if it was replaced since."""
        packet = with_unique(answer.packet, answer.request.unique)
        ino = ENTRY_OUT_HEAD.unpack_from(packet, OUT_HEADER_SIZE)[0]
        with self._index.begin() as txn:
            attr = self._attr(txn, ino)
            is_gone = self._index.is_orphan(txn, ino) or attr is None
            if attr is not None:  # a front's is the newest: it may have been written since the core answered
                packet[OUT_HEADER_SIZE + ENTRY_OUT_HEAD.size :] = attr
        if is_gone:
            # The notification about it may have overtaken this answer, and would not come again.
            ENTRY_OUT_HEAD.pack_into(packet, OUT_HEADER_SIZE, ino, 0, 0, FOREVER_S, 0, 0)
        self._kernel.forward(answer.request.unique, packet)

    def _deliver_scratch(self, request: Relayed, slot: int, length: int, mark: int) -> None:
        data = bytes(self._shared.scratch(slot)[:length])
        if self._shared.scratch_mark(slot) != mark:
            # The core took the slot back: this answer lay in the socket for half a minute.
            self._read(request.unique, request.nodeid, request.offset, request.size, request.tries)
            return
        self._shared.set_scratch_mark(slot, 0)
        self._deliver(request.unique, data)

    # --- now and then ------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Tell whether only a new front can change the index: LMDB could not write its header and refuses all."""
        return self._environment.stopped.is_set()

    @property
    def tidy_pause_s(self) -> float | None:
        """How long the front may sleep before `tidy` has something to do; None: for ever."""
        return _TIDY_S if self._staging.has_open or self._blocks.has_further else None

    def tidy(self) -> None:
        """Let go of staging files that the core has removed, and of disks that are not used any more."""
        if self._flags[DISKS] != self._disks_seen:
            self._disks_seen = self._flags[DISKS]
            self._blocks.close_further()
        if self._staging.has_open and (now := time.monotonic()) >= self._next_tidy_s:
            self._next_tidy_s = now + _TIDY_S
            self._staging.close_removed()

    def _fail(self, opcode: Opcode, unique: int, errno_code: int) -> None:
        self._row[ANSWERED_BASE + opcode] += 1
        self._kernel.error(unique, errno_code)
