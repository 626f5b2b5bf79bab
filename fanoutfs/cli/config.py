"""`fanoutfs config`: what a mount would be told, who said it, and whether a file is right.  Mounts nothing."""

import json
import os
from pathlib import Path
from typing import Any

import click

from fanoutfs.cli.document import json_option, print_json
from fanoutfs.cli.settings import mount_arguments, read_settings
from fanoutfs.config.files import find_file, read_file
from fanoutfs.config.layers import Settled, problems
from fanoutfs.config.load import SETTINGS, show_value
from fanoutfs.errors import UsageError

_DEFAULT = "default"


@click.group()
def config() -> None:
    """Show and check settings."""


@config.command(epilog="Example:  fanoutfs config show train --origin")
@mount_arguments
@click.option("--origin", is_flag=True, help="say who set what: a flag, a variable, a line of a file, a profile")
@click.option("--json", "as_json", is_flag=True, help="print JSON: sizes in bytes, durations in seconds")
def show(
    source: str | None,
    mountpoint: str | None,
    config_file: str | None,
    mount_options: tuple[str, ...],
    origin: bool,
    as_json: bool,
    **options: str | bool | None,
) -> None:
    """Show every setting as `mount` with the same arguments would use it.

    What is printed is itself a configuration file.
    """
    settled, _recipe = read_settings(source, mountpoint, config_file, mount_options, options, os.environ)
    if as_json:
        click.echo(json.dumps(_as_json(settled, origin), indent=2))
        return
    for name, text, unit in _texts(settled):
        value = text if unit in ("count", "share", "flag", "id") else json.dumps(text)
        whence = f"  # {settled.origins.get(name, _DEFAULT)}" if origin else ""
        # What is unset has no value that could be written.
        click.echo(f"{name} = {value}{whence}" if text else f"# {name} ={whence}")


@config.command(epilog="Example:  fanoutfs config check train /etc/fanoutfs/run.toml")
@click.argument("files", metavar="FILE|NAME...", nargs=-1, required=True)
@json_option
def check(files: tuple[str, ...], as_json: bool) -> None:
    """Check configuration files; print every mistake with file and line, and exit with 2 if there is one.

    Whether the bucket exists and the credentials are good is for `fanoutfs mount` to say.
    """
    mistakes, documents = 0, []
    for name in files:
        path = Path(name).absolute() if "/" in name or name.endswith(".toml") else find_file(name)
        try:
            found = problems(read_file(path))
        except UsageError as error:
            found = [str(error)]
        documents.append({"file": str(path), "mistakes": found})
        for line in found if not as_json else ():
            click.echo(line, err=True)
        if not found and not as_json:
            click.echo(f"{path}: ok")
        mistakes += len(found)
    if as_json:
        print_json(documents)
    if mistakes:
        raise UsageError(f"{mistakes} mistake{'s' if mistakes > 1 else ''}")


def _texts(settled: Settled) -> list[tuple[str, str, str]]:
    """Return (name, value as text, unit) of every setting."""
    config = settled.config
    texts = [("source", config.source, "text"), ("mountpoint", os.fspath(config.mountpoint), "path")]
    for name, setting in SETTINGS.items():
        texts.append((name, show_value(name, getattr(config, name)), setting.metadata["unit"]))
    return texts


def _as_json(settled: Settled, origin: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, text, unit in _texts(settled):
        value = getattr(settled.config, name)
        if unit in ("path", "disks", "mode") or value == float("inf"):  # JSON has no infinity
            value = text
        shown[name] = {"value": value, "origin": settled.origins.get(name, _DEFAULT)} if origin else value
    return shown
