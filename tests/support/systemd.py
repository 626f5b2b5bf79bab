"""A systemd of our own as process 1, in namespaces and a control group of its own: what the unit means to the real one.

It has none of the machine's units, only empty targets and what the test installs.  Mounts made inside are seen inside
only; /etc and /usr/sbin can be written there and are as before afterwards.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.mounts import wait_until

PROGRAM: Final = Path("/lib/systemd/systemd")
_TARGETS: Final = ("sysinit", "basic", "shutdown", "network-online", "multi-user")
_BOOT: Final = f"""
set -e
echo $$ > "$1/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --cgroup --mount-proc sh -c '
set -e
# A copy of a mount of another test would outlive it, keep its daemon and its disk busy, and fail that test.
grep -E " fuse|^/dev/loop" /proc/self/mounts | cut -d " " -f 2 | while read -r copy; do umount -l "$copy" || true; done
mount -t tmpfs tmpfs /run
umount -R -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /run/units
for name in /etc /usr/sbin; do
    mkdir -p /run/over$name/upper /run/over$name/work
    mount -t overlay overlay -o lowerdir=$name,upperdir=/run/over$name/upper,workdir=/run/over$name/work $name
done
for name in {" ".join(_TARGETS)}; do
    printf "[Unit]\\nDefaultDependencies=no\\n" > /run/units/$name.target
done
export container=test SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units
exec {PROGRAM} --system --unit=basic.target --log-target=console --show-status=no
'
"""


class Systemd:
    """A running one."""

    def __init__(self, pid: int) -> None:
        """pid: of its process 1, as seen here."""
        self._pid = pid

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        inside = ["nsenter", f"--target={self._pid}", "--mount", "--pid", "--cgroup", f"--wdns={os.getcwd()}"]
        return subprocess.run([*inside, *command], capture_output=True, text=True, timeout=220, check=False)


@contextlib.contextmanager
def booted(log: Path) -> Iterator[Systemd]:
    """Boot; everything inside ends with the context.  log: what is written before systemd itself has begun."""
    if os.geteuid() != 0 or not PROGRAM.exists() or not shutil.which("nsenter"):
        pytest.skip("needs root, systemd and nsenter")
    group = _cgroup2() / f"fanoutfs-test-{os.getpid()}"
    group.mkdir()
    try:
        with log.open("wb") as stream:
            unshare = subprocess.Popen(
                ["sh", "-c", _BOOT, "boot", str(group)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        try:
            pid = int(wait_until(lambda: _child(unshare), lambda: f"process 1 has begun: {log.read_text()}"))
            systemd = Systemd(pid)
            running = ("systemctl", "is-system-running")
            wait_until(
                lambda: systemd.run(*running).stdout.strip() in ("running", "degraded"),
                lambda: f"it is up: {log.read_text()}",
            )
            yield systemd
        finally:
            for child in _children(unshare.pid):
                os.kill(child, signal.SIGKILL)  # and with process 1 everything in its namespace
            unshare.kill()
            unshare.wait()
    finally:
        wait_until(lambda: _remove(group), "nobody is in its control groups any more")


def _cgroup2() -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    pytest.skip("no cgroup2 is mounted")


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _child(unshare: subprocess.Popen[bytes]) -> int | None:
    assert unshare.poll() is None, "unshare failed"
    for pid in _children(unshare.pid):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                return pid
    return None


def _remove(group: Path) -> bool:
    """Remove a control group and those in it; False while somebody is in one."""
    try:
        for folder, _folders, _files in os.walk(group, topdown=False):
            os.rmdir(folder)
    except OSError:
        time.sleep(0.01)
        return False
    return True
