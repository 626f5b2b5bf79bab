"""Life of the keeper: from a checked configuration to a mount that answers, and back to nothing.

Order of the start, so that a mount appears only when it will work:
  1. lock the cache directory, bind the control socket      4. fork the fronts, hand the mount to the core
  2. fork the core: it opens the index and asks the backend  5. say "ok"
  3. mount, answer INIT
Order of the end: unmount, fronts, core (commits what it has), control socket, lock.

A keeper that follows another one (see handover) finds the mount there: fronts first, then a core, then "ok".  One that
is to be followed leaves the mount to the service manager.
"""

import contextlib
import errno
import logging
import math
import os
import resource
import select
import signal
import socket
import time
from functools import partial
from typing import Final

from fanoutfs.backend import config_root
from fanoutfs.cache.arena import Arena
from fanoutfs.cache.directory import CacheDirectory
from fanoutfs.config.directories import control_socket, keeper_socket
from fanoutfs.config.recipe import Recipe
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import (
    FanoutError,
    MountBusyError,
    MountDeniedError,
    NotMountedError,
    UsageError,
)
from fanoutfs.front.main import EXIT_UNMOUNTED
from fanoutfs.index import lockfile
from fanoutfs.keeper import mount as attach
from fanoutfs.keeper import orders
from fanoutfs.keeper.children import Death, end_child, reap
from fanoutfs.keeper.generation import CORE_END_S, Estate, Generation, Mounted
from fanoutfs.keeper.handover import HELD_BACK, Inheritance
from fanoutfs.keeper.handshake import answer_init
from fanoutfs.keeper.held import HeldThreads
from fanoutfs.keeper.starts import BACKOFF_S, CORE_START_S, Starts
from fanoutfs.keeper.succession import Succession
from fanoutfs.keeper.watchdog import Watchdog
from fanoutfs.observe import logs
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.dump import DUMP_SIGNAL, kernel_view, stacks
from fanoutfs.observe.sdnotify import ServiceManager
from fanoutfs.observe.shared import (
    FIRST_FRONT_ROW,
    HELD,
    KEEPER_ROW,
    PID,
    REFUSING,
    STARTED_NS,
    SharedState,
    bump,
    make_positions,
)
from fanoutfs.wire.kernel import InitFlag
from fanoutfs.wire.messages import decode_init, encode_error

log = logging.getLogger(__name__)

_READ_AHEAD_KIB: Final = 4096
"""Lets the kernel send 1 MiB READs, several at a time; the INIT answer can only lower it."""
_LOCK_PATIENCE_S: Final = 10.0
"""How long the processes of a keeper that was killed may still hold the cache."""
_FREE_RESTARTS: Final = 4
"""Fronts that may die young one after the other before the next one waits; a poison request takes three."""
_PUSHER_PAUSE_S: Final = 0.5
"""Only speed misses it; a store that kills it must not cost a processor."""
_MOST_DUMPED: Final = 200
_ABORT_S: Final = 1.0
"""How long a process that hangs may write down where, before it is killed."""
_LEAST_HANG_S: Final = 2.0
"""Several beats of a core."""


class _StartFailedError(FanoutError):
    """The core said why there can be no mount."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def serve(
    config: MountConfig, ready_fd: int, *, recipe: Recipe | None = None, inherited: Inheritance | None = None
) -> int:
    """Mount and serve until the mount ends; return the exit code.

    ready_fd: gets "ok\\n" once the mount answers, then is closed; -1: nobody waits.  recipe: what the user said, to be
    read again by `fanoutfs upgrade`.  inherited: a mount to go on with.
    Raises FanoutError when there can be no mount; then nothing is left behind.
    """
    identity, root_prefix = config_root(config)
    check_settings(config)
    # In the background we are somebody's child: the service manager of a job is told by the job.
    manager = ServiceManager.from_environment(os.environ if config.foreground else {})
    lock_fd, patience_s = (-1, 0.0) if inherited is None else (inherited.lock_fd, _LOCK_PATIENCE_S)
    cache = CacheDirectory(config.cache_dir, lock_fd=lock_fd, patience_s=patience_s)
    try:
        volume_path = cache.volume(identity)
        if inherited is None:
            lockfile.begin_anew(volume_path)
        if not config.foreground:
            logs.open_log(config.log_file or volume_path / "fanoutfs.log")
        positions_fd = make_positions(-1 if inherited is None else inherited.positions_fd)
        shared = SharedState(positions_fd)
        setup_log = partial(logs.setup, config.log_level, config.log_format, shared.flags)
        setup_log("keeper")
        _raise_descriptor_limit()
        cache.remove_other_volumes(volume_path, config.cache_size // 2)
        if inherited is not None and inherited.is_by_exec and (core_pid := inherited.state.children[0]):
            end_child(core_pid, CORE_END_S)  # it listens where the next one is to
        metrics = _bind_metrics(config, must_work=inherited is None)
        control = orders.bind(control_socket(config.mountpoint))
        own = orders.bind(keeper_socket(config.mountpoint))
        own.setblocking(False)
        row = shared.row(KEEPER_ROW)
        row[PID], row[STARTED_NS] = os.getpid(), time.monotonic_ns()
        estate = Estate(
            config=config,
            identity=identity,
            root_prefix=root_prefix,
            volume_path=volume_path,
            other_volumes_bytes=cache.other_volumes_bytes(volume_path),
            shared=shared,
            arena=Arena(config.arena_bytes()),
            control=control,
            metrics=metrics,
            setup_log=setup_log,
        )
        succession = Succession(config, recipe, manager, positions_fd, cache.lock_fd, inherited)
        keeper = Keeper(estate, ready_fd, manager, succession, own, inherited)
        try:
            return keeper.run()
        finally:
            if not keeper.leaves_mount:
                with contextlib.suppress(OSError):  # the next keeper does it
                    lockfile.begin_anew(volume_path)
            for listener, path in (
                (control, control_socket(config.mountpoint)),
                (own, keeper_socket(config.mountpoint)),
            ):
                listener.close()
                path.unlink(missing_ok=True)
            if metrics is not None:
                metrics.close()
    finally:
        cache.close()


def check_settings(config: MountConfig) -> None:
    """Refuse what would be found out too late otherwise.  Raises UsageError."""
    config.price_table()  # now, not when somebody asks for costs
    config.metrics_endpoint()
    if 0 < config.hang_timeout < _LEAST_HANG_S:
        raise UsageError(f"hang_timeout: {config.hang_timeout:g}s is too short: 0s, or {_LEAST_HANG_S:g}s and more")
    if config.metrics_file is not None and config.metrics_file.is_relative_to(config.mountpoint):
        raise UsageError(f"metrics_file: {config.metrics_file} would be hidden below the mountpoint")


class Keeper:
    """Starts, watches and ends a mount."""

    def __init__(
        self,
        estate: Estate,
        ready_fd: int,
        manager: ServiceManager,
        succession: Succession,
        orders_listener: socket.socket,
        inherited: Inheritance | None,
    ) -> None:
        self._estate = estate
        self._ready_fd = ready_fd
        self._manager = manager
        self._succession = succession
        self._orders = orders_listener
        self._inherited = inherited
        self.leaves_mount = False
        """Whether the mount is left to the next keeper."""
        self._number = 1 if inherited is None else inherited.state.generation
        self._starts = Starts()
        self._is_ending = False
        self._front_failures: dict[int, int] = {}
        self._due_fronts: dict[int, float] = {}
        self._due_pusher = 0.0
        """When to start one in place of the one that died; 0: it lives, or is not wanted."""
        self._watchdog = Watchdog(estate.shared, estate.config.hang_timeout)
        self._held = HeldThreads(estate.config.hang_timeout)
        self._aborted: dict[int, float] = {}
        """Process that hangs → when to kill it, if it has not ended itself."""
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        # Not /dev/fuse: the kernel wakes whoever polls it for every single request.  A front tells when it is gone.
        self._poller = select.poll()
        self._poller.register(self._wakeup, select.POLLIN)
        self._poller.register(self._orders, select.POLLIN)

    def run(self) -> int:
        """Live until the mount ends; return the exit code.  Raises FanoutError when the mount cannot start."""
        self._watch_signals()
        self._generation = Generation(self._estate, self._number)
        mounted: Mounted | None = None
        try:
            if self._inherited is None:
                self._start_first_core()
                mounted = self._mount()
                self._generation.start_fronts(mounted)
                self._generation.attach(mounted)
            else:
                mounted = self._take_over(self._inherited)
            self._tune()
            self._check_visible()
            log.info("mounted source=%s mountpoint=%s", self._estate.config.source, self._estate.config.mountpoint)
            self._succession.begin(mounted, self._number)
            self._report_ok()
            self._watch(mounted)
        finally:
            if mounted is not None and not self.leaves_mount:
                self._unmount()
                self._succession.forget()
            self._generation.end()
            if mounted is not None:
                os.close(mounted.fuse_fd)
            log.info("ended")
        return 0

    # --- start -------------------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, DUMP_SIGNAL, logs.LEVEL_SIGNAL):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)

    def _start_first_core(self) -> None:
        self._starts.begin(time.monotonic())
        self._generation.start_core()
        failure = self._generation.await_core()
        if failure is not None:
            raise _StartFailedError(failure.message, failure.exit_code)
        self._starts.succeed(time.monotonic())

    def _mount(self) -> Mounted:
        config = self._estate.config
        fuse_fd = attach.mount(
            config.mountpoint,
            config.source,
            read_only=config.read_only,
            allow_other=config.allow_other,
            noexec=config.noexec,
        )
        try:
            init, offer = answer_init(fuse_fd)
        except BaseException:
            os.close(fuse_fd)
            attach.unmount(config.mountpoint, lazy=True)
            raise
        # Shared by all processes: a front finds out without blocking that another one took the request.
        os.set_blocking(fuse_fd, False)
        log.info("kernel speaks FUSE %d.%d flags=%#x", offer.major, offer.minor, offer.flags)
        return Mounted(fuse_fd, init, offer)

    def _take_over(self, inherited: Inheritance) -> Mounted:
        """Go on with a mount.  Fronts that are still there serve until the core before this one has ended."""
        state = inherited.state
        mounted = Mounted(inherited.fuse_fd, state.init, decode_init(state.init))
        log.info("taking over mountpoint=%s generation=%d", state.mountpoint, state.generation)
        # The core has ended already: see `serve`.  Another process's numbers mean nothing now.
        for pid in state.children[1:] if inherited.is_by_exec else ():
            if not end_child(pid, 0):
                log.error("process does not end: the kernel holds it pid=%d", pid)
        self._replace_generation(mounted)
        self._watch(mounted, until_served=True)
        return mounted

    def _check_visible(self) -> None:
        """Make sure that others see the mount.  Raises MountDeniedError.

        A unit with a setting that gives it a mount namespace of its own (ProtectSystem=, PrivateTmp=, ...) would be
        active, and its mount seen by nobody.
        """
        mountpoint = self._estate.config.mountpoint
        if self._manager.is_there and not attach.is_visible_to_init(mountpoint):
            raise MountDeniedError(
                f"{mountpoint} is mounted where only this service sees it: remove the settings that give the unit a "
                "mount namespace (ProtectSystem=, PrivateTmp=, ...)"
            )

    def _tune(self) -> None:
        info = attach.find_mount(self._estate.config.mountpoint)
        if info is None or not attach.set_read_ahead(info.device, _READ_AHEAD_KIB):
            log.info("read_ahead_kb stays at the kernel's default: raising it to %d needs root", _READ_AHEAD_KIB)

    def _report_ok(self) -> None:
        if self._ready_fd >= 0:
            os.write(self._ready_fd, b"ok\n")
            os.close(self._ready_fd)
        self._manager.tell("READY=1", self._status())

    def _status(self) -> str:
        config = self._estate.config
        return (
            f"STATUS={config.source} on {config.mountpoint}, {config.front_count()} fronts, generation {self._number}"
        )

    # --- watch -------------------------------------------------------------------------------------------------

    def _watch(self, mounted: Mounted, *, until_served: bool = False) -> None:
        """Attend to everything until the mount ends; until_served: or a core serves."""
        while not self._is_ending and not (until_served and not self._starts.due_at and not self._starts.give_up_at):
            ready = {fd for fd, _ in self._poller.poll(self._pause_ms())}
            if self._wakeup.fileno() in ready:
                numbers = set(self._wakeup.recv(4096))
                if numbers & {signal.SIGTERM, signal.SIGINT}:
                    self._is_ending, self.leaves_mount = True, self._succession.is_kept
                    log.info("asked to end%s", ": the mount stays for the next start" if self.leaves_mount else "")
                    self._manager.tell("STOPPING=1")
                    return
                if logs.LEVEL_SIGNAL in numbers:
                    logs.take_level(self._estate.shared.flags)
                    self._signal_children(logs.LEVEL_SIGNAL)
                if DUMP_SIGNAL in numbers:
                    self._dump()
            if self._starts.give_up_at and self._generation.channel.fileno() in ready:
                self._take_outcome(mounted)
            if self._wakeup.fileno() in ready:
                self._attend(reap(), mounted)
            if self._orders.fileno() in ready:
                self._obey()
            self._start_due_core(mounted)
            self._start_due_fronts(mounted)
            self._start_due_pusher(mounted)
            self._end_hung()

    def _signal_children(self, number: signal.Signals) -> None:
        for pid in self._generation.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _dump(self) -> None:
        """Write what the mount is doing into the log, and have the others do so."""
        waiting = sorted(self._estate.shared.in_flight(), key=lambda request: -request.age_ns)
        lines = [f"{len(waiting)} requests wait for the core"]
        lines += [
            f"  opcode={request.opcode} unique={request.unique:#x} node={request.nodeid} pid={request.pid} "
            f"offset={request.offset} size={request.size} age_s={request.age_ns / 1e9:.3f}"
            for request in waiting[:_MOST_DUMPED]
        ]
        lines += [f"process {pid} {kernel_view(pid)}" for pid in self._generation.pids]
        log.info("dump of the mount\n%s\n%s", "\n".join(lines), stacks())
        self._signal_children(DUMP_SIGNAL)

    def _end_hung(self) -> None:
        """End what lives but does nothing any more; its death is then attended to as any other."""
        now = time.monotonic()
        if now >= (self._watchdog.due_at() or math.inf):
            self._note_held(now)
        alive = set(self._generation.pids)
        for hang in self._watchdog.look(now, self._generation.members()):
            pid = hang.member.pid
            log.error("process hangs process=%s pid=%d state=%s idle_s=%.1f", hang.member, pid, hang.state, hang.idle_s)
            bump(self._estate.shared.row(KEEPER_ROW), Count[f"HANGS_{hang.member.kind.name}"])
            self._aborted[pid] = now
            if not hang.was_stopped:
                self._aborted[pid] += _ABORT_S
                os.kill(pid, signal.SIGABRT)  # faulthandler writes the stacks: see fork_child
        self._aborted = {pid: until for pid, until in self._aborted.items() if pid in alive}
        for pid in [pid for pid, until in self._aborted.items() if until <= now]:
            del self._aborted[pid]
            os.kill(pid, signal.SIGKILL)

    def _note_held(self, now: float) -> None:
        """Tell of threads that wait for a disk and hear nothing: nobody can end them."""
        held = self._held.look(now, self._generation.members())
        self._estate.shared.row(KEEPER_ROW)[HELD] = self._held.count
        for each in held:
            log.error(
                "no answer from a disk process=%s pid=%d thread=%d held_s=%.1f file=%s",
                *(each.member, each.member.pid, each.thread, each.held_s, each.place or "?"),
            )

    def _attend(self, deaths: list[Death], mounted: Mounted) -> None:
        """Replace what died.  A dead core takes its generation with it."""
        for death in deaths:
            if death.pid in self._generation.front_pids:
                if death.exit_code == EXIT_UNMOUNTED:
                    log.info("the mount is gone")
                    self._is_ending = True
                    return
                self._note_front_death(death, mounted)
            elif death.pid == self._generation.notifier_pid and death.exit_code != 0:
                # (0: the core ended first.)  The core may wait for what it was writing: both begin anew.
                log.error("notifier died: %s", death)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._generation.core_pid, signal.SIGKILL)
            elif death.pid == self._generation.pusher_pid and death.exit_code != 0:
                # (0: the core ended first, or the mount.)  Nobody waits for it: the others stay.
                log.error("pusher died: %s", death)
                self._due_pusher = time.monotonic() + _PUSHER_PAUSE_S
        core_deaths = [death for death in deaths if death.pid == self._generation.core_pid]
        if core_deaths:
            self._note_core_death(core_deaths[0], mounted)

    def _note_core_death(self, death: Death, mounted: Mounted) -> None:
        log.error("core died: %s", death)
        if self._starts.give_up_at:  # it had not touched any request yet
            self._generation.core_pid = 0
            self._take_outcome(mounted)
            return
        self._generation.note_core_death(death)
        self._starts.note_death(time.monotonic(), was_killed=death.was_killed)
        self._replace_generation(mounted)

    def _note_front_death(self, death: Death, mounted: Mounted) -> None:
        """Plan a dead front's successor: at once, or after a while when fronts do not live."""
        shared = self._estate.shared
        number = self._generation.front_pids[death.pid]
        log.error("front died number=%d: %s", number, death)
        unique = self._generation.note_front_death(death)
        if unique and not mounted.offer.offers(InitFlag.HAS_RESEND):
            self._fail_requests([unique], mounted)
        lived_s = (time.monotonic_ns() - shared.row(FIRST_FRONT_ROW + number)[STARTED_NS]) / 1e9
        failures = 0 if death.was_killed or lived_s > 1.0 else self._front_failures.get(number, 0) + 1
        self._front_failures[number] = failures
        delay_s = BACKOFF_S[min(max(0, failures - _FREE_RESTARTS), len(BACKOFF_S) - 1)]
        self._due_fronts[number] = time.monotonic() + delay_s

    def _pause_ms(self) -> float | None:
        """Return how long nothing need be done unless somebody calls; None: for ever."""
        planned = (self._due_pusher, self._starts.due_at, self._starts.give_up_at)
        due = [*self._due_fronts.values(), *(when for when in planned if when), *self._aborted.values()]
        if (look_at := self._watchdog.due_at()) is not None:
            due.append(look_at)
        alive_s = self._manager.keep_alive()
        if alive_s is not None:
            due.append(time.monotonic() + alive_s)
        return max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None

    def _obey(self) -> None:
        """Do what was asked for on the keeper's own socket."""
        order = orders.receive(self._orders)
        if order is None:
            return
        if order.operation == "state":
            own = {"keeper_pid": os.getpid(), "core_pid": self._generation.core_pid, "generation": self._number}
            order.succeed(**own, **self._starts.describe(time.monotonic()))
            return
        if order.operation != "upgrade":
            order.refuse("unknown request; known: state, upgrade")
            return
        try:
            checked = self._succession.check_upgrade()
        except FanoutError as error:
            log.error("not upgraded: %s", error)
            order.refuse(str(error))
            return
        log.info("the installed version takes over")
        order.succeed(generation=self._number)
        self._succession.upgrade(checked, self._generation.child_pids())

    def _start_due_pusher(self, mounted: Mounted) -> None:
        if self._due_pusher and self._due_pusher <= time.monotonic():
            self._due_pusher = 0.0
            self._generation.start_pusher(mounted)

    def _start_due_fronts(self, mounted: Mounted) -> None:
        now = time.monotonic()
        due = [number for number, when in self._due_fronts.items() if when <= now]
        for number in due:
            del self._due_fronts[number]
            self._generation.start_front(number, mounted)
            bump(self._estate.shared.row(KEEPER_ROW), Count.RESTARTS_FRONT)
        if due:
            self._generation.resend(mounted)

    def _replace_generation(self, mounted: Mounted) -> None:
        """Begin a new generation, whose core is started soon: its fronts serve what is cached meanwhile."""
        shared = self._estate.shared
        self._generation.end()
        self._due_fronts.clear()
        self._due_pusher = 0.0
        if self._starts.refuses or not mounted.offer.offers(InitFlag.HAS_RESEND):
            self._fail_requests(shared.lost_requests(self._estate.config.front_count()), mounted)
        shared.clear_in_flight()
        shared.flags[REFUSING] = self._starts.refuses
        self._number += 1
        self._succession.note_generation(self._number)
        bump(shared.row(KEEPER_ROW), Count.RESTARTS_CORE)
        self._generation = Generation(self._estate, self._number)
        self._generation.start_fronts(mounted)
        self._generation.resend(mounted)
        self._starts.plan(time.monotonic())

    def _start_due_core(self, mounted: Mounted) -> None:
        now = time.monotonic()
        if self._starts.due_at and self._starts.due_at <= now:
            self._starts.begin(now)
            self._generation.start_core()
            self._poller.register(self._generation.channel, select.POLLIN)
        elif self._starts.give_up_at and self._starts.give_up_at <= now:
            self._begin_anew(f"the core was not ready within {CORE_START_S:g} s", mounted)

    def _take_outcome(self, mounted: Mounted) -> None:
        """Give the mount to the core that is ready; begin anew if it is not."""
        failure = self._generation.await_core()
        if failure is not None:
            self._begin_anew(failure.message, mounted)
            return
        try:
            self._generation.attach(mounted)
        except OSError as error:
            self._begin_anew(f"the core died when it was ready: {error}", mounted)
            return
        self._poller.unregister(self._generation.channel)
        if self._starts.refuses:
            self._estate.shared.flags[REFUSING] = 0
            self._due_pusher = time.monotonic()
        self._manager.tell(self._status())
        log.info("generation started number=%d after_s=%.3f", self._number, self._starts.succeed(time.monotonic()))

    def _begin_anew(self, failure: str, mounted: Mounted) -> None:
        """Have the next core started after one that was not ready."""
        self._poller.unregister(self._generation.channel)
        if not attach.is_connected(mounted.fuse_fd):  # fronts tell of it, if any can live
            self._is_ending = True
            return
        if self._starts.fail(failure, time.monotonic()):
            waits = "what needs it gets EIO" if self._starts.refuses else "what needs it waits"
            log.error("core did not start: %s: %s", waits, failure)
            self._manager.tell(f"STATUS=The core cannot start, {waits}: {failure}")
        self._replace_generation(mounted)

    @staticmethod
    def _fail_requests(lost: list[int], mounted: Mounted) -> None:
        """Answer EIO.  On kernels before 6.9 nothing is delivered again and the readers would wait for ever."""
        if lost:
            log.error("requests that nobody will answer get EIO count=%d", len(lost))
        for unique in lost:
            with contextlib.suppress(OSError):  # answered meanwhile
                os.write(mounted.fuse_fd, encode_error(unique, errno.EIO))

    # --- end ---------------------------------------------------------------------------------------------------

    def _unmount(self) -> None:
        mountpoint = self._estate.config.mountpoint
        try:
            attach.unmount(mountpoint)
        except NotMountedError:
            pass
        except MountBusyError as error:
            log.warning("ending a mount in use: %s", error)
            # Force: whoever waits for an answer gets an error now, or could not be ended, and neither could we.
            attach.unmount(mountpoint, lazy=True, force=os.geteuid() == 0)
        except FanoutError as error:
            log.error("cannot unmount: %s", error)


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as the system grants: fronts and core keep one per cached file in use."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bind_metrics(config: MountConfig, *, must_work: bool) -> socket.socket | None:
    """Return the listening socket of the metrics, None without one.

    must_work: raise UsageError when the address is taken; a mount in use goes on without metrics instead.
    """
    endpoint = config.metrics_endpoint()
    if endpoint is None:
        return None
    host, port = endpoint
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=16)
    except OSError as error:
        message = f"metrics_address: cannot listen on {host}:{port}: {error.strerror}"
        if must_work:
            raise UsageError(message) from error
        log.error("%s", message)
        return None
