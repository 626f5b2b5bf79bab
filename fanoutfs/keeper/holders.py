"""Which processes use a mount, and which serve it, found without touching the mount: links and tables of /proc only.

A stat through /proc/PID/fd/N would ask the file system, which may hang; readlink prints the kernel's own path.
"""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Final

from fanoutfs.keeper.mountinfo import MountInfo

SCAN_TIMEOUT_S: Final = 2.0  # a GPU server has thousands of processes with thousands of fds: name some, not all
MAX_HOLDERS: Final = 8


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with a file, directory, mapping, working directory or root inside the mount."""

    pid: int
    command: str


def find_holders(mount: MountInfo) -> list[Holder]:
    """Return up to MAX_HOLDERS processes that use the mount, of those this user may see, within SCAN_TIMEOUT_S."""
    root = os.fsencode(mount.mountpoint)
    device = _maps_device(mount.device)
    deadline = time.monotonic() + SCAN_TIMEOUT_S
    holders: list[Holder] = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        if _holds(f"/proc/{entry}", root, device):
            holders.append(Holder(int(entry), _command(entry)))
        if len(holders) >= MAX_HOLDERS or time.monotonic() > deadline:
            break
    return holders


def find_servers(mount: MountInfo) -> list[int]:
    """Return the processes that hold the /dev/fuse descriptor of the mount, as far as can be seen in SCAN_TIMEOUT_S.

    /proc/PID/fdinfo names the connection of such a descriptor (`fuse_connection`, seen on 6.18); older kernels do not,
    and nothing is found there.  The number may also be that of an earlier, unmounted connection which somebody still
    holds: such a process is named as well.
    """
    wanted = f"fuse_connection:\t{mount.connection_id}\n"
    deadline = time.monotonic() + SCAN_TIMEOUT_S
    servers: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and _serves(f"/proc/{entry}", wanted):
            servers.append(int(entry))
        if time.monotonic() > deadline:
            break
    return servers


def _serves(process: str, wanted: str) -> bool:
    with contextlib.suppress(OSError):  # ended meanwhile, or another user's
        for fd in os.listdir(f"{process}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"{process}/fd/{fd}") != "/dev/fuse":
                    continue
                with open(f"{process}/fdinfo/{fd}", encoding="ascii") as stream:
                    if wanted in stream.read():
                        return True
    return False


def _holds(process: str, root: bytes, device: bytes) -> bool:
    links = [f"{process}/cwd", f"{process}/root", f"{process}/exe"]
    with contextlib.suppress(OSError):  # ended meanwhile, or another user's: whatever else can be seen still counts
        links += [f"{process}/fd/{fd}" for fd in os.listdir(f"{process}/fd")]
    for link in links:
        try:
            target = os.readlink(os.fsencode(link))
        except OSError:
            continue
        if target == root or target.startswith(root + b"/"):
            return True
    try:
        with open(f"{process}/maps", "rb") as maps:
            return any(line.split(None, 4)[3] == device for line in maps)
    except OSError:
        return False


def _maps_device(device: str) -> bytes:
    """Turn "0:51" into the spelling of /proc/PID/maps: hexadecimal, at least two digits each."""
    major, _, minor = device.partition(":")
    return b"%02x:%02x" % (int(major), int(minor))


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return "?"
