"""`fanoutfs log`: what a running mount writes into its log."""

import click

from fanoutfs.cli.client import call
from fanoutfs.cli.document import json_option, print_json
from fanoutfs.cli.place import find_place
from fanoutfs.config.schema import LOG_LEVELS
from fanoutfs.errors import UsageError


@click.command(epilog="Example: fanoutfs log /mnt/data --level debug")
@click.argument("mountpoint")
@click.option("--level", type=click.Choice(LOG_LEVELS), help="log so much from now on, in all processes of the mount")
@click.option("--dump", is_flag=True, help="write requests in flight, tasks and stacks of all processes into the log")
@json_option
def log(mountpoint: str, level: str | None, dump: bool, as_json: bool) -> None:
    """Change what the mount at MOUNTPOINT logs, until it is unmounted.

    A daemon that does not answer dumps on SIGUSR1 to its keeper (fanoutfs status names it).
    """
    if level is None and not dump:
        raise UsageError("log: say --level or --dump")
    where, _relative = find_place(mountpoint)
    if level is not None:
        call(where, "log_level", level=level)
    if dump:
        call(where, "dump")
    if as_json:
        print_json({"mountpoint": str(where), "level": level, "dumped": dump})
