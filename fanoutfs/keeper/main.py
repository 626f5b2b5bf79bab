"""Life of the keeper: from a checked configuration to a mount that answers, and back to nothing.

Order of the start, so that a mount appears only when it will work:
  1. lock the cache directory, bind the control socket      4. fork the fronts, hand the mount to the core
  2. fork the core: it opens the index and asks the backend  5. say "ok"
  3. mount, answer INIT
Order of the end: unmount, fronts, core (commits what it has), control socket, lock.
"""

import contextlib
import errno
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

from fanoutfs.backend import config_root
from fanoutfs.cache.arena import Arena
from fanoutfs.cache.directory import CacheDirectory, make_private
from fanoutfs.config.schema import MountConfig, control_socket
from fanoutfs.errors import CacheUnusableError, FanoutError, MountBusyError, NotMountedError
from fanoutfs.front.main import EXIT_UNMOUNTED
from fanoutfs.keeper import mount as attach
from fanoutfs.keeper.children import Death, reap
from fanoutfs.keeper.generation import Estate, Generation, Mounted
from fanoutfs.keeper.handshake import answer_init
from fanoutfs.observe import logs
from fanoutfs.observe.catalog import Count
from fanoutfs.observe.shared import FIRST_FRONT_ROW, KEEPER_ROW, PID, STARTED_NS, SharedState, bump
from fanoutfs.wire.kernel import InitFlag
from fanoutfs.wire.messages import encode_error

log = logging.getLogger(__name__)

_READ_AHEAD_KIB: Final = 4096
"""Lets the kernel send 1 MiB READs, several at a time; the INIT answer can only lower it."""
_MAX_LOG_BYTES: Final = 8 << 20
_BACKOFF_S: Final = (0.0, 0.0, 0.1, 0.2, 0.5, 1.0)
"""A start costs some 50 ms of one processor, a pause keeps everybody waiting who needs the core."""
_FREE_RESTARTS: Final = 4
"""Fronts that may die young one after the other before the next one waits; a poison request takes three."""
_PUSHER_PAUSE_S: Final = 0.5
"""Only speed misses it; a store that kills it must not cost a processor."""
_CALM_S: Final = 30.0
"""A core that lived this long, or was killed from outside after it was ready, starts the backoff anew."""


class _StartFailedError(FanoutError):
    """The core said why there can be no mount."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def serve(config: MountConfig, ready_fd: int) -> int:
    """Mount and serve until the mount ends; return the exit code.

    ready_fd: gets "ok\\n" once the mount answers, then is closed.  Raises FanoutError when there can be no mount; then
    nothing is left behind.
    """
    identity, root_prefix = config_root(config)
    cache = CacheDirectory(config.cache_dir)
    try:
        volume_path = cache.volume(identity)
        if not config.foreground:
            _open_log(config.log_file or volume_path / "fanoutfs.log")
        setup_log = partial(logs.setup, config.log_level)
        setup_log("keeper")
        _raise_descriptor_limit()
        cache.remove_other_volumes(volume_path, config.cache_size // 2)
        control = _bind_control(control_socket(config.mountpoint))
        shared = SharedState()
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
            setup_log=setup_log,
        )
        try:
            return Keeper(estate, ready_fd).run()
        finally:
            control.close()
            control_socket(config.mountpoint).unlink(missing_ok=True)
    finally:
        cache.close()


class Keeper:
    """Starts, watches and ends a mount."""

    def __init__(self, estate: Estate, ready_fd: int) -> None:
        self._estate = estate
        self._ready_fd = ready_fd
        self._number = 1
        self._restarts = 0
        self._core_started = 0.0
        self._is_ending = False
        self._front_failures: dict[int, int] = {}
        self._due_fronts: dict[int, float] = {}
        self._due_pusher = 0.0
        """When to start one in place of the one that died; 0: it lives, or is not wanted."""
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)

    def run(self) -> int:
        """Live until the mount ends; return the exit code.  Raises FanoutError when the mount cannot start."""
        self._watch_signals()
        self._generation = Generation(self._estate, self._number)
        mounted: Mounted | None = None
        try:
            self._start_core()
            mounted = self._mount()
            self._generation.start_fronts(mounted)
            self._generation.attach(mounted)
            self._tune()
            log.info("mounted source=%s mountpoint=%s", self._estate.config.source, self._estate.config.mountpoint)
            self._report_ok()
            self._watch(mounted)
        finally:
            if mounted is not None:
                self._unmount()
            self._generation.end()
            if mounted is not None:
                os.close(mounted.fuse_fd)
            log.info("ended")
        return 0

    # --- start -------------------------------------------------------------------------------------------------

    def _watch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)

    def _start_core(self) -> None:
        self._core_started = time.monotonic()
        self._generation.start_core()
        failure = self._generation.await_core()
        if failure is not None:
            raise _StartFailedError(failure.message, failure.exit_code)

    def _mount(self) -> Mounted:
        config = self._estate.config
        fuse_fd = attach.mount(
            config.mountpoint, config.source, read_only=config.read_only, allow_other=config.allow_other
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

    def _tune(self) -> None:
        info = attach.find_mount(self._estate.config.mountpoint)
        if info is None or not attach.set_read_ahead(info.device, _READ_AHEAD_KIB):
            log.info("read_ahead_kb stays at the kernel's default: raising it to %d needs root", _READ_AHEAD_KIB)

    def _report_ok(self) -> None:
        os.write(self._ready_fd, b"ok\n")
        os.close(self._ready_fd)

    # --- watch -------------------------------------------------------------------------------------------------

    def _watch(self, mounted: Mounted) -> None:
        # Not /dev/fuse: the kernel wakes whoever polls it for every single request.  A front tells when it is gone.
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        while not self._is_ending:
            if poller.poll(self._until_next_start_ms()):
                numbers = set(self._wakeup.recv(4096))
                if numbers & {signal.SIGTERM, signal.SIGINT}:
                    log.info("asked to end")
                    return
                self._attend(reap(), mounted)
            self._start_due_fronts(mounted)
            self._start_due_pusher(mounted)
        log.info("the mount is gone")

    def _attend(self, deaths: list[Death], mounted: Mounted) -> None:
        """Replace what died.  A dead core takes its generation with it."""
        for death in deaths:
            if death.pid in self._generation.front_pids:
                if death.exit_code == EXIT_UNMOUNTED:
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
            log.error("core died: %s", core_deaths[0])
            self._generation.note_core_death(core_deaths[0])
            if core_deaths[0].was_killed or time.monotonic() - self._core_started > _CALM_S:
                self._restarts = 0
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
        delay_s = _BACKOFF_S[min(max(0, failures - _FREE_RESTARTS), len(_BACKOFF_S) - 1)]
        self._due_fronts[number] = time.monotonic() + delay_s

    def _until_next_start_ms(self) -> float | None:
        due = [*self._due_fronts.values(), *([self._due_pusher] if self._due_pusher else [])]
        return max(0.0, min(due) - time.monotonic()) * 1000 + 1 if due else None

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
        """Begin a new generation; try again, ever more slowly, while its core dies at start."""
        shared = self._estate.shared
        while True:
            self._generation.end()
            self._due_fronts.clear()
            self._due_pusher = 0.0
            if not mounted.offer.offers(InitFlag.HAS_RESEND):
                self._fail_requests(shared.lost_requests(self._estate.config.front_count()), mounted)
            shared.clear_in_flight()
            self._number += 1
            bump(shared.row(KEEPER_ROW), Count.RESTARTS_CORE)
            self._generation = Generation(self._estate, self._number)
            self._generation.start_fronts(mounted)
            self._generation.resend(mounted)
            # The fronts serve what is cached meanwhile.
            time.sleep(_BACKOFF_S[min(self._restarts, len(_BACKOFF_S) - 1)])
            self._restarts += 1
            try:
                self._start_core()
            except _StartFailedError as error:
                log.error("core did not start: %s", error)
                if self._asked_to_end():
                    self._is_ending = True
                    return
                continue
            self._generation.attach(mounted)
            log.info("generation started number=%d after_s=%.3f", self._number, time.monotonic() - self._core_started)
            return

    def _asked_to_end(self) -> bool:
        try:
            return bool(set(self._wakeup.recv(4096)) & {signal.SIGTERM, signal.SIGINT})
        except BlockingIOError:
            return False

    @staticmethod
    def _fail_requests(lost: list[int], mounted: Mounted) -> None:
        """Answer EIO.  On kernels before 6.9 nothing is delivered again and the readers would wait for ever."""
        log.error("requests lost with a dead process answered EIO count=%d", len(lost))
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


def _open_log(path: Path) -> None:
    """Send stdout and stderr to the log file; a large one from earlier mounts is kept as .1."""
    try:
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CacheUnusableError(f"cannot write the log {path}: {error.strerror}") from error
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _raise_descriptor_limit() -> None:
    """Take as many descriptors as the system grants: fronts and core keep one per cached file in use."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bind_control(path: Path) -> socket.socket:
    """Return the listening control socket; one that a killed daemon left is replaced (its mountpoint was checked)."""
    make_private(path.parent, "runtime directory")  # below /tmp somebody else may have been there first
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise CacheUnusableError(f"cannot bind the control socket {path}: {error.strerror}") from error
    return listener
