"""Talking to a service manager: readiness, status, watchdog, and descriptors it keeps for the next start.

The protocol of sd_notify(3) and sd_listen_fds(3): datagrams of KEY=VALUE lines to the socket that $NOTIFY_SOCKET names,
descriptors as SCM_RIGHTS.  Written out here because it is thirty lines; libsystemd would be a dependency, and the
packages that wrap it either need it or cannot pass descriptors.

Keeper only.  Without a service manager nothing is sent.
"""

import array
import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final

log = logging.getLogger(__name__)

_SEND_TIMEOUT_S: Final = 1.0
_BARRIER_TIMEOUT_S: Final = 5.0
_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START


class ServiceManager:
    """The way to the service manager that started this process, or to nobody."""

    def __init__(self, address: str, *, watchdog_s: float = 0.0, keeps_descriptors: bool = False) -> None:
        """address: a path, `@name` in the abstract namespace, or "" for nobody.

        watchdog_s: it must hear from us that often; 0: it does not mind.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s
        self.keeps_descriptors = keeps_descriptors and bool(address)
        self._alive_at = 0.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ServiceManager":
        """Return the one that the environment names."""
        watchdog_s = 0.0
        if environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            with contextlib.suppress(ValueError):
                watchdog_s = int(environment.get("WATCHDOG_USEC", "0")) / 1e6
        # systemd says how many descriptors it keeps from version 254 on; for older ones the unit says it.
        keeps = environment.get("FDSTORE", "0") not in ("", "0")
        return cls(environment.get("NOTIFY_SOCKET", ""), watchdog_s=watchdog_s, keeps_descriptors=keeps)

    @property
    def is_there(self) -> bool:
        """Tell whether there is one."""
        return bool(self._address)

    def tell(self, *lines: str, descriptors: Sequence[int] = ()) -> None:
        """Send lines such as READY=1 and descriptors with them.  A failure is logged: nobody could mend it."""
        if not self._address:
            return
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(_SEND_TIMEOUT_S)
                channel.connect(self._address)
                channel.sendmsg(["\n".join(lines).encode()], ancillary)
        except OSError as error:
            log.error("the service manager cannot be told: %s %s", lines[0], error)

    def store(self, name: str, descriptor: int) -> None:
        """Have it keep a descriptor for the next start.  One that it keeps already is not kept twice."""
        if self.keeps_descriptors:
            # FDPOLL=0: or it would let go of /dev/fuse when the connection reports an event.
            self.tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=[descriptor])

    def forget(self, name: str) -> None:
        """Have it close the descriptor it keeps under this name."""
        if self.keeps_descriptors:
            self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def await_received(self) -> None:
        """Return when it has taken everything sent so far: a descriptor that is on its way dies with its sender."""
        if not self._address:
            return
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            self.tell("BARRIER=1", descriptors=[theirs])
            os.close(theirs)
            theirs = -1
            poller = select.poll()
            poller.register(ours, 0)  # the hang-up alone
            if not poller.poll(_BARRIER_TIMEOUT_S * 1000):
                log.warning("the service manager does not take what it is sent")
        finally:
            os.close(ours)
            if theirs >= 0:
                os.close(theirs)

    def keep_alive(self) -> float | None:
        """Tell that we live, if it is time to; return in how many seconds it will be again, None: never."""
        if not self.watchdog_s or not self._address:
            return None
        now = time.monotonic()
        due = self._alive_at + self.watchdog_s / 3  # two may be late
        if now >= due:
            self.tell("WATCHDOG=1")
            self._alive_at = now
            due = now + self.watchdog_s / 3
        return due - now


def take_descriptors(environment: MutableMapping[str, str]) -> dict[str, int]:
    """Return what the service manager kept for this process, by name; the environment does not name it any more.

    All become close-on-exec.  Of several with one name the last.
    """
    count, names, pid = (environment.pop(f"LISTEN_{key}", "") for key in ("FDS", "FDNAMES", "PID"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    taken: dict[str, int] = {}
    for index, name in enumerate((names.split(":") + [""] * int(count))[: int(count)]):
        descriptor = _FIRST_FD + index
        os.set_inheritable(descriptor, False)
        if name in taken:
            os.close(taken[name])
        taken[name] = descriptor
    return taken
