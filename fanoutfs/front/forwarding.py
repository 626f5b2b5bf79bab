"""What a front forwards to the core as the kernel sent it: changes of names, attributes and extended attributes.

Only what pyfuse3 would lose is rewritten: the inode number takes the place of the file handle, which is always 0, and
the process number gives way to a token by which the core recognises a request that the kernel delivered again.

Extended attributes are read from the index here: programs ask for them with every file that they list or write.
"""

import errno
import struct
from collections.abc import Callable
from typing import Final

from fanoutfs.front.kernel import KernelChannel
from fanoutfs.front.relay import Relay
from fanoutfs.front.staged import mode_of, without_set_id, without_set_id_after_chown
from fanoutfs.index.reader import IndexReader
from fanoutfs.observe.catalog import ANSWERED_BASE
from fanoutfs.wire.kernel import GETXATTR_IN, GETXATTR_OUT, IN_HEADER_SIZE, Opcode, SetattrValid
from fanoutfs.wire.relay import make_token

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
# Where these fields stand in fuse_in_header and fuse_setattr_in.
_OPCODE_AT: Final = 4
_UID_AT: Final = 24
_PID_AT: Final = 32
_SETATTR_MODE_AT: Final = 68
_SETTABLE: Final = (
    SetattrValid.MODE
    | SetattrValid.UID
    | SetattrValid.GID
    | SetattrValid.SIZE
    | SetattrValid.ATIME
    | SetattrValid.MTIME
    | SetattrValid.CTIME
)
_VIRTUAL_XATTRS: Final = b"user.fanoutfs."
"""Those the core makes up: state and key of a file."""


class Forwarding:
    """The answers of one front to what is the core's to do."""

    def __init__(
        self,
        *,
        kernel: KernelChannel,
        relay: Relay,
        index: IndexReader,
        row: memoryview,
        getattr_: Callable[[int, int, memoryview], None],
        set_here: Callable[[int, int, bytearray], bool],
    ) -> None:
        """set_here: carries a SETATTR out; False: the core has to."""
        self._kernel = kernel
        self._relay = relay
        self._index = index
        self._row = row
        self._getattr = getattr_
        self._set_here = set_here

    def forward(self, unique: int, nodeid: int, packet: memoryview) -> None:
        """Send a change to the core as it is, but for the token."""
        self._send(unique, nodeid, bytearray(packet))

    def fsync(self, unique: int, nodeid: int, packet: memoryview) -> None:
        """Send FSYNC or FSYNCDIR to the core, which is told the file handle only."""
        patched = bytearray(packet)
        _U64.pack_into(patched, IN_HEADER_SIZE, nodeid)
        self._send(unique, nodeid, patched)

    def setattr(self, unique: int, nodeid: int, packet: memoryview) -> None:
        """Carry SETATTR out, or have the core do it, with what the kernel leaves to the file system spelled out.

        Since HANDLE_KILLPRIV_V2 that is to take set-ID bits away: from a file that changes hands (chown), when it says
        so (truncation), and when it asks for nothing at all (a write by somebody who may not keep them; 6.18).
        """
        valid = _U32.unpack_from(packet, IN_HEADER_SIZE)[0]
        is_killing = valid & (SetattrValid.KILL_SUIDGID | SetattrValid.UID | SetattrValid.GID) or not valid & _SETTABLE
        patched = bytearray(packet)
        valid &= ~(SetattrValid.FH | SetattrValid.KILL_SUIDGID)
        if is_killing and not valid & SetattrValid.MODE:
            with self._index.begin() as txn:
                value = self._index.inode_value(txn, nodeid)
                mode = 0 if value is None else mode_of(value)
            is_chown = bool(valid & (SetattrValid.UID | SetattrValid.GID))
            is_root = not _U32.unpack_from(packet, _UID_AT)[0]
            settled = without_set_id_after_chown(mode) if is_chown and is_root else without_set_id(mode)
            if settled != mode:
                valid |= SetattrValid.MODE
                _U32.pack_into(patched, IN_HEADER_SIZE + _SETATTR_MODE_AT, settled)
        if not valid & _SETTABLE:
            self._getattr(unique, nodeid, packet[IN_HEADER_SIZE:])
            return
        _U32.pack_into(patched, IN_HEADER_SIZE, valid)
        if not self._set_here(unique, nodeid, patched):
            self._send(unique, nodeid, patched)

    def _send(self, unique: int, nodeid: int, packet: bytearray) -> None:
        _U32.pack_into(packet, _PID_AT, make_token(unique))
        opcode = _U32.unpack_from(packet, _OPCODE_AT)[0]
        self._relay.forward(opcode, unique, nodeid, bytes(packet))

    # --- extended attributes -----------------------------------------------------------------------------------

    def getxattr(self, unique: int, nodeid: int, packet: memoryview) -> None:
        body = packet[IN_HEADER_SIZE:]
        size, _padding = GETXATTR_IN.unpack_from(body)
        name = bytes(body[GETXATTR_IN.size : -1])
        if name.startswith(_VIRTUAL_XATTRS):
            self._send(unique, nodeid, bytearray(packet))
            return
        if not name.startswith(b"user."):
            # The kernel asks for capabilities before the first write after it learned attributes anew.
            code = errno.ENODATA if name == b"security.capability" else errno.EOPNOTSUPP
            self._answer(Opcode.GETXATTR, unique, code)
            return
        with self._index.begin() as txn:
            is_known = self._index.inode_value(txn, nodeid) is not None
            found = self._index.changed(txn).xattr(nodeid, name)
        if found is None:
            self._answer(Opcode.GETXATTR, unique, errno.ENODATA if is_known else errno.ESTALE)
        else:
            self._answer_xattr(Opcode.GETXATTR, unique, size, found)

    def listxattr(self, unique: int, nodeid: int, body: memoryview) -> None:
        size, _padding = GETXATTR_IN.unpack_from(body)
        with self._index.begin() as txn:
            names = b"".join([name + b"\0" for name in self._index.changed(txn).xattrs(nodeid)])
        self._answer_xattr(Opcode.LISTXATTR, unique, size, names)

    def _answer_xattr(self, opcode: Opcode, unique: int, size: int, value: bytes) -> None:
        if not size:
            self._answer(opcode, unique, 0, GETXATTR_OUT.pack(len(value), 0))
        elif len(value) > size:
            self._answer(opcode, unique, errno.ERANGE)
        else:
            self._answer(opcode, unique, 0, value)

    def _answer(self, opcode: Opcode, unique: int, code: int, out: bytes = b"") -> None:
        self._row[ANSWERED_BASE + opcode] += 1
        if code:
            self._kernel.error(unique, code)
        else:
            self._kernel.answer(unique, out)
