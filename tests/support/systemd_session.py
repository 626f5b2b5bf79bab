"""What an operator does with a service, inside `tests.support.systemd`: start, reload, restart, crashes, stop.

    python -m tests.support.systemd_session DIRECTORY     > one JSON line, what the load saw

DIRECTORY holds `source` with files of `tests.support.load`, and empty `mnt` and `cache`.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fanoutfs.cli.client import call
from fanoutfs.errors import FanoutError
from fanoutfs.keeper.mountinfo import find_mount
from tests.support.load import Load
from tests.support.mounts import run_command, wait_until

UNIT: Final = "fanoutfs@t.service"
CONFIG: Final = """
source = "file://{base}/source"
mountpoint = "{base}/mnt"
cache_dir = "{base}/cache"
upload_delay = "0s"
"""


def show(name: str) -> str:
    """Return a property of the service."""
    done = subprocess.run(
        ["systemctl", "show", "--value", "-p", name, UNIT], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


def systemctl(*arguments: str) -> None:
    """Run it; it must succeed."""
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr


def fanoutfs(*arguments: str) -> None:
    """Run it; it must succeed."""
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr


def main() -> None:
    """Do it all."""
    base = Path(sys.argv[1])
    mnt = base / "mnt"
    Path("/etc/fanoutfs").mkdir()
    Path("/etc/fanoutfs/t.toml").write_text(CONFIG.format(base=base))
    fanoutfs("service", "install")
    drop_in = Path(f"/etc/systemd/system/{UNIT}.d/20-test.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(f"[Service]\nStandardError=append:{base}/service.log\n")
    fanoutfs("service", "enable", "t")
    assert show("ActiveState") == "active"
    assert (base / "mnt/file0").exists()
    assert show("NFileDescriptorStore") == "3"

    load = Load(mnt)
    try:
        step(mnt, lambda: systemctl("reload", UNIT), same_keeper=True)
        step(mnt, lambda: systemctl("restart", UNIT))
        step(mnt, lambda: os.kill(int(show("MainPID")), signal.SIGKILL))
        # The unit's three minutes are for a machine that has too much to do; nobody waits for them here.
        drop_in.write_text(drop_in.read_text() + "WatchdogSec=15s\n")
        systemctl("daemon-reload")
        step(mnt, lambda: systemctl("restart", UNIT))
        step(mnt, lambda: os.kill(int(show("MainPID")), signal.SIGSTOP))  # only the watchdog can end that one
    finally:
        result = load.stop()
    systemctl("stop", UNIT)
    assert show("ActiveState") == "inactive"
    assert show("Result") == "success"
    assert find_mount(mnt) is None
    assert show("NFileDescriptorStore") == "0"
    assert (base / "source/log").stat().st_size > 0  # what was written is in the store
    print(json.dumps(result))


def step(mnt: Path, change: Callable[[], None], *, same_keeper: bool = False) -> None:
    """Do something to the service, and wait until another generation serves the mount."""
    before = call(mnt, "status")
    change()

    def is_replaced() -> bool:
        try:
            after = call(mnt, "status", timeout_s=1.0)
        except FanoutError:
            return False
        is_same_core, is_same_keeper = (bool(after[name] == before[name]) for name in ("core_pid", "keeper_pid"))
        return not is_same_core and is_same_keeper == same_keeper

    wait_until(is_replaced, f"{change} had an effect", deadline_s=100)
    wait_until(lambda: show("ActiveState") == "active", "it says that it is ready", deadline_s=100)
    assert show("NFileDescriptorStore") == "3"


if __name__ == "__main__":
    main()
