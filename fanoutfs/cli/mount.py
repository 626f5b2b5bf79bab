"""`fanoutfs mount`: check what can be checked cheaply, start the daemon, return when the mount answers.

Three processes in turn: the command (parent), the daemon it forks (which becomes the keeper), and a short-lived child
that asks the new mount for a sign of life.  Nothing heavy is imported before the fork: trio, LMDB and obstore do not
survive one.
"""

import dataclasses
import errno
import os
from pathlib import Path
from typing import Final

import click

from fanoutfs.cli.options import setting_options
from fanoutfs.config.load import build_config, check_overlaps, parse_mount_options
from fanoutfs.errors import DaemonDiedError

ANSWER_TIMEOUT_S: Final = 30.0  # the first GETATTR of the root: everything has been started by then


@click.command(
    epilog="SIZE: 20GiB, 512MiB, 1T.  TIME: 60s, 5m, 1h, indefinite.  Every option can also be written in -o: "
    "-o cache_size=20GiB,read_only.  Credentials come from the environment, a profile or a role, never from options."
)
@click.argument("source")
@click.argument("mountpoint")
@click.option("-o", "mount_options", metavar="OPT,OPT=VALUE,...", multiple=True, help="options as in fstab")
@setting_options
def mount(source: str, mountpoint: str, mount_options: tuple[str, ...], **options: str | None) -> int:
    """Mount SOURCE (s3://bucket/prefix, gs://, az://, https://, file:///dir, memory://) on the directory MOUNTPOINT.

    Returns when the mount answers; the daemon stays in the background unless --foreground is given.
    """
    from fanoutfs.cli.daemon import run_foreground, start_daemon  # noqa: PLC0415
    from fanoutfs.keeper import mount as attach  # noqa: PLC0415

    given: dict[str, str] = {}
    for text in mount_options:
        given |= parse_mount_options(text)
    given |= {name: value for name, value in options.items() if value is not None}
    config = build_config(source, Path(os.path.abspath(mountpoint)), given)
    attach.check_fuse(allow_other=config.allow_other)
    config = dataclasses.replace(config, mountpoint=attach.check_mountpoint(Path(mountpoint)))
    check_overlaps(config)

    if config.foreground:
        return run_foreground(config)
    start_daemon(config)
    if attach.probe(config.mountpoint, ANSWER_TIMEOUT_S) in (errno.ENOTCONN, errno.ETIMEDOUT):
        where = config.mountpoint
        raise DaemonDiedError(
            f"{where} is mounted but does not answer: see the log, then fanoutfs umount --lazy {where}"
        )
    return 0
