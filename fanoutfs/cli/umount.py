"""`fanoutfs umount`: when it returns 0, mount, control socket and daemon are gone."""

import contextlib
import os
import select
import socket
import time
from pathlib import Path
from typing import Final

import click

from fanoutfs.cli.client import call, peer_pid
from fanoutfs.config.schema import control_socket
from fanoutfs.config.units import show_size
from fanoutfs.errors import DaemonDiedError, FanoutError, MountBusyError, NotMountedError
from fanoutfs.keeper.holders import find_servers
from fanoutfs.keeper.mountinfo import FSTYPE, MountInfo, find_mount

END_TIMEOUT_S: Final = 30.0


@click.command()
@click.argument("mountpoint")
@click.option(
    "-l", "-z", "--lazy", is_flag=True, help="detach now; who has files open may finish, the daemon ends after the last"
)
@click.option("--drain", is_flag=True, help="first wait until the object store has everything")
def umount(mountpoint: str, lazy: bool, drain: bool) -> None:
    """Unmount the fanoutfs mount at MOUNTPOINT and wait until its daemon has ended.

    What is not uploaded yet stays in the cache directory, is named on stderr, and is uploaded by the next mount.
    """
    from fanoutfs.keeper import mount as attach  # noqa: PLC0415  ctypes and subprocess, not needed for --help

    path = attach.resolve(Path(mountpoint))
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
    left = _left_to_upload(path)
    with contextlib.ExitStack() as stack:
        processes = _daemon_processes(path, info, stack)
        try:
            attach.unmount(path)
        except MountBusyError:
            if not lazy:
                raise
            attach.unmount(path, lazy=True)
            return  # the daemon serves whoever still has something open, for as long as that takes
        _wait_for_end(processes, path)
    _remove_dead_socket(control_socket(path))
    if left:
        click.echo(f"fanoutfs: {left}; it is safe in the cache directory, the next mount goes on", err=True)


def _left_to_upload(mountpoint: Path) -> str:
    """Return what the store does not have yet, "" for nothing, as the daemon says while it can be asked."""
    try:
        changes = call(mountpoint, "status")["changes"]
        dirty, departed = int(changes.get("dirty", 0)), int(changes.get("departed", 0))
    except (FanoutError, KeyError, ValueError, TypeError, AttributeError):
        return ""
    parts = [f"{dirty} files or directories are not uploaded yet ({show_size(int(changes['staged_bytes']))})"]
    if departed:
        parts.append(f"{departed} objects are not moved or deleted yet")
    return ", ".join(parts[not dirty :])


def _daemon_processes(mountpoint: Path, info: MountInfo, stack: contextlib.ExitStack) -> dict[int, int]:
    """Return pidfd → pid of the daemon, taken while the mount exists, so that no pid can be reused; empty if dead.

    The keeper by its own word; it ends after all others.  When it does not answer, whoever holds the connection's
    descriptor: a daemon whose control socket hangs, or one of another user.  Only then, because the connection's number
    may be that of an earlier one, long unmounted, which somebody else still holds and will not let go.
    """
    try:
        pids = {int(call(mountpoint, "status")["keeper_pid"])}
    except (FanoutError, KeyError, ValueError, TypeError):
        pids = {*find_servers(info), peer_pid(mountpoint, timeout_s=1.0) or 0}
    pidfds = {}
    for pid in pids - {0, os.getpid()}:
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
