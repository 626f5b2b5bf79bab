"""`fanoutfs version`."""

import json
import os
import platform

import click

from fanoutfs import __version__

BUILT_ON = ("pyfuse3", "trio", "lmdb", "xxhash", "obstore")


@click.command(epilog="Example:  fanoutfs version --json")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def version(as_json: bool) -> None:
    """Show the version of fanoutfs and of what it is built on."""
    from importlib import metadata  # noqa: PLC0415  40 ms

    versions: dict[str, str | None] = {
        "fanoutfs": __version__,
        "python": platform.python_version(),
        "linux": os.uname().release,
    }
    for name in BUILT_ON:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    if as_json:
        click.echo(json.dumps(versions))
        return
    click.echo(f"fanoutfs {versions['fanoutfs']}")
    click.echo(f"python {versions['python']}, Linux {versions['linux']}")
    click.echo(", ".join(f"{name} {versions[name] or 'missing'}" for name in BUILT_ON))
