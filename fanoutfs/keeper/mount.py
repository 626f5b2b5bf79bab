"""Attaching /dev/fuse to a directory and detaching it again.  Knows mount(2) and fusermount3, no FUSE protocol.

The command line checks a mountpoint and unmounts with it, the keeper mounts with it.  Nothing is kept between calls;
the descriptor `mount` returns belongs to the caller, and closing its last copy is what kills the mount.

Two ways, chosen by privilege: with CAP_SYS_ADMIN (root, or a service user with AmbientCapabilities=) mount(2) and
umount2(2) directly; without it the setuid helper fusermount3.

A stat of somebody's hung mount may block for ever: paths are resolved and mounts touched through `paths` only.
"""

import contextlib
import ctypes
import errno
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
from pathlib import Path
from typing import Final

from fanoutfs.errors import (
    FanoutError,
    FuseUnavailableError,
    MountBusyError,
    MountDeniedError,
    MountpointError,
    NotMountedError,
)
from fanoutfs.keeper.holders import find_holders
from fanoutfs.keeper.mountinfo import FSTYPE, MountInfo, find_mount, read_mounts, set_read_ahead
from fanoutfs.keeper.paths import probe, resolve

__all__ = [
    "MountInfo",
    "check_fuse",
    "check_mountpoint",
    "find_mount",
    "is_visible_to_init",
    "mount",
    "probe",
    "resolve",
    "set_read_ahead",
    "unmount",
]

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")
FUSERMOUNT = "fusermount3"
INSTALL_HINT: Final = "install FUSE 3: apt install fuse3"

FUSERMOUNT_TIMEOUT_S: Final = 30.0

# <sys/mount.h>
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

CAP_SYS_ADMIN: Final = 21  # <linux/capability.h>
_INT: Final = struct.Struct("i")


# --- before mounting -------------------------------------------------------------------------------------------


def check_fuse(*, allow_other: bool = False) -> None:
    """Check that a mount can be tried at all: the device, and for ordinary users the helper and its configuration.

    FuseUnavailableError, MountDeniedError.
    """
    if not FUSE_DEVICE.exists():
        raise FuseUnavailableError(
            f"{FUSE_DEVICE} does not exist: load the kernel module (modprobe fuse) or {INSTALL_HINT}"
        )
    if _is_privileged():
        return
    _fusermount()
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):  # the setuid helper opens it with the rights of its caller
        raise FuseUnavailableError(f"{FUSE_DEVICE} is closed to this user: udev sets mode 0666, here it is not so")
    if _status_field("NoNewPrivs") == "1":
        raise MountDeniedError(
            f"{FUSERMOUNT} cannot gain privileges here (NoNewPrivileges): "
            "give the service AmbientCapabilities=CAP_SYS_ADMIN, or run it as root"
        )
    if allow_other and not _allows_other():
        raise MountDeniedError(f"allow_other needs a line `user_allow_other` in {FUSE_CONF}: add it, or mount as root")


def check_mountpoint(path: Path) -> Path:
    """Return the symlink-free path of a directory that can be mounted on: existing, empty, nothing mounted there.

    A dead fanoutfs mount of this user is detached first.  An autofs trigger (systemd's x-systemd.automount) counts as
    free and is not looked into: that would ask systemd to mount what is being mounted.  MountpointError.
    """
    resolved = resolve(path)
    while (info := find_mount(resolved)) is not None:
        if info.fstype == "autofs":
            return resolved
        _detach_dead(info)
    try:
        status = resolved.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise MountpointError(f"{resolved} is not a directory: mount on an empty directory")
        with os.scandir(resolved) as entries:
            is_empty = next(entries, None) is None
    except FileNotFoundError:
        raise MountpointError(f"{resolved} does not exist: create it first (mkdir -p)") from None
    except OSError as error:
        raise MountpointError(f"{resolved} cannot be read: {error.strerror}") from None
    if not is_empty:
        raise MountpointError(f"{resolved} is not empty: mount on an empty directory, files below a mount are hidden")
    return resolved


def is_visible_to_init(mountpoint: Path) -> bool:
    """Tell whether process 1 sees what is mounted here; True where its mount table may not be read."""
    info = find_mount(mountpoint)
    try:
        table = read_mounts(Path("/proc/1/mountinfo"))
    except OSError:
        return True
    return info is None or any(each.device == info.device for each in table)


# --- mounting --------------------------------------------------------------------------------------------------


def mount(mountpoint: Path, source: str, *, read_only: bool, allow_other: bool, noexec: bool = False) -> int:
    """Mount on a directory that `check_mountpoint` returned; return the /dev/fuse descriptor (O_RDWR, close-on-exec).

    source: what the mount table shows for everybody, so never with credentials.  Permissions are always checked by the
    kernel (default_permissions), set-uid bits and devices never honoured.  Returns before the kernel's INIT has been
    read: until that is answered nobody may touch the mount.  FuseUnavailableError, MountDeniedError, MountpointError.
    """
    check_fuse(allow_other=allow_other)
    mount_it = _mount_directly if _is_privileged() else _mount_by_helper
    return mount_it(mountpoint, source, read_only=read_only, allow_other=allow_other, noexec=noexec)


def is_connected(fuse_fd: int) -> bool:
    """Tell whether the kernel still has the file system of an open /dev/fuse: a mount, or a file that is open."""
    poller = select.poll()
    poller.register(fuse_fd, 0)
    return not any(events & select.POLLERR for _fd, events in poller.poll(0))


def unmount(mountpoint: Path, *, lazy: bool = False, force: bool = False) -> None:
    """Unmount; lazy: detach now, users keep what they have open; force: fail every waiting request (root only).

    NotMountedError, MountBusyError (names the processes), MountDeniedError.
    """
    info = find_mount(mountpoint)
    if info is None:
        raise NotMountedError(f"nothing is mounted at {mountpoint}")
    if _is_privileged():
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)
        code = _call("umount2", ctypes.c_char_p(os.fsencode(mountpoint)), ctypes.c_int(flags))
        text = os.strerror(code)
    else:
        code, text = _unmount_by_helper(mountpoint, lazy=lazy)
    if code == 0:
        return
    if code == errno.EBUSY:
        raise MountBusyError(_busy_line(info))
    if code in (errno.EINVAL, errno.ENOENT):
        raise NotMountedError(f"nothing is mounted at {mountpoint}")
    raise MountDeniedError(f"cannot unmount {mountpoint}: {text}")


def escape_option(value: str) -> str:
    """Protect commas and backslashes of a value inside fusermount3's option string."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _mount_directly(mountpoint: Path, source: str, *, read_only: bool, allow_other: bool, noexec: bool) -> int:
    try:
        fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FuseUnavailableError(
            f"{FUSE_DEVICE} cannot be opened: {error.strerror}; load the module (modprobe fuse), {INSTALL_HINT}, "
            "or let the container or service use the device"
        ) from None
    data = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    if allow_other:
        data += ",allow_other"
    flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if read_only else 0) | (MS_NOEXEC if noexec else 0)
    code = _call(
        "mount",
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_char_p(os.fsencode(mountpoint)),
        ctypes.c_char_p(FSTYPE.encode()),
        ctypes.c_ulong(flags),
        ctypes.c_char_p(data.encode()),
    )
    if code == 0:
        return fd
    os.close(fd)
    text = f"cannot mount on {mountpoint}: {os.strerror(code)}"
    if code == errno.ENODEV:
        raise FuseUnavailableError(f"{text}: the kernel has no FUSE (modprobe fuse)")
    if code in (errno.EPERM, errno.EACCES):
        raise MountDeniedError(f"{text}: mounting needs CAP_SYS_ADMIN")
    raise MountpointError(text)


def _mount_by_helper(mountpoint: Path, source: str, *, read_only: bool, allow_other: bool, noexec: bool) -> int:
    options = [f"fsname={escape_option(source)}", "subtype=fanoutfs", "default_permissions", "nosuid", "nodev"]
    if read_only:
        options.append("ro")
    if allow_other:
        options.append("allow_other")
    if noexec:
        options.append("noexec")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        ours.settimeout(FUSERMOUNT_TIMEOUT_S)
        code, text = _run_helper(["-o", ",".join(options), "--", str(mountpoint)], theirs.fileno())
        theirs.close()
        if code != 0:
            raise _helper_error(text)
        # The helper sends the descriptor before it ends, so it is here or never.
        # Not socket.recv_fds: Python 3.11's drops the flags it is given.
        _, controls, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(_INT.size), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in controls:
        if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.size):
            fd: int = _INT.unpack(data)[0]
            return fd
    raise FuseUnavailableError(f"{FUSERMOUNT} mounted {mountpoint} but sent no descriptor: {INSTALL_HINT}")


def _unmount_by_helper(mountpoint: Path, *, lazy: bool) -> tuple[int, str]:
    code, text = _run_helper(["-u", *(["-z"] if lazy else []), "--", str(mountpoint)])
    if code == 0:
        return 0, ""
    if os.strerror(errno.EBUSY) in text:
        return errno.EBUSY, text
    if "not found in" in text or "not mounted" in text:
        # fusermount3 compares the owner too, so this may also be a mount of somebody else.
        return (errno.EPERM, "it belongs to another user") if find_mount(mountpoint) else (errno.EINVAL, text)
    return errno.EPERM, text


def _run_helper(arguments: list[str], comm_fd: int | None = None) -> tuple[int, str]:
    """Run fusermount3; return its exit code and the last line it printed, without its name in front."""
    environment = {"LC_ALL": "C"}
    if comm_fd is not None:
        environment["_FUSE_COMMFD"] = str(comm_fd)
    try:
        done = subprocess.run(
            [FUSERMOUNT, *arguments],
            executable=_fusermount(),
            env=environment,
            pass_fds=[] if comm_fd is None else [comm_fd],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"{FUSERMOUNT} did not end within {FUSERMOUNT_TIMEOUT_S:.0f} s"
    except OSError as error:
        raise FuseUnavailableError(f"{FUSERMOUNT} cannot be run ({error.strerror}): {INSTALL_HINT}") from None
    lines = os.fsdecode(done.stderr).strip().splitlines() or [f"{FUSERMOUNT} ended with code {done.returncode}"]
    return done.returncode, lines[-1].removeprefix(f"{FUSERMOUNT}: ")


def _helper_error(text: str) -> FanoutError:
    if "device not found" in text or "failed to open /dev/fuse" in text:
        return FuseUnavailableError(f"{text}: load the kernel module (modprobe fuse) or {INSTALL_HINT}")
    if "mounting over filesystem type" in text:
        return MountpointError(f"{FUSERMOUNT}: {text}")
    if "no write access" in text or "not owned by" in text:
        return MountDeniedError(f"{FUSERMOUNT}: {text}: mount on a directory of your own")
    if "Operation not permitted" in text:
        return MountDeniedError(f"{FUSERMOUNT}: {text}: it must be setuid root (apt install --reinstall fuse3)")
    return MountDeniedError(f"{FUSERMOUNT}: {text}")


# --- inside ----------------------------------------------------------------------------------------------------


def _detach_dead(info: MountInfo) -> None:
    """Detach a mount of ours whose daemon is gone; MountpointError if it is alive or somebody else's."""
    where = info.mountpoint
    is_ours = info.fstype == FSTYPE and info.owner_uid == os.geteuid()
    if not is_ours:
        raise MountpointError(
            f"{where} is a mount already ({info.fstype} from {info.source}): unmount it or choose another"
        )
    problem = probe(where)
    if problem == errno.ETIMEDOUT:
        raise MountpointError(f"{where} is a fanoutfs mount that does not answer: fanoutfs umount --lazy {where}")
    if problem != errno.ENOTCONN:
        raise MountpointError(f"{where} is mounted already (from {info.source}): fanoutfs umount {where}")
    with contextlib.suppress(NotMountedError):
        unmount(where, lazy=True)


def _busy_line(info: MountInfo) -> str:
    users = ", ".join(f"{holder.pid} ({holder.command})" for holder in find_holders(info))
    by = f"in use by {users}" if users else "in use (by processes this user cannot see)"
    return f"{info.mountpoint} is {by}: end them, or use --lazy"


def _call(function: str, *arguments: object) -> int:
    """Call a libc function; return 0 or its errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc[function](*arguments) == 0 else ctypes.get_errno()


def _is_privileged() -> bool:
    """Return whether mount(2) is ours to call: root, or a service user that was given CAP_SYS_ADMIN."""
    return os.geteuid() == 0 or bool(int(_status_field("CapEff") or "0", 16) >> CAP_SYS_ADMIN & 1)


def _status_field(name: str) -> str:
    for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _fusermount() -> str:
    # A mount helper runs without PATH, hence the fixed places behind it.
    found = shutil.which(FUSERMOUNT, path=os.environ.get("PATH", "") + ":/usr/bin:/bin:/usr/local/bin")
    if found is None:
        raise FuseUnavailableError(f"{FUSERMOUNT} is missing, ordinary users need it to mount: {INSTALL_HINT}")
    return found


def _allows_other() -> bool:
    try:
        text = FUSE_CONF.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in text.splitlines())
