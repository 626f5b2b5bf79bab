"""`fanoutfs doctor`: what stands in the way of a mount, and what to do about it."""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from fanoutfs.cli.client import SilentDaemonError, call
from fanoutfs.cli.settings import mount_arguments, read_settings
from fanoutfs.config.layers import with_mountpoint
from fanoutfs.doctor.findings import FAIL, OK, WARN, Finding, exit_code
from fanoutfs.errors import DaemonDiedError
from fanoutfs.keeper.mountinfo import FSTYPE, find_mount

NO_SOURCE: Final = "memory://"
NO_MOUNTPOINT: Final = Path("/nonexistent")
_MARKS: Final = {"ok": "  ok", "warn": "WARN", "fail": "FAIL", "skip": "   -"}


@click.command(epilog="Example: fanoutfs doctor s3://bucket/data /mnt/data --cache-dir /nvme/fanoutfs")
@click.option("--json", "as_json", is_flag=True, help="print one JSON document")
@mount_arguments
def doctor(
    source: str | None,
    mountpoint: str | None,
    config_file: str | None,
    mount_options: tuple[str, ...],
    as_json: bool,
    **options: str | bool | None,
) -> int:
    """Check whether this machine can mount SOURCE on MOUNTPOINT, and how well; takes what `mount` takes.

    Without SOURCE the machine and the cache's disk only.  A scratch object is put into the store and deleted again,
    unless --read-only is given.  Exit code 1 when something will not work.
    """
    from fanoutfs.doctor.disk import check_disk  # noqa: PLC0415
    from fanoutfs.doctor.machine import check_machine  # noqa: PLC0415
    from fanoutfs.keeper.paths import resolve  # noqa: PLC0415

    if source is None and config_file is None:
        source = NO_SOURCE
    if mountpoint is None and source is not None and "://" in source:
        mountpoint = str(NO_MOUNTPOINT)  # a configuration may name one
    settled, _recipe = read_settings(source, mountpoint, config_file, mount_options, options, os.environ)
    where = settled.config.mountpoint
    config = settled.config if where == NO_MOUNTPOINT else with_mountpoint(settled, resolve(where)).config

    def findings() -> Iterator[Finding]:
        yield from _check_daemon(where)
        yield from check_machine(config)
        yield from check_disk(config)
        if config.source != NO_SOURCE:
            from fanoutfs.doctor.store import check_store  # noqa: PLC0415  loads obstore

            yield from check_store(config)

    found = []
    for finding in findings():
        found.append(finding)
        if not as_json:
            click.echo(f"{_MARKS[finding.result]}  {finding.check:<16} {finding.reason}")
            if finding.fix:
                click.echo(f"{'':24}-> {finding.fix}")
    code = exit_code(found)
    if as_json:
        document = {"exit_code": code, "findings": [dataclasses.asdict(finding) for finding in found]}
        click.echo(json.dumps(document, indent=2))
    return code


def _check_daemon(mountpoint: Path) -> Iterator[Finding]:
    """Yield what the daemon of a mount that is there already says."""
    info = find_mount(mountpoint)
    if info is None or info.fstype != FSTYPE:
        return
    try:
        status = call(mountpoint, "status")
    except SilentDaemonError as error:
        fix = "what fails below may say why" if not error.is_starting else "wait for a moment"
        yield Finding("daemon", WARN if error.is_starting else FAIL, str(error), fix)
    except DaemonDiedError as error:
        yield Finding("daemon", FAIL, str(error), f"fanoutfs umount {mountpoint}, and mount it again")
    else:
        yield Finding(
            "daemon", OK, f"keeper {status['keeper_pid']} serves {mountpoint}: generation {status['generation']}"
        )
