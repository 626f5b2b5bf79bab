"""Real mounts for tests: the installed command, a real kernel, everything removed afterwards even when a test fails."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from fanoutfs.cli.client import call
from fanoutfs.cli.progress import ask
from fanoutfs.config.directories import control_socket, keeper_socket
from fanoutfs.keeper.mountinfo import find_mount

COMMAND = (sys.executable, "-m", "fanoutfs")
INTERRUPTIBLE = ("env", "--default-signal=INT", *COMMAND)
"""As from a terminal: who runs the tests in the background of a script has SIGINT ignored, and hands that on."""
COMMAND_TIMEOUT_S = 60.0
_END_S: Final = 10.0


def run_command(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `fanoutfs` with these arguments as a user would."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str], deadline_s: float = 60.0) -> Any:
    """Return the condition's first true value; fail with `what` when the deadline passes."""
    deadline = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {deadline_s:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.01)


def processes_of(path: Path) -> list[int]:
    """Return the processes that have this path, or one below it, in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if os.fsencode(path) in words and b"Z (zombie)" not in (entry / "status").read_bytes():
                    found.append(int(entry.name))
    return found


def end_processes_of(path: Path) -> None:
    """Return when none is left: a core whose keeper was killed ends by itself, and writes to its cache until then."""
    deadline = time.monotonic() + _END_S
    while found := processes_of(path):
        if time.monotonic() > deadline:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@dataclass
class Mount:
    """A mount under test.  path: the mountpoint; cache: its cache directory."""

    source: str
    path: Path
    cache: Path
    options: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Mount; fail the test with the command's message when that does not work."""
        result = run_command(
            "mount", self.source, str(self.path), "--cache-dir", str(self.cache), *self.options, env=self.env
        )
        assert result.returncode == 0, f"{result.stderr}\n{self.log()}"

    def stop(self) -> None:
        """Unmount; fail the test when anything is left."""
        result = run_command("umount", str(self.path))
        assert result.returncode == 0, f"{result.stderr}\n{self.log()}"

    def status(self) -> dict[str, Any]:
        """Return the daemon's status, as soon as a core answers: one that is killed or stalls is waited for."""
        return ask(self.path, "status", is_under_way=True)

    def counters(self) -> dict[str, int]:
        """Return the daemon's counters."""
        counters: dict[str, int] = self.status()["counters"]
        return counters

    def wait_for_fills(self) -> None:
        """Return when what was fetched is on disk and in the index; readers have it earlier."""
        wait_until(lambda: self.status()["in_flight"]["fill_bytes"] == 0, "the bytes are on disk")

    def messages(self) -> dict[str, int]:
        """Return the message counters that are not zero: `read_answered` → n."""
        prefix = "messages_"
        return {name.removeprefix(prefix): n for name, n in self.counters().items() if name.startswith(prefix) and n}

    def invalidate(self, path: str = "") -> None:
        """List a directory again now and tell the kernel what changed."""
        call(self.path, "invalidate", path=path, timeout_s=COMMAND_TIMEOUT_S)

    def log(self) -> str:
        """Return the daemon's log."""
        return "\n".join(path.read_text() for path in self.cache.glob("volumes/*/fanoutfs.log"))

    def volume(self) -> Path:
        """Return the cache folder of the one volume."""
        (path,) = (self.cache / "volumes").iterdir()
        return path

    def kill_everything(self) -> None:
        """End whatever still runs or is mounted, and remove its sockets; for clean-up, also after a failed test."""
        info = find_mount(self.path)
        if info is not None and info.fstype == "fuse.fanoutfs":
            with contextlib.suppress(Exception):
                pid = call(self.path, "status")["keeper_pid"]
                os.kill(pid, signal.SIGKILL)
            subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)
        end_processes_of(self.path)
        for path in (control_socket(self.path), keeper_socket(self.path)):
            path.unlink(missing_ok=True)  # who is killed leaves them to the next mount of this place


@dataclass
class PatchedMount(Mount):
    """A mount whose daemon is changed by a function of tests.fault.patches."""

    patch: str = ""

    def start(self) -> None:
        """Mount; fail the test with the command's message when that does not work."""
        command = (sys.executable, "-m", "tests.fault.patches", self.patch, "mount", self.source, str(self.path))
        done = subprocess.run(
            [*command, "--cache-dir", str(self.cache), *self.options],
            env={**os.environ, **self.env},
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\n{self.log()}"


@contextlib.contextmanager
def mounted(
    source: str, *options: str, env: Mapping[str, str] | None = None, start: bool = True, patch: str = ""
) -> Iterator[Mount]:
    """Mount a source in a fresh place and unmount it at the end; nothing survives.  patch: see PatchedMount."""
    base = Path(tempfile.mkdtemp(prefix="fanoutfs-test-", dir="/var/tmp"))
    place = (source, base / "mnt", base / "cache", options, dict(env or {}))
    mount = PatchedMount(*place, patch=patch) if patch else Mount(*place)
    mount.path.mkdir()
    try:
        if start:
            mount.start()
        yield mount
        if find_mount(mount.path) is not None:
            mount.stop()
    finally:
        mount.kill_everything()
        shutil.rmtree(base, ignore_errors=True)
