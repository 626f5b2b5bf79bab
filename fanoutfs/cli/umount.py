"""`fanoutfs umount`: when it returns 0, mount, control socket and daemon are gone."""

import contextlib
import os
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.client import call, peer_pid
from fanoutfs.cli.document import json_option, print_json
from fanoutfs.config.directories import control_socket, keeper_socket
from fanoutfs.config.units import show_size
from fanoutfs.errors import DaemonDiedError, FanoutError, MountBusyError, NotMountedError
from fanoutfs.keeper.holders import find_servers
from fanoutfs.keeper.mountinfo import FSTYPE, MountInfo, find_mount
from fanoutfs.keeper.paths import resolve

END_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Left:
    """What only the cache directory has, in words, "" for nothing.  kept_here: that is so by policy or option."""

    to_upload: str = ""
    kept_here: str = ""


@click.command(epilog="Example:  fanoutfs umount --drain /mnt/run")
@click.argument("mountpoint")
@click.option(
    "-l", "-z", "--lazy", is_flag=True, help="detach now; who has files open may finish, the daemon ends after the last"
)
@click.option("--drain", is_flag=True, help="first wait until the object store has everything")
@json_option
def umount(mountpoint: str, lazy: bool, drain: bool, as_json: bool) -> None:
    """Unmount the fanoutfs mount at MOUNTPOINT and wait until its daemon has ended.

    What is not uploaded yet stays in the cache directory, is named on stderr, and is uploaded by the next mount.
    """
    path = resolve(Path(mountpoint))
    info = find_mount(path)
    if info is None:
        raise NotMountedError(f"nothing is mounted at {path}")
    if info.fstype != FSTYPE:
        raise NotMountedError(f"{path} is no fanoutfs mount but {info.fstype} from {info.source}")
    with contextlib.suppress(OSError):
        os.chdir("/")  # `fanoutfs umount .` must not be its own hindrance
    if drain:
        from fanoutfs.cli.drain import drain_mount  # noqa: PLC0415  the progress bar, not needed otherwise

        drain_mount(path)
    left = unmount_and_wait(path, lazy=lazy)
    if as_json:
        print_json({"mountpoint": str(path), "left_to_upload": left.to_upload, "kept_here": left.kept_here})


def unmount_and_wait(path: Path, *, lazy: bool) -> Left:
    """Unmount what is at this symlink-free path; return when the daemon has ended, or at once if it was busy and lazy.

    Returns what only the cache directory has, and says it on stderr.
    Raises NotMountedError, MountBusyError, MountDeniedError, DaemonDiedError.
    """
    from fanoutfs.keeper import mount as attach  # noqa: PLC0415  ctypes and subprocess, not needed for --help

    info = find_mount(path)
    if info is None:
        raise NotMountedError(f"nothing is mounted at {path}")
    try:
        status = call(path, "status")
    except FanoutError:
        status = {}
    left = _left(status)
    with contextlib.ExitStack() as stack:
        processes = _daemon_processes(path, info, status, stack)
        try:
            attach.unmount(path)
        except MountBusyError:
            if not lazy:
                raise
            attach.unmount(path, lazy=True)
            return left  # the daemon serves whoever still has something open, for as long as that takes
        _wait_for_end(processes, path)
    for left_behind in (control_socket(path), keeper_socket(path)):
        _remove_dead_socket(left_behind)
    if told := ", ".join(filter(None, (left.to_upload, left.kept_here))):
        click.echo(f"fanoutfs: {told}; it is safe in the cache directory, the next mount goes on", err=True)
    return left


def _left(status: Mapping[str, Any]) -> Left:
    """Return what only the cache directory has, as the daemon said while it could be asked."""
    try:
        changes = status["changes"]
        dirty, departed, kept = (int(changes.get(name, 0)) for name in ("dirty", "departed", "never_uploaded"))
        staged_bytes, kept_bytes = int(changes["staged_bytes"]), int(changes.get("never_uploaded_bytes", 0))
    except (KeyError, ValueError, TypeError, AttributeError):
        return Left()
    parts = []
    if dirty:
        waiting_bytes = max(0, staged_bytes - kept_bytes)
        parts.append(f"{dirty} files or directories are not uploaded yet ({show_size(waiting_bytes)})")
    if departed:
        parts.append(f"{departed} objects are not moved or deleted yet")
    kept_here = f"{kept} files or directories are never uploaded ({show_size(kept_bytes)})" if kept_bytes else ""
    return Left(", ".join(parts), kept_here)


def _daemon_processes(
    mountpoint: Path, info: MountInfo, status: Mapping[str, Any], stack: contextlib.ExitStack
) -> dict[int, int]:
    """Return pidfd → pid of the daemon, taken while the mount exists, so that no pid can be reused; empty if dead.

    The keeper by its own word; it ends after all others.  When it does not answer, whoever holds the connection's
    descriptor: a daemon whose control socket hangs, or one of another user.  Only then, because the connection's number
    may be that of an earlier one, long unmounted, which somebody else still holds and will not let go.
    """
    try:
        pids = {int(status["keeper_pid"])}
    except (KeyError, ValueError, TypeError):
        pids = {*find_servers(info), peer_pid(mountpoint, timeout_s=1.0) or 0}
    pidfds = {}
    for pid in pids - {0, 1, os.getpid()}:  # 1: a service manager that keeps the descriptor for a restart
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            stack.callback(os.close, pidfd)
            pidfds[pidfd] = pid
    return pidfds


def _wait_for_end(processes: dict[int, int], mountpoint: Path) -> None:
    """Wait until all have ended; DaemonDiedError naming the rest after END_TIMEOUT_S."""
    deadline = time.monotonic() + END_TIMEOUT_S
    alive = dict(processes)
    poller = select.poll()
    for pidfd in alive:
        poller.register(pidfd, select.POLLIN)
    while alive:
        ended = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ended:
            pids = ", ".join(str(pid) for pid in alive.values())
            rest = f"its daemon (pid {pids}) has not ended within {END_TIMEOUT_S:.0f} s; see its log"
            raise DaemonDiedError(f"{mountpoint} is unmounted, but {rest}")
        for pidfd, _ in ended:
            poller.unregister(pidfd)
            del alive[pidfd]


def _remove_dead_socket(path: Path) -> None:
    """Remove what a killed daemon left; a socket somebody listens on belongs to a new mount."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
