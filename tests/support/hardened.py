"""Run a command under what the unit's settings forbid, where systemd is not process 1 to do it.

    python -m tests.support.hardened UNIT COMMAND...

Applied, as read from the unit: SystemCallFilter=, RestrictAddressFamilies=, RestrictNamespaces=, RestrictRealtime=,
RestrictSUIDSGID=, LockPersonality= and MemoryDenyWriteExecute= (seccomp, with the kernel's own MDWE where it has it),
NoNewPrivileges=, CapabilityBoundingSet=, LimitCORE=, UMask=.  Not applied: DevicePolicy= (needs a control group),
KeyringMode=, ProtectClock= and ProtectHostname= beyond what the filter forbids anyway.
"""

import ctypes
import errno
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_MDWE: Final = 65
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_EQ: Final = 4
_MASKED_EQ: Final = 7
_NAMESPACES: Final = 0x7E020000 | 0x02000000  # CLONE_NEW*: of <linux/sched.h>
_WRITE, _EXEC = 2, 4
_SET_ID: Final = 0o6000
CAPABILITIES: Final = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_FOWNER": 3, "CAP_FSETID": 4,
    "CAP_SYS_ADMIN": 21,
}  # fmt: skip


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp of <seccomp.h>."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def settings(unit: Path) -> dict[str, str]:
    """Return the settings of a unit's [Service] section; the last of several wins."""
    lines = (line.strip() for line in unit.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and line[0] not in "#[;")
    return {key: value for key, _, value in pairs}


def syscalls(group: str) -> set[str]:
    """Return the system calls of a set such as @system-service, with those of the sets in it."""
    done = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    found: set[str] = set()
    for line in done.stdout.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            found |= syscalls(name)
        elif name and not name.startswith("#"):
            found.add(name)
    return found


class _Filter:
    """A seccomp filter: what is not allowed gets EPERM."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(_ERRNO | errno.EPERM))

    def allow(self, name: str, *compares: tuple[int, int, int, int], action: int = _ALLOW) -> None:
        """Allow a call, with arguments like these (argument, operation, two data) when there are any.

        action: something else that happens to it.
        """
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture
            return
        array = (_Compare * len(compares))(*(_Compare(*compare) for compare in compares))
        code = self._library.seccomp_rule_add_array(self._context, action, number, len(compares), array)
        assert code == 0, (name, code)

    def load(self) -> None:
        """Put it into force for this thread and what it executes."""
        assert self._library.seccomp_load(self._context) == 0


def harden(unit: Path) -> None:
    """Give up what the unit forbids.  Irrevocable."""
    wanted = settings(unit)
    allowed = set().union(*(syscalls(group) for group in wanted["SystemCallFilter"].split()))
    families = [int(getattr(socket, name)) for name in wanted["RestrictAddressFamilies"].split()]
    kept = {CAPABILITIES[name] for name in wanted["CapabilityBoundingSet"].split()}
    os.umask(int(wanted["UMask"], 8))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in set(range(last + 1)) - kept:
        assert libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0
    assert libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert wanted["MemoryDenyWriteExecute"] == wanted["RestrictNamespaces"] == wanted["RestrictSUIDSGID"] == "yes"
    libc.prctl(_PR_SET_MDWE, 1, 0, 0, 0)  # Linux 6.3
    _filter(allowed, families).load()


def _filter(allowed: set[str], families: list[int]) -> _Filter:
    made = _Filter()
    modes = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "mknod": 1, "mknodat": 2, "mkdir": 1, "mkdirat": 2}
    special = {"socket", "clone", "clone3", "unshare", "setns", "mmap", "mprotect", "pkey_mprotect", "personality"}
    for name in sorted(allowed - special - set(modes) - {"sched_setscheduler"}):
        made.allow(name)
    for family in families:
        made.allow("socket", (0, _EQ, family, 0))
    made.allow("clone", (0, _MASKED_EQ, _NAMESPACES, 0))
    # Its flags lie in memory, where no filter sees them: as systemd does, have the C library take `clone`.
    made.allow("clone3", action=_ERRNO | errno.ENOSYS)
    for name in ("mmap", "mprotect"):  # never both: once without the one, once without the other
        made.allow(name, (2, _MASKED_EQ, _WRITE, 0))
    made.allow("mmap", (2, _MASKED_EQ, _EXEC, 0))
    made.allow("mprotect", (2, _MASKED_EQ, _EXEC, 0))
    for name, argument in modes.items():
        made.allow(name, (argument, _MASKED_EQ, _SET_ID, 0))
    for policy in (0, 3, 5):  # SCHED_OTHER, SCHED_BATCH, SCHED_IDLE
        made.allow("sched_setscheduler", (1, _EQ, policy, 0))
    for personality in (0, 0xFFFFFFFF):
        made.allow("personality", (0, _EQ, personality, 0))
    return made


if __name__ == "__main__":
    harden(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
