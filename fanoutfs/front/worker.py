"""The loop of a front: requests from the kernel, answers from the core.

All fronts read the same /dev/fuse descriptor (a second one would abort its requests when its front dies) and the
same end of the relay.  Both are watched with EPOLLEXCLUSIVE, so that one event wakes one front.
"""

import errno
import logging
import select
import socket
import time
from collections.abc import Callable
from operator import attrgetter
from time import monotonic_ns
from typing import Final

from fanoutfs.front.accounting import Accounting, waits_until
from fanoutfs.front.dispatch import Rule
from fanoutfs.front.handlers import Handlers
from fanoutfs.front.hints import HintSender
from fanoutfs.front.kernel import KernelChannel, UnmountedError
from fanoutfs.front.relay import Relay
from fanoutfs.observe.catalog import ANSWERED_BASE, Count
from fanoutfs.observe.shared import BUSY, CURRENT_OPCODE, CURRENT_UNIQUE, RESENDS, SUSPICION_LIMIT, SharedState
from fanoutfs.wire.kernel import IN_HEADER, IN_HEADER_SIZE, MAX_READ_BYTES, UNIQUE_RESEND, Opcode
from fanoutfs.wire.messages import describe_request

log = logging.getLogger(__name__)

_BATCH: Final = 32
"""Requests in a row before the front looks at the core's answers again, and the other way round."""
_WAITING_POLL_S: Final = 0.002
_RESEND_POLL_S: Final = 0.0005
_MAX_OPCODE: Final = 64

Method = Callable[[int, int, memoryview], None]


class Worker:
    """One front's loop."""

    def __init__(
        self,
        *,
        fuse_fd: int,
        relay_channel: socket.socket,
        kernel: KernelChannel,
        relay: Relay,
        handlers: Handlers,
        hints: HintSender,
        shared: SharedState,
        row: memoryview,
        accounting: Accounting,
        rules: dict[Opcode, Rule],
    ) -> None:
        self._fuse_fd = fuse_fd
        self._relay_fd = relay_channel.fileno()
        self._kernel = kernel
        self._relay = relay
        self._handlers = handlers
        self._hints = hints
        self._shared = shared
        self._row = row
        self._accounting = accounting
        self._flags = shared.flags
        self._rules: dict[int, Rule] = {int(opcode): rule for opcode, rule in rules.items()}
        # A WRITE carries up to MAX_READ_BYTES behind its headers; the kernel refuses reads into less.
        self._buffer = memoryview(bytearray(MAX_READ_BYTES + 8192))
        self._methods: list[tuple[Method, int, int] | None] = [None] * _MAX_OPCODE
        for opcode, rule in rules.items():
            if rule.method:
                start = 0 if rule.is_whole else IN_HEADER_SIZE
                method = attrgetter(rule.method)(handlers)
                self._methods[opcode] = (method, rule.min_body + IN_HEADER_SIZE, start)

    def run(self) -> None:
        """Serve until the mount is gone; then raises UnmountedError.  Return where a new front has to go on."""
        epoll = select.epoll()
        epoll.register(self._fuse_fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        epoll.register(self._relay_fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        has_answers = True
        while True:
            if self.turn(has_answers=has_answers):
                has_answers = True
                continue  # more may be there: do not sleep
            self._hints.flush()
            self._handlers.tidy()
            if self._handlers.is_over and not self._relay.is_waiting:
                return  # (nothing in hand is lost: what waits for the core's answers any front finishes)
            events = epoll.poll(self._pause_s())
            if not events:
                self._accounting.flush()
            has_answers = any(fd == self._relay_fd for fd, _event in events)

    def _pause_s(self) -> float | None:
        """Return how long to sleep at most; None: until a request or an answer arrives."""
        if self._relay.is_waiting:
            return _WAITING_POLL_S
        pause_s = self._accounting.pause_s
        for other_s in (self._handlers.tidy_pause_s, self._hints.pause_s):
            if other_s is not None and (pause_s is None or other_s < pause_s):
                pause_s = other_s
        return pause_s

    def turn(self, *, has_answers: bool = True) -> bool:
        """Serve what is there, up to a batch of answers and of requests; tell whether more may be waiting.

        has_answers: there may be answers; to look in vain costs a system call and an exception.
        """
        if has_answers:
            self._take_answers()
        if self._relay.is_waiting:
            self._row[BUSY] += 1
            self._relay.flush()
            self._row[BUSY] += 1
        return not self._relay.has_backlog and self._take_requests()

    def _take_answers(self) -> None:
        row = self._row
        for _count in range(_BATCH):
            row[BUSY] += 1  # before the answer is taken: see observe.shared, redelivery
            answer = self._relay.receive()
            if answer is None:
                row[BUSY] += 1
                return
            row[CURRENT_UNIQUE] = answer.request.unique
            row[CURRENT_OPCODE] = answer.request.opcode
            self._relay.begin(answer.request.started_ns, answer.request.pid, waits_until(answer))
            if answer.request.pid != self._accounting.pid:
                self._accounting.begin(answer.request.pid)
            try:
                self._handlers.finish(answer)
            except UnmountedError:
                raise
            except Exception:  # noqa: BLE001 - logged and counted; the next request must still be answered
                self._unexpected(answer.request.unique, f"answer to opcode {answer.request.opcode}")
            if not self._relay.has_taken:
                self._accounting.finished(answer)
            row[BUSY] += 1
            row[CURRENT_UNIQUE] = 0

    def _take_requests(self) -> bool:
        """Serve up to a batch of requests; tell whether more may be waiting."""
        row = self._row
        for _count in range(_BATCH):
            row[BUSY] += 1
            length = self._read_request()
            if length > 0:
                self._serve(length)
            row[BUSY] += 1
            if length < 0 or self._relay.has_backlog:
                return False
        return True

    def _read_request(self) -> int:
        """Return the length of the next request, 0 when it was withdrawn, -1 when none is there or may be taken."""
        if self._flags[RESENDS] & 1:
            time.sleep(_RESEND_POLL_S)  # the keeper waits until no front is busy: this one is not for long
            return -1
        return self._kernel.read(self._buffer)

    def _serve(self, length: int) -> None:
        _length, opcode, unique, nodeid, _uid, _gid, pid, _ext, _pad = IN_HEADER.unpack_from(self._buffer)
        started_ns = monotonic_ns()
        self._relay.begin(started_ns, pid)
        if pid != self._accounting.pid:
            self._accounting.begin(pid)
        row = self._row
        row[CURRENT_UNIQUE] = unique
        row[CURRENT_OPCODE] = opcode
        try:
            if unique & UNIQUE_RESEND and self._shared.suspicion(unique) >= SUSPICION_LIMIT:
                row[Count.POISON_REQUESTS] += 1
                log.error("poison request refused %s", describe_request(self._buffer[:length]))
                self._kernel.error(unique, errno.EIO)
            else:
                self._dispatch(opcode, unique, nodeid, length)
        except UnmountedError:
            raise
        except Exception:  # noqa: BLE001 - logged and counted; the next request must still be answered
            self._unexpected(unique, describe_request(self._buffer[:length]))
        if not self._relay.has_taken and opcode < _MAX_OPCODE:
            self._accounting.served(opcode, started_ns, self._buffer)
        row[CURRENT_UNIQUE] = 0

    def _dispatch(self, opcode: int, unique: int, nodeid: int, length: int) -> None:
        served = self._methods[opcode] if opcode < _MAX_OPCODE else None
        if served is not None:
            method, min_length, start = served
            if length < min_length:
                self._kernel.error(unique, errno.EINVAL)
                return
            method(unique, nodeid, self._buffer[start:length])
            return
        rule = self._rules.get(opcode)
        if rule is None:  # a newer kernel
            self._kernel.error(unique, errno.ENOSYS)
            return
        self._row[ANSWERED_BASE + opcode] += 1
        if not rule.replies:
            return
        if rule.errno_code:
            self._kernel.error(unique, rule.errno_code)
        else:
            self._kernel.answer(unique)

    def _unexpected(self, unique: int, what: str) -> None:
        self._row[Count.REQUEST_ERRORS] += 1
        log.exception("unexpected exception request=%s", what)
        self._kernel.error(unique, errno.EIO)
