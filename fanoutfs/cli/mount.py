"""`fanoutfs mount`: check what can be checked cheaply, start the daemon, return when the mount answers.

Three processes in turn: the command (parent), the daemon it forks (which becomes the keeper), and a short-lived child
that asks the new mount for a sign of life.  Nothing heavy is imported before the fork: trio, LMDB and obstore do not
survive one.
"""

import errno
import os
from typing import TYPE_CHECKING, Final

import click

from fanoutfs.cli.document import json_option, print_json
from fanoutfs.cli.settings import mount_arguments, read_settings
from fanoutfs.config.layers import Settled, with_mountpoint
from fanoutfs.errors import DaemonDiedError

if TYPE_CHECKING:
    from fanoutfs.keeper.handover import Inheritance

ANSWER_TIMEOUT_S: Final = 30.0  # the first GETATTR of the root: everything has been started by then


@click.command(
    epilog="Example:  fanoutfs mount s3://bucket/train /mnt/train --profile training --cache-dir /nvme/fanoutfs\n\n"
    "SIZE: 20GiB, 512MiB, 1T.  TIME: 60s, 5m, 1h, indefinite.  Every option can also be written in -o: "
    "-o cache_size=20GiB,read_only, in the environment: FANOUTFS_CACHE_SIZE=20GiB, and in FILE: cache_size = "
    '"20GiB".  Credentials come from the environment, a profile or a role, never from options.'
)
@json_option
@mount_arguments
def mount(
    source: str | None,
    mountpoint: str | None,
    config_file: str | None,
    mount_options: tuple[str, ...],
    as_json: bool,
    **options: str | bool | None,
) -> int:
    """Mount SOURCE (s3://bucket/prefix, gs://, az://, https://, file:///dir, memory://) on the directory MOUNTPOINT.

    SOURCE may also be the NAME of a configuration /etc/fanoutfs/NAME.toml, which then says the rest.

    Returns when the mount answers; the daemon stays in the background unless --foreground is given.
    """
    from fanoutfs.cli.daemon import run_foreground, start_daemon  # noqa: PLC0415
    from fanoutfs.keeper import mount as attach  # noqa: PLC0415

    settled, recipe = read_settings(source, mountpoint, config_file, mount_options, options, os.environ)
    attach.check_fuse(allow_other=settled.config.allow_other)
    inherited = _inherit(settled) if settled.config.foreground else None
    where = settled.config.mountpoint
    free = attach.check_mountpoint(where) if inherited is None else attach.resolve(where)
    config = with_mountpoint(settled, free).config

    if config.foreground:
        return run_foreground(config, recipe, inherited)
    start_daemon(config, recipe)
    if attach.probe(config.mountpoint, ANSWER_TIMEOUT_S) in (errno.ENOTCONN, errno.ETIMEDOUT):
        where = config.mountpoint
        raise DaemonDiedError(
            f"{where} is mounted but does not answer: see the log, then fanoutfs umount --lazy {where}"
        )
    if as_json:
        print_json({"mountpoint": str(config.mountpoint), "source": config.source})
    return 0


def _inherit(settled: Settled) -> "Inheritance | None":
    """Return the mount that the service manager kept from an earlier start of this service, if it can go on."""
    from fanoutfs.keeper import handover  # noqa: PLC0415
    from fanoutfs.keeper import mount as attach  # noqa: PLC0415
    from fanoutfs.observe.sdnotify import ServiceManager, take_descriptors  # noqa: PLC0415

    manager = ServiceManager.from_environment(os.environ)
    kept = take_descriptors(os.environ)
    inherited = handover.inherit(kept)
    if inherited is None:
        for name in kept:
            manager.forget(name)
        return None
    config = with_mountpoint(settled, attach.resolve(settled.config.mountpoint)).config
    reason = handover.obstacle(inherited, config)
    if not reason:
        return inherited
    click.echo(f"fanoutfs: the mount from before cannot go on, mounting anew: {reason}", err=True)
    handover.give_up(inherited, manager)
    return None
