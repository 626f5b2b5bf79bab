"""`fanoutfs upgrade`: every process of a mount is replaced by the installed version while the mount is in use."""

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from fanoutfs.cli.client import call, call_keeper
from fanoutfs.cli.target import find_mount_by_name, find_only_mount, own_mounts
from fanoutfs.errors import DaemonDiedError, FanoutError, NotMountedError, UsageError

_STATE_TIMEOUT_S: Final = 1.0
_CHECK_TIMEOUT_S: Final = 90.0
"""The keeper has the installed version import everything first, on a machine that may be busy."""
_REPLACE_TIMEOUT_S: Final = 150.0
"""A core that opens its index may take two minutes after a power cut; the keeper allows that much."""
_POLL_S: Final = 0.01


@click.command(epilog="Example:  pipx upgrade fanoutfs && fanoutfs upgrade /mnt/data   fanoutfs upgrade --all")
@click.argument("mount", metavar="[MOUNTPOINT|NAME]", required=False)
@click.option("--all", "is_all", is_flag=True, help="all mounts of this user, one after the other")
@click.option("--json", "as_json", is_flag=True, help="print JSON; with --all a list")
def upgrade(mount: str | None, is_all: bool, as_json: bool) -> int:
    """Go on with the installed version and the settings as they are now, without unmounting.

    Open files stay open; readers and writers wait for a moment and see no error.  The configuration file, if the mount
    has one, is read again.  When the installed version or the settings are not good for this mount, nothing happens.
    With --all every mount is tried; the exit code is that of the first that could not be upgraded.
    """
    if is_all and mount is not None:
        raise UsageError("upgrade: name a mount or say --all")
    if not is_all:
        place = find_only_mount("name one or say --all") if mount is None else find_mount_by_name(mount)
        done = _upgrade(place)
        click.echo(json.dumps(done) if as_json else _line(done))
        return 0
    if not (places := own_mounts()):
        raise NotMountedError("nothing is mounted")
    documents, exit_code = [], 0
    for place in places:
        try:
            documents.append(done := _upgrade(place))
            if not as_json:
                click.echo(_line(done))
        except FanoutError as error:
            exit_code = exit_code or error.exit_code
            documents.append({"mountpoint": str(place), "error": str(error)})
            click.echo(f"fanoutfs: {error}", err=True)
    if as_json:
        click.echo(json.dumps(documents))
    return exit_code


def _line(done: Mapping[str, Any]) -> str:
    stall_ms = done["longest_stall_s"] * 1000
    return f"{done['mountpoint']}: upgraded; the longest wait for an answer was {stall_ms:.0f} ms"


def _upgrade(mountpoint: Path) -> dict[str, Any]:
    """Upgrade one mount; return what there is to say of it.  Raises FanoutError."""
    try:
        before = call_keeper(mountpoint, "state", timeout_s=_STATE_TIMEOUT_S)  # a new version may mend a core
    except FanoutError:
        before = call(mountpoint, "status")
    watch = _Watch(mountpoint)
    watch.start()
    try:
        call_keeper(mountpoint, "upgrade", timeout_s=_CHECK_TIMEOUT_S)
        after = _await_generation(mountpoint, int(before["generation"]), int(before["keeper_pid"]))
    finally:
        stall_s = watch.stop()
    generations = {"before": before["generation"], "after": after["generation"]}
    return {"mountpoint": str(mountpoint), "generation": generations, "longest_stall_s": round(stall_s, 3)}


def _await_generation(mountpoint: Path, before: int, keeper_pid: int) -> dict[str, Any]:
    """Return the status of the first core after this generation.  Raises DaemonDiedError."""
    deadline = time.monotonic() + _REPLACE_TIMEOUT_S
    while time.monotonic() < deadline:
        if not os.path.exists(f"/proc/{keeper_pid}"):
            raise DaemonDiedError(f"{mountpoint}: the daemon ended while it was replaced; see the log")
        try:
            status = call(mountpoint, "status", timeout_s=1.0)
        except FanoutError:  # between two cores
            time.sleep(_POLL_S)
            continue
        if int(status["generation"]) > before:
            return status
        time.sleep(_POLL_S)
    raise DaemonDiedError(f"{mountpoint}: the installed version has not taken over in time; see the log")


class _Watch(threading.Thread):
    """Asks the mount something all the time that the kernel cannot answer, and notes the longest wait."""

    def __init__(self, mountpoint: Path) -> None:
        super().__init__(daemon=True)  # a mount that never answers must not keep the command
        self._mountpoint = mountpoint
        self._is_stopped = False
        self._asked = time.monotonic()
        self._longest_s = 0.0

    def run(self) -> None:
        """Ask until stopped."""
        while not self._is_stopped:
            self._asked = time.monotonic()
            try:
                os.statvfs(self._mountpoint)
            except OSError:
                return  # the mount is gone, which the command says
            self._longest_s = max(self._longest_s, time.monotonic() - self._asked)
            time.sleep(0.001)

    def stop(self) -> float:
        """Return the longest wait so far in seconds, one that lasts still included."""
        self._is_stopped = True
        self.join(timeout=1.0)
        return max(self._longest_s, time.monotonic() - self._asked if self.is_alive() else 0.0)
