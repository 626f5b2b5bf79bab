"""Changes of content: WRITE, FALLOCATE and, since it looks at the same file, LSEEK, on a read-write mount.

A WRITE is finished by the front itself once the inode is staged, not sealed, and the object's blocks that the range
touches are in the staging file; else the core is asked to make it so (Verb.STAGE) and the request begins anew when it
has answered, in whichever front gets the answer.  Until then its body is held in a side slot (front.relay).

At the staging cap a request waits until uploads have made room, however long that takes.  Every second the core hands
it back (NOT_YET), so that a process which is killed meanwhile gets its answer and can go.
"""

import ctypes
import errno
import logging
import os
from typing import Final

from fanoutfs.cache.staging import StagingFiles
from fanoutfs.errors import NO_ROOM
from fanoutfs.front.hints import HintSender
from fanoutfs.front.kernel import KernelChannel
from fanoutfs.front.killed import is_being_killed
from fanoutfs.front.relay import Answer, Held, Relay
from fanoutfs.front.staged import first_absent, flags_of, life_of, mode_of, without_set_id
from fanoutfs.index.format import FLAG_SEALED, FLAG_STAGED, FLAG_WHOLE
from fanoutfs.index.reader import IndexReader
from fanoutfs.observe.catalog import ANSWERED_BASE, Count
from fanoutfs.observe.shared import RESENDS, WRITE_LIMIT, SharedState
from fanoutfs.records import MIB, PART_BYTES
from fanoutfs.wire.kernel import (
    FALLOCATE_IN,
    LSEEK_IN,
    LSEEK_OUT,
    OUT_HEADER_SIZE,
    SETATTR_IN,
    WRITE_CACHE,
    WRITE_IN,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
    Opcode,
    SetattrValid,
)
from fanoutfs.wire.messages import encode_request
from fanoutfs.wire.relay import Verb, is_not_yet, make_token

log = logging.getLogger(__name__)

_MAX_STAGE_TRIES: Final = 1000
"""An inode may be sealed again between the core's answer and the write; not for ever."""
_MAX_ROOM_TRIES: Final = 8
_ASK_BYTES: Final = 64 * MIB
"""Most that one question of a FALLOCATE is about: what must be local is fetched in steps."""
_STREAM_BYTES: Final = MIB // 4
"""From this size on a write is taken for one of many, whose parts go to the disk while the next ones arrive."""
_SYNC_FILE_RANGE_WRITE: Final = 2  # <linux/fs.h>

# <linux/falloc.h>
_FALLOC_KEEP_SIZE: Final = 0x01
_FALLOC_PUNCH_HOLE: Final = 0x02
_FALLOC_ZERO_RANGE: Final = 0x10

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Changes:
    """The answers of one front to changes of content."""

    def __init__(
        self,
        *,
        kernel: KernelChannel,
        relay: Relay,
        index: IndexReader,
        staging: StagingFiles,
        hints: HintSender,
        shared: SharedState,
        row: memoryview,
    ) -> None:
        self._kernel = kernel
        self._relay = relay
        self._index = index
        self._staging = staging
        self._hints = hints
        self._shared = shared
        self._flags = shared.flags
        self._row = row

    # --- content -----------------------------------------------------------------------------------------------

    def write(self, unique: int, nodeid: int, body: memoryview) -> None:
        self._write(unique, nodeid, body, 0, None)

    def _write(self, unique: int, ino: int, body: memoryview, tries: int, held: Held | None) -> None:
        _fh, offset, size, write_flags, _owner, _flags, _padding = WRITE_IN.unpack_from(body)
        body = body[: WRITE_IN.size + size]
        data = body[WRITE_IN.size :]
        if len(data) != size:
            self._finish(Opcode.WRITE, unique, body, held, errno.EINVAL)
            return
        end = offset + size
        with self._index.begin() as txn:
            value = self._index.inode_value(txn, ino)
            if value is None:
                self._finish(Opcode.WRITE, unique, body, held, errno.ESTALE)
                return
            flags, life, mode = flags_of(value), life_of(value), mode_of(value)
            is_ready = self._may_write(flags, tries, size) and (
                flags & FLAG_WHOLE or first_absent(self._index.changed(txn), ino, offset, end) is None
            )
        if write_flags & WRITE_KILL_SUIDGID and without_set_id(mode) != mode:
            self._clear_set_id(unique, ino, mode, body, tries, held)
        elif not is_ready:
            self._ask(Verb.STAGE, Opcode.WRITE, unique, ino, offset, size, body, tries, held)
        else:
            self._write_staged(
                unique, ino, life, offset, data, body, tries, held, is_late=bool(write_flags & WRITE_CACHE)
            )

    def _write_staged(
        self,
        unique: int,
        ino: int,
        life: int,
        offset: int,
        data: memoryview,
        body: memoryview,
        tries: int,
        held: Held | None,
        *,
        is_late: bool,
    ) -> None:
        size = len(data)
        done = 0
        try:
            fd = self._staging.descriptor(ino, life)
            while done < size:
                done += os.pwrite(fd, data[done:], offset + done)
        except FileNotFoundError:  # a core that starts makes it again
            self._ask(Verb.STAGE, Opcode.WRITE, unique, ino, offset, size, body, tries, held)
            return
        except OSError as error:
            code = error.errno or errno.EIO
            if code in NO_ROOM and tries < _MAX_ROOM_TRIES:
                self._ask(Verb.ROOM, Opcode.WRITE, unique, ino, offset, size, body, tries, held)
                return
            # The kernel takes a short answer for a short write(2).  Of pages written back it only looks at the error.
            if not done or is_late:
                self._finish(Opcode.WRITE, unique, body, held, code)
                return
        self._row[Count.WRITER_BYTES] += done
        self._finish(Opcode.WRITE, unique, body, held, 0, WRITE_OUT.pack(done, 0))
        self._hints.note_written(ino)
        if (
            size >= _STREAM_BYTES
            and (start := offset // PART_BYTES * PART_BYTES) != (offset + size) // PART_BYTES * PART_BYTES
        ):
            _start_writeback(fd, start, PART_BYTES)

    def fallocate(self, unique: int, nodeid: int, body: memoryview) -> None:
        self._fallocate(unique, nodeid, body[: FALLOCATE_IN.size], 0, None)

    def _fallocate(self, unique: int, ino: int, body: memoryview, tries: int, held: Held | None) -> None:
        _fh, offset, length, mode, _padding = FALLOCATE_IN.unpack_from(body)
        if mode & ~(_FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE | _FALLOC_ZERO_RANGE):
            self._finish(Opcode.FALLOCATE, unique, body, held, errno.EOPNOTSUPP)
            return
        end = offset + length
        absent: int | None = offset
        with self._index.begin() as txn:
            value = self._index.inode_value(txn, ino)
            if value is None:
                self._finish(Opcode.FALLOCATE, unique, body, held, errno.ESTALE)
                return
            flags, life = flags_of(value), life_of(value)
            if self._may_write(flags, tries, length):
                records = self._index.changed(txn)
                absent = None
                if flags & FLAG_WHOLE:
                    pass
                elif mode & (_FALLOC_PUNCH_HOLE | _FALLOC_ZERO_RANGE):
                    absent = first_absent(records, ino, offset, end)
                else:  # what the object has counts as allocated
                    offset = max(offset, records.base_size(ino) or 0)
        if absent is not None:
            size = min(end - absent, _ASK_BYTES)
            self._ask(Verb.STAGE, Opcode.FALLOCATE, unique, ino, absent, size, body, tries, held)
            return
        code = 0
        if offset < end:
            try:
                code = _allocate(self._staging.descriptor(ino, life), mode, offset, end - offset)
            except FileNotFoundError:
                self._ask(Verb.STAGE, Opcode.FALLOCATE, unique, ino, offset, 0, body, tries, held)
                return
        if code in NO_ROOM and tries < _MAX_ROOM_TRIES:
            size = min(end - offset, _ASK_BYTES)
            self._ask(Verb.ROOM, Opcode.FALLOCATE, unique, ino, offset, size, body, tries, held)
            return
        self._finish(Opcode.FALLOCATE, unique, body, held, code)
        if not code:
            self._hints.note_written(ino)

    def lseek(self, unique: int, nodeid: int, body: memoryview) -> None:
        """Answer SEEK_DATA and SEEK_HOLE.  What is in the store has no holes."""
        _fh, offset, whence, _padding = LSEEK_IN.unpack_from(body)
        with self._index.begin() as txn:
            value = self._index.inode_value(txn, nodeid)
            if value is None:
                self._answer(Opcode.LSEEK, unique, errno.ESTALE)
                return
            flags, life = flags_of(value), life_of(value)
            size = int.from_bytes(value[8:16], "little")
            fd = -1
            solid = size
            if flags & FLAG_STAGED:
                fd = self._staging.descriptor(nodeid, life)
                size = os.fstat(fd).st_size
                base_size = 0 if flags & FLAG_WHOLE else self._index.changed(txn).base_size(nodeid) or 0
                solid = min(base_size, size)
        if offset >= size:
            self._answer(Opcode.LSEEK, unique, errno.ENXIO)
            return
        if offset < solid:
            found = offset if whence == os.SEEK_DATA else solid
            if whence == os.SEEK_HOLE and solid < size:
                found = os.lseek(fd, solid, os.SEEK_HOLE)
        else:
            try:
                found = os.lseek(fd, offset, whence)
            except OSError as error:  # ENXIO: nothing but a hole up to the end
                self._answer(Opcode.LSEEK, unique, error.errno or errno.EIO)
                return
        self._answer(Opcode.LSEEK, unique, 0, LSEEK_OUT.pack(found))

    def _may_write(self, flags: int, tries: int, size: int) -> bool:
        """Tell whether the staging file may be written as far as it does not lack blocks of the object.

        Beyond what this front was granted each request asks the core once; what it let pass goes on.
        """
        if flags & (FLAG_STAGED | FLAG_SEALED) != FLAG_STAGED:
            return False
        row = self._row
        return tries > 0 or row[Count.WRITER_BYTES] + size <= row[WRITE_LIMIT]

    def _ask(
        self,
        verb: Verb,
        opcode: Opcode,
        unique: int,
        ino: int,
        offset: int,
        size: int,
        body: memoryview,
        tries: int,
        held: Held | None,
    ) -> None:
        if tries >= _MAX_STAGE_TRIES:
            log.error("inode does not become writable ino=%d opcode=%s verb=%s", ino, opcode.name, verb.name)
            self._finish(opcode, unique, body, held, errno.EIO)
            return
        self._relay.ask(verb, opcode, unique, ino, offset, size, tries, held or self._hold(body))

    def _hold(self, body: memoryview) -> Held:
        return Held(self._flags[RESENDS], bytes(body))

    def _clear_set_id(self, unique: int, ino: int, mode: int, body: memoryview, tries: int, held: Held | None) -> None:
        """Have the core take the set-ID bits away before the write goes on."""
        fields = [0] * 16
        fields[0], fields[11] = SetattrValid.MODE, without_set_id(mode)
        packet = encode_request(Opcode.SETATTR, 0, ino, SETATTR_IN.pack(*fields), make_token(unique))
        self._relay.forward(Opcode.WRITE, unique, ino, packet, tries=tries, held=held or self._hold(body))

    def resume(self, answer: Answer, held: Held) -> None:
        """Go on with a request for which the core has done what it was asked."""
        request = answer.request
        if held.side is None or held.resends != self._flags[RESENDS]:
            return  # the kernel delivers it again, and the keeper has the slot
        body = self._shared.side(held.side)
        must_wait = is_not_yet(answer.packet, OUT_HEADER_SIZE)
        tries = request.tries if must_wait else request.tries + 1
        if answer.error:
            self._finish(Opcode(request.opcode), request.unique, body, held, answer.error)
        elif must_wait and is_being_killed(request.pid):
            self._finish(Opcode(request.opcode), request.unique, body, held, errno.EINTR)
        elif request.opcode == Opcode.WRITE:
            self._write(request.unique, request.nodeid, body, tries, held)
        else:
            self._fallocate(request.unique, request.nodeid, body[: FALLOCATE_IN.size], tries, held)

    def _finish(
        self, opcode: Opcode, unique: int, body: memoryview, held: Held | None, code: int, out: bytes = b""
    ) -> None:
        if held is not None:
            self._relay.release(held, len(body))
        self._answer(opcode, unique, code, out)

    def _answer(self, opcode: Opcode, unique: int, code: int, out: bytes = b"") -> None:
        self._row[ANSWERED_BASE + opcode] += 1
        if code:
            self._kernel.error(unique, code)
        else:
            self._kernel.answer(unique, out)


def _allocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Call fallocate(2); return 0 or the errno."""
    while True:
        done = _libc.fallocate(
            ctypes.c_int(fd), ctypes.c_int(mode), ctypes.c_longlong(offset), ctypes.c_longlong(length)
        )
        if done == 0:
            return 0
        code = ctypes.get_errno()
        if code != errno.EINTR:
            return code


def _start_writeback(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a part to the disk, so that an fsync after the last one has little left to do.

    Its outcome does not matter: fsync tells of errors.
    """
    _libc.sync_file_range(
        ctypes.c_int(fd),
        ctypes.c_longlong(offset),
        ctypes.c_longlong(length),
        ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
    )
