"""A whole front without a mount: a socket plays /dev/fuse, another one the core; index and staging files are real."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from fanoutfs.cache.arena import Arena
from fanoutfs.cache.blocks import BlockReader
from fanoutfs.cache.files import CacheFiles
from fanoutfs.cache.small import SmallEnvironment, SmallReader
from fanoutfs.cache.staging import StagingFiles
from fanoutfs.front.accounting import Accounting
from fanoutfs.front.dispatch import rules_of
from fanoutfs.front.handlers import Handlers
from fanoutfs.front.hints import HintSender
from fanoutfs.front.kernel import KernelChannel
from fanoutfs.front.relay import Relay
from fanoutfs.front.worker import Worker
from fanoutfs.index.format import Inode
from fanoutfs.index.reader import IndexReader
from fanoutfs.index.store import IndexEnvironment
from fanoutfs.index.transaction import write_transaction
from fanoutfs.observe.shared import FIRST_FRONT_ROW, WRITE_LIMIT, SharedState
from fanoutfs.wire.hints import PACKET_BYTES, Hint, decode_hints
from fanoutfs.wire.kernel import (
    IN_HEADER,
    IN_HEADER_SIZE,
    OUT_HEADER,
    OUT_HEADER_SIZE,
    READ_IN,
    WRITE_IN,
    WRITE_OUT,
    Opcode,
)
from fanoutfs.wire.messages import encode_error
from fanoutfs.wire.relay import DONE, Outcome, Verb, split_intent
from tests.unit.indexes import apply, open_index

UID, GID, PID = 1000, 1001, 4321


class Front:
    """One front and the ends that the kernel and the core hold."""

    def __init__(self, rig: "Rig", number: int, *, read_only: bool) -> None:
        row = rig.shared.row(FIRST_FRONT_ROW + number)
        kernel = KernelChannel(rig.fuse.fileno(), row)
        relay = Relay(rig.relay, rig.shared, number, row, fronts=2)
        self.hints = hints = HintSender(rig.hints, row, 60.0, has_pusher=False)
        self.staging = StagingFiles(rig.path)
        self.files = CacheFiles(rig.path, writable=True)
        self.handlers = handlers = Handlers(
            kernel=kernel,
            relay=relay,
            index=IndexReader(rig.environment),
            small=SmallReader(rig.small),
            blocks=BlockReader(self.files),
            arena=rig.arena,
            staging=self.staging,
            hints=hints,
            shared=rig.shared,
            row=row,
            metadata_ttl_s=float("inf"),
            entry_valid_s=60,
            environment=rig.environment,
            front=number,
        )
        self.worker = Worker(
            fuse_fd=rig.fuse.fileno(),
            relay_channel=rig.relay,
            kernel=kernel,
            relay=relay,
            handlers=handlers,
            hints=hints,
            shared=rig.shared,
            row=row,
            accounting=Accounting(
                row, rig.shared.latencies.row(FIRST_FRONT_ROW + number), rig.shared.slow.writer(number)
            ),
            rules=rules_of(read_only=read_only),
        )


class Rig:
    """Two fronts of one mount."""

    def __init__(self, path: Path, environment: IndexEnvironment, small: SmallEnvironment, read_only: bool) -> None:
        self.path = path
        self.environment = environment
        self.small = small
        self.shared = SharedState()
        for front in range(2):
            self.shared.row(FIRST_FRONT_ROW + front)[WRITE_LIMIT] = 1 << 62
        environment.show_pin(self.shared.pin)
        self.arena = Arena(1 << 20)
        self.fuse, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.relay, self.core = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.hints, self.core_hints = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.fuse, self.kernel, self.relay, self.core, self.hints, self.core_hints):
            end.setblocking(False)
        self.fronts = [Front(self, number, read_only=read_only) for number in range(2)]
        self.staging = self.fronts[0].staging
        self._unique = 0

    # --- the kernel's side -------------------------------------------------------------------------------------

    def send(
        self, opcode: Opcode, nodeid: int, body: bytes = b"", *, unique: int = 0, uid: int = UID, front: int = 0
    ) -> int:
        """Send a request, let a front serve it, and return its unique."""
        if not unique:
            self._unique += 2
            unique = self._unique
        head = IN_HEADER.pack(IN_HEADER_SIZE + len(body), opcode, unique, nodeid, uid, GID, PID, 0, 0)
        self.kernel.send(head + body)
        self.turn(front)
        return unique

    def turn(self, front: int = 0) -> None:
        """Let a front serve what is there."""
        while self.fronts[front].worker.turn():
            pass

    def answer(self) -> tuple[int, int, bytes] | None:
        """Return (unique, errno, body) of the next answer to the kernel; None: there is none."""
        try:
            packet = self.kernel.recv(1 << 21)
        except BlockingIOError:
            return None
        _length, error, unique = OUT_HEADER.unpack_from(packet)
        return unique, -error, packet[OUT_HEADER_SIZE:]

    def ask(self, opcode: Opcode, nodeid: int, body: bytes = b"") -> bytes:
        """Send a request that a front answers at once and return the answer's body; OSError for an error."""
        unique = self.send(opcode, nodeid, body)
        answer = self.answer()
        assert answer is not None, f"{opcode.name} went to the core"
        assert answer[0] == unique
        if answer[1]:
            raise OSError(answer[1], os.strerror(answer[1]))
        return answer[2]

    def write(self, ino: int, offset: int, data: bytes, flags: int = 0) -> int:
        """WRITE, answered at once; return how much was written."""
        size, _padding = WRITE_OUT.unpack(self.ask(Opcode.WRITE, ino, write_body(offset, data, flags)))
        return int(size)

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """READ, answered at once."""
        return self.ask(Opcode.READ, ino, READ_IN.pack(0, offset, size, 0, 0, 0, 0))

    # --- the core's side ---------------------------------------------------------------------------------------

    def relayed(self) -> tuple[int, int, bytes]:
        """Return (opcode, relay unique, packet) of what the core gets next."""
        packet = self.core.recv(1 << 17)
        _length, opcode, unique, *_rest = IN_HEADER.unpack_from(packet)
        return opcode, unique, packet

    def asked(self) -> tuple[Verb, int, int, int, int]:
        """Return (verb, inode, offset, size, relay unique) of what the core is asked next."""
        opcode, unique, packet = self.relayed()
        assert opcode == Opcode.READ
        fh, offset, size, *_rest = READ_IN.unpack_from(packet, IN_HEADER_SIZE)
        verb, ino = split_intent(fh)
        return verb, ino, offset, size, unique

    def is_core_idle(self) -> bool:
        """Tell whether nothing was sent to the core."""
        try:
            return not self.core.recv(1 << 17, socket.MSG_PEEK)
        except BlockingIOError:
            return True

    def reply(self, unique: int, *, error: int = 0, body: bytes | None = None, front: int = 0) -> None:
        """Answer as the core, and let a front go on."""
        if error:
            packet = encode_error(unique, error)
        else:
            body = DONE.pack(Outcome.READY, 0, 0, 0) if body is None else body
            packet = OUT_HEADER.pack(OUT_HEADER_SIZE + len(body), 0, unique) + body
        self.core.send(packet)
        self.turn(front)

    def told(self) -> list[Hint]:
        """Return the hints that arrived."""
        found: list[Hint] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found += decode_hints(self.core_hints.recv(PACKET_BYTES))
        return found

    def hints_of_front(self, front: int = 0) -> HintSender:
        """Return what tells the core."""
        return self.fronts[front].hints

    # --- the index ---------------------------------------------------------------------------------------------

    def put(self, *inodes: Inode) -> None:
        """Store inode records."""
        with write_transaction(self.environment) as txn:
            for inode in inodes:
                txn.put_inode(inode)

    def stage(self, inode: Inode, base_size: int | None = None, local: dict[int, int] | None = None) -> None:
        """Store a staged inode and, for an overlay, what it lacks."""
        with write_transaction(self.environment) as txn:
            txn.put_inode(inode)
            if base_size is not None:
                txn.changed.put_base_size(inode.ino, base_size)
            for part, mask in (local or {}).items():
                txn.changed.put_local_blocks(inode.ino, part, mask)

    def close(self) -> None:
        for end in (self.fuse, self.kernel, self.relay, self.core, self.hints, self.core_hints):
            end.close()
        for front in self.fronts:
            front.staging.close()
            front.files.close()


def write_body(offset: int, data: bytes, flags: int = 0) -> bytes:
    """Return the body of a WRITE."""
    return WRITE_IN.pack(0, offset, len(data), flags, 0, 0, 0) + data


@contextlib.contextmanager
def open_rig(path: Path, *, read_only: bool = False) -> Iterator[Rig]:
    """Make an empty volume and two fronts over it."""
    (path / "objects").mkdir()
    with open_index(path) as environment:
        small = SmallEnvironment(path, writable=True)
        rig = Rig(path, environment, small, read_only)
        try:
            yield rig
        finally:
            rig.close()
            small.close()


__all__ = ["Front", "Rig", "apply", "open_rig", "write_body"]
