"""One generation: a core, its fronts, and the sockets between them.

When a core dies its generation ends: the fronts hold the other ends of its sockets and requests in its hands.  They
are stateless and forked within milliseconds, so a new generation begins with new sockets and new fronts, which serve
everything cached while the new core is still starting.  A front that dies alone is replaced within its generation.
"""

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fanoutfs.cache.arena import Arena
from fanoutfs.config.schema import MountConfig
from fanoutfs.core import main as core_main
from fanoutfs.core.task import CoreTask
from fanoutfs.errors import DaemonDiedError
from fanoutfs.front import main as front_main
from fanoutfs.front import notifier, pusher
from fanoutfs.keeper.children import Closable, Death, end_child, fork_child
from fanoutfs.keeper.handshake import replayed_init
from fanoutfs.keeper.starts import CORE_START_S
from fanoutfs.keeper.watchdog import Kind, Member
from fanoutfs.observe.shared import (
    BUSY,
    CORE_ROW,
    CURRENT_UNIQUE,
    FIRST_FRONT_ROW,
    GENERATION,
    KEEPER_ROW,
    PID,
    PUSHER_ROW,
    REFUSING,
    STARTED_NS,
    SUSPICION_CRASH,
    SUSPICION_KILL,
    SUSPICION_SHARED,
    SharedState,
)
from fanoutfs.observe.supervision import Failure, Go, receive_outcome, send_go
from fanoutfs.wire.kernel import InitFlag
from fanoutfs.wire.messages import KernelOffer, encode_resend

log = logging.getLogger(__name__)

CORE_END_S = 5.0
_IDLE_S = 10.0
_IDLE_POLL_S = 0.001


@dataclass(frozen=True, slots=True)
class Estate:
    """What outlives every generation."""

    config: MountConfig
    identity: str
    root_prefix: str
    volume_path: Path
    other_volumes_bytes: int
    shared: SharedState
    arena: Arena
    control: socket.socket
    metrics: socket.socket | None
    setup_log: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Mounted:
    """The mount, once it exists.  init: the kernel's INIT request, for replay."""

    fuse_fd: int
    init: bytes
    offer: KernelOffer


class Generation:
    """Starts, replaces and ends the processes of one generation.  Keeper only."""

    def __init__(self, estate: Estate, number: int) -> None:
        self._estate = estate
        self._number = number
        self._relay_front, self._relay_core = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._hints_front, self._hints_core = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._notify_core, self._notify = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._push, self._push_core = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel, self._channel_core = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The front ends only: libfuse writes its answers blocking, and trio sets what it needs itself.
        self._relay_front.setblocking(False)
        self._hints_front.setblocking(False)
        self._channel.settimeout(CORE_START_S)
        self.core_pid = 0
        self.notifier_pid = 0
        self.pusher_pid = 0
        self.front_pids: dict[int, int] = {}
        estate.shared.row(KEEPER_ROW)[GENERATION] = number
        estate.shared.row(CORE_ROW)[STARTED_NS] = 0

    @property
    def pids(self) -> list[int]:
        """Return all living processes of the generation."""
        return [pid for pid in (self.core_pid, self.notifier_pid, self.pusher_pid, *self.front_pids) if pid]

    def members(self) -> list[Member]:
        """Return the processes that can hang: the core only once it serves."""
        is_serving = self.core_pid and self._estate.shared.row(CORE_ROW)[STARTED_NS]
        return [
            *([Member(Kind.CORE, self.core_pid)] if is_serving else []),
            *(Member(Kind.FRONT, pid, number) for pid, number in self.front_pids.items()),
            *([Member(Kind.NOTIFIER, self.notifier_pid)] if self.notifier_pid else []),
            *([Member(Kind.PUSHER, self.pusher_pid)] if self.pusher_pid else []),
        ]

    @property
    def channel(self) -> socket.socket:
        """What becomes readable when the core is ready, failed or died."""
        return self._channel

    @property
    def _core_ends(self) -> list[socket.socket]:
        """What nobody but the core may hold, or its death would not be seen."""
        return [self._relay_core, self._hints_core, self._notify_core, self._push_core, self._channel_core]

    # --- starting ----------------------------------------------------------------------------------------------

    def start_core(self) -> None:
        """Fork the core; `await_core` tells how it went."""
        estate = self._estate
        task = CoreTask(
            config=estate.config,
            identity=estate.identity,
            root_prefix=estate.root_prefix,
            volume_path=estate.volume_path,
            other_volumes_bytes=estate.other_volumes_bytes,
            shared=estate.shared,
            arena=estate.arena,
            supervision=self._channel_core,
            relay=self._relay_core,
            hints=self._hints_core,
            notify=self._notify_core,
            push=self._push_core if estate.config.has_push() else None,
            control=estate.control,
            metrics=estate.metrics,
            is_first=self._number == 1,
        )
        close = [self._relay_front, self._hints_front, self._notify, self._push, self._channel]
        self.core_pid = fork_child("core", estate.setup_log, list(close), partial(core_main.run, task))
        estate.shared.row(CORE_ROW)[PID] = self.core_pid
        for end in self._core_ends:
            end.close()

    def await_core(self) -> Failure | None:
        """Return None once the core is ready, or why it is not.  Blocks until `channel` is readable."""
        try:
            return receive_outcome(self._channel)
        except TimeoutError:
            return Failure(DaemonDiedError.exit_code, f"the core was not ready within {CORE_START_S:g} s")
        except (DaemonDiedError, ConnectionError) as error:
            return Failure(DaemonDiedError.exit_code, str(error))

    def attach(self, mounted: Mounted) -> None:
        """Give the ready core the mount.  Raises OSError when it has died meanwhile."""
        send_go(self._channel, Go(mounted.offer.has_epoch))
        self._estate.shared.row(CORE_ROW)[STARTED_NS] = time.monotonic_ns()

    def start_fronts(self, mounted: Mounted) -> None:
        """Fork all fronts, the notifier and the pusher.  They may run before the core is ready, once per generation."""
        # First of all packets: libfuse answers EIO to what it finds before INIT.
        self._relay_front.send(replayed_init(mounted.init))
        for number in range(self._estate.config.front_count()):
            self.start_front(number, mounted)
        run = partial(notifier.run, mounted.fuse_fd, self._notify)
        self.notifier_pid = fork_child("notifier", self._estate.setup_log, [*self._helper_close, self._push], run)
        self._notify.close()
        self.start_pusher(mounted)

    @property
    def _helper_close(self) -> list[Closable]:
        """What neither notifier nor pusher may hold."""
        return [*self._core_ends, self._relay_front, self._hints_front, self._channel, *self._listeners]

    @property
    def _listeners(self) -> list[Closable]:
        """What the core alone listens on."""
        estate = self._estate
        return [estate.control, *([] if estate.metrics is None else [estate.metrics])]

    def start_pusher(self, mounted: Mounted) -> None:
        """Fork the pusher, unless there is nothing to push, or no cache to push from."""
        estate = self._estate
        if not estate.config.has_push() or estate.shared.flags[REFUSING]:
            return
        estate.shared.clear_pusher_activity()
        task = pusher.PusherTask(
            config=estate.config,
            volume_path=estate.volume_path,
            shared=estate.shared,
            fuse_fd=mounted.fuse_fd,
            channel=self._push,
        )
        close = [*self._helper_close, self._notify]
        self.pusher_pid = fork_child("pusher", estate.setup_log, close, partial(pusher.run, task))
        row = estate.shared.row(PUSHER_ROW)
        row[PID], row[STARTED_NS] = self.pusher_pid, time.monotonic_ns()

    def start_front(self, number: int, mounted: Mounted) -> None:
        """Fork one front."""
        estate = self._estate
        estate.shared.clear_front_activity(number)
        entry_valid_s = int(core_main.entry_timeout(mounted.offer.has_epoch, estate.config.metadata_ttl))
        task = front_main.FrontTask(
            config=estate.config,
            volume_path=estate.volume_path,
            shared=estate.shared,
            arena=estate.arena,
            number=number,
            fuse_fd=mounted.fuse_fd,
            relay=self._relay_front,
            hints=self._hints_front,
            entry_valid_s=entry_valid_s,
            root_prefix=estate.root_prefix,
        )
        close = [*self._core_ends, self._notify, self._push, self._channel, *self._listeners]
        run = partial(front_main.run, task)
        pid = fork_child(f"front{number}", estate.setup_log, list(close), run)
        self.front_pids[pid] = number
        row = estate.shared.row(FIRST_FRONT_ROW + number)
        row[PID], row[STARTED_NS] = pid, time.monotonic_ns()

    # --- redelivery --------------------------------------------------------------------------------------------

    def resend(self, mounted: Mounted) -> None:
        """Have the kernel deliver every unanswered request again.  Blocks until no front serves one.

        No copy of a request from before may write to a staging file after the kernel has delivered it again: see
        observe.shared, redelivery.
        """
        if not mounted.offer.offers(InitFlag.HAS_RESEND):
            return
        shared = self._estate.shared
        shared.begin_resend()
        self._await_idle_fronts()
        shared.drop_bodies()
        try:
            os.write(mounted.fuse_fd, encode_resend())
        except OSError as error:
            log.warning("NOTIFY_RESEND failed: %s", error)
        finally:
            shared.end_resend()

    def _await_idle_fronts(self) -> None:
        """Return once every living front has been idle since the call."""
        marks = {number: self._estate.shared.row(FIRST_FRONT_ROW + number) for number in self.front_pids.values()}
        deadline = time.monotonic() + _IDLE_S
        time.sleep(_IDLE_POLL_S)  # until what this process and the fronts stored is seen by all processors
        busy = {number: row[BUSY] for number, row in marks.items() if row[BUSY] & 1}
        while busy:
            busy = {number: mark for number, mark in busy.items() if marks[number][BUSY] == mark}
            if time.monotonic() > deadline:
                # Its write is inside the kernel; a later one to the same file waits for it there.
                log.error("a front does not become idle: fronts=%s", sorted(busy))
                return
            time.sleep(_IDLE_POLL_S)

    # --- deaths ------------------------------------------------------------------------------------------------

    def note_front_death(self, death: Death) -> int:
        """Suspect what a dead front was doing and return that request's unique, or 0."""
        number = self.front_pids.pop(death.pid)
        shared = self._estate.shared
        unique = shared.row(FIRST_FRONT_ROW + number)[CURRENT_UNIQUE]
        if unique:
            self._suspect(unique, SUSPICION_KILL if death.was_killed else SUSPICION_CRASH)
        # It may have died between taking an answer and giving the token back.
        shared.suspect_in_core = 0
        return int(unique)

    def note_core_death(self, death: Death) -> None:
        """Suspect what was in a dead core's hands, above all the one on trial and those that were never tried."""
        self.core_pid = 0
        if death.exit_code == core_main.EXIT_RENEW:
            return
        shared = self._estate.shared
        on_trial = shared.suspect_in_core
        in_flight = {request.unique for request in shared.in_flight()}
        untried = {unique for unique in in_flight if shared.suspicion(unique) < SUSPICION_CRASH} - {on_trial}
        for unique in in_flight:
            if death.was_killed:
                self._suspect(unique, SUSPICION_KILL)
            elif unique == on_trial:
                self._suspect(unique, SUSPICION_SHARED if untried else SUSPICION_CRASH)
            elif unique in untried or not on_trial:
                self._suspect(unique, SUSPICION_CRASH)
            else:
                self._suspect(unique, SUSPICION_KILL)

    def _suspect(self, unique: int, weight: int) -> None:
        total = self._estate.shared.suspect(unique, weight)
        log.warning("request was in flight when a process died unique=%#x suspicion=%d", unique, total)

    def child_pids(self) -> tuple[int, ...]:
        """Return all processes, the core first (0: there is none now)."""
        return (self.core_pid, *self.front_pids, *(pid for pid in (self.notifier_pid, self.pusher_pid) if pid))

    # --- ending ------------------------------------------------------------------------------------------------

    def end_fronts(self) -> None:
        """Kill all fronts: they keep nothing, and what they had in hand is delivered again."""
        for pid in list(self.front_pids):
            end_child(pid, 0)
        self.front_pids.clear()

    def end(self) -> None:
        """End every process of the generation and close its sockets.

        A process that the kernel holds is left to the kernel: it ends when the connection does.
        """
        self.end_fronts()
        for pid, timeout_s in ((self.core_pid, CORE_END_S), (self.notifier_pid, 0.0), (self.pusher_pid, 0.0)):
            if pid and not end_child(pid, timeout_s):
                log.error("process does not end: the kernel holds it pid=%d", pid)
        self.core_pid = self.notifier_pid = self.pusher_pid = 0
        for end in (self._relay_front, self._hints_front, self._notify, self._push, self._channel, *self._core_ends):
            end.close()
