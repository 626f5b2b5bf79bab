"""`fanoutfs version`."""

import os
import platform
import tomllib
from importlib import metadata
from pathlib import Path

import click

BUILT_ON = ("pyfuse3", "trio", "lmdb", "xxhash", "obstore")


def own_version() -> str:
    """Return the installed version, or that of the source tree it is run from."""
    try:
        return metadata.version("fanoutfs")
    except metadata.PackageNotFoundError:
        pass
    try:
        with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as stream:
            return f"{tomllib.load(stream)['project']['version']} (source tree)"
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return "of unknown version"


@click.command()
def version() -> None:
    """Show the version of fanoutfs and of what it is built on."""
    click.echo(f"fanoutfs {own_version()}")
    click.echo(f"python {platform.python_version()}, Linux {os.uname().release}")
    parts = []
    for name in BUILT_ON:
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            parts.append(f"{name} missing")
    click.echo(", ".join(parts))
