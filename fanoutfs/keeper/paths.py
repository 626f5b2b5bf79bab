"""Paths to mounts, and whether a mount answers, without being held by one that does not.  Any process; loads little.

A stat of somebody's hung mount may block for ever, even against SIGKILL: the mount table is asked first, and what must
be touched is touched by a child process that can be left behind (`probe`).
"""

import errno
import os
import signal
from pathlib import Path
from typing import Final

from fanoutfs.errors import MountpointError
from fanoutfs.keeper.ending import reap_within
from fanoutfs.keeper.mountinfo import FSTYPE, find_mount

PROBE_TIMEOUT_S: Final = 5.0  # a live mount answers in microseconds, a loaded one in milliseconds
MAX_SYMLINKS: Final = 40  # the kernel's own limit (path_resolution(7))


def resolve(path: Path, *, is_place: bool = False) -> Path:
    """Return the absolute path without symlinks, never touching a mount at its end, and no dead FUSE mount on the way.

    is_place: it is a place in a fanoutfs mount, which is not touched at all: what lies below it stays as it is written.
    (One whose core hangs may answer a probe and nothing else.)
    Components that do not exist are kept as they are.  MountpointError on a symlink loop or a mount without an answer.
    """
    pending = _components(os.path.abspath(path))
    resolved = "/"
    links = 0
    while pending:
        name = pending.pop()
        if name == "..":  # only from a symlink's target: what the user typed has been normalised
            resolved = os.path.dirname(resolved)
            continue
        step = os.path.join(resolved, name)
        info = find_mount(Path(step))
        if info is not None:
            if is_place and info.fstype == FSTYPE:
                return Path(os.path.normpath(os.path.join(step, *reversed(pending))))
            if pending and info.is_fuse and (problem := probe(info.mountpoint)) in (errno.ENOTCONN, errno.ETIMEDOUT):
                state = "is dead" if problem == errno.ENOTCONN else "does not answer"
                raise MountpointError(f"{path} lies in the mount at {step}, which {state}: unmount that one first")
            resolved = step  # a mount's root is never a symlink worth following
            continue
        try:
            target = os.readlink(step)
        except OSError:
            resolved = step
            continue
        links += 1
        if links > MAX_SYMLINKS:
            raise MountpointError(f"{path} runs in a circle of symbolic links")
        if target.startswith("/"):
            resolved = "/"
        pending += _components(target)
    return Path(resolved)


def probe(mountpoint: Path, timeout_s: float = PROBE_TIMEOUT_S) -> int:
    """Ask the file system at this path for a sign of life; return 0 or the errno: ENOTCONN dead, ETIMEDOUT silent.

    Other errnos (EACCES of another user's mount, say) are answers, too.  After stat comes statfs, which the kernel
    never answers from its cache: attributes with an infinite timeout outlive their daemon.  A child does it, because a
    process whose request was read and not answered cannot be killed; on timeout it is left to its fate.
    """
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            # Whoever waits for our output to end must not wait for a child that cannot end.
            os.closerange(0, os.sysconf("SC_OPEN_MAX"))
            os.stat(mountpoint)
            os.statvfs(mountpoint)
        except OSError as error:
            code = error.errno or errno.EIO
        finally:
            os._exit(code if code < 256 else errno.EIO)
    ended = reap_within(pid, timeout_s, (signal.SIGKILL, 0.0))
    return errno.ETIMEDOUT if ended is None or ended < 0 else ended


def _components(path: str) -> list[str]:
    """Return the names of a path, last one first, ready to be popped."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]
