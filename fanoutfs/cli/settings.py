"""The arguments that name a mount and its settings, the same for every command that takes them."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from fanoutfs.cli.options import setting_options
from fanoutfs.config.files import ConfigFile, find_file, read_file
from fanoutfs.config.layers import Settled, place_in_file, settle
from fanoutfs.config.load import parse_mount_options
from fanoutfs.config.recipe import Recipe
from fanoutfs.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def mount_arguments(function: _Command) -> _Command:
    """Give a click command SOURCE, MOUNTPOINT, --config, -o and one option per setting, for `read_settings`."""
    for decorate in (
        setting_options,
        click.option("-o", "mount_options", metavar="OPT,OPT=VALUE,...", multiple=True, help="options as in fstab"),
        click.option("--config", "config_file", metavar="FILE", help="read the settings from FILE"),
        click.argument("mountpoint", required=False),
        click.argument("source", required=False),
    ):
        function = decorate(function)
    return function


def read_settings(
    source: str | None,
    mountpoint: str | None,
    config_file: str | None,
    mount_options: tuple[str, ...],
    options: Mapping[str, str | bool | None],
    environment: Mapping[str, str],
) -> tuple[Settled, Recipe]:
    """Return the settings that a command line, the environment and a file give together.  Raises UsageError.

    Without `://` SOURCE is the NAME of a configuration file.  The recipe says the same again, for a daemon.
    """
    given: dict[str, str] = {}
    for text in mount_options:
        given |= parse_mount_options(text)
    in_options = given.pop("config", None)  # as fstab says --config
    given |= {name: _as_text(value) for name, value in options.items() if value is not None}
    file: ConfigFile | None = None
    if (named := config_file or in_options) is not None:
        file = read_file(Path(named).absolute() if "/" in named or config_file else find_file(named))
    elif source is not None and "://" not in source:
        file = read_file(find_file(source))
        source = None
    origins = {"source": "argument", "mountpoint": "argument"}
    if file is not None:
        if source is None and (source := place_in_file(file, "source")):
            origins["source"] = file.place("source")
        if mountpoint is None and (mountpoint := place_in_file(file, "mountpoint")):
            origins["mountpoint"] = file.place("mountpoint")
    if not source:
        missing = (
            "name a SOURCE and a MOUNTPOINT, or a configuration" if file is None else f"{file.path}: has no source"
        )
        raise UsageError(missing)
    if not mountpoint:
        raise UsageError("where? name a MOUNTPOINT" if file is None else f"{file.path}: has no mountpoint")
    recipe = Recipe(source, os.path.abspath(mountpoint), "" if file is None else os.fspath(file.path), given)
    settled = settle(source, Path(recipe.mountpoint), given, environment, file)
    return dataclasses.replace(settled, origins={**origins, **settled.origins}), recipe


def _as_text(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else value
